"""The score averages over the labelled coordinates of an image, then over images."""

import numpy as np
import pytest

from heatmap.data.contest import contest_mse, squared_errors


def loop(predicted: np.ndarray, truth: np.ndarray) -> tuple[list[float], float]:
    """The score in plain Python."""
    per_image = []
    for image, labels in zip(predicted.tolist(), truth.tolist(), strict=True):
        squares = [
            (value - label) ** 2
            for point, labelled in zip(image, labels, strict=True)
            for value, label in zip(point, labelled, strict=True)
            if label == label
        ]
        per_image.append(sum(squares) / len(squares) if squares else float("nan"))
    scored = [error for error in per_image if error == error]
    return per_image, sum(scored) / len(scored)


def random_case() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    truth = random.uniform(-20, 1300, (7, 5, 2)).astype(np.float32)
    predicted = truth + random.normal(0, 3, truth.shape).astype(np.float32)
    truth[2, 1:4] = truth[4, 0, 1] = truth[6] = np.nan
    return predicted, truth


def test_score_equals_a_plain_loop() -> None:
    predicted, truth = random_case()
    per_image, mse = loop(predicted, truth)
    errors = squared_errors(predicted, truth)
    assert errors.dtype == np.float64
    np.testing.assert_allclose(errors, per_image, rtol=1e-14)
    assert contest_mse(errors) == pytest.approx(mse, rel=1e-14)


def test_unlabelled_predictions_may_be_nan() -> None:
    predicted, truth = random_case()
    expected = squared_errors(predicted, truth)
    predicted[np.isnan(truth)] = np.nan
    np.testing.assert_array_equal(squared_errors(predicted, truth), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_predictions_are_refused(value: float) -> None:
    predicted, truth = random_case()
    predicted[3, 0, 1] = predicted[5] = value
    with pytest.raises(ValueError, match="in 2 of 7 images; the first is image 3"):
        squared_errors(predicted, truth)


def test_score_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the 3 images has a label"):
        contest_mse(np.full(3, np.nan))
