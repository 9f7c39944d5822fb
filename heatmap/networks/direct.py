"""The direct road: encoder, pooled, linear to coordinates."""

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from heatmap import config, losses
from heatmap.networks.encoder import load_encoder
from heatmap.networks.network import CropPrediction, Network


class DirectNetwork(Network):
    """The organisers' baseline: global average pooling and one linear layer of 2 P outputs.

    The outputs are in crop pixels from the crop's centre, so that a fresh layer starts there.
    """

    centre: Tensor

    def __init__(self, model: config.Direct, num_landmarks: int, height: int, width: int) -> None:
        super().__init__(num_landmarks)
        self.encoder, channels = load_encoder(model.encoder, model.weights)
        self.head = nn.Linear(channels[-1], 2 * num_landmarks)
        self.register_buffer("centre", torch.tensor([width - 1, height - 1]) / 2, persistent=False)

    def layers(self, images: Tensor) -> Tensor:
        """(B, P, 2) float32 landmarks in crop pixels."""
        features = self.encoder(self.normalised(images))[-1]
        pooled = reduce(features, "b c h w -> b c", "mean")
        outputs = rearrange(self.head(pooled), "b (p xy) -> b p xy", xy=2)
        return self.centre + outputs.float()

    def loss(self, output: Tensor, points_crop: Tensor, weights: Tensor) -> Tensor:
        """Mean squared error in square crop pixels, divided by pictures and landmarks."""
        truth = torch.where(weights[..., None] > 0, points_crop, 0).to(output.dtype)
        return (losses.squared_error(output, truth) * weights).sum() / weights.numel()

    def decode(self, output: Tensor) -> CropPrediction:
        """The output itself; a direct network has nothing to say of its confidence."""
        return CropPrediction(output.detach(), None, None)
