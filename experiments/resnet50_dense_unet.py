"""Can a DenseUNet with the adaptive wing loss replace direct regression?

What the contest's ResNet50 entry tried last and gave up as too slow: 971 whole heatmaps. Here no
map is ever whole, and the pictures are those of the entry.

Run      python tools/train.py experiments/resnet50_dense_unet.py --data.root DIR --out RUN
Against  experiments/resnet50.py: crop, border and augmentation are the same
Cost     9.7 GiB at the peak by the dry run on a CPU (971 landmarks, batch 32); the time was
         not measured at full size
Outcome  expected: well below experiments/resnet50.py; its author's own version was "not clearly
         better" in what epochs it got.
"""

from dataclasses import replace

from experiments import dense_unet, resnet50

EXPERIMENT = replace(
    resnet50.EXPERIMENT,
    name="resnet50_dense_unet",
    model=dense_unet.EXPERIMENT.model,
    optimizer=dense_unet.EXPERIMENT.optimizer,
    schedule=dense_unet.EXPERIMENT.schedule,
    train=replace(resnet50.EXPERIMENT.train, batch=32),
)
