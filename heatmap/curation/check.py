"""Whether a contest's folder can be trained on: every row and every image, all in one report."""

import hashlib
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from heatmap.curation.duplicates import near_groups, perceptual_hash
from heatmap.data import contest
from heatmap.data.contest import problems as tables
from heatmap.data.samples import within_border
from heatmap.errors import UserError
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
    "damaged image", "far outside", "all at one point", "same image, other labels",
    "same image, train and test", "alike, other labels", "alike, train and test",
)  # fmt: skip
NOTES = ("same image, twice", "alike, twice", "unlabelled row", "unnamed image")
EXCLUDED = (
    "missing image", "unreadable image", "damaged image", "far outside", "all at one point",
    "same image, other labels",
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, or that a person should know.

    severity: error, where a training or a submission would stop at it; warning, where something is
    likely wrong; note. row: of the part's table, the header being row 1. images: file names.
    """

    severity: Severity
    kind: str
    part: PartName
    message: str
    row: int | None = None
    images: tuple[str, ...] = ()

    @property
    def is_excluded(self) -> bool:
        return self.part == "train" and self.kind in EXCLUDED


@dataclass(frozen=True)
class Group:
    """File names of images that are alike.

    label_distance: the largest mean distance between the landmarks of the first labelled training
    image and of another one, over the diagonal of the first one's; None without two of these.
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

    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]

    def excluded(self) -> dict[str, list[str]]:
        """Why training images are better left out, by file name."""
        reasons = defaultdict[str, list[str]](list)
        for problem in self.problems:
            for name in problem.images if problem.is_excluded else ():
                reasons[name].append(problem.kind)
        return dict(reasons)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"root": str(self.root)}


class ImageFacts(NamedTuple):
    """What an image looks like.

    damage: what the decoder says of it, if anything. brightness: mean of all pixels and channels.
    border: dark columns and rows at left, top, right and bottom. content: SHA-256 of the file.
    alike: perceptual hash.
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
    highest x and y, and reached: the landmarks that reach so far; None where none is labelled.
    look: None where there is no image that can be read.
    """

    part: "_Part"
    name: str
    number: int
    start: int
    reach: np.ndarray | None = None
    reached: np.ndarray | None = None
    look: ImageFacts | None = None

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
        self, kind: str, message: str, row: int | None = None, images: tuple[str, ...] = ()
    ) -> Problem:
        severity: Severity = "warning" if kind in WARNINGS else "note" if kind in NOTES else "error"
        return Problem(severity, kind, self.name, message, row, images)

    def looks(self) -> list[tuple[_Row, ImageFacts]]:
        """The rows whose images can be read, and these."""
        return [(row, row.look) for row in self.rows if row.look is not None]


def check(root: Path, *, workers: int = 1) -> Report:
    """Reads all rows and images of a contest, and tells everything that is wrong with them.

    Args:
        workers: processes that read the images.

    Raises:
        UserError: there is no contest at `root`, or a process was killed.
    """
    folder = contest.find_folder(root)
    train = _Part("train", folder.train_table, folder.train_images)
    test = _Part("test", folder.test_points, folder.test_images)
    problems = [*_read(train, tables.check_landmarks(train.table, progress=True))]
    if train.rows and all(row.reach is None for row in train.rows):
        message = f"{train.table}: no row has a landmark that can be trained on"
        problems.append(train.problem("no labels", message))
    problems += _read_asked_points(test, folder.train_table)
    for part in (train, test):
        if part.rows:
            problems += _look_at_images(part, workers)
    problems += _far_outside(train)

    seen = [*train.looks(), *test.looks()]
    equal = _repeated(look.content for _, look in seen)
    alike = _repeated(near_groups(np.array([look.alike for _, look in seen], np.uint64)).tolist())
    told = set(map(tuple, equal))
    near = [places for places in alike if tuple(places) not in told]
    groups: tuple[list[Group], list[Group]] = [], []
    for found, described in zip((equal, near), groups, strict=True):
        for places in found:
            rows = [seen[place][0] for place in places]
            described.append(_group(rows, train))
            problems += _repetition(rows[0], described[-1], are_same=found is equal)

    problems.sort(key=lambda problem: ("error", "warning", "note").index(problem.severity))
    statistics = {part.name: _statistics(part) for part in (train, test) if part.rows}
    return Report(folder.root, problems, statistics, *groups)


def image_facts(path: Path) -> ImageFacts | str:
    """What an image looks like, or why it cannot be read."""
    try:
        file = contest.ImageFile(path)
        image, damage = _decoded(file)
    except UserError as error:
        return str(error)
    height, width = image.shape[:2]
    left, top, right, bottom = within_border(image, BORDER_THRESHOLD)
    return ImageFacts(
        damage=damage,
        image_hw=(height, width),
        is_grey=bool((image == image[..., :1]).all()),
        brightness=float(image.mean()),
        border=(left, top, width - right, height - bottom),
        content=hashlib.sha256(file.data).digest(),
        alike=perceptual_hash(image),
    )


def _decoded(file: contest.ImageFile) -> tuple[np.ndarray, str]:
    """The pixels, and the damage, which decoders tell on standard error only."""
    screen = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            image, _ = file.pixels(1)
        finally:
            os.dup2(screen, 2)
            os.close(screen)
        return image, os.pread(said.fileno(), 200, 0).decode(errors="replace").partition("\n")[0]


def _read(part: _Part, rows: Iterable[tables.CheckedRow]) -> Iterator[Problem]:
    """Keeps the rows that have a name, and tells what the reader says of all."""
    try:
        for read in rows:
            images = () if read.name is None else (read.name,)
            for kind, message in read.problems:
                yield part.problem(kind, message, read.row, images)
            if read.name is not None:
                part.rows.append(_Row(part, read.name, read.row, read.start))
                if read.points_image is not None:
                    yield from _reach(part.rows[-1], read.points_image)
    except UserError as error:
        yield part.problem("table", str(error))


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
    except UserError:  # which is told already
        num_landmarks = 10**9
    yield from _read(part, tables.check_asked_points(part.table, num_landmarks))


def _look_at_images(part: _Part, workers: int) -> Iterator[Problem]:
    if not part.images.is_dir():
        message = f"{part.images}: there is no such folder, but {part.table} names images in it"
        yield part.problem("missing folder", message)
        return
    names = [row.name for row in part.rows]
    misplaced = dict(contest.misplaced(part.images, names))
    for index, message in misplaced.items():
        yield part.rows[index].problem("missing image", message)
    there = [row for index, row in enumerate(part.rows) if index not in misplaced]
    paths = [part.images / row.name for row in there]
    looks = in_processes(image_facts, paths, workers, f"{part.name} images")
    for row, look in zip(there, looks, strict=True):
        if isinstance(look, str):
            yield row.problem("unreadable image", look)
            continue
        row.look = look
        if look.damage:
            message = f"{row.name!r} is damaged in part: {look.damage}"
            yield row.problem("damaged image", message)
    files = {
        os.path.relpath(Path(folder) / file, part.images)
        for folder, _, inside in os.walk(part.images)
        for file in inside
    }
    for name in sorted(files - {os.path.normpath(name) for name in names}):
        message = f"{part.images / name}: no row of {part.table} names this file"
        yield part.problem("unnamed image", message, None, (name,))


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


def _repeated(keys: Iterable[Hashable]) -> list[list[int]]:
    """The places of every key that occurs more than once."""
    places = defaultdict[Hashable, list[int]](list)
    for place, key in enumerate(keys):
        places[key].append(place)
    return [some for some in places.values() if len(some) > 1]


def _group(rows: Sequence[_Row], train: _Part) -> Group:
    own = [row for row in rows if row.part is train]
    others = [row.name for row in rows if row.part is not train]
    labelled = [row for row in own if row.reach is not None]
    distance = _label_distance(train.table, labelled) if len(labelled) > 1 else None
    return Group([row.name for row in own], others, distance)


def _label_distance(table: Path, rows: Sequence[_Row]) -> float | None:
    """As `Group.label_distance`, for labelled rows of the table."""
    points_image = np.stack([*tables.read_rows(table, [row.start for row in rows])])
    size = np.array([row.look.image_hw[::-1] for row in rows if row.look is not None])[:, None]
    scaled = (points_image + 0.5) * (size[0] / size) - 0.5
    first = points_image[0]
    gaps = nanmean(np.linalg.norm(scaled[1:] - first, axis=-1), 1)
    diagonal = float(np.linalg.norm(np.nanmax(first, 0) - np.nanmin(first, 0)))
    return None if np.isnan(gaps).all() else float(np.nanmax(gaps)) / max(diagonal, 1.0)


def _repetition(row: _Row, group: Group, are_same: bool) -> Iterator[Problem]:
    """What a group of images has to tell, of which this row is the first."""
    alike, are = ("same image", "are equal files") if are_same else ("alike", "look alike")
    names = [f"{part} {name}" for part in ("train", "test") for name in getattr(group, part)]
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
    "images": "images read",
    "height": "height, min / median / max",
    "width": "width, min / median / max",
    "brightness": "brightness, min / median / max",
    "grey": "grey",
    "with_border": "with a black border",
    "border": "border at its widest side",
    "landmarks_outside": "with landmarks outside",
}


def _statistics(part: _Part) -> dict[str, Any]:
    """Numbers of a part's images for JSON; only their counts where none can be read."""
    seen = part.looks()
    counts = {"rows": len(part.rows), "images": len(seen)}
    if not seen:
        return counts
    looks = [look for _, look in seen]
    borders = [max(look.border) for look in looks if any(look.border)]
    reaching = [(row.reach, look.image_hw) for row, look in seen if row.reach is not None]
    outside = sum(bool((_beyond(*both) > 0).any()) for both in reaching)
    return counts | {
        "height": _spread([look.image_hw[0] for look in looks]),
        "width": _spread([look.image_hw[1] for look in looks]),
        "grey": sum(look.is_grey for look in looks),
        "brightness": _spread([look.brightness for look in looks]),
        "with_border": len(borders),
        "border": _spread(borders) if borders else None,
        "landmarks_outside": outside if part.name == "train" else None,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}


def format_report(report: Report) -> str:
    """The report as lines that line up, for people: numbers, then problems by kind."""
    lines = [str(report.root), *as_lines(_numbers(report)), ""]
    by_kind = defaultdict[tuple[str, str], list[Problem]](list)
    for problem in report.problems:
        by_kind[problem.severity, problem.kind].append(problem)
    if not by_kind:
        return "\n".join([*lines, "nothing is wrong"])
    rows, examples = [("severity", "kind", "train", "test")], []
    for (severity, kind), problems in by_kind.items():
        parts = Counter(problem.part for problem in problems)
        rows.append((severity, kind, str(parts["train"]), str(parts["test"])))
        examples += ["", f"{severity}: {kind}", *(f"  {p.message}" for p in problems[:EXAMPLES])]
        if len(problems) > EXAMPLES:
            examples.append(f"  ... and {len(problems) - EXAMPLES} more")
    return "\n".join([*lines, *as_lines(rows, left=2), *examples])


def _numbers(report: Report) -> list[tuple[str, ...]]:
    """A row of text for each statistic, a column for each part."""
    parts = report.statistics
    table = [("", *parts)]
    for key, label in STATISTICS.items():
        if all(key in part for part in parts.values()):
            table.append((label, *(_cell(part, key) for part in parts.values())))
    for label, groups in (("groups of equal files", report.same), ("groups alike", report.near)):
        sizes = [[len(getattr(group, part)) for group in groups] for part in parts]
        table.append((label, *(f"{np.count_nonzero(some)} ({sum(some)} images)" for some in sizes)))
    return table


def _cell(part: dict[str, Any], key: str) -> str:
    value = part[key]
    if value is None:
        return "-"
    if isinstance(value, dict):
        return " / ".join(f"{number:.0f}" for number in value.values())
    is_count = key in ("rows", "images")
    return f"{value}" if is_count else f"{value} ({100 * value / part['images']:.1f} %)"
