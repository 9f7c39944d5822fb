"""Scores how suspicious the labels of each face are, and gives the reasons."""

from dataclasses import dataclass, fields, replace

import numpy as np
from tqdm import tqdm

from heatmap import shape
from heatmap.data.contest import Points

REASON_SCORE = 2.0  # lowest score that gives a reason; one face in a hundred reaches it
MIRROR_LOG_RATIO = 0.4  # by which a mirrored order must fit better: a factor of 1.5

# Reasons: {group} is the most suspicious landmark group, {ratio} its value over the median.
RUN_REASONS = {
    "group": "the runs see {group} elsewhere, {ratio} times as far off as usual",
    "shift": "the whole face is shifted, {ratio} times as far as usual",
    "scale": "the whole face is too large or too small, {ratio} times as much as usual",
    "rotation": "the whole face is rotated, {ratio} times as far as usual",
    "mirrored": "the face fits with left and right landmarks swapped",
    "face": "another face: its shape differs from the predicted one {ratio} times as much as usual",
    "agreement": "the runs agree, but the label is {ratio} times as far off as usual",
}
SHAPE_REASONS = {
    "part": "{group} lies {ratio} times as far as usual from its expected place in the face",
    "whole": "an unlikely shape, {ratio} times as far from the mean shape as usual",
}
REASONS = RUN_REASONS | SHAPE_REASONS


@dataclass(frozen=True)
class AuditData:
    """The labels of N faces, and what trained runs predict for them."""

    points_image: np.ndarray | Points  # (N, P, 2) labels, NaN where unlabelled
    predicted_image: np.ndarray  # (N, P, 2) predictions
    expected_px: np.ndarray  # (N, P) expected distance between the two
    disagreement_px: np.ndarray  # (N,) RMS distance of the runs from their mean, NaN for one run
    is_trained: np.ndarray  # (N,) bool, whether these runs were trained on the face
    half: np.ndarray  # (N,) bool; no person is in both halves
    groups: dict[str, range]
    permutation: np.ndarray | None = None  # (P,) of the mirror, None if unknown

    def select(self, rows: np.ndarray) -> "AuditData":
        """Returns the data of these rows."""
        arrays = [field.name for field in fields(self)[:6]]
        return replace(self, **{name: getattr(self, name)[rows] for name in arrays})


@dataclass(frozen=True)
class LabelScores:
    """The scores of N faces: -log10 of the share of faces with more suspicious labels."""

    score: np.ndarray  # (N,)
    reason_scores: dict[str, np.ndarray]  # (N,) by reason, NaN where unknown
    ratios: dict[str, np.ndarray]  # (N,) by reason, how many times the usual value
    worst_group: dict[str, np.ndarray]  # (N,) by reason, index of the most suspicious group
    group_names: list[str]
    model: shape.ShapeModel  # of all faces

    @property
    def ranking(self) -> np.ndarray:
        """(N,) rows, the most suspicious first."""
        return np.argsort(-self.score, kind="stable")

    def top(self, share: float) -> np.ndarray:
        """The most suspicious share of the rows, at least one, the most suspicious first."""
        return self.ranking[: max(1, round(share * len(self.score)))]

    def kinds(self, row: int) -> list[str]:
        """Up to three keys of `REASONS` that make a face suspicious, the strongest first."""
        scores = {name: scores[row] for name, scores in self.reason_scores.items()}
        strong = [name for name, score in scores.items() if score >= REASON_SCORE]
        return sorted(strong, key=lambda name: -scores[name])[:3]

    def reasons(self, row: int) -> list[str]:
        """The reasons of `kinds` in words."""
        reasons = []
        for name in self.kinds(row):
            group = self.group_names[self.worst_group[name][row]]
            group = "the face" if group == "all" else f"the {group}"
            reasons.append(REASONS[name].format(group=group, ratio=f"{self.ratios[name][row]:.1f}"))
        return reasons

    def suspicious_group(self, row: int) -> str:
        """The landmark group of a face that scores highest, "" if none is unusual."""
        name = max("group", "part", key=lambda name: self.reason_scores[name][row])
        is_unusual = self.reason_scores[name][row] > 0
        return self.group_names[self.worst_group[name][row]] if is_unusual else ""


def score_labels(data: AuditData) -> LabelScores:
    """Scores the labels of every face.

    Faces that the runs were trained on are compared with each other only.

    Raises:
        UserError: there are too few faces to fit a shape model.
    """
    model = shape.fit(data.points_image)
    rows, all_rows = np.arange(len(data.half)), np.ones(len(data.half), bool)
    blocks = [
        _run_residuals(data.select(block)) | _shape_residuals(data.select(block), model)
        for block in tqdm([*shape.blocks(rows)], "audit", delay=1, leave=False, disable=None)
    ]
    scores = LabelScores(np.zeros(len(rows)), {}, {}, {}, list(data.groups), model)
    for name in blocks[0]:
        values = np.concatenate([block[name] for block in blocks])
        classes = data.is_trained if name in RUN_REASONS else all_rows
        group_scores, median = tail_scores(values, classes)
        worst = np.nan_to_num(group_scores, nan=-np.inf).argmax(1)
        scores.reason_scores[name] = tail_scores(group_scores[rows, worst, None], classes)[0][:, 0]
        scores.ratios[name] = np.exp(values - median)[rows, worst]
        scores.worst_group[name] = worst
        if name == "mirrored":
            scores.reason_scores[name][~(values[:, 0] > MIRROR_LOG_RATIO)] = np.nan
    for reasons in (RUN_REASONS, SHAPE_REASONS):
        highest = np.fmax.reduce([s for name, s in scores.reason_scores.items() if name in reasons])
        np.fmax(scores.score, tail_scores(highest[:, None], all_rows)[0][:, 0], out=scores.score)
    return scores


def tail_scores(values: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns -log10 of the share of a class that has higher values, and the class's median.

    Above the 90th percentile an exponential tail is assumed, whose rate is measured up to the 95th.
    Errors are rarer than that, so they do not change the scores of the others.

    Args:
        values: (N, K), scored column by column, NaN where unknown.
        classes: (N,) bool.

    Returns:
        Two (N, K) arrays, NaN where unknown.
    """
    scores, medians = np.full(values.shape, np.nan), np.full(values.shape, np.nan)
    for members in (np.flatnonzero(classes), np.flatnonzero(~classes)):
        for column in range(values.shape[1]):
            rows = members[np.isfinite(values[members, column])]
            if len(rows):
                known = values[rows, column]
                median, q90, q95 = np.quantile(known, (0.5, 0.9, 0.95))
                body = 1 + (known - q90) / max(q90 - median, 1e-9) * np.log10(5)
                tail = 1 + (known - q90) / max(q95 - q90, 1e-9) * np.log10(2)
                scores[rows, column] = np.where(known > q90, tail, body)
                medians[rows, column] = median
    return scores, medians


def _run_residuals(data: AuditData) -> dict[str, np.ndarray]:
    """Log ratios of residuals to expected ones by reason, (N, 1) or (N, groups)."""
    label, predicted = shape.of(data.points_image), shape.of(data.predicted_image)
    predicted = np.where(np.isfinite(label), predicted, np.nan)
    expected = np.where(np.isfinite(label), data.expected_px, np.nan)
    residual = np.abs(label - predicted)
    factor, offset = shape.placement(label, predicted)
    aligned_residual = np.abs(factor * label + offset - predicted)
    radius = shape.distances(predicted, shape.nanmean(predicted, 1)[:, None])
    # uncertainty of the whole face: expected error, residual after alignment, and face size
    unit = np.cbrt(_rms(expected) * _rms(aligned_residual) * radius)
    residuals = {
        "group": _by_group(residual / expected, data.groups),
        "shift": np.abs(shape.nanmean(label - predicted, 1)) / unit,
        "scale": np.abs(np.log(np.abs(factor[:, 0]))) * radius / unit,
        "rotation": np.abs(np.angle(factor[:, 0])) * radius / unit,
        "face": _rms(aligned_residual / expected),
        "agreement": _rms(residual) / data.disagreement_px,
    }
    if data.permutation is not None:
        mirrored = shape.distances(label[:, data.permutation], predicted)
        residuals["mirrored"] = _rms(residual) / mirrored
    return {name: _log(values) for name, values in residuals.items()}


def _shape_residuals(data: AuditData, model: shape.ShapeModel) -> dict[str, np.ndarray]:
    """Log distances from the shape model by reason, orthogonal to its changes and along them."""
    fitted = model.reconstruct(shape.of(data.points_image))
    deviation = np.abs(fitted.aligned - fitted.reconstructed) / model.noise
    part = _log(_by_group(deviation, data.groups))
    return {"part": part, "whole": _log(_rms(fitted.coefficients))}


def _by_group(values: np.ndarray, groups: dict[str, range]) -> np.ndarray:
    """(N, groups) root mean squares of (N, P) values."""
    return np.stack([_rms(values[:, group.start : group.stop]) for group in groups.values()], 1)


def _rms(values: np.ndarray) -> np.ndarray:
    """(N,) root mean square of the finite values of each row, NaN if there are none."""
    return np.sqrt(shape.nanmean(values**2, 1))


def _log(values: np.ndarray) -> np.ndarray:
    """(N, K) logarithms of (N,) or (N, K) non-negative values."""
    return np.log(np.maximum(values, 1e-9)).reshape(len(values), -1)
