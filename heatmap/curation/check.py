"""Checks whether a contest folder can be trained on: every row and every image."""

import hashlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from heatmap.curation.check_report import Group, PartName, Problem, Report, severity_of, spread
from heatmap.curation.duplicates import near_groups, perceptual_hash
from heatmap.data import contest
from heatmap.data.contest import problems as tables
from heatmap.data.samples import within_border
from heatmap.errors import UserError, shortened
from heatmap.runtime.parallel import in_processes
from heatmap.shape import nanmean

FAR_OUTSIDE = 0.5  # of the image's width or height
BORDER_THRESHOLD = 9  # as crop.trim_border
OTHER_LABELS = 0.1  # Group.label_distance above which labels of images that look alike differ


class ImageProperties(NamedTuple):
    damage: str  # the decoder's warning, "" if there is none
    note: str  # of the `contest.ImageFile`
    image_hw: tuple[int, int]
    is_grey: bool
    brightness: float  # mean of all pixels and channels, 0 to 255
    border: tuple[int, int, int, int]  # width of the dark border at left, top, right and bottom
    sha256: bytes  # of the file
    phash: int  # perceptual hash


@dataclass(slots=True)
class _Row:
    """A table row with a valid file name."""

    part: "_Part"
    name: str
    row: int  # the header is row 1
    start: int  # byte offset in the table
    # (2, 2) lowest and highest x and y of the landmarks, None if none can be used
    bounds: np.ndarray | None = None
    bound_landmarks: np.ndarray | None = None  # (2, 2) the landmarks at these bounds

    def problem(self, kind: str, message: str, *other_images: str) -> Problem:
        message = f"{self.part.table}, row {self.row}: {message}"
        return self.part.problem(kind, message, self.row, (self.name, *other_images))


@dataclass
class _Part:
    """The training or the test part of a contest, filled while it is read."""

    name: PartName
    table: Path
    images: Path
    rows: list[_Row] = field(default_factory=list)
    readable: list[tuple[_Row, ImageProperties]] = field(default_factory=list)

    def problem(
        self, kind: str, message: str, row: int | None = None, images: tuple[str, ...] = ()
    ) -> Problem:
        return Problem(severity_of(kind), kind, self.name, shortened(message), row, images)


def check(root: Path, *, workers: int = 1) -> Report:
    """Reads all rows and images of a contest and reports all problems.

    Args:
        workers: processes that read the images.

    Raises:
        UserError: there is no contest at `root`, or a process was killed.
    """
    folder = contest.find_folder(root)
    train = _Part("train", folder.train_table, folder.train_images)
    test = _Part("test", folder.test_points, folder.test_images)
    problems = [
        *_check_landmarks(train),
        *_check_asked_points(test, folder.train_table),
        *_check_images(train, workers),
        *_check_images(test, workers),
    ]
    readable = [*train.readable, *test.readable]
    same = _equal_keys(image.sha256 for _, image in readable)
    hashes = np.array([image.phash for _, image in readable], np.uint64)
    near = sorted({*_equal_keys(near_groups(hashes).tolist())} - {*same})
    groups: list[list[Group]] = []
    for all_indices, is_same in ((same, True), (near, False)):
        groups.append([])
        for indices in all_indices:
            members = [readable[index] for index in indices]
            groups[-1].append(_group(members, train))
            problems += _check_group(members[0][0], groups[-1][-1], is_same)

    problems.sort(key=lambda problem: ("error", "warning", "note").index(problem.severity))
    statistics = {part.name: _statistics(part) for part in (train, test) if part.rows}
    return Report(folder.root, problems, statistics, *groups)


def _check_landmarks(train: _Part) -> Iterator[Problem]:
    yield from _read_rows(train, tables.check_landmarks(train.table, progress=True))
    if train.rows and all(row.bounds is None for row in train.rows):
        message = f"{train.table}: no row has a landmark that can be trained on"
        yield train.problem("no labels", message)


def _check_asked_points(test: _Part, train_table: Path) -> Iterator[Problem]:
    if not os.path.lexists(test.table):
        message = f"{test.table} does not exist, so a submission cannot be made"
        yield Problem("note", "table", test.name, message)
        return
    try:
        num_landmarks = contest.count_landmarks(train_table)
    except UserError:  # reported by _check_landmarks
        num_landmarks = 10**9
    yield from _read_rows(test, tables.check_asked_points(test.table, num_landmarks))


def _read_rows(part: _Part, rows: Iterable[tables.CheckedRow]) -> Iterator[Problem]:
    """Adds the rows with a valid name to the part, and yields the problems of all rows."""
    try:
        for checked in rows:
            images = () if checked.name is None else (checked.name,)
            for kind, message in checked.problems:
                yield part.problem(kind, message, checked.row, images)
            if checked.name is not None:
                part.rows.append(_Row(part, checked.name, checked.row, checked.start))
                if checked.points_image is not None:
                    yield from _read_bounds(part.rows[-1], checked.points_image)
    except UserError as error:
        yield part.problem("table", str(error))


def _read_bounds(row: _Row, points_image: np.ndarray) -> Iterator[Problem]:
    labelled = np.flatnonzero(~np.isnan(points_image[:, 0]))
    if len(labelled) == 0:
        yield row.problem("unlabelled row", "no landmark is labelled")
        return
    points = points_image[labelled]
    ends = np.stack([points.argmin(0), points.argmax(0)])
    row.bounds, row.bound_landmarks = points[ends, [0, 1]], labelled[ends]
    if len(points) > 1 and (row.bounds[0] == row.bounds[1]).all():
        x, y = points[0]
        yield row.problem("all at one point", f"all landmarks lie at one point, ({x:g}, {y:g})")


def _check_images(part: _Part, workers: int) -> Iterator[Problem]:
    """Reads the images of all rows into `part.readable`."""
    if not part.rows:
        return
    if not part.images.is_dir():
        message = f"{part.images} does not exist, but {part.table} names images in it"
        yield part.problem("missing folder", message)
        return
    names = [row.name for row in part.rows]
    missing = dict(contest.misplaced(part.images, names))
    for index, message in missing.items():
        row = part.rows[index]
        where = f"{part.table}, row {row.row}, column file_name"
        yield part.problem("missing image", f"{where}: {message}", row.row, (row.name,))
    rows = [row for index, row in enumerate(part.rows) if index not in missing]
    paths = [part.images / row.name for row in rows]
    results = in_processes(read_properties, paths, workers, f"{part.name} images")
    for row, image in zip(rows, results, strict=True):
        if isinstance(image, str):
            yield row.problem("unreadable image", image)
            continue
        part.readable.append((row, image))
        if image.damage:
            message = f"{row.name!r} is partly damaged: {image.damage}"
            yield row.problem("damaged image", message)
        if image.note:
            yield row.problem("converted image", f"{row.name!r}: {image.note}")
        yield from _check_bounds(row, image.image_hw)
    files = {
        os.path.relpath(Path(folder) / file, part.images)
        for folder, _, folder_files in os.walk(part.images)
        for file in folder_files
    }
    for name in sorted(files - {os.path.normpath(name) for name in names}):
        message = f"{part.images / name}: no row of {part.table} names this file"
        yield part.problem("unnamed image", message, None, (name,))


def read_properties(path: Path) -> ImageProperties | str:
    """Reads an image. Returns the reason if it cannot be read."""
    try:
        file = contest.ImageFile(path)
        image, damage = _decode(file)
    except UserError as error:
        return str(error)
    height, width = image.shape[:2]
    left, top, right, bottom = within_border(image, BORDER_THRESHOLD)
    return ImageProperties(
        damage=damage,
        note=file.note,
        image_hw=(height, width),
        is_grey=bool((image == image[..., :1]).all()),
        brightness=float(image.mean()),
        border=(left, top, width - right, height - bottom),
        sha256=hashlib.sha256(file.data).digest(),
        phash=perceptual_hash(image),
    )


def _decode(file: contest.ImageFile) -> tuple[np.ndarray, str]:
    """Returns the pixels and the first warning, which decoders print to standard error."""
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            image, _ = file.pixels(1)
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        warnings = os.pread(captured.fileno(), 200, 0).decode(errors="replace")
    return image, warnings.partition("\n")[0]


def _outside(bounds: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """(2, 2) distances outside the image, in fractions of its width and height."""
    size = np.array(image_hw[::-1])
    return np.stack([-0.5 - bounds[0], bounds[1] - (size - 0.5)]) / size


def _check_bounds(row: _Row, image_hw: tuple[int, int]) -> Iterator[Problem]:
    if row.bounds is None or row.bound_landmarks is None:
        return
    outside = _outside(row.bounds, image_hw)
    side = int(outside.argmax())
    if outside.flat[side] > FAR_OUTSIDE:
        message = (
            f"landmark {row.bound_landmarks.flat[side]} lies far outside the image, at "
            f"{'xyxy'[side]} = {row.bounds.flat[side]:g}; the image is {image_hw[1]} wide and "
            f"{image_hw[0]} high"
        )
        yield row.problem("far outside", message)


def _equal_keys(keys: Iterable[Hashable]) -> list[tuple[int, ...]]:
    """The indices of every key that occurs more than once."""
    indices = defaultdict[Hashable, list[int]](list)
    for index, key in enumerate(keys):
        indices[key].append(index)
    return [tuple(equal) for equal in indices.values() if len(equal) > 1]


def _group(members: Sequence[tuple[_Row, ImageProperties]], train: _Part) -> Group:
    labelled = [(row, image) for row, image in members if row.bounds is not None]
    return Group(
        train=[row.name for row, _ in members if row.part is train],
        test=[row.name for row, _ in members if row.part is not train],
        label_distance=_label_distance(train.table, labelled) if len(labelled) > 1 else None,
    )


def _label_distance(table: Path, members: Sequence[tuple[_Row, ImageProperties]]) -> float | None:
    points_image = np.stack([*tables.read_rows(table, [row.start for row, _ in members])])
    size = np.array([image.image_hw[::-1] for _, image in members])[:, None]
    scaled = (points_image + 0.5) * (size[0] / size) - 0.5
    first = points_image[0]
    distances = nanmean(np.linalg.norm(scaled[1:] - first, axis=-1), 1)
    diagonal = float(np.linalg.norm(np.nanmax(first, 0) - np.nanmin(first, 0)))
    return None if np.isnan(distances).all() else float(np.nanmax(distances)) / max(diagonal, 1.0)


def _check_group(first: _Row, group: Group, is_same: bool) -> Iterator[Problem]:
    kind, are = ("same image", "are equal files") if is_same else ("alike", "look alike")
    names = [f"{part} {name}" for part in ("train", "test") for name in getattr(group, part)]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    message = f"{', '.join(names[:4])}{more} {are}"
    other_images = [*group.train, *group.test][1:]
    distance = group.label_distance or 0.0
    if distance > (0 if is_same else OTHER_LABELS):
        differ = f"{message}, but their landmarks differ by {100 * distance:.2g} % of the face"
        # test images may have the same names, and only training images can be excluded
        yield first.problem(f"{kind}, other labels", differ, *group.train[1:])
    elif not (group.train and group.test):
        yield first.problem(f"{kind}, twice", message, *other_images)
    if group.train and group.test:
        yield first.problem(f"{kind}, train and test", message, *other_images)


def _statistics(part: _Part) -> dict[str, Any]:
    """The statistics of a part for JSON; only the counts if no image can be read."""
    counts = {"rows": len(part.rows), "images": len(part.readable)}
    if not part.readable:
        return counts
    images = [image for _, image in part.readable]
    borders = [max(image.border) for image in images if any(image.border)]
    outside = sum(
        bool((_outside(row.bounds, image.image_hw) > 0).any())
        for row, image in part.readable
        if row.bounds is not None
    )
    return counts | {
        "height": spread([image.image_hw[0] for image in images]),
        "width": spread([image.image_hw[1] for image in images]),
        "grey": sum(image.is_grey for image in images),
        "brightness": spread([image.brightness for image in images]),
        "with_border": len(borders),
        "border": spread(borders) if borders else None,
        "landmarks_outside": outside if part.name == "train" else None,
    }
