"""How far off a landmark is expected to be in px, told from how sure the network is of it.

The height of a heatmap's peak and its spread rank landmarks by their errors; a map fitted on
labelled images says how many pixels that means.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from heatmap.errors import UserError
from heatmap.runs.folder import RunFolder
from heatmap.runtime.files import read_json, write_json

MOST_FITTED = 2_000_000  # landmarks that a map is fitted to, and as many that it is checked on
FEWEST_FITTED = 200
MOST_KNOTS = 100
FEWEST_PER_KNOT = 50
SMALLEST = 1e-3  # of a peak's height, and px of a spread or an error, where logarithms are taken


@dataclass(frozen=True)
class Calibration:
    """The expected error, linear between K knots over doubt and constant beyond them.

    Doubt is `spread_weight * log(spread) - peak_weight * log(peak)`; the weights are not negative.

    doubt: (K,), rising; error_px: (K,), in pixels of the image, not falling.
    """

    peak_weight: float
    spread_weight: float
    doubt: Sequence[float]
    error_px: Sequence[float]

    def expected_error(self, peak: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """Expected distance from the true landmark in px of the image; NaN where none is told.

        Args:
            peak, spread: of one shape, as in `per_image.Errors`.
        """
        doubt = np.zeros(spread.shape)
        if self.spread_weight:
            doubt += self.spread_weight * _log(spread)
        if self.peak_weight:
            doubt -= self.peak_weight * _log(peak)
        return np.asarray(np.interp(doubt, self.doubt, self.error_px))


def fit(distance: np.ndarray, peak: np.ndarray, spread: np.ndarray) -> Calibration | None:
    """The map that fits the errors; None where nothing tells of them, or there are too few.

    Doubt is what predicts the error's logarithm best; the map over it is the isotonic regression
    of the error (Barlow et al. 1972, by pooling adjacent violators).

    Args:
        distance, peak, spread: (N, P), as in `per_image.Errors`.
    """
    rising = {"peak": -_log(peak), "spread": _log(spread)}
    rising = {name: values for name, values in rising.items() if np.isfinite(values).any()}
    known = np.isfinite([distance, *rising.values()]).all(0)
    if known.sum() < FEWEST_FITTED:
        return None
    error = distance[known].astype(np.float64)
    rising = {name: values[known] for name, values in rising.items()}
    weights = _weights(rising, _log(error))
    if not weights:
        return None
    doubt = np.sum([weight * rising[name] for name, weight in weights.items()], axis=0)
    count = min(MOST_KNOTS, len(doubt) // FEWEST_PER_KNOT)
    parts = np.array_split(np.argsort(doubt), count)
    knots = _isotonic([(doubt[part].mean(), error[part].mean(), len(part)) for part in parts])
    x, y, _ = zip(*knots, strict=True)
    return Calibration(weights.get("peak", 0.0), weights.get("spread", 0.0), list(x), list(y))


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(values.astype(np.float64), SMALLEST))


def _weights(rising: dict[str, np.ndarray], target: np.ndarray) -> dict[str, float]:
    """Least squares without negative weights: the best of those subsets that have none."""
    best, least = {}, np.inf
    for size in range(1, len(rising) + 1):
        for names in combinations(rising, size):
            columns = np.stack([*(rising[name] for name in names), np.ones_like(target)], 1)
            found = np.linalg.lstsq(columns, target)[0]
            loss = np.square(columns @ found - target).sum()
            if (found[:-1] > 1e-9).all() and loss < least:
                best, least = dict(zip(names, found.tolist(), strict=False)), loss
    return best


def _isotonic(parts: Sequence[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """(x, y, weight) in the order of x, neighbours made one until no y is below its predecessor."""
    pooled: list[tuple[float, float, int]] = []
    for x, y, weight in parts:
        while pooled and y <= pooled[-1][1]:
            left_x, left_y, left = pooled.pop()
            x = (left_x * left + x * weight) / (left + weight)
            y = (left_y * left + y * weight) / (left + weight)
            weight += left
        pooled.append((x, y, weight))
    return pooled


class Decile(NamedTuple):
    """A tenth of the landmarks by expected error: how many, and the means of both errors."""

    landmarks: int
    expected_px: float
    observed_px: float


def deciles(expected: np.ndarray, observed: np.ndarray) -> list[Decile]:
    """What was expected and what came, from the surest tenth of the landmarks to the least sure.

    expected, observed: px, of one shape; NaN does not count.
    """
    known = np.isfinite(expected) & np.isfinite(observed)
    expected, observed = expected[known].astype(np.float64), observed[known].astype(np.float64)
    parts = filter(len, np.array_split(np.argsort(expected, kind="stable"), 10))
    return [Decile(len(p), float(expected[p].mean()), float(observed[p].mean())) for p in parts]


def halves(groups: Sequence[str], size: np.ndarray) -> np.ndarray:
    """(N,) bool: about half of the images, alike in (N,) size, and whole groups, such as people."""
    names, group_of, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    order = np.argsort(np.bincount(group_of, size) / counts, kind="stable")
    chosen = np.empty(len(names), bool)
    chosen[order] = np.resize([True, False, False, True], len(names))
    return chosen[group_of]


class Checked(NamedTuple):
    """A map, and what it is worth on images that it was not fitted to."""

    calibration: Calibration
    fitted_images: int
    checked_images: int
    deciles: list[Decile]


def fit_and_check(
    distance: np.ndarray, peak: np.ndarray, spread: np.ndarray, first: np.ndarray
) -> Checked | None:
    """The map of the `first` images, (N,) bool, checked on the others; None without both."""
    step = max(1, distance.size // MOST_FITTED)
    calibration = fit(distance[first][::step], peak[first][::step], spread[first][::step])
    if calibration is None:
        return None
    others = np.flatnonzero(~first)[::step]
    expected = calibration.expected_error(peak[others], spread[others])
    found = deciles(expected, distance[others])
    return Checked(calibration, int(first.sum()), int((~first).sum()), found) if found else None


def write(folder: Path, checked: Checked | None) -> None:
    """Writes calibration.json into the folder; without a map an old one is removed."""
    path = RunFolder(folder).calibration
    if checked is None:
        path.unlink(missing_ok=True)
        return
    deciles = [decile._asdict() for decile in checked.deciles]
    told = {"calibration": asdict(checked.calibration), "deciles": deciles}
    write_json(path, checked._asdict() | told)


def read(folder: Path) -> Checked | None:
    """What `write` wrote into the folder, None where it holds no map; UserError if damaged."""
    path = RunFolder(folder).calibration
    if not path.exists():
        return None
    told = read_json(path)
    try:
        told["calibration"] = Calibration(**told["calibration"])
        told["deciles"] = [Decile(**decile) for decile in told["deciles"]]
        return Checked(**told)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a calibration of this program ({error}); tools/evaluate.py writes it anew"
        ) from None
