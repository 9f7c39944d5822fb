"""The adaptive wing loss as published, as a reference in float64."""

import torch
from torch import Tensor

THETA, OMEGA, EPSILON, ALPHA = 0.5, 14.0, 1.0, 2.1


def constants(target: Tensor) -> tuple[Tensor, Tensor]:
    """A and C of the paper's linear branch, in float64."""
    power = ALPHA - target.double()
    ratio = torch.tensor(THETA / EPSILON, dtype=torch.float64)
    slope = OMEGA / (1 + ratio**power) * power * ratio ** (power - 1) / EPSILON
    return slope, THETA * slope - OMEGA * torch.log(1 + ratio**power)


def adaptive_wing(prediction: Tensor, target: Tensor) -> Tensor:
    """The two branches as published in arXiv:1904.07399, in float64."""
    prediction, target = prediction.double(), target.double()
    distance = (target - prediction).abs()
    slope, offset = constants(target)
    # keep the unused branch from making the gradient NaN at distance 0
    curved = OMEGA * torch.log1p((distance.clamp_min(1e-300) / EPSILON) ** (ALPHA - target))
    return torch.where(distance < THETA, curved, slope * distance - offset)
