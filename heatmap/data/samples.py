"""Reads images as uint8 crops with their frames and landmarks, in the loader's workers.

A sample is the image shrunk to the crop's scale, antialiased, with a margin as wide as the
augmentation can reach. The image is halved, by the JPEG decoder if possible, until about a factor
of two remains; one bilinear warp does the rest. A black border is trimmed first.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from heatmap import config, frame
from heatmap.data.contest import ImageFile, Points, read_boxes
from heatmap.errors import UsageError, UserError
from heatmap.frame import Frame
from heatmap.runtime.machine import loader_processes
from heatmap.shape import nanmean

T = TypeVar("T")

PointArray = np.ndarray | Points  # (N, P, 2); rows are float32


class Sample(NamedTuple):
    """One image's crop; a batch has a leading axis B."""

    crop: Tensor  # (3, h, w) uint8 RGB, margin included
    image_from_crop: Tensor  # (3, 3) float64, of the crop with its margin
    points_image: Tensor  # (P, 2) float32, NaN where unlabelled or unknown
    image_hw: Tensor  # (2,) int64, height and width of the image
    row: Tensor  # () int64, of the table
    inner: Tensor  # (4,) int64, left, top, right, bottom of the image inside its black border


@dataclass(frozen=True)
class Samples(Dataset[Sample]):
    """The N images of a table as samples."""

    paths: Sequence[Path]
    points_image: PointArray  # (N, P, 2)
    crop: config.Crop
    boxes_image: np.ndarray | None = None  # (N, 4) x0, y0, x1, y1, for the crop rule "box"
    frames: Sequence[Frame] | None = None  # N frames in the whole images, instead of the crop rule
    zoom: float = 1.0  # magnification about the crop's centre
    margin: int = 0  # crop pixels on every side
    edge: bool = False  # outside the image, repeat its edge; else black

    @classmethod
    def of(
        cls, experiment: config.Experiment, paths: Sequence[Path], points_image: PointArray
    ) -> "Samples":
        """Crops the images as the experiment does for validation and test.

        Raises:
            UserError: the crop rule is box, and a box is missing or the table malformed.
        """
        boxes_image = None
        if experiment.crop.rule == "box":
            if experiment.data.boxes is None:
                raise UsageError(
                    "crop.rule is box, which needs a table of boxes; pass --data.boxes"
                )
            boxes_image = read_boxes(experiment.data.boxes, paths)
        return cls(paths, points_image, experiment.crop, boxes_image)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Sample:
        return self.cut(row, ImageFile(self.paths[row]))

    def cut(self, row: int, file: ImageFile) -> Sample:
        """Cuts a row's sample out of its image.

        Raises:
            UserError: the image cannot be decoded; the message names it.
        """
        image_hw = file.image_hw
        trim = self.crop.trim_border > 0 and self.frames is None
        inner = 0, 0, image_hw[1], image_hw[0]
        if trim:
            inner = within_border(file.pixels(1)[0], self.crop.trim_border)
        left, top, right, bottom = inner
        crop_frame = self._frame_of(row, inner)
        if self.zoom != 1:
            crop_frame = crop_frame.zoomed(self.zoom)
        if self.margin:
            crop_frame = crop_frame.padded(self.margin)
        pixels, reduction = file.pixels(1 if trim else min(8, _reduction(crop_frame)))
        file.log_note()
        if file.image_hw != image_hw:  # decoding found that the header gave a wrong size
            return self.cut(row, file)
        image_from_crop = crop_frame.image_from_crop
        if trim:
            pixels = pixels[top:bottom, left:right]
            image_from_crop = frame.translation(left, top) @ image_from_crop
        return Sample(
            torch.from_numpy(cut(pixels, crop_frame, self.edge, reduction)).permute(2, 0, 1),
            image_from_crop,
            torch.from_numpy(np.array(self.points_image[row], np.float32)),
            torch.tensor(image_hw),
            torch.tensor(row),
            torch.tensor(inner),
        )

    def _frame_of(self, row: int, inner: tuple[int, int, int, int]) -> Frame:
        """The crop's frame in the image inside its border."""
        if self.frames is not None:
            return self.frames[row]
        left, top, right, bottom = inner
        inner_hw, crop_hw = (bottom - top, right - left), (self.crop.height, self.crop.width)
        match self.crop.rule:
            case "cover":
                return frame.cover(inner_hw, crop_hw)
            case "contain":
                return frame.contain(inner_hw, crop_hw)
            case "box":
                assert self.boxes_image is not None
                x0, y0, x1, y1 = (self.boxes_image[row] - [left, top, left, top]).tolist()
                return frame.around((x0, y0, x1, y1), crop_hw, self.crop.box_scale)

    def cuts_as(self, other: "Samples") -> bool:
        """Whether both cut the same crops, assuming the same images."""
        mine, theirs = ((s.crop, s.zoom, s.margin, s.edge) for s in (self, other))
        if mine != theirs or self.frames is not other.frames:
            return False
        if self.boxes_image is None or other.boxes_image is None:
            return True
        return np.array_equal(self.boxes_image, other.boxes_image)


@dataclass(frozen=True)
class Cuts(Dataset[list[Sample]]):
    """Several crops of each image, which is read once."""

    datasets: Sequence[Samples]

    def __len__(self) -> int:
        return len(self.datasets[0])

    def __getitem__(self, row: int) -> list[Sample]:
        file = ImageFile(self.datasets[0].paths[row])
        return [samples.cut(row, file) for samples in self.datasets]


def within_border(image: np.ndarray, threshold: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom (exclusive) of an image (H, W, 3) inside its dark border.

    A row or column is border if no pixel's channel mean exceeds the threshold. The whole image is
    returned for threshold 0, or if all of it is border.
    """
    bright = image.sum(-1, dtype=np.uint16) > 3 * threshold
    if threshold == 0 or not bright.any():
        return 0, 0, image.shape[1], image.shape[0]
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def cut(image: np.ndarray, crop: Frame, edge: bool = False, reduction: int = 1) -> np.ndarray:
    """Cuts a crop out of an image, antialiased: (height, width, 3) uint8.

    At the image's edge the crop fades to black within two pixels.

    Args:
        image: (ceil(H / reduction), ceil(W / reduction), 3) uint8, the image at 1/reduction.
        crop: an unbatched frame without rotation, in the image at full size.
        edge: outside the image, repeat its edge; else black.
    """
    wanted = _reduction(crop)
    while reduction < wanted:
        image, reduction = _halved(image), 2 * reduction
    if reduction > 1:
        crop = crop.reduced(reduction)
    # OpenCV warps four channels twice as fast as three, with the same result.
    warped = cv2.warpAffine(
        cv2.cvtColor(image, cv2.COLOR_RGB2RGBA),
        crop.image_from_crop.numpy()[:2],
        (crop.width, crop.height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE if edge else cv2.BORDER_CONSTANT,
    )
    return cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB)


# The fraction of the crop's resolution that a reduced image must keep. Above about 0.85 the result
# is closer to area resampling than a warp from twice the size, which aliases: on faces68 at 0.98,
# the mean difference is 1.1 of 255 instead of 2.0.
_RESOLUTION_KEPT = 0.9


def _reduction(crop: Frame) -> int:
    """The factor by which to shrink an image before the warp: 1, 2, 4, 8 ..."""
    shrink, reduction = crop.image_from_crop[0, 0].item(), 1
    while shrink >= 2 * reduction * _RESOLUTION_KEPT:
        reduction *= 2
    return reduction


def _halved(image: np.ndarray) -> np.ndarray:
    """(ceil(H / 2), ceil(W / 2), 3) means of 2 x 2 pixels."""
    height, width = image.shape[:2]
    if height % 2 or width % 2:  # INTER_AREA is fast only for whole blocks
        image = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    small = (width + 1) // 2, (height + 1) // 2
    return cv2.resize(image, small, interpolation=cv2.INTER_AREA)


def shuffled_batches(
    rows: np.ndarray, batch: int, seed: int, epoch: int, rank: int = 0, world: int = 1
) -> list[list[int]]:
    """This process's share of each batch of one pass over the training rows.

    The order is a function of (seed, epoch), where epoch counts passes. An incomplete last batch is
    dropped; `batch` is at most the number of rows.

    Raises:
        UserError: a batch cannot be divided evenly between the processes.
    """
    batch = min(batch, len(rows))
    if batch % world:
        raise UsageError(f"a batch of {batch} cannot be divided evenly between {world} processes")
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    order = generator.permutation(rows)
    return [
        order[start + rank : start + batch : world].tolist()
        for start in range(0, len(order) - batch + 1, batch)
    ]


def batches_in_order(
    rows: np.ndarray, batch: int, rank: int = 0, world: int = 1
) -> list[list[int]]:
    """Batches of all rows in order, dealt out to the processes in turn."""
    starts = range(rank * batch, len(rows), world * batch)
    return [rows[start : start + batch].tolist() for start in starts]


class Loader(Generic[T]):
    """Reads batches in `workers` processes (see `machine.loader_processes`), or in this one if 0.

    Args:
        persistent: keep the processes for further calls of `load`.
    """

    def __init__(
        self,
        samples: Dataset[T],
        workers: int | None,
        device: torch.device,
        persistent: bool = True,
    ) -> None:
        workers = loader_processes(workers)
        if workers:
            _use_one_opencv_thread()  # OpenCV's threads do not survive a fork; workers would hang
        self._batches: list[list[int]] = []
        self._loader = DataLoader(
            samples,
            batch_sampler=self._batches,
            num_workers=workers,
            persistent_workers=persistent and workers > 0,
            worker_init_fn=_use_one_opencv_thread,  # for workers that are spawned
            collate_fn=collate,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # so that it does not draw from the global one
        )

    def load(self, batches: list[list[int]]) -> Iterator[T]:
        """Yields the batches in order; ends the iterator of an earlier call.

        Raises:
            UserError: an image cannot be read; the message names it.
        """
        self._batches[:] = batches
        try:
            yield from self._loader
        except UserError as error:  # from a worker, its message is a traceback
            message = str(error).rpartition(f"{type(error).__name__}: ")[2]
            raise UserError(message.strip()) from None


def _use_one_opencv_thread(worker: int = 0) -> None:
    cv2.setNumThreads(1)


def load(
    samples: Dataset[T], batches: list[list[int]], workers: int | None, device: torch.device
) -> Iterator[T]:
    """Yields the batches of one pass; see `Loader`."""
    workers = min(loader_processes(workers), len(batches))
    return Loader(samples, workers, device, persistent=False).load(batches)


def collate(items: Sequence[Any]) -> Any:
    """Stacks samples, or the lists of samples of `Cuts`, into batches.

    Crops stay channels-last in memory, as OpenCV makes them, because transposing takes time.
    """
    if not isinstance(items[0], Sample):
        return [collate(samples) for samples in zip(*items, strict=True)]
    crops = default_collate([sample.crop.permute(1, 2, 0) for sample in items])
    return Sample(crops.permute(0, 3, 1, 2), *default_collate([sample[1:] for sample in items]))


def mean_shape_crop(samples: Samples, rows: np.ndarray, max_rows: int = 1000) -> np.ndarray:
    """(P, 2) float64 mean landmarks in pixels of the crop without margin, over evenly spaced rows.

    A landmark that no row labels is put at the crop's centre.
    """
    samples = replace(samples, margin=0)
    height, width = samples.crop.height, samples.crop.width
    shapes = []
    for row in evenly_spaced(rows, max_rows).tolist():
        sample = samples[row]
        points_crop = Frame(sample.image_from_crop, height, width).to_crop(sample.points_image)
        shapes.append(points_crop.numpy())
    mean = nanmean(np.array(shapes), 0)
    return np.where(np.isnan(mean), [(width - 1) / 2, (height - 1) / 2], mean)


def margin_for(crop: config.Crop, augment: config.Augment) -> int:
    """Pixels on every side that the augmentation can reach, at most half the crop's longer side.

    `augment.fill` fills the rest.
    """
    half = np.array([crop.width, crop.height]) / 2
    angles = np.radians(np.linspace(0, augment.rotate_deg, 91))[:, None]
    rotated = np.abs(np.cos(angles)) * half + np.abs(np.sin(angles)) * half[::-1]
    reach = (rotated.max(0) - half).max()
    stretch = (1 + augment.scale) * math.sqrt(1 + augment.aspect)
    grown = (reach + half.max()) * stretch - half.max()
    return min(math.ceil(grown + 2 * augment.shift * half.max()), math.ceil(half.max()))


def evenly_spaced(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the rows, including the first and the last."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]
