"""Networks and images -> landmarks in the images' own pixels.

The landmarks of every view come home to the image by its own frame, and are merged there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from heatmap import schemes
from heatmap.data import augment
from heatmap.data.samples import Cuts, Samples, batches_in_order, load
from heatmap.frame import Frame
from heatmap.networks import Network
from heatmap.runtime.stopwatch import Stopwatch

SHARPEST = 0.01  # px of the image; a narrower heatmap is one without a peak
FAR = 1e6  # px; the standard deviation of a landmark that a heatmap says nothing of


@dataclass(frozen=True)
class View:
    """One way in which a network looks at the images.

    samples: how they are cropped; precision: fp32 or bf16; mirrored: the crops are mirrored, and
    left and right landmarks change names; scheme: of the landmarks, where a file tells it.
    """

    network: Network
    samples: Samples
    precision: str = "fp32"
    mirrored: bool = False
    scheme: schemes.Scheme | None = None


@dataclass(frozen=True)
class Execution:
    """How networks are run on many images."""

    device: torch.device
    batch: int  # images
    workers: int = 0  # loader processes; 0 loads in this one


class Prediction(NamedTuple):
    """Prediction of B images.

    rows: (B,) int64 rows of the table; points_image: (B, P, 2) float64 in image pixels.
    peak: (B, P) float32, and covariance_image: (B, P, 2, 2) float64 in square image pixels: means
        over the views that have a heatmap (of weighted views the inverse of the sum of the
        covariances' inverses); None where none has.
    frame: of the first view's crops; image_hw: (B, 2) the images' sizes.
    disagreement: (B, P) float64 root mean squared distance of the views' points from the merged
        one, in image pixels; None for a single view.
    """

    rows: np.ndarray
    points_image: np.ndarray
    peak: np.ndarray | None
    covariance_image: np.ndarray | None
    frame: Frame
    image_hw: np.ndarray
    disagreement: np.ndarray | None


class ViewPrediction(NamedTuple):
    """Prediction from one view or all of them, as in `Prediction`, on the device."""

    points_image: Tensor
    peak: Tensor | None
    covariance_image: Tensor | None

    def numpy(self) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        peak, covariance = (None if t is None else t.cpu().numpy() for t in self[1:])
        return self.points_image.cpu().numpy(), peak, covariance


@torch.no_grad()
def predict(
    views: Sequence[View],
    rows: np.ndarray,
    execution: Execution,
    *,
    weighted: bool = False,
    rank: int = 0,
    world: int = 1,
    watch: Stopwatch | None = None,
) -> Iterator[Prediction]:
    """Batch by batch, this process's part of the rows, without augmentation.

    Every image is read once. The networks are left in the mode they were in.

    Args:
        views: of the same images; their points are averaged.
        weighted: by the inverse covariances of the heatmaps, which all views must have. One without
            a peak counts for nothing, unless all are.

    Raises:
        UserError: an image cannot be read; the message names it.
    """
    device = execution.device
    watch = watch or Stopwatch(device)
    cropped: list[Samples] = []  # views that crop alike share the crop
    for view in views:
        if not any(view.samples.cuts_as(other) for other in cropped):
            cropped.append(view.samples)
    shared = [
        next(i for i, other in enumerate(cropped) if view.samples.cuts_as(other)) for view in views
    ]
    was_training = {view.network: view.network.training for view in views}
    for network in was_training:
        network.eval()
    try:
        batches = batches_in_order(rows, execution.batch, rank, world)
        loaded = load(Cuts(cropped), batches, execution.workers, device)
        for samples in watch.waiting("data", loaded):
            with watch("data"):
                inputs = [
                    augment.plain(*(t.to(device, non_blocking=True) for t in sample[:3]))
                    for sample in samples
                ]
            seen = [
                predict_view(view, inputs[i], watch) for view, i in zip(views, shared, strict=True)
            ]
            with watch("decode"):
                merged, first = _weighted(seen) if weighted else _mean(seen), samples[0]
                landmarks = Prediction(
                    first.row.numpy(),
                    *merged.numpy(),
                    Frame(first.image_from_crop, *first.crop.shape[-2:]),
                    first.image_hw.numpy(),
                    _disagreement(seen, merged),
                )
            yield landmarks
    finally:
        for network, mode in was_training.items():
            network.train(mode)


def predict_view(view: View, inputs: augment.Batch, watch: Stopwatch) -> ViewPrediction:
    """What the view's network, in eval mode, gives for its crops; call it without gradients."""
    images, here = inputs.images, inputs.frame
    order: Tensor | slice = slice(None)
    if view.mirrored:
        images, here = images.flip(-1), here.mirrored()
        permutation = schemes.mirror_permutation(view.network.num_landmarks, view.scheme)
        order = torch.from_numpy(permutation).to(images.device)
    with watch("network"), autocast(images.device, view.precision):
        output = view.network(images)
    with watch("decode"):
        found = view.network.decode(output)
        covariance = found.covariance_crop
        return ViewPrediction(
            here.to_image(found.points_crop)[:, order],
            None if found.peak is None else found.peak[:, order],
            None if covariance is None else here.covariance_to_image(covariance)[:, order],
        )


def _mean(seen: Sequence[ViewPrediction]) -> ViewPrediction:
    points_image, peaks, covariances = (
        [part for part in parts if part is not None] for parts in zip(*seen, strict=True)
    )
    return ViewPrediction(
        torch.stack(points_image).mean(0),
        torch.stack(peaks).mean(0) if peaks else None,
        torch.stack(covariances).mean(0) if covariances else None,
    )


def _weighted(seen: Sequence[ViewPrediction]) -> ViewPrediction:
    """The combination with the smallest variance, were the errors of the views independent.

    A covariance that is no ellipse, or narrower than `SHARPEST`, comes from a map without a peak:
    the landmark may be anywhere.
    """
    covariance = torch.stack([s.covariance_image for s in seen if s.covariance_image is not None])
    assert len(covariance) == len(seen), "every view needs a heatmap to be weighted"
    (xx, xy), (_, yy) = ((row[..., 0], row[..., 1]) for row in covariance.unbind(-2))
    narrowest = (xx + yy) / 2 - torch.hypot((xx - yy) / 2, xy)  # the smaller eigenvalue
    anywhere = FAR**2 * torch.eye(2).to(covariance)
    has_peak = narrowest[..., None, None] > SHARPEST**2  # NaN has none
    precision = torch.linalg.inv(torch.where(has_peak, covariance, anywhere))
    covariance = torch.linalg.inv(precision.sum(0))
    points_image = torch.stack([one.points_image for one in seen])
    moments = (precision @ points_image[..., None]).sum(0)
    return ViewPrediction((covariance @ moments)[..., 0], _mean(seen).peak, covariance)


def _disagreement(seen: Sequence[ViewPrediction], merged: ViewPrediction) -> np.ndarray | None:
    if len(seen) == 1:
        return None
    offsets = torch.stack([one.points_image for one in seen]) - merged.points_image
    distances: np.ndarray = offsets.square().sum(-1).mean(0).sqrt().cpu().numpy()
    return distances


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The network's arithmetic; everything after it is float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
