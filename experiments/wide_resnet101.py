"""Do a wider encoder, a larger crop and a second layer help direct regression?

The other attempt of the contest's ResNeXt101 entry: Wide-ResNet101-2 at 224 pixels, two fully
connected layers with ReLU and a dropout of 0.1.

Run      python tools/train.py experiments/wide_resnet101.py --data.root DIR --out RUN
Against  experiments/resnext101.py
Cost     13.7 GiB at the peak by the dry run on a CPU (971 landmarks, batch 64); the time was
         not measured at full size
Outcome  expected: its author's run at 224 pixels had not converged when it was given up.
"""

from dataclasses import replace

from experiments import resnext101
from heatmap.config import Crop, Direct

EXPERIMENT = replace(
    resnext101.EXPERIMENT,
    name="wide_resnet101",
    crop=Crop(height=224, width=224),
    model=Direct(encoder="tu-wide_resnet101_2", weights="imagenet", hidden=2048, dropout=0.1),
)
