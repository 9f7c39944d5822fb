"""Does a pretrained encoder keep more of what it knows when it is thawed block by block?

An attempt of the contest's ResNet50 entry: first the fully connected layer alone, then one block
after the other from the top, at last the whole network with rates that grow from block to block.

Run      python tools/train.py experiments/resnet50_blocks.py --data.root DIR --out RUN
Against  experiments/resnet50.py, which trains everything from the first step
Cost     3.1 minutes of one CPU core at the size below (resnet50: 3.3); not measured at full size
Outcome  no gain where there is nothing to keep: with random weights 120.2 px², and 93.0 by
         experiments/resnet50.py in as many epochs (mean shape: 118.1). One run each, of 208 steps
         that saw 221 images of faces68 (every 16th row; 116 validate) at 64 px: --data.exclude
         OTHERS.csv --data.validation 0.03 --model.weights none --model.encoder resnet18
         --crop.height 64 --crop.width 64 --train.batch 16 --data.workers 0, here with
         --stages.0.epochs 1 ... --stages.5.epochs 1 --stages.6.epochs 10, there with
         --train.epochs 16. AMD EPYC, one thread, torch 2.14.1, 2026-11-27, commit 433bfb927d.
         Pretrained weights, which the question is about, were not tried; frozen encoders alone
         stay far behind (14.3 px² private, another entry).
"""

from dataclasses import replace

from experiments import resnet50
from heatmap.config import FROZEN_ENCODER, Rates, Schedule, Stage

THAWED = ("block5", "block4", "block3", "block2", "block1")
STEADY = Schedule(kind="constant", warmup=0)

EXPERIMENT = replace(
    resnet50.EXPERIMENT,
    name="resnet50_blocks",
    stages=(
        Stage(epochs=4, schedule=STEADY, rates=FROZEN_ENCODER),
        *(
            Stage(epochs=4, schedule=STEADY, rates=replace(FROZEN_ENCODER, **{block: 1.0}))
            for block in THAWED
        ),
        Stage(
            epochs=16,
            schedule=resnet50.EXPERIMENT.schedule,
            rates=Rates(block1=0.05, block2=0.1, block3=0.2, block4=0.4, block5=0.7),
            start="best",
        ),
    ),
    train=replace(resnet50.EXPERIMENT.train, epochs=None),
)
