"""Whether a contest's folder can be trained on: every row and every picture, all in one report."""

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from heatmap.curation.duplicates import near_groups, perceptual_hash
from heatmap.data import contest
from heatmap.data.contest import problems as tables
from heatmap.data.samples import within_border
from heatmap.runtime.columns import as_lines
from heatmap.runtime.parallel import in_processes

FAR_OUTSIDE = 0.5  # of the picture's width or height
BORDER_THRESHOLD = 9  # as crop.trim_border
OTHER_LABELS = 0.1  # between near-duplicates, as Group.label_distance
EXAMPLES = 3  # of a kind, for people

Part = Literal["train", "test"]
Severity = Literal["error", "warning", "note"]

# Kinds of problems for which training pictures are better left out.
_EXCLUDED = (
    "missing picture", "unreadable picture", "damaged picture", "far outside", "all at one point",
    "same picture, other labels",
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, or that a person should know.

    severity: error, where a training or a submission would stop at it; warning, where something is
    likely wrong; note. row: of the part's table, the header being row 1. pictures: file names.
    """

    severity: Severity
    kind: str
    part: Part
    message: str
    row: int | None = None
    pictures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Pictures that are alike.

    train, test: file names. label_distance: the largest mean distance between the landmarks of the
    first training picture and of another one, over the diagonal of the first one's landmarks; None
    where there are no two with landmarks.
    """

    train: list[str]
    test: list[str]
    label_distance: float | None


@dataclass(frozen=True)
class Report:
    """All that a check found.

    problems: errors first. statistics: of each part's pictures. same, near: groups of pictures
    whose files are equal, and of those that look alike.
    """

    root: Path
    problems: list[Problem]
    statistics: dict[Part, dict[str, Any]]
    same: list[Group]
    near: list[Group]

    @property
    def num_errors(self) -> int:
        return sum(problem.severity == "error" for problem in self.problems)

    @property
    def num_lasting_errors(self) -> int:
        """Those that stay when the excluded pictures are left out."""
        return sum(
            problem.severity == "error" and not _is_excluded(problem) for problem in self.problems
        )

    def excluded(self) -> dict[str, list[str]]:
        """Why training pictures are better left out, by file name."""
        reasons: dict[str, list[str]] = {}
        for problem in self.problems:
            if _is_excluded(problem):
                for name in problem.pictures:
                    reasons.setdefault(name, []).append(problem.kind)
        return reasons

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"root": str(self.root)}


def _is_excluded(problem: Problem) -> bool:
    return problem.part == "train" and problem.kind in _EXCLUDED


class Look(NamedTuple):
    """What a picture looks like.

    problem: why it cannot be read; nothing else is known then. damage: what the decoder says of one
    that it can read, empty if nothing. image_hw: its size; is_grey: every
    pixel is; brightness: the mean of all pixels and channels, 0 to 255; border: dark columns and
    rows at left, top, right and bottom; content: SHA-256 of the file; alike: perceptual hash.
    """

    problem: str | None
    damage: str = ""
    image_hw: tuple[int, int] = (0, 0)
    is_grey: bool = False
    brightness: float = 0.0
    border: tuple[int, int, int, int] = (0, 0, 0, 0)
    content: bytes = b""
    alike: int = 0


@dataclass
class _Rows:
    """The rows of a table that have a name, and what their pictures look like.

    names, numbers, starts: of N rows, with the bytes at which they begin; reach: lowest x and y and
    highest x and y of the landmarks, None where there are none; reached: the landmarks that reach
    so far. looks: of the pictures that are there, by index.
    """

    part: Part
    path: Path
    images: Path
    names: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    reach: list[np.ndarray | None] = field(default_factory=list)
    reached: list[np.ndarray | None] = field(default_factory=list)
    looks: dict[int, Look] = field(default_factory=dict)

    def problem(
        self, severity: Severity, kind: str, index: int, message: str, *others: str
    ) -> Problem:
        """A problem with this row and its picture, and with other pictures."""
        row, name = self.numbers[index], self.names[index]
        message = f"{self.path}, row {row}: {message}"
        return Problem(severity, kind, self.part, message, row, (name, *others))

    def readable(self) -> Iterator[tuple[int, Look]]:
        return ((index, look) for index, look in self.looks.items() if look.problem is None)


def check(root: Path, *, workers: int = 1, progress: bool = False) -> Report:
    """Reads all rows and pictures of a contest, and tells everything that is wrong with them.

    Args:
        workers: processes that read the pictures.
        progress: show bars.

    Raises:
        ValueError: there is no contest at `root`, or a process was killed.
    """
    folder = contest.find_folder(root)
    train = _Rows("train", folder.train_table, folder.train_images)
    test = _Rows("test", folder.test_points, folder.test_images)
    problems = [*_read_landmarks(train, progress), *_read_asked_points(test, folder)]
    for rows in (train, test):
        if rows.names:
            problems += _look_at_pictures(rows, workers, progress)
    problems += _far_outside(train)

    looked = [(rows, index, look) for rows in (train, test) for index, look in rows.readable()]
    first_of = {look.content: place for place, (_, _, look) in reversed([*enumerate(looked)])}
    same = _groups([first_of[look.content] for _, _, look in looked])
    alike = np.array([look.alike for _, _, look in looked], np.uint64)
    told = set(map(tuple, same))
    near = [members for members in _groups(near_groups(alike)) if tuple(members) not in told]
    found = []
    for are_same, groups in ((True, same), (False, near)):
        members = [[looked[place][:2] for place in group] for group in groups]
        found.append(list(_described(members, train)))
        for where, group in zip(members, found[-1], strict=True):
            problems += _repetitions(where, group, are_same)

    order = ("error", "warning", "note")
    problems.sort(key=lambda problem: order.index(problem.severity))
    statistics = {rows.part: _statistics(rows) for rows in (train, test) if rows.names}
    return Report(folder.root, problems, statistics, *found)


def look_at(path: Path) -> Look:
    """What a picture looks like, or why it cannot be read."""
    try:
        photograph = contest.Photograph(path)
        with _standard_error() as said:
            image, _ = photograph.pixels(1)
            damage = said()
    except ValueError as error:
        return Look(str(error))
    height, width = image.shape[:2]
    left, top, right, bottom = within_border(image, BORDER_THRESHOLD)
    return Look(
        problem=None,
        damage=damage,
        image_hw=(height, width),
        is_grey=bool((image == image[..., :1]).all()),
        brightness=float(image.mean()),
        border=(left, top, width - right, height - bottom),
        content=hashlib.sha256(photograph.data).digest(),
        alike=perceptual_hash(image),
    )


@contextmanager
def _standard_error() -> Iterator[Callable[[], str]]:
    """What libraries print meanwhile, kept from the screen; the decoders tell damage only so."""
    with tempfile.TemporaryFile() as file:
        screen = os.dup(2)
        os.dup2(file.fileno(), 2)

        def said() -> str:
            return os.pread(file.fileno(), 200, 0).decode(errors="replace").partition("\n")[0]

        try:
            yield said
        finally:
            os.dup2(screen, 2)
            os.close(screen)


def _read_landmarks(rows: _Rows, progress: bool) -> Iterator[Problem]:
    try:
        for row in tables.check_landmarks(rows.path, progress):
            yield from _row_problems(rows, row)
            if row.name is None:
                continue
            index = len(rows.names)
            rows.names.append(row.name)
            rows.numbers.append(row.row)
            rows.starts.append(row.start)
            reach = reached = None
            if row.points_image is not None:
                labelled = np.flatnonzero(~np.isnan(row.points_image[:, 0]))
                points = row.points_image[labelled]
                if len(labelled) == 0:
                    yield rows.problem("note", "unlabelled row", index, "no landmark is labelled")
                else:
                    ends = np.concatenate([points.argmin(0), points.argmax(0)])
                    reach, reached = points[ends, [0, 1, 0, 1]], labelled[ends]
                    if len(points) > 1 and (reach[:2] == reach[2:]).all():
                        x, y = points[0]
                        message = f"all landmarks lie at one point, ({x:g}, {y:g})"
                        yield rows.problem("warning", "all at one point", index, message)
            rows.reach.append(reach)
            rows.reached.append(reached)
    except ValueError as error:
        yield Problem("error", "table", rows.part, str(error))
    if rows.names and not any(reach is not None for reach in rows.reach):
        message = f"{rows.path}: no row has a landmark that can be trained on"
        yield Problem("error", "no labels", rows.part, message)


def _read_asked_points(rows: _Rows, folder: contest.Folder) -> Iterator[Problem]:
    if not rows.path.exists():
        message = f"{rows.path}: there is no such table, and nothing to submit"
        yield Problem("note", "table", rows.part, message)
        return
    try:
        num_landmarks = contest.count_landmarks(folder.train_table)
    except ValueError:  # which is told already
        num_landmarks = 10**9
    try:
        for row in tables.check_asked_points(rows.path, num_landmarks):
            yield from _row_problems(rows, row)
            if row.name is not None:
                rows.names.append(row.name)
                rows.numbers.append(row.row)
    except ValueError as error:
        yield Problem("error", "table", rows.part, str(error))


def _row_problems(rows: _Rows, row: tables.CheckedRow) -> Iterator[Problem]:
    pictures = () if row.name is None else (row.name,)
    for kind, message in row.problems:
        yield Problem("error", kind, rows.part, message, row.row, pictures)


def _look_at_pictures(rows: _Rows, workers: int, progress: bool) -> Iterator[Problem]:
    if not rows.images.is_dir():
        message = f"{rows.images}: there is no such folder, but {rows.path} names pictures in it"
        yield Problem("error", "missing folder", rows.part, message)
        return
    misplaced = dict(contest.misplaced(rows.images, rows.names))
    for index, message in misplaced.items():
        yield rows.problem("error", "missing picture", index, message)
    there = [index for index in range(len(rows.names)) if index not in misplaced]
    looks = in_processes(look_at, [rows.images / rows.names[index] for index in there], workers)
    bar = tqdm(
        looks, f"{rows.part} pictures", len(there), delay=1, unit="img", disable=not progress
    )
    for index, look in zip(there, bar, strict=True):
        rows.looks[index] = look
        if look.problem is not None:
            yield rows.problem("error", "unreadable picture", index, look.problem)
        elif look.damage:
            message = f"{rows.names[index]!r} is damaged in part: {look.damage}"
            yield rows.problem("warning", "damaged picture", index, message)
    for name in sorted(_files_in(rows.images) - {os.path.normpath(name) for name in rows.names}):
        message = f"{rows.images / name}: no row of {rows.path} names this file"
        yield Problem("note", "unnamed picture", rows.part, message, None, (name,))


def _files_in(images: Path) -> set[str]:
    """The names of all files in a folder of pictures, relative to it."""
    return {
        os.path.relpath(Path(folder) / file, images)
        for folder, _, files in os.walk(images)
        for file in files
    }


def _beyond(reach: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """(4,) how far landmarks reach out of a picture at left, top, right and bottom.

    In fractions of its width and height; negative inside.
    """
    size = np.array(image_hw[::-1])
    return np.concatenate([-0.5 - reach[:2], reach[2:] - (size - 0.5)]) / np.tile(size, 2)


def _far_outside(rows: _Rows) -> Iterator[Problem]:
    for index, look in rows.readable():
        reach, reached = rows.reach[index], rows.reached[index]
        if reach is None or reached is None:
            continue
        beyond = _beyond(reach, look.image_hw)
        side = int(beyond.argmax())
        if beyond[side] > FAR_OUTSIDE:
            (height, width), axis = look.image_hw, "xyxy"[side]
            message = (
                f"landmark {reached[side]} lies far outside the picture, at {axis} = "
                f"{reach[side]:g}; the picture is {width} wide and {height} high"
            )
            yield rows.problem("warning", "far outside", index, message)


def _groups(numbers: Sequence[int] | np.ndarray) -> list[list[int]]:
    """The places of all numbers that occur more than once, one list a number."""
    order = np.argsort(numbers, kind="stable")
    ends = np.flatnonzero(np.diff(np.asarray(numbers)[order])) + 1
    return [part.tolist() for part in np.split(order, ends) if len(part) > 1]


def _described(groups: Sequence[Sequence[tuple[_Rows, int]]], train: _Rows) -> Iterator[Group]:
    """The groups by their pictures' names, with the distances between their labels."""
    labelled = [
        [index for rows, index in group if rows is train and train.reach[index] is not None]
        for group in groups
    ]
    starts = [train.starts[index] for indices in labelled for index in indices]
    points_image = tables.read_rows(train.path, starts) if starts else iter(())
    for group, indices in zip(groups, labelled, strict=True):
        names: dict[Part, list[str]] = {"train": [], "test": []}
        for rows, index in group:
            names[rows.part].append(rows.names[index])
        points = list(islice(points_image, len(indices)))
        sizes = [train.looks[index].image_hw[::-1] for index in indices]
        yield Group(names["train"], names["test"], _label_distance(points, sizes))


def _label_distance(
    points_image: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]
) -> float | None:
    """As `Group.label_distance`, for landmarks of pictures of these widths and heights."""
    if len(points_image) < 2:
        return None
    first, size = points_image[0], np.array(sizes[0])
    diagonal = float(np.linalg.norm(np.nanmax(first, 0) - np.nanmin(first, 0)))
    distances = []
    for points, other_size in zip(points_image[1:], sizes[1:], strict=True):
        scaled = (points + 0.5) * (size / np.array(other_size)) - 0.5
        gaps = np.linalg.norm(scaled - first, axis=1)
        gaps = gaps[np.isfinite(gaps)]
        if len(gaps):
            distances.append(float(gaps.mean()) / max(diagonal, 1.0))
    return max(distances, default=None)


def _repetitions(
    members: Sequence[tuple[_Rows, int]], group: Group, are_same: bool
) -> Iterator[Problem]:
    """What a group of pictures that are the same, or look alike, has to tell."""
    rows, index = members[0]
    alike, are = ("same picture", "are equal files") if are_same else ("alike", "look alike")
    names = [*(f"train {name}" for name in group.train), *(f"test {name}" for name in group.test)]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    message = f"{', '.join(names[:4])}{more} {are}"
    distance = group.label_distance or 0.0
    if distance > (0 if are_same else OTHER_LABELS):
        other = f"{message}, but their landmarks differ by {100 * distance:.2g} % of the face"
        # only these can be excluded: test pictures may have the same names
        yield rows.problem("warning", f"{alike}, other labels", index, other, *group.train[1:])
    elif not (group.train and group.test):
        yield rows.problem("note", f"{alike}, twice", index, message, *_others(group))
    if group.train and group.test:
        both = f"{alike}, train and test"
        yield rows.problem("warning", both, index, message, *_others(group))


def _others(group: Group) -> list[str]:
    return [*group.train, *group.test][1:]


def _statistics(rows: _Rows) -> dict[str, Any]:
    """JSON-able numbers of a part's pictures; only their counts where none can be read."""
    looks = dict(rows.readable())
    counts = {"rows": len(rows.names), "pictures": len(looks)}
    if not looks:
        return counts
    heights, widths = np.array([look.image_hw for look in looks.values()]).T
    borders = np.array([max(look.border) for look in looks.values()])
    reaches = [(rows.reach[index], look) for index, look in looks.items() if rows.reach]
    outside = [reach is not None and (_beyond(reach, look.image_hw) > 0).any()
               for reach, look in reaches]  # fmt: skip
    return counts | {
        "height": _spread(heights),
        "width": _spread(widths),
        "grey": sum(look.is_grey for look in looks.values()),
        "brightness": _spread(np.array([look.brightness for look in looks.values()])),
        "with_border": int((borders > 0).sum()),
        "border": _spread(borders[borders > 0]) if borders.any() else None,
        "landmarks_outside": sum(map(bool, outside)) if rows.part == "train" else None,
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    return {
        "min": values.min().item(), "median": float(np.median(values)), "max": values.max().item(),
    }  # fmt: skip


def text(report: Report) -> str:
    """The report as lines that line up, for people: numbers, then problems by kind."""
    lines = [str(report.root), *as_lines(_numbers(report)), ""]
    kinds = Counter((problem.severity, problem.kind) for problem in report.problems)
    if not kinds:
        return "\n".join([*lines, "nothing is wrong"])
    header = ("severity", "kind", "train", "test")
    table = [header]
    for severity, kind in kinds:
        parts = Counter(p.part for p in report.problems if (p.severity, p.kind) == (severity, kind))
        table.append((severity, kind, str(parts["train"]), str(parts["test"])))
    lines += as_lines(table, left=2)
    for severity, kind in kinds:
        here = [p.message for p in report.problems if (p.severity, p.kind) == (severity, kind)]
        more = [f"... and {len(here) - EXAMPLES} more"] if len(here) > EXAMPLES else []
        lines += ["", f"{severity}: {kind}", *(f"  {m}" for m in [*here[:EXAMPLES], *more])]
    return "\n".join(lines)


def _numbers(report: Report) -> list[tuple[str, ...]]:
    """A row of text for each statistic, a column for each part."""

    def spread(values: dict[str, float] | None) -> str:
        return " / ".join(f"{value:.0f}" for value in values.values()) if values else "-"

    def share(number: int | None, of: int) -> str:
        return "-" if number is None else f"{number} ({100 * number / of:.1f} %)"

    parts = report.statistics
    table = [("", *parts)]
    table.append(("rows", *(str(part["rows"]) for part in parts.values())))
    table.append(("pictures read", *(str(part["pictures"]) for part in parts.values())))
    some = [part for part in parts.values() if part["pictures"]]
    if len(some) < len(parts):
        return table
    for name, key in (("height", "height"), ("width", "width"), ("brightness", "brightness")):
        values = (spread(part[key]) for part in some)
        table.append((f"{name}, min / median / max", *values))
    for name, key in (("grey", "grey"), ("with a black border", "with_border")):
        table.append((name, *(share(part[key], part["pictures"]) for part in some)))
    table.append(("border at its widest side", *(spread(part["border"]) for part in some)))
    outside = (share(part["landmarks_outside"], part["pictures"]) for part in some)
    table.append(("with landmarks outside", *outside))
    for name, groups in (("groups of equal files", report.same), ("groups alike", report.near)):
        counts = []
        for part in parts:
            sizes = [len(group.train if part == "train" else group.test) for group in groups]
            counts.append(f"{sum(size > 0 for size in sizes)} ({sum(sizes)} pictures)")
        table.append((name, *counts))
    return table
