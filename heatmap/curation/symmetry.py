"""Infers the mirror permutation and the groups of a landmark scheme from labels alone."""

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

CANDIDATES = 8  # partners that the matching considers for a landmark
MAX_COMPONENTS = 40  # of the shape model
BREAK = 4.0  # cost of a break in the order of the partners, over a typical landmark's cost
MAX_DISTANCE = 0.1  # face sizes between a mirrored landmark and its partner
LOW_MARGIN = 1.5  # of a contour's second best partners over the best ones
COINCIDENT = 1e-12  # of the mean square distance between landmarks


@dataclass(frozen=True)
class Symmetry:
    """An inferred landmark scheme and how reliable it is.

    Distances are root mean squares over faces, in units of the face size.
    """

    scheme: Scheme  # groups are runs of consecutive landmarks, named by their first and last
    mean_shape: np.ndarray  # (P, 2), upright and centred, in face sizes
    distance: np.ndarray  # (P,) from a mirrored landmark to its partner
    margin: np.ndarray  # (P,) distance of a contour's best other partners over the chosen ones'
    num_faces: int


def infer(points_image: np.ndarray | Points) -> Symmetry:
    """Infers the mirror permutation and groups of a landmark scheme.

    A mirrored face is also a face, so the mirrored shape model is aligned to the model itself, in
    turn with the assignment of the landmarks. The model's components separate landmarks that
    coincide in the mean, such as closed lips. Contours are assigned as a whole: one by one, their
    landmarks could slide along them or jump to a parallel contour.

    Args:
        points_image: (N, P, 2) image pixels, NaN where unlabelled; faces roughly upright.

    Raises:
        UserError: there are too few faces, or landmarks without a partner: none is near, or other
            landmarks are nearer than a contour's mutual partners.
    """
    model = shape.fit(points_image, share=0.995)
    components = model.components[:MAX_COMPONENTS] * model.spread[:MAX_COMPONENTS, None]
    basis = np.concatenate([  # (1 + K, P, 2): the mean, then the components
        shape.points(model.mean)[None], components.reshape(len(components), 2, -1).mT
    ])  # fmt: skip
    mirrored = basis * (-1, 1)
    partners = _first_guess(model.mean)
    for _ in range(15):
        previous, partners = partners, _pair(_costs(basis, mirrored, partners))
        if np.array_equal(previous, partners):
            break
    size = shape.face_size(model.mean)
    costs = _costs(basis, mirrored, partners)
    distance = np.sqrt(costs[np.arange(len(partners)), partners]) / size
    margin = _margins(costs, partners)
    unpaired = np.flatnonzero((distance > MAX_DISTANCE) | (margin < 1))
    if len(unpaired):
        raise UserError(
            f"{len(unpaired)} of {len(partners)} landmarks have no mirror partner within "
            f"{100 * MAX_DISTANCE:.0f} % of the face size that is nearer than all others: "
            f"{_format_runs(unpaired)}; the scheme is not symmetric (train with --augment.mirror "
            "0), or there are too few faces or too noisy labels"
        )
    return Symmetry(
        scheme=Scheme(partners.astype(np.int64), _groups(basis)),
        mean_shape=shape.points(model.mean) / size,
        distance=distance,
        margin=margin,
        num_faces=min(len(points_image), shape.MAX_FITTED),
    )


def write(path: Path, symmetry: Symmetry) -> None:
    """Writes the file for data.symmetry, including the distances of every landmark."""
    values = symmetry.scheme.to_dict()
    for name in ("mean_shape", "distance", "margin"):
        values[name] = getattr(symmetry, name).round(6).tolist()
    write_json(path, values | {"num_faces": symmetry.num_faces})


def format_symmetry(symmetry: Symmetry) -> str:
    """Formats the partners of each group and their distances as a text table."""
    partners, percent = symmetry.scheme.permutation, 100 * symmetry.distance
    rows = [("landmarks", "partners", "self-mirrored", "distance", "largest", "second / best")]
    for name, group in symmetry.scheme.groups.items():
        members = slice(group.start, group.stop)
        self_mirrored = np.count_nonzero(partners[members] == np.array(group))
        distances = f"{np.median(percent[members]):.2f} %", f"{percent[members].max():.2f} %"
        partner_runs = _format_runs(partners[members])
        margin = f"{symmetry.margin[members].min():.1f}"
        rows.append((name, partner_runs, str(self_mirrored), *distances, margin))
    lines = as_lines(rows, left=2)
    low = np.flatnonzero(symmetry.margin < LOW_MARGIN)
    if len(low):
        lines.append(
            f"low margins: for {len(low)} of {len(partners)} landmarks, by contour, other partners "
            f"are nearly as close as the chosen ones: {_format_runs(low)}"
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
    """(P,) partners from the mean shape alone, which is centred.

    The symmetry axis is only nearly upright, so several angles are tried and the best is kept.
    """
    angles = np.deg2rad(range(-45, 46, 2))
    shapes = -mean.conj() * np.exp(1j * angles)[:, None]
    distances = [np.abs(mirrored[:, None] - mean).min(1) for mirrored in shapes]
    mirrored = shapes[np.square(distances).mean(1).argmin()]
    for _ in range(5):
        partners = _pair(np.abs(mirrored[:, None] - mean) ** 2)
        mirrored = shape.onto(mirrored[None], mean[partners])[0]
    return partners


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


def _pair(costs: np.ndarray) -> np.ndarray:
    """(P,) mutual partners of least total cost; a break in their order has a cost, too.

    The best partner of a landmark, over all assignments of the others, is usually mutual. Where it
    is not, mostly at the ends of contours, landmarks are paired by a maximum-weight matching; the
    weight of a pair is its saving over making both landmarks their own partners.
    """
    totals = _totals(costs + costs.T)
    totals = totals + totals.T
    landmarks = np.arange(len(totals))
    partners = totals.argmin(1)
    is_free = partners[partners] != landmarks
    for _ in range(2):  # also those that they compete for
        is_free[partners[is_free]] = True
    free = landmarks[is_free]
    partners[free] = free
    own_total = totals.diagonal()
    savings = (own_total[:, None] + own_total) / 2 - totals
    graph = networkx.Graph()
    for p in free.tolist():
        nearest = free[np.argsort(totals[p, free])[:CANDIDATES]].tolist()
        graph.add_edges_from(
            (p, q, {"weight": float(savings[p, q])}) for q in nearest if savings[p, q] > 0
        )
    for p, q in networkx.max_weight_matching(graph):
        partners[p], partners[q] = q, p
    return partners


def _totals(costs: np.ndarray) -> np.ndarray:
    """(P, P) least total cost of all assignments in which q is p's partner, over the least of all.

    Along a contour, the next landmark's partner is the next or the previous one, always in the same
    direction; anything else is a break. All assignments are compared by dynamic programming along
    the landmarks and back (Viterbi 1967, "Error bounds for convolutional codes",
    https://doi.org/10.1109/TIT.1967.1054010).
    """
    break_cost = BREAK * np.median(costs.min(1))
    before = _totals_before(costs, break_cost)
    after = _totals_before(costs[::-1], break_cost)[::-1, ::-1]
    totals = (before + after - costs[:, None]).min(1)
    return totals - totals.min()


def _totals_before(costs: np.ndarray, break_cost: float) -> np.ndarray:
    """(P, 2, P) least total cost up to landmark p, if its partner is q and they rise or fall."""
    totals = np.empty((len(costs), 2, len(costs)))
    totals[0] = costs[0]
    for p in range(1, len(costs)):
        totals[p] = totals[p - 1].min() + break_cost
        totals[p, 0, 1:] = np.minimum(totals[p, 0, 1:], totals[p - 1, 0, :-1])
        totals[p, 1, :-1] = np.minimum(totals[p, 1, :-1], totals[p - 1, 1, 1:])
        totals[p] += costs[p]
    return totals


def _margins(costs: np.ndarray, partners: np.ndarray) -> np.ndarray:
    """(P,) root mean square distance of a contour's best other partners, over the chosen ones'.

    A contour is a run of landmarks whose partners are a run. Its other partners are all other runs
    of the same length, and the chosen ones moved along by one.
    """
    steps = np.diff(partners)
    is_break = np.abs(steps) != 1
    is_break[1:] |= ~is_break[:-1] & (steps[1:] != steps[:-1])
    margins = np.empty(len(partners))
    for contour in np.split(np.arange(len(partners)), np.flatnonzero(is_break) + 1):
        chosen = partners[contour]
        runs = np.arange(len(partners) - len(contour) + 1)[:, None] + np.arange(len(contour))
        moved = [(chosen + step).clip(chosen.min(), chosen.max()) for step in (-1, 1)]
        others = np.concatenate([runs, runs[:, ::-1], moved])
        others = others[(others != chosen).any(1)]
        best = costs[contour, others].mean(1).min()
        margins[contour] = np.sqrt(best / costs[contour, chosen].mean())
    return margins


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
