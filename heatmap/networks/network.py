"""The base class of all networks: forward, loss and decoding."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from heatmap import config, losses
from heatmap.errors import UsageError
from heatmap.runtime.compiling import compiled
from heatmap.runtime.machine import first_line, is_out_of_memory

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Output = TypeVar("Output")


class CropPrediction(NamedTuple):
    """Landmarks in pixels of the network's input, float32."""

    points_crop: Tensor  # (B, P, 2) as (x, y)
    peak: Tensor | None  # (B, P) height of the heatmap's peak; None without heatmaps
    covariance_crop: Tensor | None  # (B, P, 2, 2) spread of the heatmap around the point, px²


class Network(nn.Module, ABC, Generic[Output]):
    """Maps images to an `Output`, which only the network's own `loss` and `decode` interpret."""

    HEAD: tuple[str, ...]  # modules and parameters of the head
    compiled_parts: str = "off"  # or loss (of heatmaps), or all (also the layers, in training)
    model: config.HeatmapModel | config.Direct
    encoder: nn.Module
    mean: Tensor
    std: Tensor
    label_offset: Tensor  # (2,) from true landmarks to the training labels, in image pixels

    def __init__(
        self,
        model: config.HeatmapModel | config.Direct,
        image_hw: tuple[int, int],
        num_landmarks: int,
    ) -> None:
        """image_hw: size of the images that the encoder takes."""
        super().__init__()
        self.model, self.image_hw = model, image_hw
        self.num_landmarks = num_landmarks
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)
        self.register_buffer("label_offset", torch.zeros(2), persistent=False)

    def parts(self) -> dict[str, list[str]]:
        """Returns the parameter names of each part in `config.Rates`; a part may be empty.

        Encoder block k holds the parameters that the features at stride 2**k need but finer
        ones do not. Parameters that the output does not depend on are in no part. No parameter
        may be frozen yet.

        Raises:
            UserError: the encoder cannot take crops of this size.
        """
        parts: dict[str, list[str]] = {name: [] for name in vars(config.Rates())}
        parameters, training = dict(self.named_parameters()), self.training
        self.eval()
        with torch.enable_grad():
            output, features = self._probed()
            used = _needed([output] if isinstance(output, Tensor) else output, parameters)
            blocks = _encoder_blocks(features, parameters)
        self.train(training)
        for name in parameters:
            top = name.split(".")[0]
            if top == "encoder":
                part = f"block{blocks.get(name, 5)}"
            else:
                part = "head" if top in self.HEAD else "decoder"
            if name in used:
                parts[part].append(name)
        return parts

    def _probed(self) -> tuple[Any, list[Tensor]]:
        """The output for a black image, and the encoder's features at strides 2 to 32."""
        image = torch.zeros(1, 3, *self.image_hw, device=self.mean.device)
        try:
            return self.layers(image), self.encoder(image)[-5:]
        except (AssertionError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            height, width = self.image_hw
            raise UsageError(
                f"model.encoder {self.model.encoder!r} cannot take images of {width} x "
                f"{height} pixels ({first_line(error)}): set crop.width and crop.height to its own "
                "size, often 224, or to multiples of 32, or choose another encoder"
            ) from None

    def train(self, mode: bool = True) -> Self:
        """Sets the training mode; frozen modules stay in eval mode to keep their statistics."""
        super().train(mode)
        for module in self.modules() if mode else ():
            needs_gradient = [weight.requires_grad for weight in module.parameters()]
            if needs_gradient and not any(needs_gradient):
                module.eval()
        return self

    def normalised(self, images: Tensor) -> Tensor:
        """Returns (B, 3, H, W) RGB in [0, 1], shifted and scaled as in pretraining."""
        # convolutions are faster with channels last, on CPUs and GPUs
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Output:
        """Applies the layers to (B, 3, H, W) float RGB in [0, 1].

        Only training compiles them. Evaluation and single images would need graphs of their own.
        """
        is_training = self.training and torch.is_grad_enabled() and len(images) > 1
        if self.compiled_parts == "all" and is_training:
            torch._dynamo.maybe_mark_dynamic(images, 0)  # one graph for all batch sizes
            return _compiled_layers(self, images)
        return self.layers(images)

    @abstractmethod
    def layers(self, images: Tensor) -> Output:
        """Applies the layers without compiling them."""

    @abstractmethod
    def loss(
        self, output: Output, points_crop: Tensor, weights: Tensor, pixel_area: Tensor | None = None
    ) -> Tensor:
        """Returns the scalar training loss.

        Args:
            output: result of `forward`.
            points_crop: (B, P, 2) true landmarks in crop pixels; may be NaN where the weight is 0.
            weights: (B, P) >= 0; 0 for an unlabelled landmark.
            pixel_area: (B,) area of a crop pixel in square image pixels. If given, errors count
                in image pixels (`losses.in_image_pixels`).
        """

    @abstractmethod
    def decode(self, output: Output) -> CropPrediction:
        """Converts the output to landmarks, without gradient."""


def _layers(network: Network[Output], images: Tensor) -> Output:
    return network.layers(images)


_compiled_layers = compiled(_layers, dynamic=None)


def point_loss(
    name: str, points_crop: Tensor, truth_crop: Tensor, weights: Tensor, pixel_area: Tensor | None
) -> Tensor:
    """Returns the loss `losses.of_points(name)`, averaged over images and landmarks.

    points_crop, truth_crop: (B, P, 2); the others as in `Network.loss`.
    """
    loss = losses.of_points(name)
    assert loss.of_points
    truth_crop = torch.where(weights[..., None] > 0, truth_crop, 0).to(points_crop.dtype)
    if pixel_area is not None:
        weights = losses.in_image_pixels(weights, pixel_area, loss.grows_with)
    return (loss.of_points(points_crop, truth_crop) * weights).sum() / weights.numel()


def _encoder_blocks(
    features: Sequence[Tensor], parameters: Mapping[str, nn.Parameter]
) -> dict[str, int]:
    """Maps parameters to the first of the features at strides 2 to 32 (1 to 5) that needs them."""
    blocks: dict[str, int] = {}
    for block in range(5, 0, -1):
        blocks |= dict.fromkeys(_needed([features[block - 1]], parameters), block)
    return blocks


def _needed(outputs: Sequence[Tensor], parameters: Mapping[str, nn.Parameter]) -> set[str]:
    """Names of the parameters that the outputs depend on."""
    sums = [output.sum() for output in outputs if output.requires_grad]
    gradients: Sequence[Tensor | None] = (
        torch.autograd.grad(sums, [*parameters.values()], retain_graph=True, allow_unused=True)
        if sums
        else [None] * len(parameters)
    )
    used = zip(parameters, gradients, strict=True)
    return {name for name, gradient in used if gradient is not None}
