"""Does the wing loss (10, 2) regress landmarks better than the absolute error?

Run      python tools/train.py experiments/resnet50_wing.py --data.root DIR --out RUN
Against  experiments/resnet50.py
Cost     that of experiments/resnet50.py
Outcome  expected: about the same; another entry reached 9.57 px² (private) with wing and ResNet50.
"""

from dataclasses import replace

from experiments import resnet50

EXPERIMENT = replace(
    resnet50.EXPERIMENT,
    name="resnet50_wing",
    model=replace(resnet50.MODEL, loss="wing"),
)
