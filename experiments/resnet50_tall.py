"""Do tall crops, which lose less of a portrait, make up for their lower resolution?

An attempt of the contest's ResNet50 entry: crops of 166 by 128 pixels. The whole picture in a frame
of 224 by 288, with black beside it: --crop.rule contain --crop.height 288 --crop.width 224

Run      python tools/train.py experiments/resnet50_tall.py --data.root DIR --out RUN
Against  experiments/resnet50.py, whose crops are squares of 224 pixels
Cost     about 0.4 of experiments/resnet50.py, by the pixels
Outcome  expected: worse than 224 pixels; its author did not keep it.
"""

from dataclasses import replace

from experiments import resnet50
from heatmap.config import Crop

EXPERIMENT = replace(
    resnet50.EXPERIMENT,
    name="resnet50_tall",
    crop=Crop(height=166, width=128, trim_border=9),
)
