"""Measures a contest's images and landmarks: channels, sizes, positions and poses."""

import math
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heatmap.config import Crop
from heatmap.data import contest
from heatmap.data.samples import Samples, evenly_spaced, within_border
from heatmap.errors import UserError
from heatmap.runtime.columns import counted
from heatmap.runtime.files import write_atomically
from heatmap.runtime.parallel import in_processes
from heatmap.shape import rolls, turns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PLOTTED = 10_000  # faces whose landmarks and poses are plotted
COLORS = {"train": "tab:blue", "test": "tab:orange"}


class Channels(NamedTuple):
    """Exact sums over all pixels, by channel (RGB, 0 to 255)."""

    pixels: int
    sums: tuple[int, ...]
    squares: tuple[int, ...]  # sums of the squared values

    def mean(self) -> list[float]:
        """The mean of each channel, with white at 1."""
        return [total / (255 * self.pixels) for total in self.sums]

    def std(self) -> list[float]:
        """The standard deviation of each channel, with white at 1."""
        return [
            math.sqrt(self.pixels * squares - total**2) / (255 * self.pixels)
            for total, squares in zip(self.sums, self.squares, strict=True)
        ]


@dataclass(frozen=True)
class Statistics:
    """The statistics of a contest; parts without images are left out."""

    channels: dict[str, Channels]  # of train, test and both
    sizes: dict[str, np.ndarray]  # (N, 2) image heights and widths of train and test
    positions: np.ndarray  # (K, 2) landmarks, as fractions of their image's width and height
    turns: np.ndarray  # (F,) as `shape.turns`
    rolls_deg: np.ndarray  # (F,) as `shape.rolls`
    unreadable: list[str]  # reasons why images could not be read

    def to_json(self) -> dict[str, Any]:
        parts = {
            part: channels._asdict() | {"mean": channels.mean(), "std": channels.std()}
            for part, channels in self.channels.items()
        }
        return {"channels": parts, "unreadable": self.unreadable}


def measure_contest(
    root: Path, *, trim_border: int = 0, crop_hw: tuple[int, int] | None = None, workers: int = 1
) -> Statistics:
    """Measures all images of a contest; the result does not depend on the number of workers.

    Args:
        trim_border: measure the channels within the dark border, as `config.Crop` trims it.
        crop_hw: measure the channels in the training crop of this size; None: in whole images.
        workers: processes that read the images.

    Raises:
        UserError: a table cannot be read, an image is missing, or no image can be read.
    """
    crop = Crop(height=crop_hw[0], width=crop_hw[1], trim_border=trim_border) if crop_hw else None
    folder = contest.find_folder(root)
    paths, table = {}, None
    if folder.train_table.exists():
        table = contest.read_landmarks(folder.train_table, progress=True)
        paths["train"] = contest.image_paths(folder.train_images, table.names, table.path)
    if folder.test_points.exists():
        num_landmarks = table.num_landmarks if table else sys.maxsize
        asked = contest.read_asked_points(folder.test_points, num_landmarks)
        paths["test"] = contest.image_paths(folder.test_images, asked.names, asked.path)

    measure = partial(_measure_image, crop, trim_border)
    channels, sizes, rows = dict[str, Channels](), dict[str, np.ndarray](), dict[str, np.ndarray]()
    unreadable = list[str]()
    for part, part_paths in paths.items():
        results = [*in_processes(measure, part_paths, workers, f"{part} images")]
        unreadable += [result for result in results if isinstance(result, str)]
        measured = {row: r for row, r in enumerate(results) if not isinstance(r, str)}
        if measured:
            rows[part] = np.array([*measured])
            sizes[part] = np.array([image_hw for image_hw, _ in measured.values()])
            channels[part] = _total(image_channels for _, image_channels in measured.values())
    if not sizes:
        raise UserError(f"{root}: no image can be read; {unreadable[0]}")
    if len(sizes) == 2:
        channels["both"] = _total(channels.values())
    positions, turn, roll = np.empty((0, 2)), np.empty(0), np.empty(0)
    if table and "train" in sizes:
        plotted = evenly_spaced(np.arange(len(rows["train"])), MAX_PLOTTED)
        points_image = table.points_image[rows["train"][plotted]].astype(np.float64)
        relative = (points_image + 0.5) / sizes["train"][plotted][:, None, ::-1]
        positions = relative[np.isfinite(relative).all(-1)]
        whole = points_image[np.isfinite(points_image).all((1, 2))]
        with suppress(UserError):  # fewer than three faces, or all of one shape, have no poses
            turn, roll = turns(whole), rolls(whole)
    return Statistics(channels, sizes, positions, turn, roll, unreadable)


def _measure_image(
    crop: Crop | None, trim_border: int, path: Path
) -> tuple[tuple[int, int], Channels] | str:
    """Returns the image's height and width and its sums, or why it cannot be read."""
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
    """Formats the channels as a text table."""
    colors = "".join(f"{color:>9}" for color in ("red", "green", "blue"))
    lines = [
        f"{'':5}  {'mean':>9}{'':18}  {'standard deviation':>18}",
        f"{'':5}{colors}  {colors}  {'images':>8}  {'pixels':>15}",
    ]
    for part, channels in statistics.channels.items():
        mean = "".join(f"{value:9.5f}" for value in channels.mean())
        std = "".join(f"{value:9.5f}" for value in channels.std())
        sizes = statistics.sizes.values() if part == "both" else [statistics.sizes[part]]
        images = sum(map(len, sizes))
        lines.append(f"{part:5}{mean}  {std}  {images:>8}  {channels.pixels:>15,}")
    if statistics.unreadable:
        lines.append(
            f"{counted(len(statistics.unreadable), 'image')} left out as unreadable: "
            f"{statistics.unreadable[0]}; heatmap data check lists all"
        )
    return "\n".join(lines)


def plot(statistics: Statistics, out: Path) -> None:
    """Writes a PNG with histograms of sizes, aspect ratios and poses, and the landmark density."""
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
    bins = np.histogram_bin_edges(np.concatenate([*values.values()]), 40).tolist()
    axes.set(title=title, ylabel="share of images, %")
    axes.spines[["top", "right"]].set_visible(False)
    for part, part_values in values.items():
        if len(part_values):
            is_filled = part == "train"
            axes.hist(
                part_values, bins, color=COLORS[part], label=f"{part} ({len(part_values)})",
                weights=np.full(len(part_values), 100 / len(part_values)), linewidth=1.5,
                histtype="stepfilled" if is_filled else "step", alpha=0.6 if is_filled else 1.0,
            )  # fmt: skip


def _density(axes: "Axes", positions: np.ndarray) -> None:
    """Plots where landmarks lie in their images, brighter where there are more."""
    from matplotlib.colors import PowerNorm

    axes.set(title="landmarks in their images", xlabel="x / width", ylabel="y / height")
    limits = [[-0.1, 1.1], [-0.1, 1.1]]
    x, y = positions.T
    axes.hist2d(x, y, bins=120, range=limits, cmap="magma", norm=PowerNorm(0.5))
    axes.set(aspect="equal", ylim=(1.1, -0.1))
    axes.plot([0, 1, 1, 0, 0], [0, 0, 1, 1, 0], color="white", linewidth=0.8)
