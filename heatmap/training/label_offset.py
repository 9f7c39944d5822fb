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


def measure(run: Run) -> float:
    """Returns how far right of the landmarks the labels lie, in image pixels; NaN if unknown.

    Predicts training images and their mirror images, which gives both the same weight. The result
    is the interquartile mean over images, so that wrong labels hardly change it. In a run of
    several processes, only the first one's result counts.
    """
    data, train = run.data, run.experiment.train
    assert data.permutation is not None
    views = [
        View(run.scored_network, data.validation, train.precision, mirrored, data.scheme)
        for mirrored in (False, True)
    ]
    rows, workers = evenly_spaced(data.training_rows, MAX_IMAGES), run.experiment.data.workers
    offsets = [np.empty(0)]
    for prediction in predict(views, rows, batch=train.batch, workers=workers, distribute=True):
        # predictions follow the labels, so they contain the offset of the last measurement
        predicted_x = prediction.points_image[..., 0] - run.progress.label_offset[0]
        difference = data.table.points_image[prediction.rows][..., 0] - predicted_x
        is_paired = np.isfinite(difference) & np.isfinite(difference[:, data.permutation])
        with np.errstate(invalid="ignore"):
            total = np.where(is_paired, difference, 0).sum(1)
            offsets.append(total / is_paired.sum(1))
    known = np.concatenate(distributed.gather(np.concatenate(offsets)))
    known = np.sort(known[np.isfinite(known)])
    if len(known) < MIN_IMAGES:
        return math.nan
    quarter = len(known) // 4
    return float(known[quarter : len(known) - quarter].mean())
