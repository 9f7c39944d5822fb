"""What is the most accurate network after a few minutes on CPU cores?

Run      pip install ".[pretrained]"
         heatmap train record --data.root DIR --out RUN
Against  experiments/unet.py with equally many steps
Cost     905 steps on faces68: 46 minutes on one core that other work shared
Outcome  faces68, validation by person: 4.01 px², 3.93 with mirrored crops; docs/results.md has the
         parts of the gain. experiments/unet.py from random weights: 4.98 and 5.20 px² after 1,810
         steps.
"""

from dataclasses import replace

from heatmap.config import Train, UNet
from heatmap_experiments import unet

EXPERIMENT = replace(
    unet.EXPERIMENT,
    name="record",
    model=UNet(encoder="tu-tf_efficientnet_lite0", weights="bundled", width=68),
    train=Train(epochs=5, batch=16, ema=0.998),
)
