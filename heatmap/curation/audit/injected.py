"""Known errors, put into labels to see how many of them an audit finds."""

from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from heatmap import shape
from heatmap.curation.audit.detectors import LISTED, Labels, audit
from heatmap.runtime.columns import as_lines

SHARE = 0.01  # of the faces that get an error, each round
TESTED = 20_000  # faces of the self-test, at most
ENOUGH = 300  # errors to see in all
MOST_ROUNDS = 8
TOGETHER = 50  # faces that are chosen together, so that clips stay whole

ORDER, ROW, JITTER, SCALE, SHIFT = (
    "order of landmarks changed",
    "another picture's labels",
    "jitter of 3 % on three contours",
    "scaled by 1.15",
    "shifted by 10 % of the face",
)
OTHER_SHAPE = "another face's shape in this one's place"
# What is beyond what shape alone can see counts only where a run looks on; another face's shape in
# the right place is a good label of a similar face, and is told apart.
COUNTED = (ORDER, ROW, JITTER, SCALE)


@dataclass(frozen=True)
class Recall:
    """Of the injected errors of a kind, how many are in the list.

    counted: whether the kind is part of the overall recall. unseen_injected, unseen_found: the same
    of the faces that no run was trained on.
    """

    kind: str
    counted: bool
    injected: int
    found: int
    unseen_injected: int
    unseen_found: int


def self_test(
    labels: Labels, share: float = LISTED, seed: int = 0, progress: bool = False
) -> list[Recall]:
    """Injects errors into copies of the labels, audits these and counts what is listed.

    Every round changes `SHARE` of the faces, with all kinds in turn. The runs were trained on the
    labels as they are: had they been trained on the errors, they might have learned some, so the
    recall is best read of the faces that are new to them.

    Args:
        share: of the faces that the list holds.

    Raises:
        ValueError: too few faces to tell what is usual.
    """
    runs = labels.seen_image is not None
    kinds = [*COUNTED, *([SHIFT] if runs else []), OTHER_SHAPE]
    every = -(-len(labels.fold) // TESTED)
    chosen = np.arange(len(labels.fold)) // TOGETHER % every == 0
    tested = labels.of(np.sort(np.argsort(labels.clip, kind="stable")[chosen]))
    injected = max(len(kinds), round(SHARE * len(tested.fold)))
    rounds = min(MOST_ROUNDS, -(-ENOUGH // injected))
    seen = np.zeros((len(kinds), 2), int)
    found = np.zeros_like(seen)
    disabled = None if progress else True
    for turn in tqdm(range(rounds), desc="self-test", delay=1, leave=False, disable=disabled):
        rng = np.random.default_rng((seed, turn))
        wrong, rows, kind = inject(tested, rng, injected, kinds)
        listed = np.isin(rows, audit(wrong).listed(share))
        trained = np.zeros(len(rows), bool) if wrong.trained is None else wrong.trained[rows]
        for index in range(len(kinds)):
            for column, counts in enumerate((kind == index, (kind == index) & ~trained)):
                seen[index, column] += counts.sum()
                found[index, column] += (counts & listed).sum()
    return [
        Recall(name, name != OTHER_SHAPE, *map(int, (n[0], f[0], n[1], f[1])))
        for name, n, f in zip(kinds, seen, found, strict=True)
    ]


def inject(
    labels: Labels, rng: np.random.Generator, count: int, kinds: list[str]
) -> tuple[Labels, np.ndarray, np.ndarray]:
    """A copy of the labels with errors, the rows that have one, and the index of its kind.

    Only faces with half their landmarks or more get an error.
    """
    points = np.array(labels.points_image, np.float64)
    able = np.flatnonzero(np.isfinite(points[..., 0]).mean(1) >= 0.5)
    rows = rng.choice(able, min(count, len(able)), replace=False)
    kind = np.arange(len(rows)) % len(kinds)
    for row, index in zip(rows.tolist(), kind.tolist(), strict=True):
        points[row] = _wrong(labels, points, row, kinds[index], rng)
    return replace(labels, points_image=points), rows, kind


def _wrong(
    labels: Labels, points: np.ndarray, row: int, kind: str, rng: np.random.Generator
) -> np.ndarray:
    """(P, 2) the face of a row with an error."""
    face, groups = points[row].copy(), [np.array(m) for m in labels.groups.values()]
    size = float(shape.face_size(shape.of(face)))
    if kind == ORDER:
        return _reordered(face, groups, labels.permutation, rng)
    if kind == ROW:
        return np.array(labels.points_image[_another(labels, row, rng)])
    if kind == OTHER_SHAPE:
        other = shape.of(labels.points_image[_another(labels, row, rng)])[None]
        factor, offset = shape.placement(other, shape.of(face))
        return shape.points((factor * other + offset)[0])
    if kind == JITTER:
        for index in rng.choice(len(groups), min(3, len(groups)), replace=False):
            face[groups[index]] += rng.normal(0, 0.03 * size, (len(groups[index]), 2))
        return face
    if kind == SCALE:
        middle = np.nanmean(face, 0)
        return middle + 1.15 * (face - middle)
    assert kind == SHIFT
    angle = rng.uniform(0, 2 * np.pi)
    return face + 0.1 * size * np.array([np.cos(angle), np.sin(angle)])


def _another(labels: Labels, row: int, rng: np.random.Generator) -> int:
    """The row of another person, who is in another fold."""
    others = np.flatnonzero(labels.fold != labels.fold[row])
    return int(rng.choice(others))


def _reordered(
    face: np.ndarray,
    groups: list[np.ndarray],
    permutation: np.ndarray | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """The face with landmarks that have each other's names: of both sides, or of a contour."""
    curves = [members for members in groups if len(members) >= 3] or [np.arange(len(face))]
    members = curves[rng.integers(len(curves))]
    change = rng.integers(4)
    if change == 0 and permutation is not None:
        return face[permutation]
    if change == 1 and permutation is not None:
        both = np.union1d(members, permutation[members])
        face[both] = face[permutation[both]]
        return face
    if change == 2:
        face[members] = face[members[::-1]]
        return face
    least, most = max(1, len(members) // 10), max(1, len(members) // 2)
    face[members] = np.roll(face[members], rng.integers(least, most + 1), 0)
    return face


def table(recalls: list[Recall], share: float) -> str:
    """The recall of every kind as lines that line up."""
    runs = any(recall.unseen_injected != recall.injected for recall in recalls)
    counts = [(r.injected, r.found, r.unseen_injected, r.unseen_found) for r in recalls]
    counted = [own for own, r in zip(counts, recalls, strict=True) if r.counted]
    counts.append(tuple(np.sum(counted, 0).tolist()))
    names = [r.kind if r.counted else f"{r.kind} *" for r in recalls]
    rows = [("injected error", f"found in the first {100 * share:g} %", "of faces new to the runs")]
    rows += [
        (name, _of(found, injected), _of(unseen_found, unseen))
        for name, (injected, found, unseen, unseen_found) in zip(
            [*names, "all but *"], counts, strict=True
        )
    ]
    columns = 3 if runs else 2
    return "\n".join(as_lines([row[:columns] for row in rows], left=columns))


def _of(found: int, injected: int) -> str:
    percent = f"{100 * found / injected:5.1f} %" if injected else "    - "
    return f"{percent} ({found} of {injected})"
