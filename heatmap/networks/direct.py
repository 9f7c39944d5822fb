"""Direct regression: encoder, pooling and fully connected layers that output coordinates."""

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from heatmap import config
from heatmap.networks.encoder import load_encoder
from heatmap.networks.network import CropPrediction, Network, point_loss


class DirectNetwork(Network[Tensor]):
    """Global average pooling, then one linear layer, or two with ReLU between.

    The 2 P outputs are offsets from the crop's centre in crop pixels, so training starts there.
    """

    HEAD = ("hidden", "head")
    centre: Tensor

    def __init__(self, model: config.Direct, crop: config.Crop, num_landmarks: int) -> None:
        height, width = crop.height, crop.width
        super().__init__(model, (height, width), num_landmarks)
        self.loss_name = model.loss
        self.encoder, (*_, channels) = load_encoder(model.encoder, model.weights, self.image_hw)
        hidden = [nn.Linear(channels, model.hidden), nn.ReLU()] if model.hidden else []
        self.hidden = nn.Sequential(*hidden, nn.Dropout(model.dropout))
        self.head = nn.Linear(model.hidden or channels, 2 * num_landmarks)
        self.register_buffer("centre", torch.tensor([width - 1, height - 1]) / 2, persistent=False)

    def layers(self, images: Tensor) -> Tensor:
        """Returns (B, P, 2) float32 landmarks in crop pixels."""
        features = self.encoder(self.normalised(images))[-1]
        pooled = reduce(features, "b c h w -> b c", "mean")
        offsets = rearrange(self.head(self.hidden(pooled)), "b (p xy) -> b p xy", xy=2)
        return self.centre + offsets.float()

    def loss(
        self, output: Tensor, points_crop: Tensor, weights: Tensor, pixel_area: Tensor | None = None
    ) -> Tensor:
        """Returns the loss in crop pixels, averaged over images and landmarks."""
        return point_loss(self.loss_name, output, points_crop, weights, pixel_area)

    def decode(self, output: Tensor) -> CropPrediction:
        """Returns the output itself as points."""
        return CropPrediction(output.detach(), None, None)
