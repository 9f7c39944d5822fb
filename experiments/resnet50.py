"""How well does direct regression score with cut borders, augmentation and a robust loss?

The final recipe of the contest's ResNet50 entry. Black borders are cut off. Crops of 224 pixels are
mirrored, rotated by up to 30 degrees and changed in brightness and contrast. The loss is the mean
absolute error. The learning rate falls by the square root of 10 when the score stops improving.

Run      heatmap train resnet50 --data.root DIR --out RUN
Against  experiments/unet.py; experiments/resnet50_blocks.py. Its author's other attempts:
         --model.loss mse|smooth_l1|wing; --model.loss mse --train.pixel-weights
         --crop.height 166 --crop.width 128; --model.encoder resnet101|resnext50_32x4d|inceptionv4
         --schedule.kind onecycle --schedule.warmup 0.3 --optimizer.lr 1e-3 --train.epochs 20
         Without bad labels: --data.exclude excluded.csv. Turned heads weighted double:
         heatmap data pose DIR --out weights.csv, --data.weights weights.csv
Cost     not measured at full size
Outcome  faces68, random weights, 12 minutes on 2 CPU cores: 10.41 and 10.94 px² with two seeds
         after 16 and 14 epochs (unet: 4.98 and 5.20, mean shape: 130.8), with --model.weights
         none --model.encoder resnet18 --crop.height 128 --crop.width 128 --train.batch 16
         --train.epochs 1000 --train.max-minutes 12. On the contest's data its author reached
         8.92 px² (private).
"""

from dataclasses import replace

from heatmap.config import Augment, Crop, Direct, Optimizer, Schedule, Train
from heatmap_experiments import baseline

MODEL = Direct(encoder="resnet50", weights="imagenet", loss="mae")

EXPERIMENT = replace(
    baseline.EXPERIMENT,
    name="resnet50",
    crop=Crop(height=224, width=224, trim_border=9),
    augment=Augment(mirror=0.5, rotate_deg=30, brightness=0.068, contrast=0.087),
    model=MODEL,
    optimizer=Optimizer(kind="adamw", lr=3e-4, weight_decay=0.01, amsgrad=True),
    schedule=Schedule(
        kind="plateau",
        warmup=0,
        gamma=10**-0.5,
        patience=4,
        threshold=0.01,
        floor=1e-6 / 3e-4,
    ),
    train=Train(epochs=40, batch=256),
)
