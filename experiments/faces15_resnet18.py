"""How well does direct regression place 15 landmarks on small grey images?

The first configuration of the 15-landmark project, for Kaggle's "facial-keypoints-detection":
ResNet18, layers of 512, 256 and 30, absolute error, ten augmented copies of every image per epoch,
rotated by any angle, and a one-cycle learning rate.

Run      heatmap data convert kaggle15 facial-keypoints-detection.zip DIR --incomplete drop
         heatmap train faces15_resnet18 --data.root DIR --out RUN
Against  experiments/faces15_unet.py. The authors' short version: --train.epochs 5
         --train.batch 50 --optimizer.lr 0.007 --data.multiplier 1. The reduced set: convert with
         --limit 200. With incomplete rows: convert without --incomplete drop
Cost     not measured at full size
Outcome  980 faces of 96 pixels (a random 15 % validate), random weights, 3 minutes on 2 CPU
         cores at 96 px: 106.7 px², above the mean shape (38.15) and experiments/faces15_unet.py
         (1.91). 24 epochs, instead of 800 with 10 passes each, are too few to learn faces
         at any angle. With --model.weights none --crop.height 96 --crop.width 96
         --data.multiplier 1 --train.batch 50 --optimizer.lr 0.001 --train.max-minutes 3; with
         the authors' rate of 0.007: 233.3 px². On faces68 at 128 px, 12 minutes, 0.007: 412.8.
"""

from heatmap.config import Augment, Crop, Data, Direct, Experiment, Optimizer, Schedule, Train

MODEL = Direct(encoder="resnet18", weights="imagenet", hidden=256, loss="mae")

EXPERIMENT = Experiment(
    name="faces15_resnet18",
    data=Data(split="random", validation=0.15, multiplier=10),
    crop=Crop(height=224, width=224),
    augment=Augment(
        rotate_deg=180,
        scale=0.5,
        shift=0.15,
        fill="mixed",
        brightness=0.5,
        contrast=0.5,
        sharpness=1.0,
        erase=0.5,
        erase_area=(0.01, 0.02),
    ),
    model=MODEL,
    optimizer=Optimizer(kind="adamw", lr=0.012, weight_decay=0.01),
    schedule=Schedule(kind="onecycle", warmup=0.3),
    train=Train(epochs=800, batch=625),
)
