"""How well does the organisers' direct regression score: ResNet, pooling, one linear layer?

Run      heatmap train baseline --data.root DIR --out RUN
Against  experiments/unet.py. Network, loss and optimizer are the organisers' (squared error in
         crop pixels, Adam with amsgrad at 1e-3). The rest is as in unet.
         As the organisers ran it: --augment.mirror 0 --augment.rotate-deg 0 --augment.scale 0
         --augment.shift 0 --augment.brightness 0 --augment.contrast 0 --augment.saturation 0
         --schedule.kind constant --schedule.warmup 0 --train.batch 512 --train.epochs 1
Cost     On 2 CPU cores, resnet18 at 128 px: 44 to 48 s per epoch of 2,899 images with
         validation (the run below).
Outcome  faces68, random weights, 12 minutes on 2 CPU cores, validation by person: 21.99 px² (mean
         shape: 127.35) after 16 epochs, with --model.weights none --train.batch 16
         --train.epochs 1000 --train.max-minutes 12.
"""

from dataclasses import replace

from heatmap.config import Direct, Optimizer
from heatmap_experiments import unet

EXPERIMENT = replace(
    unet.EXPERIMENT,
    name="baseline",
    model=Direct(encoder="resnet18", weights="imagenet"),
    optimizer=Optimizer(kind="adam", lr=1e-3, weight_decay=0.0, amsgrad=True),
)
