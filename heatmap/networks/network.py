"""What every network is: forward, loss and decoding of one road."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from heatmap import config, losses
from heatmap.runtime.compiling import compiled

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class CropPrediction(NamedTuple):
    """Landmarks in the network's input, float32; only points on the direct road.

    points_crop: (B, P, 2), (x, y) in crop pixels; peak: (B, P) height of the heatmap's peak;
    covariance_crop: (B, P, 2, 2) spread of the heatmap round the point in square crop pixels.
    """

    points_crop: Tensor
    peak: Tensor | None
    covariance_crop: Tensor | None


class Network(nn.Module, ABC):
    """`forward` makes the road's output from images; `loss` and `decode` know how to read it.

    compiled_parts: off, loss (the arithmetic of the loss) or all (the layers as well).
    """

    mean: Tensor
    std: Tensor
    compiled_parts: str = "off"
    encoder: nn.Module
    HEAD: tuple[str, ...]  # names of the modules and parameters that make the head

    def __init__(self, num_landmarks: int) -> None:
        super().__init__()
        self.num_landmarks = num_landmarks
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def parts(self) -> dict[str, list[str]]:
        """Names of the parameters of every part that `config.Rates` knows; they may be none.

        A block of the encoder is what its features at one stride need beyond the finer ones.
        """
        parts: dict[str, list[str]] = {name: [] for name in vars(config.Rates())}
        blocks = _blocks(self.encoder)
        for name, _ in self.named_parameters():
            top, _, below = name.partition(".")
            if top == "encoder":
                parts[f"block{blocks[below]}"].append(name)
            else:
                parts["head" if top in self.HEAD else "decoder"].append(name)
        return parts

    def train(self, mode: bool = True) -> "Network":
        """As of every module, but frozen ones stay in evaluation: their statistics are kept."""
        super().train(mode)
        for module in self.modules() if mode else ():
            needs_gradient = [weight.requires_grad for weight in module.parameters()]
            if needs_gradient and not any(needs_gradient):
                module.eval()
        return self

    def normalised(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1], shifted and scaled as the pretrained encoders expect it."""
        # channels last is the faster layout for convolutions, on CPUs and GPUs
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Any:
        """The road's output for (B, 3, H, W) float RGB in [0, 1]."""
        run = _compiled_layers if self.compiled_parts == "all" else _layers
        return run(self, images)

    @abstractmethod
    def layers(self, images: Tensor) -> Any:
        """What `forward` gives, layer by layer."""

    @abstractmethod
    def loss(
        self, output: Any, points_crop: Tensor, weights: Tensor, pixel_area: Tensor | None = None
    ) -> Tensor:
        """Scalar training loss.

        Args:
            output: of `forward`.
            points_crop: (B, P, 2) truth in crop pixels; may be NaN where the weight is 0.
            weights: (B, P) >= 0; 0 for an unlabelled landmark.
            pixel_area: (B,) square image pixels of a crop pixel (`losses.in_image_pixels`), if any.
        """

    @abstractmethod
    def decode(self, output: Any) -> CropPrediction:
        """The landmarks that the output stands for, without gradient."""


def _layers(network: Network, images: Tensor) -> Any:
    return network.layers(images)


_compiled_layers = compiled(_layers)


def point_loss(
    kind: str, points_crop: Tensor, truth_crop: Tensor, weights: Tensor, pixel_area: Tensor | None
) -> Tensor:
    """Scalar loss, by a name in `losses.LOSSES`, of (B, P, 2) points; the rest as `Network.loss`.

    It is divided by images and landmarks; truth may be NaN where the weight is 0.
    """
    loss = losses.LOSSES[kind]
    assert loss.of_points
    truth_crop = torch.where(weights[..., None] > 0, truth_crop, 0).to(points_crop.dtype)
    if pixel_area is not None:
        weights = losses.in_image_pixels(weights, pixel_area, loss.grows_with)
    return (loss.of_points(points_crop, truth_crop) * weights).sum() / weights.numel()


def _blocks(encoder: nn.Module) -> dict[str, int]:
    """Of every parameter, the first of the features at strides 2 to 32 that depends on it: 1 to 5.

    What none depends on is of the last one. Nothing of the encoder may be frozen yet.
    """
    names, weights = zip(*encoder.named_parameters(), strict=True)
    training = encoder.training
    encoder.eval()
    with torch.enable_grad():
        features = encoder(torch.zeros(1, 3, 64, 64, device=weights[0].device))
        found = [
            torch.autograd.grad(f.sum(), weights, retain_graph=True, allow_unused=True)
            if f.requires_grad
            else [None] * len(weights)
            for f in features[-5:]
        ]
    encoder.train(training)
    firsts = (
        next((k for k, gradient in enumerate(gradients, 1) if gradient is not None), 5)
        for gradients in zip(*found, strict=True)
    )
    return dict(zip(names, firsts, strict=True))
