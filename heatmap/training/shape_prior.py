"""Fits the shape prior of a finished run, if it lowers the error of held-out images."""

import copy
import logging
import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from heatmap import codec, frame, shape
from heatmap.data.samples import evenly_spaced
from heatmap.errors import UserError
from heatmap.evaluation import metrics
from heatmap.inference.predict import View, predict
from heatmap.networks import CropPrediction, HeatmapNetwork
from heatmap.networks.shape_prior import PriorValues, ShapePrior, signs_of_doubt
from heatmap.runs import checkpoint
from heatmap.runs.folder import RunFolder
from heatmap.runtime import distributed
from heatmap.training.prepare import MIN_HELD_OUT, Run

logger = logging.getLogger("heatmap")

MAX_HELD_OUT = 1_000  # images
MAX_SHAPES = 500
MAX_COMPARED = 200  # images that decide between the candidates
VARIANCE_KEPT = 0.95  # by the components
MIN_GAIN = 0.005  # fraction of the error that a prior must save
PSEUDO_IMAGES = 10  # weight of the average landmark in the error of each
STRENGTHS = 0.25, 0.5, 1.0, 2.0, 4.0, 8.0  # factors of the errors, which are not independent
SHARPNESS = 0.0, 1.0  # factors of the slopes
BLOCK = 64  # images


class HeldOut(NamedTuple):
    """N images that were not trained on."""

    prediction: CropPrediction  # without the prior
    truth_crop: Tensor  # (N, P, 2), NaN where unlabelled
    pixel_area: Tensor  # (N,) square image pixels per crop pixel
    is_fitted: Tensor  # (N,) bool, the half to fit on; the other half checks


def add(run: Run, files: RunFolder) -> dict[str, np.ndarray]:
    """Adds a shape prior to best.pt of a finished run; all processes must call it.

    Returns:
        The columns of per_image.csv with the prior; empty if there is none, and in all processes
        but the first.
    """
    settings, data = run.experiment, run.data
    # a run resumed into another folder may have no best.pt
    if not (run.fits_shape_prior and distributed.from_first(files.best.is_file())):
        return {}
    network = copy.deepcopy(run.scored_network)
    assert isinstance(network, HeatmapNetwork)
    if distributed.rank() == 0:
        best = checkpoint.load(files.best)
        network.load_state_dict(best.network)
        network.sigma = best.sigma or network.sigma
        network.label_offset.copy_(torch.tensor(best.label_offset))
    distributed.same_everywhere([*network.parameters(), *network.buffers()])
    network.sigma = distributed.from_first(network.sigma)
    view = View(network, data.validation, settings.train.precision, scheme=data.scheme)
    held_out = _held_out(run, replace(view, true_pixels=True))
    rows = evenly_spaced(data.training_rows, MAX_SHAPES)
    values = None
    if held_out:
        values = fit(data.table.points_image[rows], held_out, _border(run, network))
    values = distributed.from_first(values)
    if values:
        network.shape_prior = ShapePrior(values).to(run.device)
        errors = metrics.measure_errors(
            [view], data.validation_rows, run.mean_shape_crop, batch=settings.train.batch,
            workers=settings.data.workers,
        )  # fmt: skip
        mse = distributed.from_first(metrics.summary(errors)["mse"] if errors else math.inf)
        if mse < run.progress.best_mse:
            run.progress.prior_mse = mse
            if errors:
                saved = replace(best, shape_prior=values, validation_mse=mse)
                checkpoint.save(files.best, saved)
                logger.info(
                    f"shape prior: lowers the validation MSE from {run.progress.best_mse:.3f} to "
                    f"{mse:.3f} px²"
                )
            return errors.columns() if errors else {}
    run.progress.prior_mse = None
    if distributed.rank() == 0:
        logger.info("shape prior: none, since it does not lower the error of validation images")
    return {}


def _held_out(run: Run, view: View) -> HeldOut | None:
    """Predictions of validation images, in the first process."""
    data, settings = run.data, run.experiment
    rows = evenly_spaced(data.validation_rows, MAX_HELD_OUT)
    parts = []
    for batch in predict(
        [view], rows, batch=settings.train.batch, workers=settings.data.workers, distribute=True
    ):
        assert batch.peak is not None and batch.covariance_image is not None
        area = batch.frame.pixel_area()
        labels_image = torch.from_numpy(data.table.points_image[batch.rows])
        truth_image = labels_image - view.network.label_offset.cpu()
        covariance = torch.from_numpy(batch.covariance_image) / area[:, None, None, None]
        parts.append((
            torch.from_numpy(batch.rows),
            batch.frame.to_crop(torch.from_numpy(batch.points_image)).float(),
            torch.from_numpy(batch.peak),
            covariance.float(),
            batch.frame.to_crop(truth_image).float(),
            area.float(),
        ))  # fmt: skip
    gathered = [part for parts in distributed.gather(parts) for part in parts]
    if distributed.rank() > 0 or not gathered:
        return None
    used, points, peak, covariance, truth, area = map(torch.cat, zip(*gathered, strict=True))
    names = [data.table.names[row] for row in used.tolist()]
    fitted = metrics.half_to_fit(names, settings.data.person_pattern, area.sqrt().numpy())
    is_fitted = torch.from_numpy(fitted)
    return HeldOut(CropPrediction(points, peak, covariance), truth, area, is_fitted)


def _border(run: Run, network: HeatmapNetwork) -> Tensor:
    """(5,) as in `PriorValues`."""
    crop, stride = run.experiment.crop, network.stride
    height, width = network.map_hw(crop.height, crop.width)
    last = torch.tensor([[0.0, 0.0], [width - 1, height - 1]])
    reach = stride * codec.REACH * network.sigma
    return torch.cat([frame.from_heatmap(last, stride).flatten(), torch.tensor([reach])])


def fit(points_image: shape.AnyPoints, held_out: HeldOut, border: Tensor) -> PriorValues | None:
    """Fits a prior; returns None if there are too few images or it does not lower the error.

    Args:
        points_image: (T, P, 2) labels of training images.
        held_out: images to fit the landmarks' errors on, and to check the result.
        border: as in `PriorValues`.
    """
    fitted, checked = (half.nonzero()[:, 0] for half in (held_out.is_fitted, ~held_out.is_fitted))
    if min(len(fitted), len(checked)) < MIN_HELD_OUT // 4:  # halves hold whole people
        return None
    try:
        model = shape.fit(points_image, VARIANCE_KEPT)
    except UserError:  # too few different shapes
        return None
    plain = _with_errors(_of_shapes(model, border), held_out)
    candidates = [
        replace(plain, error=strength * plain.error, slopes=sharpness * plain.slopes)
        for strength in STRENGTHS
        for sharpness in SHARPNESS
    ]
    compared = torch.from_numpy(evenly_spaced(fitted.numpy(), MAX_COMPARED))
    best = min(candidates, key=lambda values: mse(held_out, compared, values))
    pays = all(
        mse(held_out, half, best) < (1 - MIN_GAIN) * mse(held_out, half)
        for half in (compared, checked)
    )
    return _calibrated(best, held_out, compared) if pays else None


@torch.no_grad()
def _calibrated(values: PriorValues, held_out: HeldOut, images: Tensor) -> PriorValues:
    """The values with a posterior variance that equals the squared error of these images."""
    prediction = ShapePrior(values)(_of_images(held_out.prediction, images))
    assert prediction.covariance_crop is not None
    squares = (prediction.points_crop - held_out.truth_crop[images]).square().mean(-1)
    variance = prediction.covariance_crop.diagonal(dim1=-2, dim2=-1).mean(-1)
    is_known = squares.isfinite()
    return replace(values, calibration=squares[is_known].mean() / variance[is_known].mean())


def _of_images(prediction: CropPrediction, images: Tensor) -> CropPrediction:
    return CropPrediction(*(part[images] for part in prediction if part is not None))


@torch.no_grad()
def mse(held_out: HeldOut, images: Tensor, values: PriorValues | None = None) -> float:
    """Returns the MSE of some images in square image pixels, with a prior or without.

    Args:
        images: (n,) int64, their indices.
    """
    prior = ShapePrior(values) if values else None
    total, count = 0.0, 0
    for block in images.split(BLOCK):
        prediction = _of_images(held_out.prediction, block)
        if prior:
            prediction = prior(prediction)
        squares = (prediction.points_crop - held_out.truth_crop[block]).square().mean(-1)
        is_known = squares.isfinite()
        total += float((squares.nan_to_num() * held_out.pixel_area[block, None]).sum())
        count += int(is_known.sum())
    return total / count


def _of_shapes(model: shape.ShapeModel, border: Tensor) -> PriorValues:
    """The values without those of errors."""
    radius = np.sqrt(np.mean(np.abs(model.mean) ** 2))
    mean = torch.from_numpy(np.stack([model.mean.real, model.mean.imag]) / radius)
    components = model.components * model.spread[:, None] / radius
    basis = torch.from_numpy(np.stack(np.split(components, 2, 1)))
    noise = torch.from_numpy((model.noise / radius) ** 2)
    signs = torch.zeros(mean.shape[1], 3)
    return PriorValues(mean, basis, noise, signs.T, signs[0], signs, border, torch.ones(()))


def _with_errors(values: PriorValues, held_out: HeldOut) -> PriorValues:
    """The values with the errors of the fitted half.

    The logarithm of the squared error depends on the signs of doubt in the same way for all
    landmarks, which differ in their average.
    """
    prediction, truth_crop, _, is_fitted = held_out
    points, peak, spread = _of_images(prediction, is_fitted)
    assert peak is not None and spread is not None
    offset = points - truth_crop[is_fitted]
    is_known = offset.isfinite().all(-1)
    signs = signs_of_doubt(points, peak, spread, values.border.float())
    log_square = offset.square().sum(-1).clamp_min(1e-4).log()
    weight = is_known[..., None].float()
    count = weight.sum(0).clamp_min(1)
    typical = (signs * weight).sum(0) / count
    columns = (signs - typical)[is_known]
    target = log_square - (log_square.nan_to_num()[..., None] * weight).sum(0)[:, 0] / count[:, 0]
    target = target[is_known][:, None]
    # a ridge, since a sign may never vary
    normal = columns.T @ columns + torch.eye(3)
    slopes = torch.linalg.solve(normal, columns.T @ target)[:, 0]
    slopes = slopes * torch.tensor([-1.0, 1.0, 1.0])
    slopes = slopes.clamp_min(0) * torch.tensor([-1.0, 1.0, 1.0])  # doubt never lowers the error

    factor = ((signs - typical) @ slopes).exp()
    x, y = offset.unbind(-1)
    squares = torch.stack([x * x, x * y, y * y], -1) / factor[..., None]
    error = squares.nan_to_num().sum(0)
    pooled = error.sum(0) / weight.sum()
    error = (error + PSEUDO_IMAGES * pooled) / (count + PSEUDO_IMAGES)
    return replace(values, error=error.T, slopes=slopes, typical=typical)
