"""How well does the main recipe score: a U-Net on heatmaps with the adaptive wing loss?

Run      heatmap train unet --data.root DIR --out RUN
Against  experiments/baseline.py. With targets that shrink over training: --model.sigma-start 4
Cost     On 2 CPU cores, resnet18 at 128 px, 68 landmarks: 69 to 83 s per epoch of 2,899 images
         with validation (the runs below).
Outcome  faces68, random weights, 12 minutes on 2 CPU cores, validation by person: 4.98 and
         5.20 px² with two seeds (mean shape: 127.35) after 10 epochs, with --model.weights none
         --model.encoder resnet18 --model.width 68 --train.batch 16 --train.epochs 1000
         --train.max-minutes 12. Stride, width, sigma, weight map and decoder:
         docs/results.md.
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
