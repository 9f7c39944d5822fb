"""The optimizer, frozen parts, and the running mean of the weights."""

from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from heatmap.config import Optimizer, Rates
from heatmap.networks import Network


def optimizer_for(settings: Optimizer, network: Network) -> torch.optim.Optimizer:
    """Builds the optimizer with one parameter group for each part of the network."""
    groups: list[dict[str, Any]] = [
        {"part": part, "params": [network.get_parameter(name) for name in names]}
        for part, names in network.parts().items()
        if names
    ]
    lr, decay = settings.lr, settings.weight_decay
    if settings.kind == "sgd":
        momentum = settings.momentum
        return torch.optim.SGD(groups, lr, momentum=momentum, weight_decay=decay, fused=True)
    adam = torch.optim.AdamW if settings.kind == "adamw" else torch.optim.Adam
    return adam(groups, lr, weight_decay=decay, amsgrad=settings.amsgrad, fused=True)


def freeze(optimizer: torch.optim.Optimizer, rates: Rates) -> None:
    """Freezes the parts whose learning rate is 0 and unfreezes the others."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.requires_grad_(getattr(rates, group["part"]) > 0)


def running_mean(network: Network, decay: float) -> AveragedModel:
    """Returns a copy of the network that averages its weights and buffers."""

    def update(averaged: Any, current: Any, num_averaged: Any) -> None:
        steps = int(num_averaged)
        # a shorter mean at the start forgets the random initial weights
        get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))(averaged, current, steps)

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)
