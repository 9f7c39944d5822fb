"""Measures a constant offset of the labels from the landmarks, along x.

Labels made by another pixel convention, such as counting from 1, are off by a constant. Mirroring
an image mirrors its face but not the offset, so a network that is trained on both cannot learn the
offset: on average it predicts the landmarks, and the labels lie beside its predictions. Along y, a
network learns the offset together with the landmarks.
"""

import logging
import math

import numpy as np

from heatmap.data.samples import evenly_spaced
from heatmap.inference.predict import View, predict
from heatmap.runs import model_card
from heatmap.runtime import distributed
from heatmap.training.prepare import Run

logger = logging.getLogger("heatmap")

MAX_IMAGES = 256  # predicted twice per measurement
MIN_IMAGES = 8
MAX_VARIANCE = 0.25  # of the errors along x, relative to the mean shape's squared error
LATEST = 0.5  # fraction of the budget; the rest of the training keeps the last offset


def update(run: Run) -> None:
    """Measures the offset after epochs 1, 2, 4, 8 ... while the training is young."""
    epoch = 1 + run.progress.epoch
    is_due = epoch & (epoch - 1) == 0 and run.budget_used() <= LATEST
    if is_due and run.measures_label_offset:
        offset_x = distributed.from_first(measure(run))
        if math.isfinite(offset_x):
            run.set_label_offset(offset_x, 0.0)
            if distributed.rank() == 0:
                offset = model_card.describe_offset(offset_x, 0.0)
                logger.info(f"the labels are off by {offset}, measured along x; corrected")
        elif distributed.rank() == 0:
            reason = "predictions are not clearly better than the mean shape"
            logger.info(f"label offset: unknown, since {reason}")


def measure(run: Run) -> float:
    """Returns how far right of the landmarks the labels lie, in image pixels; NaN if unknown.

    Predicts training images and their mirror images, which gives both the same weight. The result
    is the interquartile mean over images, so that wrong labels hardly change it. It is unknown
    while the predictions are not clearly better than the mean shape. In a run of several processes,
    only the first one's result counts.
    """
    data, train = run.data, run.experiment.train
    assert data.permutation is not None
    views = [
        View(run.scored_network, data.validation, train.precision, mirrored, data.scheme)
        for mirrored in (False, True)
    ]
    rows, workers = evenly_spaced(data.training_rows, MAX_IMAGES), run.experiment.data.workers
    parts = [np.empty((0, 3))]
    for prediction in predict(views, rows, batch=train.batch, workers=workers, distribute=True):
        label_x = data.table.points_image[prediction.rows][..., 0]
        # predictions follow the labels, so they contain the offset of the last measurement
        difference = label_x - (prediction.points_image[..., 0] - run.progress.label_offset[0])
        from_mean = label_x - prediction.frame.to_image(run.mean_shape_crop).numpy()[..., 0]
        is_paired = np.isfinite(difference) & np.isfinite(difference[:, data.permutation])
        parts.append(_means(is_paired, difference, difference**2, from_mean**2))
    every = np.concatenate(distributed.gather(np.concatenate(parts)))
    offset, square, square_of_mean_shape = every[np.isfinite(every).all(1)].T
    if len(offset) < MIN_IMAGES:
        return math.nan
    variance = square.mean() - offset.mean() ** 2
    if variance > MAX_VARIANCE * square_of_mean_shape.mean():
        return math.nan
    quarter = len(offset) // 4
    return float(np.sort(offset)[quarter : len(offset) - quarter].mean())


def _means(is_counted: np.ndarray, *values: np.ndarray) -> np.ndarray:
    """(B, len(values)): means over the counted landmarks; NaN if there are none."""
    sums = np.stack([np.where(is_counted, value, 0).sum(1) for value in values], 1)
    with np.errstate(invalid="ignore"):
        return sums / is_counted.sum(1, keepdims=True)
