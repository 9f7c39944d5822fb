"""Known errors, put into labels to see how many of them an audit finds."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from heatmap import shape
from heatmap.curation.audit.residuals import AuditData, audit
from heatmap.data.samples import evenly_spaced
from heatmap.runtime.columns import as_lines

SHARE = 0.01  # of the faces that get an error, each round
TESTED = 20_000  # faces of the self-test, at most
ENOUGH = 300  # errors to see in all
MOST_ROUNDS = 8

KINDS = ORDER, ROW, JITTER, SCALE, SHIFT = (
    "order of landmarks changed",
    "another image's labels",
    "jitter of 3 % on three contours",
    "scaled by 1.15",
    "shifted by 10 % of the face",
)


class Recall(NamedTuple):
    """Injected errors of a kind, those that are listed, and both of faces new to the runs."""

    kind: str
    injected: int
    found: int
    unseen_injected: int
    unseen_found: int


def self_test(labels: AuditData, share: float) -> list[Recall]:
    """Injects errors into copies of the labels, audits these and counts what is listed.

    Every round changes `SHARE` of the faces, with all kinds in turn. The runs were trained on the
    labels as they are, so the recall is best read of the faces that are new to them.

    Args:
        share: of the faces that the list holds.

    Raises:
        UserError: too few faces to tell what is usual.
    """
    tested = labels.of(evenly_spaced(np.arange(len(labels.trained)), TESTED))
    injected = max(len(KINDS), round(SHARE * len(tested.trained)))
    rounds = min(MOST_ROUNDS, -(-ENOUGH // injected))
    counts = np.zeros((4, len(KINDS)), int)
    for turn in tqdm(range(rounds), desc="self-test", delay=1, leave=False, disable=None):
        wrong, rows, kind = inject(tested, np.random.default_rng((0, turn)), injected)
        is_kind = kind == np.arange(len(KINDS))[:, None]
        found, unseen = np.isin(rows, audit(wrong).listed(share)), ~wrong.trained[rows]
        parts = is_kind, is_kind & found, is_kind & unseen, is_kind & unseen & found
        counts += np.array(parts).sum(-1)
    return [Recall(name, *own) for name, own in zip(KINDS, counts.T.tolist(), strict=True)]


def inject(
    labels: AuditData, rng: np.random.Generator, count: int
) -> tuple[AuditData, np.ndarray, np.ndarray]:
    """A copy of the labels with errors, the rows that have one, and the index of its kind.

    Only faces with half their landmarks or more get an error.
    """
    points = np.array(labels.points_image, np.float64)
    able = np.flatnonzero(np.isfinite(points[..., 0]).mean(1) >= 0.5)
    rows = rng.choice(able, min(count, len(able)), replace=False)
    kind = np.arange(len(rows)) % len(KINDS)
    for row, index in zip(rows.tolist(), kind.tolist(), strict=True):
        points[row] = _wrong(labels, points[row].copy(), row, KINDS[index], rng)
    return replace(labels, points_image=points), rows, kind


def _wrong(
    labels: AuditData, face: np.ndarray, row: int, kind: str, rng: np.random.Generator
) -> np.ndarray:
    """(P, 2) the face of a row with an error."""
    groups = [np.array(members) for members in labels.groups.values()]
    size = float(shape.face_size(shape.of(face)))
    if kind == ORDER:
        return _reordered(face, labels, rng)
    if kind == ROW:
        other_people = np.flatnonzero(labels.half != labels.half[row])
        return np.array(labels.points_image[int(rng.choice(other_people))])
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


def _reordered(face: np.ndarray, labels: AuditData, rng: np.random.Generator) -> np.ndarray:
    """The face with landmarks that have each other's names: of both sides, or of a contour."""
    permutation = labels.permutation
    curves = [np.array(part) for part in labels.groups.values() if len(part) >= 3]
    curves = curves or [np.arange(len(face))]
    members = curves[rng.integers(len(curves))]
    change = rng.integers(4)
    if change == 0 and permutation is not None:
        return face[permutation]
    if change == 1 and permutation is not None:
        members = np.union1d(members, permutation[members])
        face[members] = face[permutation[members]]
    elif change == 2:
        face[members] = face[members[::-1]]
    else:
        least, most = max(1, len(members) // 10), max(1, len(members) // 2)
        face[members] = np.roll(face[members], rng.integers(least, most + 1), 0)
    return face


def format_recalls(recalls: list[Recall], share: float) -> str:
    """The recall of every kind, and of all, as lines that line up."""
    total = Recall("all", *np.sum([recall[1:] for recall in recalls], 0).tolist())
    rows = [("injected error", f"found in the first {100 * share:g} %", "of faces new to the runs")]
    for kind, injected, found, unseen_injected, unseen_found in [*recalls, total]:
        rows.append((kind, _share(found, injected), _share(unseen_found, unseen_injected)))
    return "\n".join(as_lines(rows, left=3))


def _share(found: int, injected: int) -> str:
    percent = f"{100 * found / injected:5.1f} %" if injected else "    - "
    return f"{percent} ({found} of {injected})"
