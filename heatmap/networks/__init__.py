"""Networks that map image crops to landmarks in crop pixels.

No other package imports segmentation_models_pytorch.
"""

from dataclasses import replace

import torch

from heatmap import config
from heatmap.networks.heatmap_network import HeatmapNetwork
from heatmap.networks.network import IMAGENET_MEAN, IMAGENET_STD, CropPrediction, Network
from heatmap.networks.shape_prior import PriorValues, ShapePrior

__all__ = [
    "IMAGENET_MEAN", "IMAGENET_STD", "CropPrediction", "HeatmapNetwork", "Network", "PriorValues",
    "ShapePrior", "build", "with_normalisation",
]  # fmt: skip


def with_normalisation(model: config.Model) -> config.Model:
    """Returns the model with the mean and std of its pretrained weights, unless it sets its own.

    Random weights set none, which is ImageNet's.

    Raises:
        UserError: the encoder or its weights are unknown or cannot be fetched.
    """
    if model.weights == "none" or (model.mean and model.std):
        return model
    from heatmap.networks.encoder import normalisation

    mean, std = normalisation(model.encoder, model.weights)
    return replace(model, mean=model.mean or mean, std=model.std or std)


def build(model: config.Model, crop: config.Crop, num_landmarks: int) -> Network:
    """Builds the network of an experiment and loads its encoder's start weights.

    Raises:
        UserError: the encoder is unknown, or its weights cannot be loaded.
    """
    network: Network
    model = with_normalisation(model)
    # imported late: smp and timm take seconds, and not every command builds a network
    if isinstance(model, config.Direct):
        from heatmap.networks.direct import DirectNetwork

        network = DirectNetwork(model, crop, num_landmarks)
    elif isinstance(model, config.DenseUNet):
        from heatmap.networks.dense_unet import DenseUNetNetwork

        network = DenseUNetNetwork(model, crop, num_landmarks)
    else:
        from heatmap.networks.unet import UNetNetwork

        network = UNetNetwork(model, crop, num_landmarks)
    for buffer, values in (network.mean, model.mean), (network.std, model.std):
        if values is not None:
            buffer.copy_(torch.tensor(values)[:, None, None])
    return network.to(memory_format=torch.channels_last)
