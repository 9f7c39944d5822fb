"""A contest's images and landmarks in numbers and plots: channels, sizes, positions, poses."""

import math
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heatmap.config import Crop
from heatmap.data import contest
from heatmap.data.samples import Samples, evenly_spaced, within_border
from heatmap.errors import UserError
from heatmap.runtime.files import write_atomically
from heatmap.runtime.parallel import in_processes
from heatmap.shape import rolls, turns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_SHOWN = 10_000  # faces whose landmarks and poses are plotted
COLOURS = {"train": "tab:blue", "test": "tab:orange"}


class Channels(NamedTuple):
    """Exact sums over pixels of values from 0 to 255 and of their squares, by channel (RGB)."""

    pixels: int
    sums: tuple[int, ...]
    squares: tuple[int, ...]

    def mean(self) -> list[float]:
        """By channel, with white at 1."""
        return [total / (255 * self.pixels) for total in self.sums]

    def std(self) -> list[float]:
        """The standard deviation of all pixels, by channel, with white at 1."""
        return [
            math.sqrt(self.pixels * squares - total**2) / (255 * self.pixels)
            for total, squares in zip(self.sums, self.squares, strict=True)
        ]


@dataclass(frozen=True)
class Statistics:
    """Of train, test and both, as far as they are there.

    sizes: (N, 2) heights and widths of each part's images. positions: (K, 2) landmarks as fractions
    of their image's width and height. turns, rolls_deg: as in `heatmap.shape`. unreadable: what is
    wrong with the images that are left out.
    """

    channels: dict[str, Channels]
    sizes: dict[str, np.ndarray]
    positions: np.ndarray
    turns: np.ndarray
    rolls_deg: np.ndarray
    unreadable: list[str]

    def to_json(self) -> dict[str, Any]:
        parts = {
            part: channels._asdict() | {"mean": channels.mean(), "std": channels.std()}
            for part, channels in self.channels.items()
        }
        return {"channels": parts, "unreadable": self.unreadable}


def measure_contest(
    root: Path,
    *,
    trim_border: int = 0,
    crop_hw: tuple[int, int] | None = None,
    workers: int = 1,
) -> Statistics:
    """Reads all images of a contest. Sums are of integers, and do not depend on the workers.

    Args:
        trim_border: channels are of what is within the dark border, as `config.Crop` has it.
        crop_hw: channels are of the cover crop of this height and width, as training sees it; of
            whole images if None, so that large ones count for more.
        workers: processes that read the images.

    Raises:
        UserError: a table cannot be read, an image is missing, or none can be read.
    """
    crop = None
    if crop_hw is not None:
        crop = Crop(height=crop_hw[0], width=crop_hw[1], trim_border=trim_border)
    folder = contest.find_folder(root)
    paths: dict[str, Sequence[Path]] = {}
    table = None
    if folder.train_table.exists():
        table = contest.read_landmarks(folder.train_table, progress=True)
        paths["train"] = contest.image_paths(folder.train_images, table.names, table.path)
    if folder.test_points.exists():
        num_landmarks = table.num_landmarks if table else sys.maxsize
        asked = contest.read_asked_points(folder.test_points, num_landmarks)
        paths["test"] = contest.image_paths(folder.test_images, asked.names, asked.path)

    see = partial(_see, crop, trim_border)
    jobs = [*chain.from_iterable(paths.values())]
    found = iter([*in_processes(see, jobs, workers, "images")])
    channels, sizes = dict[str, Channels](), dict[str, np.ndarray]()
    unreadable, rows = list[str](), np.empty(0, int)
    for part, some in paths.items():
        looks = [*islice(found, len(some))]
        unreadable += [look for look in looks if isinstance(look, str)]
        seen = [look for look in looks if not isinstance(look, str)]
        if seen:
            sizes[part] = np.array([image_hw for image_hw, _ in seen])
            channels[part] = _total(own for _, own in seen)
        if part == "train":
            rows = np.flatnonzero([not isinstance(look, str) for look in looks])
    if not sizes:
        raise UserError(f"{root}: no image can be read; {unreadable[0]}")
    if len(sizes) == 2:
        channels["both"] = _total(channels.values())
    positions, turn, roll = np.empty((0, 2)), np.empty(0), np.empty(0)
    if table is not None and len(rows):
        shown = evenly_spaced(np.arange(len(rows)), MOST_SHOWN)
        points_image = table.points_image[rows[shown]].astype(np.float64)
        relative = (points_image + 0.5) / sizes["train"][shown][:, None, ::-1]
        positions = relative[np.isfinite(relative).all(-1)]
        whole = points_image[np.isfinite(points_image).all((1, 2))]
        with suppress(UserError):  # fewer than three faces, or all of one shape, have no poses
            turn, roll = turns(whole), rolls(whole)
    return Statistics(channels, sizes, positions, turn, roll, unreadable)


def _see(crop: Crop | None, trim_border: int, path: Path) -> tuple[tuple[int, int], Channels] | str:
    """The image's size and sums, or why it cannot be read."""
    try:
        if crop is not None:
            sample = Samples([path], np.full((1, 1, 2), np.nan, np.float32), crop)[0]
            height, width = sample.image_hw.tolist()
            pixels = sample.crop.permute(1, 2, 0).numpy()
        else:
            image = contest.read_image(path)
            height, width = image.shape[:2]
            left, top, right, bottom = within_border(image, trim_border)
            pixels = image[top:bottom, left:right]
    except UserError as error:
        return str(error)
    flat = pixels.reshape(-1, 3)
    sums, squares = (
        tuple(values.sum(0, dtype=np.int64).tolist())
        for values in (flat, np.square(flat, dtype=np.uint16))
    )
    return (height, width), Channels(len(flat), sums, squares)


def _total(parts: Iterable[Channels]) -> Channels:
    pixels, *by_channel = zip(*parts, strict=True)
    sums, squares = (tuple(map(sum, zip(*values, strict=True))) for values in by_channel)
    return Channels(sum(pixels), sums, squares)


def format_statistics(statistics: Statistics) -> str:
    """The channels as lines that line up, for people."""
    colours = "".join(f"{colour:>9}" for colour in ("red", "green", "blue"))
    lines = [
        f"{'':5}  {'mean':>9}{'':18}  {'standard deviation':>18}",
        f"{'':5}{colours}  {colours}  {'images':>8}  {'pixels':>15}",
    ]
    for part, channels in statistics.channels.items():
        mean, std = ("".join(f"{value:9.5f}" for value in values)
                     for values in (channels.mean(), channels.std()))  # fmt: skip
        own = statistics.sizes.values() if part == "both" else [statistics.sizes[part]]
        images = sum(map(len, own))
        lines.append(f"{part:5}{mean}  {std}  {images:>8}  {channels.pixels:>15,}")
    if statistics.unreadable:
        lines.append(
            f"{len(statistics.unreadable)} images cannot be read and are left out: "
            f"{statistics.unreadable[0]}; tools/data.py check tells all"
        )
    return "\n".join(lines)


def plot(statistics: Statistics, out: Path) -> None:
    """Writes a PNG with the distributions of sizes, aspects, landmark positions and head poses."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.5, 8), layout="constrained")
    heights, widths, aspects, positions, turn, roll = figure.subplots(2, 3).flat
    sizes = statistics.sizes.items()
    _histogram(heights, {part: hw[:, 0] for part, hw in sizes}, "image height, px")
    _histogram(widths, {part: hw[:, 1] for part, hw in sizes}, "image width, px")
    _histogram(aspects, {part: hw[:, 1] / hw[:, 0] for part, hw in sizes}, "image width / height")
    _density(positions, statistics.positions)
    few = " (fewer than three whole faces)" if len(statistics.turns) == 0 else ""
    _histogram(turn, {"train": statistics.turns}, f"head turn, share of shape{few}")
    _histogram(roll, {"train": statistics.rolls_deg}, f"head roll, degrees clockwise{few}")
    widths.legend()
    with write_atomically(out) as temporary:
        figure.savefig(temporary, dpi=110)


def _histogram(axes: "Axes", values: dict[str, np.ndarray], title: str) -> None:
    """Shares of the images of each part, in bins that the parts have in common."""
    everything = np.concatenate([*values.values()])
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylabel("share of images, %")
    if len(everything) == 0:
        return
    bins = np.histogram_bin_edges(everything, 40).tolist()
    for part, some in values.items():
        if len(some):
            is_filled = part == "train"
            axes.hist(
                some, bins, weights=np.full(len(some), 100 / len(some)), color=COLOURS[part],
                histtype="stepfilled" if is_filled else "step", alpha=0.6 if is_filled else 1.0,
                linewidth=1.5, label=f"{part} ({len(some)})",
            )  # fmt: skip


def _density(axes: "Axes", positions: np.ndarray) -> None:
    """Where landmarks lie in their images; brighter is more."""
    axes.set_title("landmarks in their images")
    axes.set_xlabel("x / width")
    axes.set_ylabel("y / height")
    limits = [[-0.1, 1.1], [-0.1, 1.1]]
    counts, _, _ = np.histogram2d(positions[:, 0], positions[:, 1], bins=120, range=limits)
    axes.imshow(
        np.sqrt(counts.T), extent=(-0.1, 1.1, 1.1, -0.1), cmap="magma", interpolation="nearest"
    )
    axes.plot([0, 1, 1, 0, 0], [0, 0, 1, 1, 0], color="white", linewidth=0.8)
