"""What does the main recipe reach: a U-Net on heatmaps with the adaptive wing loss?

Run      python tools/train.py experiments/unet.py --data.root DIR --out RUN
Against  experiments/baseline.py
Cost     On 2 CPU cores, resnet18 at 128 px, 68 landmarks: 146 to 265 s an epoch of 2,899 pictures
         with its validation, on a machine that did other work as well (the run below).
Outcome  faces68, random weights, 30 minutes on 2 CPU cores, validation by person: 5.50 px² (mean
         shape: 127.35), with --model.weights none --model.encoder resnet18 --model.width 68
         --train.batch 16 --train.epochs 1000 --train.max-minutes 30. The score was still falling:
         these were 8 epochs. Stride, width, sigma, weight map and decoder: experiments/README.md.
"""

from heatmap.config import Augment, Experiment, Optimizer, Train, UNet

MODEL = UNet(encoder="resnet34", weights="imagenet", stride=4, width=128, sigma=1.5)

EXPERIMENT = Experiment(
    name="unet",
    model=MODEL,
    augment=Augment(
        mirror=0.5,
        rotate_deg=25,
        scale=0.2,
        shift=0.06,
        brightness=0.2,
        contrast=0.3,
        saturation=0.4,
    ),
    optimizer=Optimizer(kind="adamw", lr=1e-3, weight_decay=0.01),
    train=Train(epochs=30, batch=32),
)
