"""What is the most accurate network after a few minutes on two CPU cores?

Run      python tools/train.py experiments/record.py --data.root DIR --out RUN
Against  experiments/unet.py with the same budget
Cost     12 minutes on 2 CPU cores; raise --train.max-minutes for more
Outcome  experiments/leaderboard.md
"""

from dataclasses import replace

from experiments import unet
from heatmap.config import Train, UNet

EXPERIMENT = replace(
    unet.EXPERIMENT,
    name="record",
    model=UNet(encoder="tu-tf_efficientnet_lite0", weights="bundled", width=68),
    train=Train(epochs=1000, max_minutes=12, batch=16, ema=0.998),
)
