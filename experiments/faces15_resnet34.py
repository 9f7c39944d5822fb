"""Do a deeper encoder and a cyclic learning rate place 15 landmarks better?

The second configuration of the 15-landmark project: ResNet34, smaller batches, and a cyclic
learning rate with shrinking peaks (exp_range).

Run      heatmap train faces15_resnet34 --data.root DIR --out RUN
Against  experiments/faces15_resnet18.py, which describes the data
Cost     not measured at full size
Outcome  set up as for experiments/faces15_resnet18.py, with --schedule.rise-steps 100: 187.1 px²
         after 15 epochs.
"""

from dataclasses import replace

from heatmap.config import Optimizer, Schedule, Train
from heatmap_experiments import faces15_resnet18

EXPERIMENT = replace(
    faces15_resnet18.EXPERIMENT,
    name="faces15_resnet34",
    model=replace(faces15_resnet18.MODEL, encoder="resnet34"),
    optimizer=Optimizer(kind="adam", lr=0.012, weight_decay=0.0),
    schedule=Schedule(kind="cyclic", warmup=0, gamma=0.99995, rise_steps=2400, floor=1e-4 / 0.012),
    train=Train(epochs=800, batch=420),
)
