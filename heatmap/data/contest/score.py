"""The contest's score: squared error in image pixels."""

import numpy as np

from heatmap.errors import UserError


def squared_errors(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean squared error of each image over its labelled coordinates, in px^2.

    Args:
        predicted: (N, P, 2) in image pixels.
        truth: (N, P, 2) in image pixels; NaN = unlabelled, not counted.

    Returns:
        (N,) float64; NaN for an image without labels.

    Raises:
        UserError: a prediction is not finite where the truth is labelled.
    """
    assert predicted.shape == truth.shape, (predicted.shape, truth.shape)
    errors = np.full(len(truth), np.nan)
    not_finite = []
    for row in range(len(truth)):  # image by image, to avoid a float64 copy of all
        labelled = ~np.isnan(truth[row])
        if not labelled.any():
            continue
        differences = predicted[row][labelled].astype(np.float64) - truth[row][labelled]
        if not np.isfinite(differences).all():
            not_finite.append(row)
        errors[row] = np.mean(np.square(differences))
    if not_finite:
        raise UserError(
            f"the prediction is not finite where the truth is labelled in {len(not_finite)} of "
            f"{len(truth)} images; the first is image {not_finite[0]}, counted from 0"
        )
    return errors


def contest_mse(per_image: np.ndarray) -> float:
    """The contest's score in px^2: the mean of (N,) `squared_errors`, ignoring NaN.

    Raises:
        UserError: no image has a label.
    """
    if np.isnan(per_image).all():
        raise UserError(f"none of the {len(per_image)} images has a label to score against")
    return float(np.nanmean(per_image))
