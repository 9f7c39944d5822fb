"""Does one cycle of the learning rate reach the plateau schedule's score in fewer epochs?

Run      python tools/train.py experiments/resnet50_onecycle.py --data.root DIR --out RUN
Against  experiments/resnet50.py, which waits for plateaus for 40 epochs
Cost     half of experiments/resnet50.py
Outcome  expected: no gain but the time; its author saw none.
"""

from dataclasses import replace

from experiments import resnet50
from heatmap.config import Schedule

EXPERIMENT = replace(
    resnet50.EXPERIMENT,
    name="resnet50_onecycle",
    optimizer=replace(resnet50.EXPERIMENT.optimizer, lr=1e-3),
    schedule=Schedule(kind="onecycle", warmup=0.3),
    train=replace(resnet50.EXPERIMENT.train, epochs=20),
)
