"""The main recipe: a U-Net on heatmaps with the adaptive wing loss.

Run      python tools/train.py experiments/unet.py --data.root DIR --out RUN
Against  experiments/baseline.py
"""

from heatmap.config import Augment, Experiment, Optimizer, Train, UNet

EXPERIMENT = Experiment(
    name="unet",
    model=UNet(encoder="resnet34", weights="imagenet", stride=4, width=128, sigma=1.5),
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
