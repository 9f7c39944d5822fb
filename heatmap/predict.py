"""A network and pictures -> landmarks in the photographs' own pixels."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from heatmap import augment
from heatmap.frame import Frame
from heatmap.networks import Network
from heatmap.samples import Samples, batches_in_order, load
from heatmap.stopwatch import Stopwatch


class Landmarks(NamedTuple):
    """Landmarks of B pictures.

    rows: (B,) int64 rows of the table; points_image: (B, P, 2) float64 in image pixels.
    peak: (B, P) float32 and covariance_image: (B, P, 2, 2) float64 in square image pixels, None on
        the direct road.
    frame: of the crops; image_hw: (B, 2) the photographs' sizes.
    """

    rows: np.ndarray
    points_image: np.ndarray
    peak: np.ndarray | None
    covariance_image: np.ndarray | None
    frame: Frame
    image_hw: np.ndarray


@torch.no_grad()
def predict(
    network: Network,
    samples: Samples,
    rows: np.ndarray,
    *,
    batch: int,
    workers: int,
    device: torch.device,
    precision: str,
    rank: int = 0,
    world: int = 1,
    watch: Stopwatch | None = None,
) -> Iterator[Landmarks]:
    """Batch by batch, this process's part of the rows, without augmentation.

    The network is used in eval mode and left in the mode it was in.

    Raises:
        ValueError: a picture cannot be read; the message names it.
    """
    watch = watch or Stopwatch(device)
    was_training = network.training
    network.eval()
    try:
        batches = batches_in_order(rows, batch, rank, world)
        for sample in watch.waiting("data", load(samples, batches, workers, device)):
            with watch("data"):
                moved = [t.to(device, non_blocking=True) for t in sample]
                inputs = augment.plain(*moved[:3])
            with watch("network"), autocast(device, precision):
                output = network(inputs.images)
            with watch("decode"):
                found = network.decode(output)
                covariance = None
                if found.covariance_crop is not None:
                    spread = inputs.frame.covariance_to_image(found.covariance_crop)
                    covariance = spread.cpu().numpy()
                landmarks = Landmarks(
                    sample.row.numpy(),
                    inputs.frame.to_image(found.points_crop).cpu().numpy(),
                    None if found.peak is None else found.peak.cpu().numpy(),
                    covariance,
                    Frame(sample.image_from_crop, inputs.frame.height, inputs.frame.width),
                    sample.image_hw.numpy(),
                )
            yield landmarks
    finally:
        network.train(was_training)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The network's arithmetic; everything after it is float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
