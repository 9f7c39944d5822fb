"""What does the direct road reach: the organisers' ResNet, pooled, linear to coordinates?

Run      python tools/train.py experiments/baseline.py --data.root DIR --out RUN
Against  experiments/unet.py: network, loss and optimizer are the organisers' (squared error in
         crop pixels, Adam with amsgrad at 1e-3); data, crop, augmentation and schedule are unet's.
         As the organisers ran it: --augment.mirror 0 --augment.rotate-deg 0 --augment.scale 0
         --augment.shift 0 --augment.brightness 0 --augment.contrast 0 --augment.saturation 0
         --schedule.kind constant --schedule.warmup 0 --train.batch 512 --train.epochs 1
Cost     On 2 CPU cores, resnet18 at 128 px: 134 to 282 s an epoch of 2,899 pictures with its
         validation, on a machine that did other work as well (the run below).
Outcome  faces68, random weights, 26 minutes on 2 CPU cores that did other work as well, validation
         by person: 25.55 px² (mean shape: 127.35), with --model.weights none
         --train.batch 8 --train.epochs 1000 --train.max-minutes 26. These
         were 9 epochs.
"""

from dataclasses import replace

from experiments import unet
from heatmap.config import Direct, Optimizer

EXPERIMENT = replace(
    unet.EXPERIMENT,
    name="baseline",
    model=Direct(encoder="resnet18", weights="imagenet"),
    optimizer=Optimizer(kind="adam", lr=1e-3, weight_decay=0.0, amsgrad=True),
)
