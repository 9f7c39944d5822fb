"""How well does direct regression score with a large encoder, trained in three stages?

The recipe of the contest's ResNeXt101-32x8d entry: one linear layer on the pooled features, trained
for six epochs at a rate of 1e-3, for three with the rate multiplied by 0.2 per epoch, and for one
with the encoder frozen at 1e-4. Each stage starts from the best weights so far.

Run      heatmap train resnext101 --data.root DIR --out RUN
Against  experiments/unet.py. The authors' split: --data.split order. Their other
         attempt: --crop.height 224 --crop.width 224 --model.encoder tu-wide_resnet101_2
         --model.hidden 2048 --model.dropout 0.1
Cost     not measured at full size
Outcome  faces68, random weights, its three stages (10 epochs, 8.3 minutes on 2 CPU cores) with
         --model.weights none --model.encoder resnet18 --train.batch 16: 18.86 px² (mean shape:
         127.35). On the contest's data its authors reached 8.91 (private) and 9.31 (public) px²,
         and 8.92 and 9.31 without the last stage.
"""

from dataclasses import replace

from heatmap.config import FROZEN_ENCODER, Augment, Crop, Direct, Schedule, Stage, Train
from heatmap_experiments import baseline

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
