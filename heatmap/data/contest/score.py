"""The contest's score: squared error in the images' own pixels."""

import numpy as np

from heatmap.errors import UserError


def squared_errors(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Each image's mean squared error over its labelled coordinates, in px^2.

    Args:
        predicted: (N, P, 2) in image pixels.
        truth: (N, P, 2) in image pixels; NaN = unlabelled, not counted.

    Returns:
        (N,) float64; NaN for an image without any label.

    Raises:
        UserError: a prediction is not finite where the truth is labelled.
    """
    assert predicted.shape == truth.shape, (predicted.shape, truth.shape)
    errors = np.full(len(truth), np.nan)
    broken = []
    for row in range(len(truth)):  # image by image, so that no float64 copy of all is held
        labelled = ~np.isnan(truth[row])
        if not labelled.any():
            continue
        differences = predicted[row][labelled].astype(np.float64) - truth[row][labelled]
        if not np.isfinite(differences).all():
            broken.append(row)
        errors[row] = np.mean(np.square(differences))
    if broken:
        raise UserError(
            f"the prediction is not finite where the truth is labelled in {len(broken)} of "
            f"{len(truth)} images; the first is number {broken[0]}, counted from 0"
        )
    return errors


def contest_mse(per_image: np.ndarray) -> float:
    """The contest's score in px^2: the mean of (N,) `squared_errors` where there are labels.

    Raises:
        UserError: no image has a label.
    """
    if np.isnan(per_image).all():
        raise UserError(f"none of the {len(per_image)} images has a label to score against")
    return float(np.nanmean(per_image))
