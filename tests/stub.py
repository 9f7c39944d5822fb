"""A network made from a function, for tests."""

from collections.abc import Callable

from torch import Tensor

from heatmap.config import Direct
from heatmap.networks import CropPrediction, Network


class Stub(Network):
    """A network without layers that predicts `predict(images)` for images (B, 3, H, W)."""

    def __init__(
        self, predict: Callable[[Tensor], CropPrediction], num_landmarks: int = 15
    ) -> None:
        super().__init__(Direct(weights="none"), (32, 32), num_landmarks)
        self.predict = predict

    def layers(self, images: Tensor) -> Tensor:
        assert not self.training
        return images

    def loss(self, output: Tensor, points_crop: Tensor, weights: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, output: Tensor) -> CropPrediction:
        return self.predict(output)
