"""Does a pretrained encoder transfer better when it is unfrozen block by block?

An attempt of the contest's ResNet50 entry. It trains the fully connected layer alone, then one
block after the other from the top, and finally everything, with rates that grow from block to
block.

Run      heatmap train resnet50_blocks --data.root DIR --out RUN
Against  experiments/resnet50.py, which trains everything from the first step
Cost     3.1 minutes of one CPU core at the size below (resnet50: 3.3); not measured at full size
Outcome  no gain with random weights, which have nothing to transfer: 120.2 px², and 93.0 with
         experiments/resnet50.py in as many epochs (mean shape: 118.1). One run each, 208 steps on
         221 images of faces68 (every 16th row; 116 validate) at 64 px: --data.exclude OTHERS.csv
         --data.validation 0.03 --model.weights none --model.encoder resnet18 --crop.height 64
         --crop.width 64 --train.batch 16 --data.workers 0, with --stages.0.epochs 1 ...
         --stages.5.epochs 1 --stages.6.epochs 10, and with --train.epochs 16 for resnet50. AMD
         EPYC, one thread, torch 2.14.1, 2026-11-27, commit 433bfb927d. Pretrained weights, the
         point of the question, were not tried. A frozen encoder alone is far worse (14.3 px²
         private, another entry).
"""

from dataclasses import replace

from heatmap.config import FROZEN_ENCODER, Rates, Schedule, Stage
from heatmap_experiments import resnet50

UNFROZEN = ("block5", "block4", "block3", "block2", "block1")
CONSTANT = Schedule(kind="constant", warmup=0)

EXPERIMENT = replace(
    resnet50.EXPERIMENT,
    name="resnet50_blocks",
    stages=(
        Stage(epochs=4, schedule=CONSTANT, rates=FROZEN_ENCODER),
        *(
            Stage(epochs=4, schedule=CONSTANT, rates=replace(FROZEN_ENCODER, **{block: 1.0}))
            for block in UNFROZEN
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
