"""What do heatmaps gain with only 15 landmarks, on grey images of 96 pixels?

Run      heatmap train faces15_unet --data.root DIR --out RUN
Against  experiments/faces15_resnet18.py, which describes the data; same rows and split
Cost     On 2 CPU cores, random weights: 16 s per epoch of 833 images with validation (the run
         below).
Outcome  980 faces of 96 pixels (a random 15 % validate), random weights, 3 minutes on 2 CPU
         cores, 11 epochs: 1.91 px² (mean shape: 38.15), with --model.weights none
         --train.batch 16 --train.epochs 1000 --train.max-minutes 3.
"""

from dataclasses import replace

from heatmap.config import Augment, Crop, UNet
from heatmap_experiments import faces15_resnet18, unet

EXPERIMENT = replace(
    unet.EXPERIMENT,
    name="faces15_unet",
    data=replace(faces15_resnet18.EXPERIMENT.data, multiplier=1),
    crop=Crop(height=96, width=96),
    augment=Augment(mirror=0.5, rotate_deg=25, scale=0.2, shift=0.06, brightness=0.2, contrast=0.3),
    model=UNet(encoder="resnet18", weights="imagenet", stride=2, width=32, sigma=1.5),
)
