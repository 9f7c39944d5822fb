"""Networks: images in, landmarks in crop pixels out; by either road they keep one contract.

This is the only folder that imports segmentation_models_pytorch.
"""

import torch

from heatmap import config
from heatmap.networks.heatmap_network import HeatmapNetwork
from heatmap.networks.network import CropPrediction, Network

__all__ = ["CropPrediction", "HeatmapNetwork", "Network", "build"]


def build(model: config.Model, crop: config.Crop, num_landmarks: int) -> Network:
    """The network that an experiment asks for, with its start weights loaded.

    Raises:
        UserError: unknown encoder, or weights that cannot be had.
    """
    network: Network
    # imported here, since smp and timm take seconds that a command without a network can save
    if isinstance(model, config.Direct):
        from heatmap.networks.direct import DirectNetwork

        network = DirectNetwork(model, num_landmarks, crop.height, crop.width)
    elif isinstance(model, config.DenseUNet):
        from heatmap.networks.dense_unet import DenseUNetNetwork

        network = DenseUNetNetwork(model, num_landmarks)
    else:
        from heatmap.networks.unet import UNetNetwork

        network = UNetNetwork(model, num_landmarks)
    return network.to(memory_format=torch.channels_last)
