"""Infers the mirror permutation and the groups of a landmark scheme from labels alone."""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import networkx
import numpy as np

from heatmap import schemes, shape
from heatmap.data.contest import Points
from heatmap.errors import UserError
from heatmap.runtime.columns import as_lines
from heatmap.runtime.files import write_json
from heatmap.schemes import Scheme

CANDIDATES = 8  # nearest landmarks that the matching considers as partners of a landmark
MAX_COMPONENTS = 40  # of the shape model
GROUP_TOLERANCE = 40.0  # mean square distance of a paired group, over pairing each landmark alone
MAX_DISTANCE = 0.1  # face sizes between a mirrored landmark and its partner
LOW_MARGIN = 1.5  # distance of the second best partner over the best one's
COINCIDENT = 1e-12  # of the mean square distance between landmarks


@dataclass(frozen=True)
class Symmetry:
    """An inferred landmark scheme and how reliable it is.

    Distances are root mean squares over faces, in units of the face size.
    """

    scheme: Scheme  # groups are runs of consecutive landmarks, named by their first and last
    mean_shape: np.ndarray  # (P, 2), upright and centred, in face sizes
    distance: np.ndarray  # (P,) from a mirrored landmark to its partner
    second: np.ndarray  # (P,) distance to the nearest other landmark
    num_faces: int


def infer(points_image: np.ndarray | Points) -> Symmetry:
    """Infers the mirror permutation and groups of a landmark scheme.

    A mirrored face is also a face, so the mirrored shape model is aligned to the model itself, in
    turn with the assignment of the landmarks. The model's components separate landmarks that
    coincide in the mean, such as closed lips.

    Args:
        points_image: (N, P, 2) image pixels, NaN where unlabelled; faces roughly upright.

    Raises:
        UserError: there are too few faces, or landmarks without a partner.
    """
    model = shape.fit(points_image, share=0.995)
    components = model.components[:MAX_COMPONENTS] * model.spread[:MAX_COMPONENTS, None]
    basis = np.concatenate([  # (1 + K, P, 2): the mean, then the components
        shape.points(model.mean)[None], components.reshape(len(components), 2, -1).mT
    ])  # fmt: skip
    mirrored = basis * (-1, 1)
    groups = _groups(basis)
    partners = _first_guess(model.mean)
    for assign, max_rounds in ((partial(_pair_groups, groups), 10), (_pair_landmarks, 5)):
        for _ in range(max_rounds):
            previous, partners = partners, assign(_costs(basis, mirrored, partners), partners)
            if np.array_equal(previous, partners):
                break
    size = shape.face_size(model.mean)
    distances = np.sqrt(_costs(basis, mirrored, partners)) / size
    landmarks = np.arange(len(partners))
    distance = distances[landmarks, partners]
    unpaired = np.flatnonzero(distance > MAX_DISTANCE)
    if len(unpaired):
        raise UserError(
            f"{len(unpaired)} of {len(partners)} landmarks have no mirror partner within "
            f"{100 * MAX_DISTANCE:.0f} % of the face size: {_format_runs(unpaired)}; the scheme is "
            "not symmetric (train with --augment.mirror 0), or there are too few faces"
        )
    distances[landmarks, partners] = np.inf
    return Symmetry(
        scheme=Scheme(partners.astype(np.int64), groups),
        mean_shape=shape.points(model.mean) / size,
        distance=distance,
        second=distances.min(1),
        num_faces=min(len(points_image), shape.MAX_FITTED),
    )


def write(path: Path, symmetry: Symmetry) -> None:
    """Writes the file for data.symmetry, including the distances of every landmark."""
    values = symmetry.scheme.to_dict()
    for name in ("mean_shape", "distance", "second"):
        values[name] = getattr(symmetry, name).round(6).tolist()
    write_json(path, values | {"num_faces": symmetry.num_faces})


def format_symmetry(symmetry: Symmetry) -> str:
    """Formats the partners of each group and their distances as a text table."""
    partners, percent = symmetry.scheme.permutation, 100 * symmetry.distance
    rows = [("landmarks", "partners", "self-mirrored", "distance", "largest", "second / best")]
    for name, group in symmetry.scheme.groups.items():
        members = slice(group.start, group.stop)
        margin = symmetry.second[members] / np.maximum(symmetry.distance[members], 1e-12)
        self_mirrored = np.count_nonzero(partners[members] == np.array(group))
        distances = f"{np.median(percent[members]):.2f} %", f"{percent[members].max():.2f} %"
        partner_runs = _format_runs(partners[members])
        rows.append((name, partner_runs, str(self_mirrored), *distances, f"{margin.min():.1f}"))
    lines = as_lines(rows, left=2)
    low = np.flatnonzero(symmetry.second < LOW_MARGIN * symmetry.distance)
    if len(low):
        lines.append(
            f"low margins: for {len(low)} of {len(partners)} landmarks another partner is nearly "
            f"as close as the chosen one: {_format_runs(low)}"
        )
    return "\n".join(lines)


def check_known(symmetry: Symmetry) -> str:
    """Compares with the known permutation and returns the result as text.

    Raises:
        UserError: the labels disagree with the known permutation.
    """
    partners = symmetry.scheme.permutation
    try:
        known = schemes.mirror_permutation(len(partners))
    except UserError:
        return f"no known permutation of {len(partners)} landmarks to compare with"
    wrong = np.flatnonzero(partners != known)
    if len(wrong) == 0:
        return f"equal to the known permutation of {len(partners)} landmarks"
    raise UserError(
        f"the labels disagree with the known permutation of {len(partners)} landmarks in "
        f"{len(wrong)} of them: {_format_runs(wrong)} (inferred partners: "
        f"{_format_runs(partners[wrong])}, known: {_format_runs(known[wrong])}); the landmarks are "
        "in another order (train with --data.symmetry), or there are too few faces"
    )


def _format_runs(numbers: np.ndarray, max_runs: int = 8) -> str:
    """Formats numbers with rising and falling runs contracted: "3-6 9 8-5"."""
    runs: list[list[int]] = []
    for number in numbers.tolist():
        step = number - runs[-1][-1] if runs else 0
        if abs(step) == 1 and runs[-1][-1] - runs[-1][0] in (0, step * (len(runs[-1]) - 1)):
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return " ".join(texts[:max_runs]) + (" ..." if len(texts) > max_runs else "")


def _first_guess(mean: np.ndarray) -> np.ndarray:
    """(P,) nearest landmark to each mirrored one, from the mean shape alone.

    The symmetry axis is only nearly upright, so several angles are tried and the best is kept.
    """
    guesses = []
    for angle in np.deg2rad(range(-45, 46, 9)):
        mirrored = -mean.conj() * np.exp(1j * angle)
        for _ in range(20):
            distances = np.abs(mirrored[:, None] - mean)
            partners = distances.argmin(1)
            mirrored = shape.onto(mirrored[None], mean[partners])[0]
        guesses.append((np.mean(distances.min(1) ** 2), partners))
    return min(guesses, key=lambda guess: guess[0])[1]


def _costs(basis: np.ndarray, mirrored: np.ndarray, partners: np.ndarray) -> np.ndarray:
    """(P, P) mean square distance between mirrored landmarks and others, over the model's faces.

    The mirrored mean is aligned to a face of the model, and the mirrored components are rotated
    onto the model's, both to fit the current partners best.
    """
    target = basis[:, partners]
    flat_target, flat_mirrored = (x.reshape(len(x), -1) for x in (target, mirrored))
    left, _, right = np.linalg.svd(flat_target[1:] @ flat_mirrored[1:].T)
    rotated = np.einsum("kl,lpx->kpx", left @ right, mirrored[1:])
    mean, target_mean = shape.of(mirrored[:1])[0], shape.of(target[:1])[0]
    factor, offset = shape.placement(mean[None], target_mean)
    mean = shape.points((factor * mean + offset)[0])
    bend = np.zeros_like(mean)
    weight = np.ones(len(partners))
    for _ in range(5):  # robust fit of the components: landmarks that are far off count for less
        residual = (target[0] - mean).reshape(-1)
        scaled = np.repeat(weight, 2)
        system = flat_target[1:] * scaled @ flat_target[1:].T
        ridge = 1e-3 * np.trace(system) / len(system) * np.eye(len(system))
        amounts = np.linalg.solve(system + ridge, flat_target[1:] @ (scaled * residual))
        bend = np.tensordot(amounts, target[1:], 1)
        distance = np.linalg.norm(target[0] - mean - bend, axis=1)
        weight = 1 / np.maximum(distance, np.median(distance) + 1e-12)
        weight /= weight.mean()
    aligned = np.concatenate([(mean + bend)[None], rotated])
    a, b = (x.transpose(1, 0, 2).reshape(x.shape[1], -1) for x in (aligned, basis))
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.maximum(squares, COINCIDENT * squares.mean())


def _pair_groups(groups: dict[str, range], costs: np.ndarray, _: np.ndarray) -> np.ndarray:
    """(P,) nearest landmark to each mirrored one; groups that mirror each other stay together.

    Assigned landmark by landmark, a curve could slide along its partner by a step or two.
    """
    partners = costs.argmin(1)
    curves = [np.array(group) for group in groups.values()]
    for curve in curves:
        candidates = [other for other in curves if len(other) == len(curve)]
        candidates += [other[::-1] for other in candidates]
        best = min(candidates, key=lambda candidate: costs[curve, candidate].mean())
        if costs[curve, best].mean() < GROUP_TOLERANCE * costs[curve, partners[curve]].mean():
            partners[curve] = best
    return partners


def _pair_landmarks(costs: np.ndarray, partners: np.ndarray) -> np.ndarray:
    """(P,) mutual partners of least total cost.

    Landmarks that are clearly nearest to each other, or to themselves, are paired directly. The
    others are paired by a maximum-weight matching, where the weight of a pair is its saving over
    making both landmarks their own partners.
    """
    costs = costs + _breaks(costs, partners)
    costs = costs + costs.T
    landmarks = np.arange(len(costs))
    partners = costs.argmin(1)
    best, second = np.partition(costs, 1, axis=1)[:, :2].T
    is_clear = second > LOW_MARGIN**2 * best
    is_free = (partners[partners] != landmarks) | ~is_clear | ~is_clear[partners]
    free = landmarks[is_free]
    partners[free] = free
    own_cost = costs.diagonal()
    savings = (own_cost[:, None] + own_cost) / 2 - costs
    graph = networkx.Graph()
    for p in free.tolist():
        nearest = free[np.argsort(costs[p, free])[:CANDIDATES]].tolist()
        graph.add_edges_from(
            (p, q, {"weight": float(savings[p, q])}) for q in nearest if savings[p, q] > 0
        )
    for p, q in networkx.max_weight_matching(graph):
        partners[p], partners[q] = q, p
    return partners


def _breaks(costs: np.ndarray, partners: np.ndarray) -> np.ndarray:
    """(P, P) a small cost of partners that do not continue those of the neighbouring landmarks.

    It decides between landmarks that coincide in every face, such as the corners of the lips.
    """
    landmarks = np.arange(len(partners))
    breaks = np.full_like(costs, np.median(costs[landmarks, partners]) / 10)
    for side in (-1, 1):
        members = landmarks[max(0, -side) : len(landmarks) - max(0, side)]
        for step in (-1, 1):
            next_partner = partners[members + side] + step
            is_valid = (next_partner >= 0) & (next_partner < len(landmarks))
            breaks[members[is_valid], next_partner[is_valid]] = 0
    return breaks


def _groups(basis: np.ndarray) -> dict[str, range]:
    """Splits landmarks where a step is over 1.5 times the longest of four steps on one side."""
    steps = np.sqrt((np.diff(basis, axis=1) ** 2).sum((0, 2)))
    starts = [0]
    for index, step in enumerate(steps):
        sides = steps[max(starts[-1], index - 4) : index], steps[index + 1 :][:4]
        if step > 1.5 * min((side.max() for side in sides if len(side)), default=step):
            starts.append(index + 1)
    bounds = pairwise([*starts, len(steps) + 1])
    return {f"{start}-{end - 1}": range(start, end) for start, end in bounds}
