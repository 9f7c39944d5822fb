"""Injects known errors into labels and counts how many the audit finds."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from heatmap import shape
from heatmap.curation.audit.residuals import AuditData, score_labels
from heatmap.data.samples import evenly_spaced
from heatmap.runtime.columns import as_lines

ERROR_SHARE = 0.01  # of the faces that get an error in each round
MAX_FACES = 20_000
TARGET_ERRORS = 300  # over all rounds
MAX_ROUNDS = 8

KINDS = ORDER, ROW, JITTER, SCALE, SHIFT = (
    "order of landmarks changed",
    "another image's labels",
    "jitter of 3 % on three contours",
    "scaled by 1.15",
    "shifted by 10 % of the face",
)


class Recall(NamedTuple):
    """How many injected errors of a kind are found."""

    kind: str
    injected: int
    found: int
    unseen_injected: int  # on faces that the runs were not trained on
    unseen_found: int


def self_test(data: AuditData, share: float) -> list[Recall]:
    """Measures the recall of the audit with errors injected into copies of the labels.

    Each round changes `ERROR_SHARE` of the faces, with all kinds in turn. The runs were trained on
    the original labels, so the recall on unseen faces is the more reliable one.

    Args:
        share: share of the most suspicious faces in which an error counts as found.

    Raises:
        UserError: there are too few faces to fit a shape model.
    """
    data = data.select(evenly_spaced(np.arange(len(data.half)), MAX_FACES))
    count = max(len(KINDS), round(ERROR_SHARE * len(data.half)))
    rounds = min(MAX_ROUNDS, -(-TARGET_ERRORS // count))
    counts = np.zeros((4, len(KINDS)), int)
    for index in tqdm(range(rounds), desc="self-test", delay=1, leave=False, disable=None):
        changed, rows, kind = inject(data, np.random.default_rng((0, index)), count)
        is_kind = kind == np.arange(len(KINDS))[:, None]
        is_found = np.isin(rows, score_labels(changed).top(share))
        is_unseen = ~changed.is_trained[rows]
        masks = is_kind, is_kind & is_found, is_kind & is_unseen, is_kind & is_unseen & is_found
        counts += np.array(masks).sum(-1)
    return [Recall(kind, *column) for kind, column in zip(KINDS, counts.T.tolist(), strict=True)]


def inject(
    data: AuditData, rng: np.random.Generator, count: int
) -> tuple[AuditData, np.ndarray, np.ndarray]:
    """Injects errors into `count` faces that have at least half their landmarks.

    Returns:
        The changed copy of the data, the rows with an error, and their indices in `KINDS`.
    """
    points = np.array(data.points_image, np.float64)
    usable = np.flatnonzero(np.isfinite(points[..., 0]).mean(1) >= 0.5)
    rows = rng.choice(usable, min(count, len(usable)), replace=False)
    kind = np.arange(len(rows)) % len(KINDS)
    for row, index in zip(rows.tolist(), kind.tolist(), strict=True):
        points[row] = _with_error(data, points[row].copy(), row, KINDS[index], rng)
    return replace(data, points_image=points), rows, kind


def _with_error(
    data: AuditData, face: np.ndarray, row: int, kind: str, rng: np.random.Generator
) -> np.ndarray:
    """(P, 2) landmarks of the face with an error injected."""
    groups = [np.array(group) for group in data.groups.values()]
    size = float(shape.face_size(shape.of(face)))
    if kind == ORDER:
        return _reordered(face, data, rng)
    if kind == ROW:
        other_people = np.flatnonzero(data.half != data.half[row])
        return np.array(data.points_image[int(rng.choice(other_people))])
    if kind == JITTER:
        for index in rng.choice(len(groups), min(3, len(groups)), replace=False):
            face[groups[index]] += rng.normal(0, 0.03 * size, (len(groups[index]), 2))
        return face
    if kind == SCALE:
        centre = np.nanmean(face, 0)
        return centre + 1.15 * (face - centre)
    assert kind == SHIFT
    angle = rng.uniform(0, 2 * np.pi)
    return face + 0.1 * size * np.array([np.cos(angle), np.sin(angle)])


def _reordered(face: np.ndarray, data: AuditData, rng: np.random.Generator) -> np.ndarray:
    """Swaps left and right, on the whole face or a group, or reverses or shifts a group's order."""
    permutation = data.permutation
    groups = [np.array(group) for group in data.groups.values() if len(group) >= 3]
    groups = groups or [np.arange(len(face))]
    members = groups[rng.integers(len(groups))]
    change = rng.integers(4)
    if change == 0 and permutation is not None:
        return face[permutation]
    if change == 1 and permutation is not None:
        members = np.union1d(members, permutation[members])
        face[members] = face[permutation[members]]
    elif change == 2:
        face[members] = face[members[::-1]]
    else:
        low, high = max(1, len(members) // 10), max(1, len(members) // 2)
        face[members] = np.roll(face[members], rng.integers(low, high + 1), 0)
    return face


def format_recalls(recalls: list[Recall], share: float) -> str:
    """Formats the recall of each kind and of all kinds as a text table."""
    total = Recall("all", *np.sum([recall[1:] for recall in recalls], 0).tolist())
    rows = [("injected error", "found on all faces", "found on faces new to a run")]
    for kind, injected, found, unseen_injected, unseen_found in [*recalls, total]:
        rows.append((kind, _ratio(found, injected), _ratio(unseen_found, unseen_injected)))
    title = f"self-test: errors injected into labels and found in the first {100 * share:g} %"
    lines = [title, *as_lines(rows, left=3)]
    if 2 * total.found < total.injected:
        lines.append("fewer than half were found: the runs are too inaccurate to judge the labels")
    return "\n".join(lines)


def _ratio(found: int, injected: int) -> str:
    percent = f"{100 * found / injected:5.1f} %" if injected else "    - "
    return f"{percent} ({found} of {injected})"
