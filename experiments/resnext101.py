"""What does direct regression with a large encoder reach, trained in three stages?

The recipe of the contest's entry on ResNeXt101-32x8d: one linear layer on the pooled features, six
epochs at a rate of 1e-3, three that fall by 0.2 an epoch, and one of the head alone at 1e-4, each
from the best weights of the one before.

Run      python tools/train.py experiments/resnext101.py --data.root DIR --out RUN
Against  experiments/unet.py. As the authors split the rows: --data.split order. Their other
         attempt: --crop.height 224 --crop.width 224 --model.encoder tu-wide_resnet101_2
         --model.hidden 2048 --model.dropout 0.1
Cost     7.2 GiB at the peak by the dry run on a CPU (971 landmarks, batch 64); the time was
         not measured at full size
Outcome  faces68, random weights, its three stages (10 epochs, 8.3 minutes on 2 CPU cores) with
         --model.weights none --model.encoder resnet18 --train.batch 16: 18.86 px² (mean shape:
         127.35). On the contest's data its author reached 8.91 (private) and 9.31 (public) px²,
         and 8.92 and 9.31 without the last stage.
"""

from dataclasses import replace

from experiments import baseline
from heatmap.config import FROZEN_ENCODER, Augment, Crop, Direct, Schedule, Stage, Train

EXPERIMENT = replace(
    baseline.EXPERIMENT,
    name="resnext101",
    crop=Crop(height=128, width=128),
    augment=Augment(),
    model=Direct(encoder="resnext101_32x8d", weights="imagenet"),
    stages=(
        Stage(epochs=6, lr=1e-3, schedule=Schedule(kind="constant", warmup=0)),
        Stage(epochs=3, lr=1e-3, schedule=Schedule(kind="step", gamma=0.2, warmup=0), start="best"),
        Stage(
            epochs=1,
            lr=1e-4,
            schedule=Schedule(kind="constant", warmup=0),
            rates=FROZEN_ENCODER,
            start="best",
        ),
    ),
    train=Train(batch=64),
)
