"""Whether a contest's folder can be trained on: every row and every image, all in one report."""

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
from heatmap.shape import nanmean

FAR_OUTSIDE = 0.5  # of the image's width or height
BORDER_THRESHOLD = 9  # as crop.trim_border
OTHER_LABELS = 0.1  # between images that look alike, as Group.label_distance
EXAMPLES = 3  # of a kind, for people

PartName = Literal["train", "test"]
Severity = Literal["error", "warning", "note"]

# The kinds of problems that are no errors, and those whose training images are better left out.
WARNINGS = (
    "damaged picture", "far outside", "all at one point", "same picture, other labels",
    "same picture, train and test", "alike, other labels", "alike, train and test",
)  # fmt: skip
NOTES = ("same picture, twice", "alike, twice", "unlabelled row", "unnamed picture")
EXCLUDED = (
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
    part: PartName
    message: str
    row: int | None = None
    pictures: tuple[str, ...] = ()

    @property
    def is_excluded(self) -> bool:
        return self.part == "train" and self.kind in EXCLUDED


@dataclass(frozen=True)
class Group:
    """Images that are alike.

    train, test: file names. label_distance: the largest mean distance between the landmarks of the
    first training image and of another one, over the diagonal of the first one's landmarks; None
    where there are no two with landmarks.
    """

    train: list[str]
    test: list[str]
    label_distance: float | None


@dataclass(frozen=True)
class Report:
    """All that a check found.

    problems: errors first. statistics: of each part's images. same, near: groups of images whose
    files are equal, and of those that look alike.
    """

    root: Path
    problems: list[Problem]
    statistics: dict[PartName, dict[str, Any]]
    same: list[Group]
    near: list[Group]

    @property
    def num_errors(self) -> int:
        return sum(problem.severity == "error" for problem in self.problems)

    @property
    def num_lasting_errors(self) -> int:
        """Those that stay when the excluded images are left out."""
        return sum(p.severity == "error" and not p.is_excluded for p in self.problems)

    def excluded(self) -> dict[str, list[str]]:
        """Why training images are better left out, by file name."""
        reasons: dict[str, list[str]] = {}
        for problem in self.problems:
            for name in problem.pictures if problem.is_excluded else ():
                reasons.setdefault(name, []).append(problem.kind)
        return reasons

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"root": str(self.root)}


class Look(NamedTuple):
    """What an image looks like.

    damage: what the decoder says of it, empty if nothing. brightness: the mean of all pixels and
    channels, 0 to 255. border: dark columns and rows at left, top, right and bottom. content:
    SHA-256 of the file. alike: perceptual hash.
    """

    damage: str
    image_hw: tuple[int, int]
    is_grey: bool
    brightness: float
    border: tuple[int, int, int, int]
    content: bytes
    alike: int


@dataclass(slots=True)
class _Row:
    """A row of a part's table that has a name.

    number: the header being 1; start: the byte at which it begins. reach: lowest x and y and
    highest x and y of the landmarks, and reached: the landmarks that reach so far, None where there
    are none. look: None where there is no image, or none that can be read.
    """

    part: "_Part"
    name: str
    number: int
    start: int = 0
    reach: np.ndarray | None = None
    reached: np.ndarray | None = None
    look: Look | None = None

    def problem(self, kind: str, message: str, *others: str) -> Problem:
        """A problem with this row and its image, and with other images."""
        message = f"{self.part.table}, row {self.number}: {message}"
        return self.part.problem(kind, message, self.number, (self.name, *others))


@dataclass
class _Part:
    name: PartName
    table: Path
    images: Path
    rows: list[_Row] = field(default_factory=list)

    def problem(
        self, kind: str, message: str, row: int | None = None, pictures: tuple[str, ...] = ()
    ) -> Problem:
        severity: Severity = "warning" if kind in WARNINGS else "note" if kind in NOTES else "error"
        return Problem(severity, kind, self.name, message, row, pictures)

    def problems_of(self, read: tables.CheckedRow) -> Iterator[Problem]:
        """What the reader says of a row."""
        pictures = () if read.name is None else (read.name,)
        for kind, message in read.problems:
            yield self.problem(kind, message, read.row, pictures)

    def looks(self) -> list[tuple[_Row, Look]]:
        """The rows whose images can be read, and these."""
        return [(row, row.look) for row in self.rows if row.look is not None]


def check(root: Path, *, workers: int = 1, progress: bool = False) -> Report:
    """Reads all rows and images of a contest, and tells everything that is wrong with them.

    Args:
        workers: processes that read the images.
        progress: show bars.

    Raises:
        ValueError: there is no contest at `root`, or a process was killed.
    """
    folder = contest.find_folder(root)
    train = _Part("train", folder.train_table, folder.train_images)
    test = _Part("test", folder.test_points, folder.test_images)
    problems = [*_read_landmarks(train, progress), *_read_asked_points(test, folder.train_table)]
    for part in (train, test):
        if part.rows:
            problems += _look_at_images(part, workers, progress)
    problems += _far_outside(train)

    seen = [*train.looks(), *test.looks()]
    first_of = {look.content: place for place, (_, look) in reversed([*enumerate(seen)])}
    equal = _repeated([first_of[look.content] for _, look in seen])
    alike = _repeated(near_groups(np.array([look.alike for _, look in seen], np.uint64)))
    told = set(map(tuple, equal))
    near = [places for places in alike if tuple(places) not in told]
    groups = []
    for are_same, found in ((True, equal), (False, near)):
        members = [[seen[place][0] for place in places] for places in found]
        groups.append([*_described(members, train)])
        for rows, group in zip(members, groups[-1], strict=True):
            problems += _repetition(rows[0], group, are_same)

    problems.sort(key=lambda problem: ("error", "warning", "note").index(problem.severity))
    statistics = {part.name: _statistics(part) for part in (train, test) if part.rows}
    return Report(folder.root, problems, statistics, *groups)


def look_at(path: Path) -> Look | str:
    """What an image looks like, or why it cannot be read."""
    try:
        photograph = contest.Photograph(path)
        with _standard_error() as said:
            image, _ = photograph.pixels(1)
            damage = said()
    except ValueError as error:
        return str(error)
    height, width = image.shape[:2]
    left, top, right, bottom = within_border(image, BORDER_THRESHOLD)
    return Look(
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


def _read_landmarks(part: _Part, progress: bool) -> Iterator[Problem]:
    try:
        for read in tables.check_landmarks(part.table, progress):
            yield from part.problems_of(read)
            if read.name is not None:
                part.rows.append(_Row(part, read.name, read.row, read.start))
                if read.points_image is not None:
                    yield from _reach(part.rows[-1], read.points_image)
    except ValueError as error:
        yield part.problem("table", str(error))
    if part.rows and all(row.reach is None for row in part.rows):
        message = f"{part.table}: no row has a landmark that can be trained on"
        yield part.problem("no labels", message)


def _reach(row: _Row, points_image: np.ndarray) -> Iterator[Problem]:
    """Notes how far the row's landmarks reach, and tells if there are none or all lie together."""
    labelled = np.flatnonzero(~np.isnan(points_image[:, 0]))
    if len(labelled) == 0:
        yield row.problem("unlabelled row", "no landmark is labelled")
        return
    points = points_image[labelled]
    ends = np.concatenate([points.argmin(0), points.argmax(0)])
    row.reach, row.reached = points[ends, [0, 1, 0, 1]], labelled[ends]
    if len(points) > 1 and (row.reach[:2] == row.reach[2:]).all():
        x, y = points[0]
        yield row.problem("all at one point", f"all landmarks lie at one point, ({x:g}, {y:g})")


def _read_asked_points(part: _Part, train_table: Path) -> Iterator[Problem]:
    if not part.table.exists():
        message = f"{part.table}: there is no such table, and nothing to submit"
        yield Problem("note", "table", part.name, message)
        return
    try:
        num_landmarks = contest.count_landmarks(train_table)
    except ValueError:  # which is told already
        num_landmarks = 10**9
    try:
        for read in tables.check_asked_points(part.table, num_landmarks):
            yield from part.problems_of(read)
            if read.name is not None:
                part.rows.append(_Row(part, read.name, read.row))
    except ValueError as error:
        yield part.problem("table", str(error))


def _look_at_images(part: _Part, workers: int, progress: bool) -> Iterator[Problem]:
    if not part.images.is_dir():
        message = f"{part.images}: there is no such folder, but {part.table} names images in it"
        yield part.problem("missing folder", message)
        return
    names = [row.name for row in part.rows]
    misplaced = dict(contest.misplaced(part.images, names))
    for index, message in misplaced.items():
        yield part.rows[index].problem("missing picture", message)
    there = [row for index, row in enumerate(part.rows) if index not in misplaced]
    looks = in_processes(look_at, [part.images / row.name for row in there], workers)
    bar = tqdm(looks, f"{part.name} images", len(there), delay=1, unit="img", disable=not progress)
    for row, look in zip(there, bar, strict=True):
        if isinstance(look, str):
            yield row.problem("unreadable picture", look)
            continue
        row.look = look
        if look.damage:
            message = f"{row.name!r} is damaged in part: {look.damage}"
            yield row.problem("damaged picture", message)
    files = {
        os.path.relpath(Path(folder) / file, part.images)
        for folder, _, inside in os.walk(part.images)
        for file in inside
    }
    for name in sorted(files - {os.path.normpath(name) for name in names}):
        message = f"{part.images / name}: no row of {part.table} names this file"
        yield part.problem("unnamed picture", message, None, (name,))


def _beyond(reach: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """(4,) how far landmarks reach out of an image at left, top, right and bottom.

    In fractions of its width and height; negative inside.
    """
    size = np.array(image_hw[::-1])
    return np.concatenate([-0.5 - reach[:2], reach[2:] - (size - 0.5)]) / np.tile(size, 2)


def _far_outside(part: _Part) -> Iterator[Problem]:
    for row, look in part.looks():
        if row.reach is None or row.reached is None:
            continue
        beyond = _beyond(row.reach, look.image_hw)
        side = int(beyond.argmax())
        if beyond[side] > FAR_OUTSIDE:
            height, width = look.image_hw
            message = (
                f"landmark {row.reached[side]} lies far outside the image, at {'xyxy'[side]} = "
                f"{row.reach[side]:g}; the image is {width} wide and {height} high"
            )
            yield row.problem("far outside", message)


def _repeated(numbers: Sequence[int] | np.ndarray) -> list[list[int]]:
    """The places of all numbers that occur more than once, one list a number."""
    order = np.argsort(numbers, kind="stable")
    ends = np.flatnonzero(np.diff(np.asarray(numbers)[order])) + 1
    return [part.tolist() for part in np.split(order, ends) if len(part) > 1]


def _described(groups: Sequence[Sequence[_Row]], train: _Part) -> Iterator[Group]:
    """The groups by their images' names, with the distances between their labels."""
    labelled = [[row for row in group if row.reach is not None] for group in groups]
    starts = [row.start for rows in labelled for row in rows]
    points_image = tables.read_rows(train.table, starts) if starts else iter(())
    for group, rows in zip(groups, labelled, strict=True):
        points = [*islice(points_image, len(rows))]
        sizes_hw = [row.look.image_hw for row in rows if row.look is not None]
        yield Group(
            [row.name for row in group if row.part is train],
            [row.name for row in group if row.part is not train],
            _label_distance(np.stack(points), np.array(sizes_hw)) if len(rows) > 1 else None,
        )


def _label_distance(points_image: np.ndarray, image_hw: np.ndarray) -> float | None:
    """As `Group.label_distance`, for (N, P, 2) landmarks of images of these (N, 2) sizes."""
    size = image_hw[:, None, ::-1]
    scaled = (points_image + 0.5) * (size[0] / size) - 0.5
    first = points_image[0]
    gaps = nanmean(np.linalg.norm(scaled[1:] - first, axis=-1), 1)
    diagonal = float(np.linalg.norm(np.nanmax(first, 0) - np.nanmin(first, 0)))
    return None if np.isnan(gaps).all() else float(np.nanmax(gaps)) / max(diagonal, 1.0)


def _repetition(row: _Row, group: Group, are_same: bool) -> Iterator[Problem]:
    """What a group of images has to tell, of which this row is the first."""
    alike, are = ("same picture", "are equal files") if are_same else ("alike", "look alike")
    names = [*(f"train {name}" for name in group.train), *(f"test {name}" for name in group.test)]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    message = f"{', '.join(names[:4])}{more} {are}"
    others = [*group.train, *group.test][1:]
    distance = group.label_distance or 0.0
    if distance > (0 if are_same else OTHER_LABELS):
        other = f"{message}, but their landmarks differ by {100 * distance:.2g} % of the face"
        # only these can be excluded: test images may have the same names
        yield row.problem(f"{alike}, other labels", other, *group.train[1:])
    elif not (group.train and group.test):
        yield row.problem(f"{alike}, twice", message, *others)
    if group.train and group.test:
        yield row.problem(f"{alike}, train and test", message, *others)


# What is told of each part's images, by its name in JSON.
STATISTICS = {
    "rows": "rows",
    "pictures": "images read",
    "height": "height, min / median / max",
    "width": "width, min / median / max",
    "brightness": "brightness, min / median / max",
    "grey": "grey",
    "with_border": "with a black border",
    "border": "border at its widest side",
    "landmarks_outside": "with landmarks outside",
}


def _statistics(part: _Part) -> dict[str, Any]:
    """JSON-able numbers of a part's images; only their counts where none can be read."""
    seen = part.looks()
    counts = {"rows": len(part.rows), "pictures": len(seen)}
    if not seen:
        return counts
    looks = [look for _, look in seen]
    heights, widths = np.array([look.image_hw for look in looks]).T
    borders = np.array([max(look.border) for look in looks])
    outside = [
        row.reach is not None and bool((_beyond(row.reach, look.image_hw) > 0).any())
        for row, look in seen
    ]
    return counts | {
        "height": _spread(heights),
        "width": _spread(widths),
        "grey": sum(look.is_grey for look in looks),
        "brightness": _spread(np.array([look.brightness for look in looks])),
        "with_border": int((borders > 0).sum()),
        "border": _spread(borders[borders > 0]),
        "landmarks_outside": sum(outside) if part.name == "train" else None,
    }


def _spread(values: np.ndarray) -> dict[str, float] | None:
    if len(values) == 0:
        return None
    low, high = values.min().item(), values.max().item()
    return {"min": low, "median": float(np.median(values)), "max": high}


def text(report: Report) -> str:
    """The report as lines that line up, for people: numbers, then problems by kind."""
    lines = [str(report.root), *as_lines(_numbers(report)), ""]
    by_kind: dict[tuple[str, str], list[Problem]] = {}
    for problem in report.problems:
        by_kind.setdefault((problem.severity, problem.kind), []).append(problem)
    if not by_kind:
        return "\n".join([*lines, "nothing is wrong"])
    rows = [("severity", "kind", "train", "test")]
    for (severity, kind), problems in by_kind.items():
        parts = Counter(problem.part for problem in problems)
        rows.append((severity, kind, str(parts["train"]), str(parts["test"])))
    lines += as_lines(rows, left=2)
    for (severity, kind), problems in by_kind.items():
        lines += ["", f"{severity}: {kind}", *(f"  {p.message}" for p in problems[:EXAMPLES])]
        lines += [f"  ... and {len(problems) - EXAMPLES} more"] if len(problems) > EXAMPLES else []
    return "\n".join(lines)


def _numbers(report: Report) -> list[tuple[str, ...]]:
    """A row of text for each statistic, a column for each part."""
    parts = report.statistics
    table = [("", *parts)]
    told = [key for key in STATISTICS if all(key in part for part in parts.values())]
    table += [(STATISTICS[key], *(_cell(part, key) for part in parts.values())) for key in told]
    for name, groups in (("groups of equal files", report.same), ("groups alike", report.near)):
        sizes = [[len(getattr(group, part)) for group in groups] for part in parts]
        counts = (f"{np.count_nonzero(some)} ({sum(some)} images)" for some in sizes)
        table.append((name, *counts))
    return table


def _cell(part: dict[str, Any], key: str) -> str:
    value = part[key]
    if value is None:
        return "-"
    if isinstance(value, dict):
        return " / ".join(f"{number:.0f}" for number in value.values())
    is_count = key in ("rows", "pictures")
    return f"{value}" if is_count else f"{value} ({100 * value / part['pictures']:.1f} %)"
