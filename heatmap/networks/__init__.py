"""Networks that map image crops to landmarks in crop pixels.

No other package imports segmentation_models_pytorch.
"""

import torch

from heatmap import config
from heatmap.networks.heatmap_network import HeatmapNetwork
from heatmap.networks.network import CropPrediction, Network

__all__ = ["CropPrediction", "HeatmapNetwork", "Network", "build"]


def build(model: config.Model, crop: config.Crop, num_landmarks: int) -> Network:
    """Builds the network of an experiment and loads its encoder's start weights.

    Raises:
        UserError: the encoder is unknown, or its weights cannot be loaded.
    """
    network: Network
    # imported late: smp and timm take seconds, and not every command builds a network
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
