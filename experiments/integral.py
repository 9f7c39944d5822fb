"""How good are heatmaps that are trained on coordinates alone?

Integral regression: the softmax of each heatmap is a probability distribution and its mean is the
landmark. The loss is on coordinates, plus DSNT's divergence from a Gaussian to keep maps compact.

Run      heatmap train integral --data.root DIR --out RUN
Against  experiments/unet.py, trained on heatmaps. Without the divergence:
         --model.divergence 0. Heatmaps and coordinates together: experiments/unet.py with
         --model.coordinate-loss mae --model.coordinate-weight 0.1
Cost     not measured at full size
Outcome  faces68, random weights, 12 minutes on 2 CPU cores, 9 epochs: 7.39 px² (unet: 4.98 and
         5.20, baseline: 21.99, mean shape: 127.35), with --model.weights none --model.encoder
         resnet18 --model.width 68 --train.batch 16 --train.epochs 1000 --train.max-minutes 12.
"""

from dataclasses import replace

from heatmap.config import UNet
from heatmap_experiments import unet

EXPERIMENT = replace(
    unet.EXPERIMENT,
    name="integral",
    model=UNet(
        encoder="resnet34",
        weights="imagenet",
        loss="none",
        coordinate_loss="mae",
        divergence=1.0,
        decoder="softmax",
    ),
)
