"""Expected error of a landmark in pixels, from the network's confidence.

The height of a heatmap's peak and its spread rank landmarks by error. A calibration, fitted on
labelled images, turns that rank into pixels.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from heatmap.config import NotNegative
from heatmap.errors import UserError
from heatmap.runs.folder import RunFolder
from heatmap.runtime.files import read_json, write_json

MAX_FITTED = 2_000_000  # landmarks used for the fit, and as many for the check
MIN_FITTED = 200
MAX_KNOTS = 100
MIN_PER_KNOT = 50
SMALLEST = 1e-3  # lower limit of peaks, and of spreads and errors in px, before logarithms


@dataclass(frozen=True)
class Calibration:
    """Piecewise linear map from doubt to expected error, constant beyond its K knots.

    Doubt is `spread_weight * log(spread) - peak_weight * log(peak)`.
    """

    peak_weight: NotNegative
    spread_weight: NotNegative
    doubt: Sequence[float]  # (K,) increasing
    error_px: Sequence[float]  # (K,) in image pixels, never decreasing

    def __post_init__(self) -> None:
        increases = all(low < high for low, high in pairwise(self.doubt))
        if not (increases and len(self.doubt) == len(self.error_px) > 0):
            raise UserError("calibration.doubt must increase, with an error_px for each value")

    def expected_error(self, peak: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """Expected distance from the true landmark in image pixels; NaN where it is unknown.

        peak and spread are as in `per_image.Errors`, of the same shape.
        """
        doubt = np.zeros(spread.shape)
        if self.spread_weight:
            doubt += self.spread_weight * _log(spread)
        if self.peak_weight:
            doubt -= self.peak_weight * _log(peak)
        return np.asarray(np.interp(doubt, self.doubt, self.error_px))


def fit(distance: np.ndarray, peak: np.ndarray, spread: np.ndarray) -> Calibration | None:
    """Fits a calibration; returns None if nothing predicts the errors, or there are too few.

    Doubt is the best predictor of the error's logarithm. The map from doubt to error is an
    isotonic regression by pooling adjacent violators (Barlow et al. 1972).

    Args:
        distance, peak, spread: (N, P), as in `per_image.Errors`.
    """
    indicators = {"peak": -_log(peak), "spread": _log(spread)}
    indicators = {name: values for name, values in indicators.items() if np.isfinite(values).any()}
    is_known = np.isfinite([distance, *indicators.values()]).all(0)
    if is_known.sum() < MIN_FITTED:
        return None
    error = distance[is_known].astype(np.float64)
    indicators = {name: values[is_known] for name, values in indicators.items()}
    weights = _fit_weights(indicators, _log(error))
    if not weights:
        return None
    doubt = np.sum([weight * indicators[name] for name, weight in weights.items()], axis=0)
    count = min(MAX_KNOTS, len(doubt) // MIN_PER_KNOT)
    parts = np.array_split(np.argsort(doubt), count)
    knots = _isotonic([(doubt[part].mean(), error[part].mean(), len(part)) for part in parts])
    x, y, _ = zip(*knots, strict=True)
    return Calibration(weights.get("peak", 0.0), weights.get("spread", 0.0), list(x), list(y))


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(values.astype(np.float64), SMALLEST))


def _fit_weights(indicators: dict[str, np.ndarray], target: np.ndarray) -> dict[str, float]:
    """The best least-squares fit over subsets of indicators with positive weights only."""
    best, lowest_loss = {}, np.inf
    for size in range(1, len(indicators) + 1):
        for names in combinations(indicators, size):
            columns = np.stack([*(indicators[name] for name in names), np.ones_like(target)], 1)
            weights = np.linalg.lstsq(columns, target)[0]
            loss = np.square(columns @ weights - target).sum()
            if (weights[:-1] > 1e-9).all() and loss < lowest_loss:
                best, lowest_loss = dict(zip(names, weights.tolist(), strict=False)), loss
    return best


def _isotonic(parts: Sequence[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """Pools neighbouring (x, y, weight), in the order of x, until x and y increase everywhere."""
    pooled: list[tuple[float, float, int]] = []
    for x, y, weight in parts:
        while pooled and (x <= pooled[-1][0] or y <= pooled[-1][1]):
            left_x, left_y, left = pooled.pop()
            x = (left_x * left + x * weight) / (left + weight)
            y = (left_y * left + y * weight) / (left + weight)
            weight += left
        pooled.append((x, y, weight))
    return pooled


class Decile(NamedTuple):
    """A tenth of the landmarks, ranked by expected error."""

    landmarks: int
    expected_px: float  # mean
    observed_px: float  # mean


def deciles(expected: np.ndarray, observed: np.ndarray) -> list[Decile]:
    """Compares errors in px by tenths, smallest expected error first; NaN is left out."""
    is_known = np.isfinite(expected) & np.isfinite(observed)
    expected, observed = (px[is_known].astype(np.float64) for px in (expected, observed))
    parts = filter(len, np.array_split(np.argsort(expected, kind="stable"), 10))
    return [Decile(len(p), float(expected[p].mean()), float(observed[p].mean())) for p in parts]


def halves(groups: Sequence[str], size: np.ndarray) -> np.ndarray:
    """Picks half of the images, (N,) bool, with sizes as in the other half and whole groups.

    Args:
        groups: the group of each image, such as its person.
        size: (N,).
    """
    names, group_of, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    order = np.argsort(np.bincount(group_of, size) / counts, kind="stable")
    chosen = np.empty(len(names), bool)
    chosen[order] = np.resize([True, False, False, True], len(names))
    return chosen[group_of]


@dataclass(frozen=True)
class CheckedCalibration:
    """A calibration and its check on images that it was not fitted to."""

    _renamed: ClassVar = {  # since version 0.1.0; see `validate.typed`
        "fitted_pictures": "fitted_images", "checked_pictures": "checked_images",
    }  # fmt: skip

    calibration: Calibration
    fitted_images: int
    checked_images: int
    deciles: list[Decile]  # of the checked images


def fit_and_check(
    distance: np.ndarray, peak: np.ndarray, spread: np.ndarray, fitted: np.ndarray
) -> CheckedCalibration | None:
    """Fits on some of the images and checks on the others; None if either is impossible.

    Args:
        distance, peak, spread: (N, P), as in `per_image.Errors`.
        fitted: (N,) bool, the images to fit on, as `halves` returns them.
    """
    step = max(1, distance.size // MAX_FITTED)
    calibration = fit(distance[fitted][::step], peak[fitted][::step], spread[fitted][::step])
    if calibration is None:
        return None
    others = np.flatnonzero(~fitted)[::step]
    tenths = deciles(calibration.expected_error(peak[others], spread[others]), distance[others])
    if not tenths:
        return None
    return CheckedCalibration(calibration, int(fitted.sum()), int((~fitted).sum()), tenths)


def write(folder: Path, checked: CheckedCalibration | None) -> None:
    """Writes calibration.json into the folder, or removes an old one if `checked` is None."""
    path = RunFolder(folder).calibration
    if checked is None:
        path.unlink(missing_ok=True)
        return
    write_json(path, asdict(checked) | {"deciles": [one._asdict() for one in checked.deciles]})


def read(folder: Path) -> CheckedCalibration | None:
    """Reads calibration.json, None if the folder has none; raises UserError if it is damaged."""
    path = RunFolder(folder).calibration
    if not path.exists():
        return None
    return read_json(path, CheckedCalibration)
