"""Does everything work on this machine, from synthetic faces to a submission, in a few minutes?

Run      bash tools/quickstart.sh
Against  the mean shape
Cost     5 minutes on 2 CPU cores: 0.8 to draw the faces, 3.5 to train, the rest to score
Outcome  yes; README.md has the scores, under Results
"""

from dataclasses import replace

from heatmap.config import Augment, Crop, Train, UNet
from heatmap_experiments import unet

EXPERIMENT = replace(
    unet.EXPERIMENT,
    name="quickstart",
    crop=Crop(height=96, width=96),
    model=UNet(encoder="resnet18", weights="none", stride=4, width=96, sigma=1.2),
    augment=Augment(mirror=0.5, rotate_deg=10, scale=0.1, brightness=0.1, contrast=0.1),
    train=Train(epochs=100, max_minutes=3.5, batch=16),
)
