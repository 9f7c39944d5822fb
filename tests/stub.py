"""A network of a function, for tests of what is done with networks."""

from collections.abc import Callable

from torch import Tensor

from heatmap.networks import CropPrediction, Network


class Stub(Network):
    """A network without layers; `look` says what it sees in (B, 3, H, W) images."""

    def __init__(self, look: Callable[[Tensor], CropPrediction], num_landmarks: int = 15) -> None:
        super().__init__(num_landmarks)
        self.look = look

    def layers(self, images: Tensor) -> Tensor:
        assert not self.training
        return images

    def loss(self, output: Tensor, points_crop: Tensor, weights: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, output: Tensor) -> CropPrediction:
        return self.look(output)
