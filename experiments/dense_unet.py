"""Does H-DenseUNet's 2-D network show 971 landmarks better than the U-Net?

Run      python tools/train.py experiments/dense_unet.py --data.root DIR --out RUN
Against  experiments/unet.py: all but the network is the same. The paper's form ends with 64
         channels at stride 1, which cap 971 sharp maps; here the decoder stops at stride 4 and a
         1 x 1 convolution with ReLU expands its 96 channels to 128. The paper's own form:
         --model.stride 1 --model.width 64
Cost     3.7 GiB at the peak by the dry run on a CPU (971 landmarks, batch 32); the time was
         not measured at full size
Outcome  expected: a lower error than the U-Net's for as many epochs, a higher one in equal
         minutes.
"""

from dataclasses import replace

from experiments import unet
from heatmap.config import DenseUNet

EXPERIMENT = replace(
    unet.EXPERIMENT,
    name="dense_unet",
    model=DenseUNet(encoder="densenet161", weights="imagenet", stride=4, width=128, sigma=1.5),
)
