"""The detectors of label errors, and how they become one rank."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from heatmap import shape
from heatmap.data.contest import Points

LISTED = 0.03  # share of the faces that are listed as likely errors
SUSPICIOUS = 2.0  # tail from which a detector is a reason: one face of a hundred
BETTER = 0.4  # logarithm of the factor by which another order must fit better: a half
JAGGED = 3.0  # tail from which a contour is repaired: one of a thousand

# Detectors by family; {contour} is the one that stands out, {times} how many times the usual.
OF_SHAPE = {
    "off": "{contour} lies {times} times as far as usual from where the rest of the face has it",
    "jagged": "{contour} is {times} times as jagged as usual",
    "order": "{contour} would fit in another order: reversed, rolled or as the other side's",
    "sides": "the face would fit with left and right names exchanged",
    "uneven": "left and right differ {times} times as much as usual, the head's turn apart",
    "unusual": "the whole face is {times} times as far from the mean one as usual",
}
OF_PICTURE = {
    "place": "size, place or tilt in the picture are {times} times as far from the mean as usual",
    "clip size": "its size differs from the person's other pictures {times} times as much as usual",
    "clip place": "its place differs from the person's other pictures {times} times as much as "
    "usual",
    "clip shape": "its shape differs from the person's other pictures {times} times as much as "
    "usual",
}
OF_RUNS = {
    "run place": "the runs see the face elsewhere, {times} times as far as usual",
    "run size": "the runs see it larger or smaller, {times} times as much as usual",
    "run shape": "the runs see another shape, {times} times as different as usual",
}
REASONS = OF_SHAPE | OF_PICTURE | OF_RUNS


@dataclass(frozen=True)
class Labels:
    """What is audited: N faces.

    points_image: (N, P, 2), NaN where unlabelled. image_hw: (N, 2) sizes of the pictures. fold:
    (N,) int; faces are judged by a model of the other folds'. clip: (N,) int, the same for pictures
    of one person and one size, -1 where the person is not known. groups: the contours, by name.
    permutation: (P,) of the mirror, None where it is not known. seen_image: (N, P, 2) what trained
    runs see, None without one. trained: (N,) bool, whether they were trained on the face.
    """

    points_image: np.ndarray | Points
    image_hw: np.ndarray
    fold: np.ndarray
    clip: np.ndarray
    groups: dict[str, range]
    permutation: np.ndarray | None = None
    seen_image: np.ndarray | None = None
    trained: np.ndarray | None = None

    def of(self, rows: np.ndarray) -> "Labels":
        """Those of some rows."""
        return replace(
            self,
            points_image=np.asarray(self.points_image[rows], np.float64),
            image_hw=self.image_hw[rows],
            fold=self.fold[rows],
            clip=self.clip[rows],
            seen_image=None if self.seen_image is None else self.seen_image[rows],
            trained=None if self.trained is None else self.trained[rows],
        )


@dataclass(frozen=True)
class Findings:
    """What the audit says of N faces.

    score: (N,) -log10 of the share of faces that would be as suspicious. tails: the same of each
    detector, (N,) by its name. times: (N,) how many times the usual. contour: (N,) by detector, the
    index of the group that stands out. jagged: (N, G) tails of the contours.
    """

    score: np.ndarray
    tails: dict[str, np.ndarray]
    times: dict[str, np.ndarray]
    contour: dict[str, np.ndarray]
    jagged: np.ndarray

    @property
    def order(self) -> np.ndarray:
        """(N,) the rows, the most suspicious first."""
        return np.argsort(-self.score, kind="stable")

    def listed(self, share: float = LISTED) -> np.ndarray:
        """The rows that are listed, the most suspicious first."""
        return self.order[: max(1, round(share * len(self.score)))]

    def reasons(self, row: int, groups: dict[str, range]) -> list[str]:
        """Why a face is suspicious, the strongest reason first; empty where it is not."""
        names = sorted(self.tails, key=lambda name: -self.tails[name][row])
        told = []
        for name in names:
            if self.tails[name][row] >= SUSPICIOUS:
                contour = ""
                if name in self.contour:
                    contour = list(groups)[self.contour[name][row]]
                    contour = "the face" if contour == "all" else f"the {contour}"
                told.append(
                    REASONS[name].format(contour=contour, times=f"{self.times[name][row]:.1f}")
                )
        return told[:3]


def audit(labels: Labels, progress: bool = False) -> Findings:
    """Every face, judged by a shape model of the other folds' faces and by the runs.

    Raises:
        ValueError: too few faces to tell what is usual.
    """
    contours, alone, place, coefficients = _judged(labels, progress)
    jagged = tails(contours["jagged"])
    found: dict[str, np.ndarray] = {}
    times: dict[str, np.ndarray] = {}
    contour: dict[str, np.ndarray] = {}
    rows = np.arange(len(place))
    for name, values in contours.items():
        each = jagged if name == "jagged" else tails(values)
        contour[name] = each.argmax(1)
        found[name] = tails(each.max(1))
        if name == "order":  # however unusual, another order is no reason unless it fits better
            found[name][~(values[rows, contour[name]] > BETTER)] = 0
        times[name] = np.exp(values - _usual(values))[rows, contour[name]]
    alone["place"] = _far_from_the_rest(place)
    alone |= _clips(labels.clip, place, coefficients)
    if labels.seen_image is not None:
        alone |= _against_runs(labels)
    for name, values in alone.items():
        classes = labels.trained if name in OF_RUNS and labels.trained is not None else None
        found[name], times[name] = _by_class(values, classes)
        if name == "sides":
            found[name][~(values > BETTER)] = 0
    # where runs see the face, they tell more of its size and place than other pictures do
    families = (OF_SHAPE, OF_PICTURE if labels.seen_image is None else OF_RUNS)
    score = np.zeros(len(rows))
    for family in families:
        highest = np.max([found[name] for name in family if name in found], 0)
        score = np.maximum(score, tails(np.where(highest > 0, highest, np.nan)))
    told = {name for family in families for name in family}
    return Findings(
        score=score,
        tails={name: values for name, values in found.items() if name in told},
        times=times,
        contour=contour,
        jagged=jagged,
    )


def tails(values: np.ndarray) -> np.ndarray:
    """(N,) or (N, K) -log10 of the share of faces that would be as suspicious, column by column.

    From the 90th percentile on the tail is taken for an exponential one, with the rate that it has
    up to the 95th: so errors, which are rarer, do not change what is usual. NaN gives 0.
    """
    columns = values.reshape(len(values), -1)
    found = np.zeros(columns.shape)
    for index, column in enumerate(columns.T):
        has = np.isfinite(column)
        if has.any():
            middle, high, higher = np.quantile(column[has], (0.5, 0.9, 0.95))
            body = 1 + (column[has] - high) / max(high - middle, 1e-9) * np.log10(5)
            tail = 1 + (column[has] - high) / max(higher - high, 1e-9) * np.log10(2)
            found[has, index] = np.maximum(0, np.where(column[has] > high, tail, body))
    return found.reshape(values.shape)


def _usual(values: np.ndarray) -> np.ndarray:
    """(K,) medians of the finite values of (N, K) columns; NaN where there are none."""
    finite = (column[np.isfinite(column)] for column in values.T)
    return np.array([np.median(column) if len(column) else np.nan for column in finite])


def _by_class(values: np.ndarray, classes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Tails, and how many times the usual the logarithms are, within each class of faces."""
    found, times = np.zeros(len(values)), np.full(len(values), np.nan)
    for chosen in [slice(None)] if classes is None else [classes, ~classes]:
        part = values[chosen]
        if np.isfinite(part).any():
            found[chosen] = tails(part)
            times[chosen] = np.exp(part - np.median(part[np.isfinite(part)]))
    return found, times


class Judged(NamedTuple):
    """What a shape model says of N faces; larger is more suspicious, NaN where it says nothing.

    contours: (N, G) logarithms by detector; whole: (N,) logarithms by detector. place: (N, 4) where
    the face lies in its picture: logarithm of its size, right and down of the middle, in sizes of
    the picture, and tilt in radians. coefficients: (N, K) of the model's changes.
    """

    contours: dict[str, np.ndarray]
    whole: dict[str, np.ndarray]
    place: np.ndarray
    coefficients: np.ndarray


def _judged(labels: Labels, progress: bool) -> Judged:
    """All faces, each judged by a model of the other folds."""
    parts, judged_rows = [], []
    with tqdm(
        total=len(labels.fold), desc="audit", unit="face", delay=1, leave=False,
        disable=None if progress else True,
    ) as bar:  # fmt: skip
        for fold in np.unique(labels.fold):
            judge = Judge(labels, np.flatnonzero(labels.fold != fold))
            for rows in shape.blocks(np.flatnonzero(labels.fold == fold)):
                parts.append(judge.judged(labels.of(rows)))
                judged_rows.append(rows)
                bar.update(len(rows))
    back = np.argsort(np.concatenate(judged_rows))
    kept = min(part.coefficients.shape[1] for part in parts)

    def joined(arrays: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(arrays)[back]

    return Judged(
        {name: joined([part.contours[name] for part in parts]) for name in parts[0].contours},
        {name: joined([part.whole[name] for part in parts]) for name in parts[0].whole},
        joined([part.place for part in parts]),
        joined([part.coefficients[:, :kept] for part in parts]),
    )


class Judge:
    """What a shape model of some faces says of others."""

    def __init__(self, labels: Labels, fitted: np.ndarray) -> None:
        """fitted: rows whose faces make the model."""
        self.groups = [np.array(members) for members in labels.groups.values()]
        self.permutation = labels.permutation
        known = labels.of(shape.sample(fitted, shape.MOST_FITTED)).points_image
        self.model = shape.fit(known)
        self.member = np.zeros((known.shape[1], len(self.groups)))
        for index, members in enumerate(self.groups):
            self.member[members, index] = 1
        self.inner = np.concatenate([members[1:-1] for members in self.groups])
        seen = self.model.see(shape.of(known))
        usual = _usual(np.abs(self._bends(seen.lying - seen.explained)))
        least = 0.1 * np.median(usual[np.isfinite(usual)]) if np.isfinite(usual).any() else 1.0
        self.usual_bends = np.maximum(usual, least)
        if self.permutation is not None:
            # what the head's turn and the like make uneven: the strongest uneven changes
            changes = shape.from_real(self.model.changes * self.model.spread[:, None])
            uneven = shape.real(changes + changes.conj()[:, self.permutation]) / 2
            self.turns = np.linalg.svd(uneven, full_matrices=False)[2][:4]

    def judged(self, labels: Labels) -> Judged:
        """What the model says of these faces."""
        shapes, mean = shape.of(labels.points_image), self.model.mean
        seen = self.model.see(shapes)
        rest = seen.lying - seen.explained
        with np.errstate(divide="ignore", invalid="ignore"):
            contours = {
                "off": np.log(_rms(np.abs(rest) / self.model.noise, self.member)),
                "jagged": np.log(
                    _rms(np.abs(self._bends(rest)) / self.usual_bends, self.member[self.inner])
                ),
                "order": self._order(seen),
            }
            alone = {"unusual": np.log(np.sqrt(nan_mean_square(seen.coefficients)))}
            if self.permutation is not None:
                named = shape.onto(shapes, mean)
                exchanged = shape.onto(shapes[:, self.permutation], mean)
                alone["sides"] = np.log(
                    nan_mean_square(np.abs(named - mean))
                    / nan_mean_square(np.abs(exchanged - mean))
                )
                mirrored = shape.onto(-named.conj()[:, self.permutation], mean)
                uneven = shape.real((named - mirrored) / 2)
                uneven = np.where(np.isfinite(uneven), uneven, 0)
                uneven -= uneven @ self.turns.T @ self.turns
                alone["uneven"] = np.log(nan_mean_square(uneven)) / 2
            image_size = np.sqrt(labels.image_hw.prod(1))
            middle = (labels.image_hw[:, 1] + 1j * labels.image_hw[:, 0] - 1 - 1j) / 2
            away = (seen.in_image(np.zeros((1, 1)))[:, 0] - middle) / image_size
            place = np.stack(
                [
                    -np.log(np.abs(seen.factor[:, 0]) * image_size),
                    away.real,
                    away.imag,
                    -np.angle(seen.factor[:, 0]),
                ],
                1,
            )
        return Judged(contours, alone, place, seen.coefficients)

    def repaired(self, points_image: np.ndarray | Points, wrong: np.ndarray) -> np.ndarray:
        """(N, P, 2) the faces with wrong contours put where the model has them for the others.

        Args:
            wrong: (N, G) bool.
        """
        shapes = shape.of(points_image)
        # a wrong contour says nothing of itself
        seen = self.model.see(np.where(wrong @ self.member.T > 0, np.nan, shapes), rounds=30)
        guess = shape.points(seen.in_image(seen.explained))
        moved = (wrong @ self.member.T > 0) & np.isfinite(shapes)
        return np.where(moved[..., None], guess, points_image)

    def _bends(self, rest: np.ndarray) -> np.ndarray:
        """Second differences along the contours, of what the model does not explain."""
        return rest[:, self.inner - 1] - 2 * rest[:, self.inner] + rest[:, self.inner + 1]

    def _order(self, seen: shape.Seen) -> np.ndarray:
        """(N, G) how much better a contour would fit reversed, rolled or as the other side's."""
        found = np.full((len(seen.lying), len(self.groups)), np.nan)
        for index, members in enumerate(self.groups):
            if len(members) < 3:
                continue
            own, goal = seen.lying[:, members], seen.explained[:, members]
            squares = (np.abs(own) ** 2 + np.abs(goal) ** 2).sum(1, keepdims=True)
            frequencies = np.fft.fft(goal).conj()
            others = [np.fft.ifft(np.fft.fft(own) * frequencies).real[:, 1:]]
            others.append(np.fft.ifft(np.fft.fft(own[:, ::-1]) * frequencies).real)
            best = (squares - 2 * np.concatenate(others, 1)).min(1)
            if self.permutation is not None:
                partner = self.permutation[members]
                if set(partner) != set(members):
                    swapped = (np.abs(seen.lying[:, partner] - goal) ** 2).sum(1)
                    best = np.fmin(best, swapped)
            noise = (self.model.noise[members] ** 2).sum()
            now = (np.abs(own - goal) ** 2).sum(1)
            found[:, index] = np.log((now + noise) / (np.maximum(best, 0) + noise)) / 2
        return found


def nan_mean_square(values: np.ndarray) -> np.ndarray:
    """(N,) of each row; NaN where nothing is finite."""
    return shape.nanmean(values**2, 1)


def _rms(values: np.ndarray, member: np.ndarray) -> np.ndarray:
    """(N, G) root mean square of the finite ones of (N, M) values, by (M, G) membership."""
    has = np.isfinite(values)
    return np.sqrt((np.where(has, values, 0) ** 2 @ member) / (has @ member))


def _far_from_the_rest(place: np.ndarray) -> np.ndarray:
    """(N,) logarithm of the Mahalanobis distance, by the spread of the nearest nine tenths."""
    has = np.isfinite(place).all(1)
    rest = place - np.median(place[has], 0)
    near = (np.abs(rest[has]) / np.maximum(np.median(np.abs(rest[has]), 0), 1e-9)).max(1)
    inside = rest[has][near <= np.quantile(near, 0.9)]
    precision = np.linalg.pinv(np.cov(inside.T))
    return np.log(np.maximum(np.einsum("ni,ij,nj->n", rest, precision, rest), 1e-12)) / 2


def _clips(clip: np.ndarray, place: np.ndarray, coefficients: np.ndarray) -> dict[str, np.ndarray]:
    """How far every face is from the nearest of the person's other pictures of one size."""
    order = np.argsort(clip, kind="stable")
    first = np.concatenate([order[:-step] for step in (1, 2, 3)])
    second = np.concatenate([order[step:] for step in (1, 2, 3)])
    together = (clip[first] == clip[second]) & (clip[first] >= 0)
    first, second = first[together], second[together]
    if len(first) == 0:
        return {}
    moves = np.abs(place[first] - place[second])
    changes = np.abs(coefficients[first] - coefficients[second])
    changes = np.minimum(changes / np.maximum(np.median(changes, 0), 1e-9), 10)
    found = {}
    for name, values in (
        ("clip size", np.log(moves[:, 0] + 0.003)),
        ("clip place", np.log(np.hypot(moves[:, 1], moves[:, 2]) + 0.003)),
        ("clip shape", np.log(nan_mean_square(changes) + 1e-6) / 2),
    ):
        nearest = np.full(len(clip), np.inf)
        np.fmin.at(nearest, first, values)
        np.fmin.at(nearest, second, values)
        found[name] = np.where(np.isfinite(nearest), nearest, np.nan)
    return found


def _against_runs(labels: Labels) -> dict[str, np.ndarray]:
    """Logarithms of how far labels are from what the runs see: in place, size and shape."""
    assert labels.seen_image is not None
    parts = []
    for rows in shape.blocks(np.arange(len(labels.fold))):
        own, other = shape.of(labels.points_image[rows]), shape.of(labels.seen_image[rows])
        other = np.where(np.isfinite(own), other, np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            size = np.sqrt(nan_mean_square(np.abs(other - shape.nanmean(other, 1)[:, None])))
            parts.append(np.stack([*_disagreement(own, other, size)], 1))
    place, ratio, rest = np.concatenate(parts).T
    with np.errstate(divide="ignore", invalid="ignore"):
        # where a run hardly knows the shape it does not know the size well
        unsure = 1 + rest / np.median(rest[np.isfinite(rest)])
        return {
            "run place": np.log(place + 0.003),
            "run size": np.log((ratio + 0.003) / unsure),
            "run shape": np.log(rest),
        }


def _disagreement(
    own: np.ndarray, other: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    middle, goal = shape.nanmean(own, 1)[:, None], shape.nanmean(other, 1)[:, None]
    product = shape.nanmean((other - goal) * (own - middle).conj(), 1)
    factor = product / nan_mean_square(np.abs(own - middle))
    rest = factor[:, None] * (own - middle) - (other - goal)
    return (
        np.abs(middle - goal)[:, 0] / size,
        np.abs(np.log(np.abs(factor))),
        np.sqrt(nan_mean_square(np.abs(rest))) / size,
    )
