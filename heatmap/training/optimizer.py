"""The optimizer, frozen parts, and the running mean of the weights."""

import copy
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch

from heatmap.config import Optimizer, Rates
from heatmap.networks import Network


def optimizer_for(settings: Optimizer, network: Network) -> torch.optim.Optimizer:
    """Builds the optimizer with one parameter group for each part of the network.

    Freezes weights in no part: processes would wait for gradients that they never get.
    """
    parts = network.parts()
    used = set(chain.from_iterable(parts.values()))
    for name, weight in network.named_parameters():
        weight.requires_grad_(name in used)
    groups: list[dict[str, Any]] = [
        {"part": part, "params": [network.get_parameter(name) for name in names]}
        for part, names in parts.items()
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


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads the optimizer's state dict, in the memory layout of the weights."""
    optimizer.load_state_dict(state)
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == weight.shape:  # a fused optimizer needs the same layout
                values[name] = torch.empty_like(weight).copy_(value)


class RunningMean:
    """A copy of a network with an exponential moving average of its weights and statistics."""

    def __init__(self, network: Network, decay: float) -> None:
        self.network = copy.deepcopy(network)
        self._decay = decay

    @torch.no_grad()
    def update(self, network: Network, steps: int) -> None:
        """Adds the network's weights to the average of `steps` earlier steps."""
        # a shorter mean at the start forgets the random initial weights
        decay = min(self._decay, (1 + steps) / (10 + steps)) if steps else 0.0
        pairs = [*zip(_state(self.network), _state(network), strict=True)]
        averaged = [pair for pair in pairs if decay and pair[0].is_floating_point()]
        copied = [pair for pair in pairs if not (decay and pair[0].is_floating_point())]
        if averaged:
            averages, values = zip(*averaged, strict=True)
            torch._foreach_lerp_(averages, values, 1 - decay)
        if copied:  # a network without batch normalisation counts nothing
            copies, values = zip(*copied, strict=True)
            torch._foreach_copy_(copies, values)


def _state(network: Network) -> Iterator[torch.Tensor]:
    return chain(network.parameters(), network.buffers())
