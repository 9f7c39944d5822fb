"""Predicts landmarks in image pixels.

The landmarks of each view are mapped to the image by its own frame, and averaged there.
"""

import copy
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
from heatmap.runtime import distributed
from heatmap.runtime.stopwatch import Stopwatch

MIN_STD = 0.01  # px of the image; a narrower heatmap has no peak
FAR = 1e6  # px; standard deviation of a landmark whose heatmap has no peak


@dataclass(frozen=True)
class View:
    """One view of the images: a network, a crop and whether it is mirrored."""

    network: Network
    samples: Samples
    precision: str = "fp32"  # or bf16
    mirrored: bool = False  # predictions are mirrored back, left and right landmarks swapped
    scheme: schemes.Scheme | None = None  # of the landmarks, if their table has one
    true_pixels: bool = False  # predict the landmarks themselves, without the labels' offset


def placed(network: Network, device: torch.device) -> Network:
    """Returns the network in eval mode on the device: a copy, unless it is there already."""
    device = torch.empty(0, device=device).device  # "cuda" is its current GPU
    if network.mean.device == device and not network.training:
        return network
    return copy.deepcopy(network).to(device).eval()


class Prediction(NamedTuple):
    """Landmarks of a batch of B images, merged over the views."""

    rows: np.ndarray  # (B,) int64 table rows
    points_image: np.ndarray  # (B, P, 2) float64
    peak: np.ndarray | None
    """(B, P) float32 mean height of the heatmaps' peaks; None if no view has heatmaps."""
    covariance_image: np.ndarray | None
    """(B, P, 2, 2) float64 spread of the heatmaps in square image pixels: their mean, or for
    weighted views the inverse of the sum of the inverses; None if no view has heatmaps."""
    frame: Frame  # of the first view's crops
    image_hw: np.ndarray  # (B, 2), the images' sizes
    disagreement: np.ndarray | None
    """(B, P) float64 root mean squared distance, in image pixels, of the views' points from the
    merged one; None for a single view."""


class ViewPrediction(NamedTuple):
    """Landmarks of a batch from one view, or merged, as tensors on the device."""

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
    *,
    batch: int,
    workers: int | None,
    weighted: bool = False,
    distribute: bool = False,
    watch: Stopwatch | None = None,
) -> Iterator[Prediction]:
    """Yields the predictions of (N,) rows in batches, without augmentation.

    Each image is read once, by `workers` processes. The networks run in eval mode on their own
    device, and return to their previous mode.

    Args:
        views: views of the same images; their points are averaged.
        weighted: weight points by the inverse covariance of their heatmaps, which all views need. A
            heatmap without a peak has no weight, unless none has a peak.
        distribute: predict only this process's share of the batches.

    Raises:
        UserError: an image cannot be read.
    """
    device = views[0].network.mean.device
    watch = watch or Stopwatch(device)
    # index of the first view with the same crops, which are cut once
    crop_of_view = [
        next(k for k, other in enumerate(views) if view.samples.cuts_as(other.samples))
        for view in views
    ]
    distinct = sorted(set(crop_of_view))
    cuts = Cuts([views[k].samples for k in distinct])
    was_training = {view.network: view.network.training for view in views}
    for network in was_training:
        network.eval()
    rank, world = (distributed.rank(), distributed.world()) if distribute else (0, 1)
    try:
        batches = batches_in_order(rows, batch, rank, world)
        for samples in watch.waiting("data", load(cuts, batches, workers, device)):
            with watch("data"):
                inputs = {
                    k: augment.plain(*(t.to(device, non_blocking=True) for t in sample[:3]))
                    for k, sample in zip(distinct, samples, strict=True)
                }
            predictions = [
                predict_view(view, inputs[k], watch)
                for view, k in zip(views, crop_of_view, strict=True)
            ]
            with watch("decode"):
                merged = _weighted(predictions) if weighted else _mean(predictions)
                offsets = torch.stack([p.points_image for p in predictions]) - merged.points_image
                distance = offsets.square().sum(-1).mean(0).sqrt()
                first = samples[0]
                prediction = Prediction(
                    first.row.numpy(),
                    *merged.numpy(),
                    Frame(first.image_from_crop, *first.crop.shape[-2:]),
                    first.image_hw.numpy(),
                    distance.cpu().numpy() if len(views) > 1 else None,
                )
            yield prediction
    finally:
        for network, mode in was_training.items():
            network.train(mode)


def predict_view(view: View, inputs: augment.Batch, watch: Stopwatch) -> ViewPrediction:
    """Predicts a batch of crops. The network must be in eval mode and gradients disabled."""
    images, frame = inputs.images, inputs.frame
    order: Tensor | slice = slice(None)
    if view.mirrored:
        images, frame = images.flip(-1), frame.mirrored()
        permutation = schemes.mirror_permutation(view.network.num_landmarks, view.scheme)
        order = torch.from_numpy(permutation).to(images.device)
    with watch("network"), autocast(images.device, view.precision):
        output = view.network(images)
    with watch("decode"):
        points_crop, peak, covariance = view.network.decode(output)
        if peak is not None and covariance is not None:
            peak, covariance = peak[:, order], frame.covariance_to_image(covariance)[:, order]
        points_image = frame.to_image(points_crop)[:, order]
        if not view.true_pixels:
            points_image = points_image + view.network.label_offset
        return ViewPrediction(points_image, peak, covariance)


def _mean(predictions: Sequence[ViewPrediction]) -> ViewPrediction:
    points_image, peaks, covariances = (
        [part for part in parts if part is not None] for parts in zip(*predictions, strict=True)
    )
    return ViewPrediction(
        torch.stack(points_image).mean(0),
        torch.stack(peaks).mean(0) if peaks else None,
        torch.stack(covariances).mean(0) if covariances else None,
    )


def _weighted(predictions: Sequence[ViewPrediction]) -> ViewPrediction:
    """The combination with the smallest variance if the views' errors are independent.

    A covariance that is not positive definite, or narrower than `MIN_STD`, comes from a heatmap
    without a peak: the landmark may be anywhere.
    """
    covariances = [p.covariance_image for p in predictions if p.covariance_image is not None]
    assert len(covariances) == len(predictions), "weighting needs heatmaps from every view"
    covariance = torch.stack(covariances)
    (xx, xy), (_, yy) = ((row[..., 0], row[..., 1]) for row in covariance.unbind(-2))
    smaller_eigenvalue = (xx + yy) / 2 - torch.hypot((xx - yy) / 2, xy)
    has_peak = smaller_eigenvalue[..., None, None] > MIN_STD**2  # False for NaN
    anywhere = FAR**2 * torch.eye(2).to(covariance)
    precision = torch.linalg.inv(torch.where(has_peak, covariance, anywhere))
    covariance = torch.linalg.inv(precision.sum(0))
    points_image = torch.stack([p.points_image for p in predictions])
    moments = (precision @ points_image[..., None]).sum(0)
    return ViewPrediction((covariance @ moments)[..., 0], _mean(predictions).peak, covariance)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast for the network's layers; everything after them is float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
