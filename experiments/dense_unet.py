"""Does H-DenseUNet's 2-D network show 971 landmarks better than the U-Net?

Run      python tools/train.py experiments/dense_unet.py --data.root DIR --out RUN
Against  experiments/unet.py: all but the network is the same. The paper's form ends with 64
         channels at stride 1, which cap 971 sharp maps; here the decoder stops at stride 4 and a
         1 x 1 convolution with ReLU expands its 96 channels to 128. The paper's own form:
         --model.stride 1 --model.width 64
Cost     3.7 GiB at the peak by the dry run on a CPU (971 landmarks, batch 32). On 2 CPU cores,
         densenet121 at 128 px, width 68, batch 16: 195 to 213 s an epoch of 2,899 images.
Outcome  faces68, random weights, 12 minutes on 2 CPU cores with --model.weights none
         --model.encoder densenet121 --model.width 68 --train.batch 16 --train.epochs 1000
         --train.max-minutes 12: 7.78 px² (unet: 4.98) after 4 epochs; after as many the U-Net has
         7.63, its rate still high. At 80 px 6 epochs fit into the time: 8.25 px².
"""

from dataclasses import replace

from experiments import unet
from heatmap.config import DenseUNet

EXPERIMENT = replace(
    unet.EXPERIMENT,
    name="dense_unet",
    model=DenseUNet(encoder="densenet161", weights="imagenet", stride=4, width=128, sigma=1.5),
)
