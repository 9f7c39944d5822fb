"""Is H-DenseUNet's 2-D network better than the U-Net for 971 landmarks?

Run      heatmap train dense_unet --data.root DIR --out RUN
Against  experiments/unet.py; only the network differs. The paper's network ends with 64 channels
         at stride 1, too few for 971 sharp heatmaps. Here the decoder stops at stride 4 and a
         1 x 1 convolution with ReLU expands its 96 channels to 128. The paper's network:
         --model.stride 1 --model.width 64
Cost     On 2 CPU cores, densenet121 at 128 px, width 68, batch 16: 195 to 213 s per epoch of
         2,899 images.
Outcome  faces68, random weights, 12 minutes on 2 CPU cores with --model.weights none
         --model.encoder densenet121 --model.width 68 --train.batch 16 --train.epochs 1000
         --train.max-minutes 12: 7.78 px² (unet: 4.98) after 4 epochs. After 4 epochs the U-Net
         has 7.63, with the learning rate still high. At 80 px, 6 epochs fit the time: 8.25 px².
"""

from dataclasses import replace

from heatmap.config import DenseUNet
from heatmap_experiments import unet

EXPERIMENT = replace(
    unet.EXPERIMENT,
    name="dense_unet",
    model=DenseUNet(encoder="densenet161", weights="imagenet", stride=4, width=128, sigma=1.5),
)
