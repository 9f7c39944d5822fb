"""Networks that output heatmaps, as features and landmark embeddings."""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from heatmap import codec, config, frame, losses, maps
from heatmap.errors import UsageError
from heatmap.maps import Maps
from heatmap.networks.network import CropPrediction, Network, point_loss
from heatmap.networks.shape_prior import ShapePrior

COARSEST = 32  # stride of every encoder's last features


def padded_hw(crop: config.Crop) -> tuple[int, int]:
    """Returns the size of the images that the encoder sees for these crops."""
    height, width = (math.ceil(n / COARSEST) * COARSEST for n in (crop.height, crop.width))
    return height, width


class HeatmapNetwork(Network[Maps]):
    """Predicts heatmaps as inner products of pixel features and landmark embeddings.

    The product is a 1 x 1 convolution, kept separate so that the maps are never all in memory.
    `pyramid` and `decoder` produce features at the model's stride. A 1 x 1 convolution with ReLU
    maps them to `width` channels if they have another number. `width` bounds the maps' rank.
    """

    HEAD = ("embeddings", "bias")
    model: config.HeatmapModel
    bias: Tensor

    def __init__(
        self,
        model: config.HeatmapModel,
        crop: config.Crop,
        num_landmarks: int,
        decoder: nn.Module,
        channels: int,
    ) -> None:
        """`decoder` maps the features of `pyramid` to `channels` channels at the model's stride."""
        super().__init__(model, padded_hw(crop), num_landmarks)
        self.stride = model.stride
        self.sigma = model.sigma_start or model.sigma
        self.landmark_decoder: codec.Decoder = model.decoder
        self.shape_prior: ShapePrior | None = None  # of a finished run
        self.decoder = decoder
        self.expansion = nn.Sequential()
        if channels != model.width:
            mix, norm = nn.Conv2d(channels, model.width, 1, bias=False), nn.BatchNorm2d(model.width)
            self.expansion = nn.Sequential(mix, norm, nn.ReLU(inplace=True))
        for module in [*self.decoder.modules(), *self.expansion.modules()]:
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
        self.embeddings = nn.Parameter(torch.randn(num_landmarks, model.width) / model.width)
        if model.loss == "none":  # a softmax ignores the bias
            self.register_buffer("bias", torch.zeros(num_landmarks))
        else:
            self.bias = nn.Parameter(torch.zeros(num_landmarks))

    @abstractmethod
    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Returns the encoder's features of normalised images, finest first."""

    def map_hw(self, height: int, width: int) -> tuple[int, int]:
        """Returns the height and width of a crop's heatmaps."""
        return math.ceil(height / self.stride), math.ceil(width / self.stride)

    def layers(self, images: Tensor) -> Maps:
        """Returns features (B, width, H / stride, W / stride), embeddings and bias.

        Raises:
            UsageError: the encoder's features are not at strides 2, 4, 8, 16 and 32.
        """
        height, width = images.shape[-2:]
        # the decoder doubles what the encoder halves, so the size must be a multiple of 32
        # (not -n % 32, which torch.compile does not support)
        right, bottom = ((n + COARSEST - 1) // COARSEST * COARSEST - n for n in (width, height))
        padded = functional.pad(self.normalised(images), (0, right, 0, bottom))
        features = self.expansion(self.decoder(self.pyramid(padded)))
        expected = tuple(size // self.stride for size in padded.shape[-2:])
        if features.shape[-2:] != expected:
            raise UsageError(
                f"the encoder {self.model.encoder} does not halve images evenly (its maps have "
                f"{tuple(features.shape[-2:])} pixels instead of {expected}); choose another one, "
                "or Direct"
            )
        rows, columns = self.map_hw(height, width)
        return Maps(features[..., :rows, :columns], self.embeddings, self.bias)

    def loss(
        self, output: Maps, points_crop: Tensor, weights: Tensor, pixel_area: Tensor | None = None
    ) -> Tensor:
        """Returns the sum of the model's losses, each averaged over images and landmarks.

        These are the heatmap loss (also averaged over pixels), the coordinate loss of a softmax and
        the divergence of that softmax. `pixel_area` weights the heatmap loss and the divergence.
        """
        model, total = self.model, output.features.new_zeros((), dtype=torch.float32)
        points_heatmap = frame.to_heatmap(points_crop, self.stride)
        map_weights = weights
        if pixel_area is not None:
            map_weights = losses.in_image_pixels(weights, pixel_area, "square")
        if model.loss != "none":
            compiled = self.compiled_parts != "off"
            total = total + maps.loss(
                output, points_heatmap, map_weights, sigma=self.sigma, weight_map=model.weight_map,
                pointwise=losses.of_heatmaps(model.loss),
                block_loss=maps.compiled_loss_of_block if compiled else maps.loss_of_block,
            )  # fmt: skip
        if model.coordinate_loss != "none":
            softmax_heatmap, _ = maps.soft_argmax(output, self._steepness(output))
            softmax_crop = frame.from_heatmap(softmax_heatmap, self.stride)
            loss = point_loss(model.coordinate_loss, softmax_crop, points_crop, weights, pixel_area)
            total = total + model.coordinate_weight * loss
        if model.divergence:
            total = total + model.divergence * maps.divergence(
                output, points_heatmap, map_weights, self._steepness(output), self.sigma
            )
        return total

    def _steepness(self, output: Maps) -> float:
        height, width = output.features.shape[-2:]
        return codec.softmax_steepness(height, width, self.sigma)

    def decode(self, output: Maps) -> CropPrediction:
        """Decodes the maps block by block into landmarks in crop pixels."""
        return self._in_crop(maps.decode(output, self.sigma, self.landmark_decoder))

    def decode_whole(self, output: Maps) -> CropPrediction:
        """Decodes all maps at once, since an export would fix the number of blocks."""
        return self._in_crop(codec.decode(maps.whole(output), self.sigma, self.landmark_decoder))

    def _in_crop(self, decoded: codec.Decoded) -> CropPrediction:
        points_crop = frame.from_heatmap(decoded.points_heatmap, self.stride)
        prediction = CropPrediction(points_crop, decoded.peak, decoded.covariance * self.stride**2)
        return self.shape_prior(prediction) if self.shape_prior else prediction
