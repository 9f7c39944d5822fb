"""Networks: images in, landmarks in crop pixels out; by either road they keep one contract.

This is the only folder that imports segmentation_models_pytorch.
"""

import torch

from heatmap import config
from heatmap.networks.dense_unet import DenseUNetNetwork
from heatmap.networks.direct import DirectNetwork
from heatmap.networks.heatmap_network import HeatmapNetwork
from heatmap.networks.network import CropPrediction, Network
from heatmap.networks.unet import UNetNetwork

__all__ = ["CropPrediction", "DirectNetwork", "HeatmapNetwork", "Network", "build"]


def build(model: config.Model, crop: config.Crop, num_landmarks: int) -> Network:
    """The network that an experiment asks for, with its start weights loaded.

    Raises:
        ValueError: unknown encoder, or weights that cannot be had.
    """
    network: Network
    if isinstance(model, config.Direct):
        network = DirectNetwork(model, num_landmarks, crop.height, crop.width)
    elif isinstance(model, config.DenseUNet):
        network = DenseUNetNetwork(model, num_landmarks)
    else:
        network = UNetNetwork(model, num_landmarks)
    return network.to(memory_format=torch.channels_last)
