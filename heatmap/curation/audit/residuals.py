"""How suspicious the label of every face is, and why."""

from dataclasses import dataclass, fields, replace

import numpy as np
from tqdm import tqdm

from heatmap import shape
from heatmap.data.contest import Points

SUSPICIOUS = 2.0  # tail from which a number is a reason: one face of a hundred
BETTER = 0.4  # logarithm of the factor by which a mirrored order must fit better: a half

# Reasons by family; {group} of landmarks stands out, by {times} the usual.
AGAINST_RUNS = {
    "group": "the runs see {group} elsewhere, {times} times as far off as usual",
    "shift": "the whole face is shifted, {times} times as far as usual",
    "scale": "the whole face is too large or too small, {times} times as much as usual",
    "turn": "the whole face is turned, {times} times as far as usual",
    "mirrored": "the face fits with left and right names exchanged",
    "face": "another face: its shape differs {times} times as much as usual from what is seen",
    "alone": "the runs agree with one another, and the label is {times} times as far off as usual",
}
OF_SHAPE = {
    "part": "{group} lies {times} times as far as usual from where the rest of the face has it",
    "whole": "an unlikely shape, {times} times as far from the mean one as usual",
}
REASONS = AGAINST_RUNS | OF_SHAPE


@dataclass(frozen=True)
class AuditData:
    """N labelled faces, and what trained runs see in their images.

    points_image, seen_image: (N, P, 2) labels, NaN where unlabelled, and predictions. expected_px:
    (N, P) the distance between the two that the runs' calibration expects. apart_px: (N,) root mean
    square distance of the runs from their mean, NaN where only one looks. trained: (N,) bool,
    whether those runs were trained on the face. half: (N,) bool; no person is in both halves.
    permutation: (P,) of the mirror, None where it is not known.
    """

    points_image: np.ndarray | Points
    seen_image: np.ndarray
    expected_px: np.ndarray
    apart_px: np.ndarray
    trained: np.ndarray
    half: np.ndarray
    groups: dict[str, range]
    permutation: np.ndarray | None = None

    def of(self, rows: np.ndarray) -> "AuditData":
        """Those of some rows."""
        names = [field.name for field in fields(self)[:6]]
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


@dataclass(frozen=True)
class Findings:
    """What the audit says of N faces.

    score: (N,) -log10 of the share of faces that would be as suspicious. The rest by reason: tails,
    (N,) the same, NaN where nothing can be told; times, (N,) how many times the usual; group, (N,)
    index of the landmark group that stands out, for the reasons that name one.
    """

    score: np.ndarray
    tails: dict[str, np.ndarray]
    times: dict[str, np.ndarray]
    group: dict[str, np.ndarray]

    @property
    def order(self) -> np.ndarray:
        """(N,) the rows, the most suspicious first."""
        return np.argsort(-self.score, kind="stable")

    def listed(self, share: float) -> np.ndarray:
        """The rows that are listed, the most suspicious first."""
        return self.order[: max(1, round(share * len(self.score)))]

    def reasons(self, row: int, groups: dict[str, range]) -> list[str]:
        """Why a face is suspicious, at most three reasons, the strongest first."""
        strong = [name for name, tail in self.tails.items() if tail[row] >= SUSPICIOUS]
        told = []
        for name in sorted(strong, key=lambda name: -self.tails[name][row])[:3]:
            group = list(groups)[self.group[name][row]] if name in self.group else "all"
            group = "the face" if group == "all" else f"the {group}"
            told.append(REASONS[name].format(group=group, times=f"{self.times[name][row]:.1f}"))
        return told


def audit(labels: AuditData) -> Findings:
    """How suspicious every face is; one that the runs were trained on, among those alone.

    Raises:
        UserError: too few faces to tell what is usual.
    """
    model = shape.fit(labels.points_image)
    blocks = [*shape.blocks(np.arange(len(labels.trained)))]
    parts = [
        _against_runs(labels.of(rows)) | _of_shape(labels.of(rows), model)
        for rows in tqdm(blocks, "audit", delay=1, leave=False, disable=None)
    ]
    rows, everyone = np.arange(len(labels.trained)), np.ones(len(labels.trained), bool)
    findings = Findings(np.zeros(len(rows)), {}, {}, {})
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        classes = labels.trained if name in AGAINST_RUNS else everyone
        each, usual = tails(values, classes)
        worst = np.nan_to_num(each, nan=-np.inf).argmax(1)
        findings.tails[name] = tails(each[rows, worst, None], classes)[0][:, 0]
        findings.times[name] = np.exp(values - usual)[rows, worst]
        if name in ("group", "part"):
            findings.group[name] = worst
        if name == "mirrored":
            findings.tails[name][~(values[:, 0] > BETTER)] = np.nan
    for family in (AGAINST_RUNS, OF_SHAPE):
        told = [findings.tails[name] for name in family if name in findings.tails]
        family_tails = tails(np.fmax.reduce(told)[:, None], everyone)[0][:, 0]
        np.fmax(findings.score, family_tails, out=findings.score)
    return findings


def tails(values: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """-log10 of the share of a class that would be as suspicious, and the class's median.

    From the 90th percentile on the tail is taken for an exponential one, with the rate that it has
    up to the 95th: so errors, which are rarer, do not change what is usual.

    Args:
        values: (N, K), judged column by column, NaN where nothing is told; classes: (N,) bool.
    """
    found, usual = np.full(values.shape, np.nan), np.full(values.shape, np.nan)
    for chosen in (np.flatnonzero(classes), np.flatnonzero(~classes)):
        for column in range(values.shape[1]):
            some = chosen[np.isfinite(values[chosen, column])]
            if len(some):
                own = values[some, column]
                middle, high, higher = np.quantile(own, (0.5, 0.9, 0.95))
                body = 1 + (own - high) / max(high - middle, 1e-9) * np.log10(5)
                tail = 1 + (own - high) / max(higher - high, 1e-9) * np.log10(2)
                found[some, column] = np.where(own > high, tail, body)
                usual[some, column] = middle
    return found, usual


def _against_runs(labels: AuditData) -> dict[str, np.ndarray]:
    """Logarithms of the residuals, (N, 1) or (N, groups) by reason, in units of those expected."""
    own, seen = shape.of(labels.points_image), shape.of(labels.seen_image)
    seen = np.where(np.isfinite(own), seen, np.nan)
    expected = np.where(np.isfinite(own), labels.expected_px, np.nan)
    residual = np.abs(own - seen)
    factor, offset = shape.placement(own, seen)
    rest = np.abs(factor * own + offset - seen)
    radius = shape.distances(seen, shape.nanmean(seen, 1)[:, None])
    # how sure the runs are of the whole face: what is expected, what is left, and the face's size
    usual = np.cbrt(_rms(expected) * _rms(rest) * radius)
    measured = {
        "group": _by_group(residual / expected, labels.groups),
        "shift": np.abs(shape.nanmean(own - seen, 1)) / usual,
        "scale": np.abs(np.log(np.abs(factor[:, 0]))) * radius / usual,
        "turn": np.abs(np.angle(factor[:, 0])) * radius / usual,
        "face": _rms(rest / expected),
        "alone": _rms(residual) / labels.apart_px,
    }
    if labels.permutation is not None:
        mirrored = shape.distances(own[:, labels.permutation], seen)
        measured["mirrored"] = _rms(residual) / mirrored
    return {name: _log(values) for name, values in measured.items()}


def _of_shape(labels: AuditData, model: shape.ShapeModel) -> dict[str, np.ndarray]:
    """Logarithms of the distances from the shape model, off its changes and along them."""
    fitted = model.reconstruct(shape.of(labels.points_image))
    off = np.abs(fitted.aligned - fitted.reconstructed) / model.noise
    return {"part": _log(_by_group(off, labels.groups)), "whole": _log(_rms(fitted.coefficients))}


def _by_group(values: np.ndarray, groups: dict[str, range]) -> np.ndarray:
    """(N, groups) root mean squares of (N, P) values."""
    return np.stack([_rms(values[:, part.start : part.stop]) for part in groups.values()], 1)


def _rms(values: np.ndarray) -> np.ndarray:
    """(N,) root mean square of the finite values of each row; NaN where there are none."""
    return np.sqrt(shape.nanmean(values**2, 1))


def _log(values: np.ndarray) -> np.ndarray:
    """(N, K) logarithms of (N,) or (N, K) values, which are not negative."""
    return np.log(np.maximum(values, 1e-9)).reshape(len(values), -1)
