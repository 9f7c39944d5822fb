"""The mirror permutation and the groups of a landmark scheme, told from labels alone."""

from dataclasses import dataclass
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

CANDIDATES = 8  # partners that are weighed for a landmark, the nearest ones
MOST_CHANGES = 40
ALIKE = 40.0  # a whole group's mean square distance to its partner, in that of its free landmarks
FARTHEST = 0.1  # sizes of the face, from where the mirror has a landmark to its partner
CLOSE = 1.5  # a second best partner nearer than so many times the best is a low margin
ROUNDING = 1e-12  # of the mean square distance between landmarks; what is nearer coincides


@dataclass(frozen=True)
class Symmetry:
    """What the labels tell of their scheme, and how sure it is.

    scheme: the mirror permutation, and groups: consecutive landmarks, split where the step to the
    next one jumps, each named by its first and last. mean_shape: (P, 2), upright, about its middle,
    in sizes of the face. distance: (P,) root mean square, in sizes of the face, between a mirrored
    landmark and its partner; second: (P,) the same to the best of all others.
    """

    scheme: Scheme
    mean_shape: np.ndarray
    distance: np.ndarray
    second: np.ndarray
    num_faces: int


def infer(points_image: np.ndarray | Points) -> Symmetry:
    """The symmetry of a landmark scheme, from labels of many faces in its order.

    A mirrored face is a face again, so the mirrored mean and changes of the shape model lie in the
    model itself. They are laid onto it by Procrustes analysis and the landmarks told apart by
    assignment, in turn. The changes part landmarks that coincide in the mean, such as closed lips.

    Args:
        points_image: (N, P, 2) image pixels, NaN where unlabelled; faces more or less upright.

    Raises:
        UserError: too few faces to tell, or landmarks without a partner.
    """
    model = shape.fit(points_image, share=0.995)
    changes = model.changes[:MOST_CHANGES] * model.spread[:MOST_CHANGES, None]
    own = np.concatenate([  # (1 + K, P, 2): the mean, then the changes
        shape.points(model.mean)[None], changes.reshape(len(changes), 2, -1).mT
    ])  # fmt: skip
    mirrored = own * (-1, 1)
    groups = _groups(own)
    partners = _first_guess(model.mean)
    for _ in range(10):
        costs = _costs(own, mirrored, partners)
        before, partners = partners, _whole_groups(costs, list(groups.values()))
        if np.array_equal(before, partners):
            break
    for _ in range(5):
        costs = _costs(own, mirrored, partners)
        before, partners = partners, _involution(costs + _breaks(costs, partners))
        if np.array_equal(before, partners):
            break
    size = shape.face_size(model.mean)
    distances = np.sqrt(_costs(own, mirrored, partners)) / size
    landmarks = np.arange(len(partners))
    distance = distances[landmarks, partners]
    lonely = np.flatnonzero(distance > FARTHEST)
    if len(lonely):
        raise UserError(
            f"{len(lonely)} of {len(partners)} landmarks have no mirror partner: {_runs(lonely)}; "
            f"the nearest lie up to {100 * distance.max():.0f} % of the face from where the mirror "
            "has them. Either this scheme is not symmetric and cannot be mirrored (train with "
            "--augment.mirror 0), or there are too few faces"
        )
    distances[landmarks, partners] = np.inf
    return Symmetry(
        scheme=Scheme(partners.astype(np.int64), groups),
        mean_shape=shape.points(model.mean) / size,
        distance=distance,
        second=distances.min(1),
        num_faces=min(len(points_image), shape.MOST_FITTED),
    )


def write(path: Path, symmetry: Symmetry) -> None:
    """Writes what data.symmetry reads, and the certificate with it, landmark by landmark."""
    told = symmetry.scheme.to_dict()
    for name in ("mean_shape", "distance", "second"):
        told[name] = getattr(symmetry, name).round(6).tolist()
    write_json(path, told | {"num_faces": symmetry.num_faces})


def format_symmetry(symmetry: Symmetry) -> str:
    """The certificate as lines that line up: how near partners are, group by group."""
    partners, percent = symmetry.scheme.permutation, 100 * symmetry.distance
    rows = [("landmarks", "partners", "own mirror", "distance", "largest", "second / best")]
    for name, members in symmetry.scheme.groups.items():
        own = slice(members.start, members.stop)
        margin = symmetry.second[own] / np.maximum(symmetry.distance[own], 1e-12)
        alone = np.count_nonzero(partners[own] == np.array(members))
        distances = f"{np.median(percent[own]):.2f} %", f"{percent[own].max():.2f} %"
        rows.append((name, _runs(partners[own]), str(alone), *distances, f"{margin.min():.1f}"))
    lines = as_lines(rows, left=2)
    low = np.flatnonzero(symmetry.second < CLOSE * symmetry.distance)
    if len(low):
        lines.append(
            f"low margins: for {len(low)} of {len(partners)} landmarks another partner is nearly "
            f"as near as the chosen one: {_runs(low)}"
        )
    return "\n".join(lines)


def check_known(symmetry: Symmetry) -> str:
    """What to say of the known permutation, where there is one and the labels agree with it.

    Raises:
        UserError: the labels disagree with the known permutation.
    """
    partners = symmetry.scheme.permutation
    try:
        known = schemes.mirror_permutation(len(partners))
    except UserError:
        return f"no permutation of {len(partners)} landmarks is known to compare this with"
    wrong = np.flatnonzero(partners != known)
    if len(wrong) == 0:
        return f"equal to the known permutation of {len(partners)} landmarks"
    raise UserError(
        f"the labels disagree with the known permutation of {len(partners)} landmarks in "
        f"{len(wrong)} of them: {_runs(wrong)} (partners by the labels: {_runs(partners[wrong])}, "
        f"known: {_runs(known[wrong])}); either their order is another one, and the file tells it "
        "(--data.symmetry), or there are too few faces to tell near landmarks apart"
    )


def _runs(numbers: np.ndarray, most: int = 8) -> str:
    """ "3-6 9 8-5": the numbers with rising and falling runs drawn together."""
    runs: list[list[int]] = []
    for number in numbers.tolist():
        step = number - runs[-1][-1] if runs else 0
        if abs(step) == 1 and runs[-1][-1] - runs[-1][0] in (0, step * (len(runs[-1]) - 1)):
            runs[-1].append(number)
        else:
            runs.append([number])
    told = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return " ".join(told[:most]) + (" ..." if len(told) > most else "")


def _first_guess(mean: np.ndarray) -> np.ndarray:
    """(P,) the nearest landmark to each mirrored one, from the mean alone.

    The axis of symmetry is only nearly upright: several are tried, and the best one is kept.
    """
    found = []
    for angle in np.deg2rad(range(-45, 46, 9)):
        mirrored = -mean.conj() * np.exp(1j * angle)
        for _ in range(20):
            distances = np.abs(mirrored[:, None] - mean)
            partners = distances.argmin(1)
            mirrored = shape.onto(mirrored[None], mean[partners])[0]
        found.append((np.mean(distances.min(1) ** 2), partners))
    return min(found, key=lambda guess: guess[0])[1]


def _costs(own: np.ndarray, mirrored: np.ndarray, partners: np.ndarray) -> np.ndarray:
    """(P, P) mean square distance between mirrored landmarks and others, over the model's faces.

    The mirrored mean is laid onto a face of the model, and the mirrored changes are turned into the
    model's own, both as fits the present partners best.
    """
    target = own[:, partners]
    flat, other = (values.reshape(len(values), -1) for values in (mirrored, target))
    left, _, right = np.linalg.svd(other[1:] @ flat[1:].T)
    turned = np.einsum("kl,lpx->kpx", left @ right, mirrored[1:])
    mean, goal = shape.of(mirrored[:1])[0], shape.of(target[:1])[0]
    factor, offset = shape.placement(mean[None], goal)
    mean = shape.points((factor * mean + offset)[0])
    bend = np.zeros_like(mean)
    weight = np.ones(len(partners))
    for _ in range(5):
        # as much of each change as half the landmarks agree on, at most what is usual
        rest = (target[0] - mean).reshape(-1)
        scaled = np.repeat(weight, 2)
        system = other[1:] * scaled @ other[1:].T
        ridge = 1e-3 * np.trace(system) / len(system) * np.eye(len(system))
        amounts = np.linalg.solve(system + ridge, other[1:] @ (scaled * rest))
        bend = np.tensordot(amounts, target[1:], 1)
        off = np.linalg.norm(target[0] - mean - bend, axis=1)
        weight = 1 / np.maximum(off, np.median(off) + 1e-12)
        weight /= weight.mean()
    described = np.concatenate([(mean + bend)[None], turned])
    a, b = (values.transpose(1, 0, 2).reshape(values.shape[1], -1) for values in (described, own))
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.maximum(squares, ROUNDING * squares.mean())


def _whole_groups(costs: np.ndarray, groups: list[range]) -> np.ndarray:
    """(P,) the nearest landmark to each mirrored one, with groups that are partners kept together.

    One landmark after the other, a curve could slide along its partner by a step or two.
    """
    partners = costs.argmin(1)
    for group in groups:
        members = np.array(group)
        wholes = [np.array(other) for other in groups if len(other) == len(group)]
        wholes += [other[::-1] for other in wholes]
        best = min(wholes, key=lambda other: costs[members, other].mean())
        if costs[members, best].mean() < ALIKE * costs[members, partners[members]].mean():
            partners[members] = best
    return partners


def _breaks(costs: np.ndarray, partners: np.ndarray) -> np.ndarray:
    """(P, P) a small cost of partners that do not follow on those of the landmarks beside.

    It decides between landmarks that coincide in every face, such as the lips' corners.
    """
    landmarks = np.arange(len(partners))
    small = np.median(costs[landmarks, partners]) / 10
    breaks = np.full_like(costs, small)
    for beside in (-1, 1):
        own = landmarks[max(0, -beside) : len(landmarks) - max(0, beside)]
        for step in (-1, 1):
            follows = partners[own + beside] + step
            there = (follows >= 0) & (follows < len(landmarks))
            breaks[own[there], follows[there]] = 0
    return breaks


def _involution(costs: np.ndarray) -> np.ndarray:
    """(P,) the partners with the least total cost of which each is its partner's partner.

    Landmarks that are clearly nearest to each other, or to themselves, are partners. The others are
    told together, by a matching of greatest weight: a pair is worth what it saves against two
    landmarks that are their own partners.
    """
    costs = costs + costs.T
    landmarks = np.arange(len(costs))
    partners = costs.argmin(1)
    best, second = np.partition(costs, 1, axis=1)[:, :2].T
    clear = second > CLOSE**2 * best
    free = (partners[partners] != landmarks) | ~clear | ~clear[partners]
    partners[free] = landmarks[free]
    alone = costs.diagonal()
    savings = (alone[:, None] + alone) / 2 - costs
    graph = networkx.Graph()
    for p in landmarks[free].tolist():
        nearest = landmarks[free][np.argsort(costs[p, free])[:CANDIDATES]].tolist()
        graph.add_edges_from(
            (p, q, {"weight": float(savings[p, q])}) for q in nearest if savings[p, q] > 0
        )
    for p, q in networkx.max_weight_matching(graph):
        partners[p], partners[q] = q, p
    return partners


def _groups(own: np.ndarray) -> dict[str, range]:
    """Runs of consecutive landmarks; one ends where a step is longer by half than all on a side."""
    steps = np.sqrt((np.diff(own, axis=1) ** 2).sum((0, 2)))
    starts = [0]
    for place, step in enumerate(steps):
        sides = steps[max(starts[-1], place - 4) : place], steps[place + 1 :][:4]
        if step > 1.5 * min((side.max() for side in sides if len(side)), default=step):
            starts.append(place + 1)
    bounds = pairwise([*starts, len(steps) + 1])
    return {f"{start}-{end - 1}": range(start, end) for start, end in bounds}
