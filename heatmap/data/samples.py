"""Table, images and crop rule -> one uint8 crop and its points; nothing else crosses the loader.

A sample is the image shrunk, antialiased, to the crop's scale, with a margin round the crop as
wide as the augmentation can reach. Shrinking goes by halves, which the JPEG decoder does on its
way; one bilinear warp does the rest. A black border is trimmed before all else.
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
from heatmap.errors import UserError
from heatmap.frame import Frame
from heatmap.shape import nanmean

T = TypeVar("T")

PointArray = np.ndarray | Points  # (N, P, 2), float32 by row


class Sample(NamedTuple):
    """One image's crop, or with a leading axis B a batch of them."""

    crop: Tensor  # (3, h, w) uint8 RGB, margin included
    image_from_crop: Tensor  # (3, 3) float64, of the crop with its margin
    points_image: Tensor  # (P, 2) float32, NaN where unlabelled or unknown
    image_hw: Tensor  # (2,) int64, the image's size
    row: Tensor  # () int64, of the table
    inner: Tensor  # (4,) int64, left, top, right, bottom of the image without its border


@dataclass(frozen=True)
class Samples(Dataset[Sample]):
    """The N images of a table as samples, by row."""

    paths: Sequence[Path]
    points_image: PointArray  # (N, P, 2)
    crop: config.Crop
    boxes_image: np.ndarray | None = None  # (N, 4) corners x0, y0, x1, y1, for the crop rule "box"
    frames: Sequence[Frame] | None = None  # N crops in the whole images, in place of the rule
    zoom: float = 1.0  # enlarges what the crop shows, about its middle
    margin: int = 0  # pixels round the crop
    edge: bool = False  # outside the image its edge's colours are carried on, else black

    @classmethod
    def of(
        cls, experiment: config.Experiment, paths: Sequence[Path], points_image: PointArray
    ) -> "Samples":
        """The images as the experiment crops them for validation and test.

        Raises:
            UserError: the experiment crops boxes, and their table cannot be read or lacks one.
        """
        boxes_image = None
        if experiment.crop.rule == "box":
            if experiment.data.boxes is None:
                raise UserError("crop.rule is box; name the table of the boxes with --data.boxes")
            boxes_image = read_boxes(experiment.data.boxes, paths)
        return cls(paths, points_image, experiment.crop, boxes_image)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Sample:
        return self.cut(row, ImageFile(self.paths[row]))

    def cut(self, row: int, file: ImageFile) -> Sample:
        """This row's sample of its image.

        Raises:
            UserError: the image cannot be decoded; the message names it.
        """
        image_hw = file.image_hw
        trims = self.crop.trim_border > 0 and self.frames is None
        inner = 0, 0, image_hw[1], image_hw[0]
        if trims:
            inner = within_border(file.pixels(1)[0], self.crop.trim_border)
        left, top, right, bottom = inner
        here = self._crop_of(row, inner)
        if self.zoom != 1:
            here = here.zoomed(self.zoom)
        if self.margin:
            here = here.padded(self.margin)
        pixels, reduction = file.pixels(1 if trims else min(8, _reduction(here)))
        if file.image_hw != image_hw:  # a header that misled was found out by decoding
            return self.cut(row, file)
        image_from_crop = here.image_from_crop
        if trims:
            pixels = pixels[top:bottom, left:right]
            image_from_crop = frame.translation(left, top) @ image_from_crop
        return Sample(
            torch.from_numpy(cut(pixels, here, self.edge, reduction)).permute(2, 0, 1),
            image_from_crop,
            torch.from_numpy(np.array(self.points_image[row], np.float32)),
            torch.tensor(image_hw),
            torch.tensor(row),
            torch.tensor(inner),
        )

    def _crop_of(self, row: int, inner: tuple[int, int, int, int]) -> Frame:
        """Where the crop sits in the image without its border."""
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
        """Whether both cut the same crops from the same images."""
        mine, others = ((some.crop, some.zoom, some.margin, some.edge) for some in (self, other))
        if mine != others or self.frames is not other.frames:
            return False
        if self.boxes_image is None or other.boxes_image is None:
            return True
        return np.array_equal(self.boxes_image, other.boxes_image)


@dataclass(frozen=True)
class Cuts(Dataset[list[Sample]]):
    """Several crops of the same images, by row; each image is read once."""

    several: Sequence[Samples]

    def __len__(self) -> int:
        return len(self.several[0])

    def __getitem__(self, row: int) -> list[Sample]:
        file = ImageFile(self.several[0].paths[row])
        return [samples.cut(row, file) for samples in self.several]


def within_border(image: np.ndarray, threshold: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom, the latter excluded, of an image (H, W, 3) without dark border.

    A row or column is border where no pixel's channel mean exceeds the threshold; 0 leaves the
    image whole, and so does one that is border all over.
    """
    bright = image.sum(-1, dtype=np.uint16) > 3 * threshold
    if threshold == 0 or not bright.any():
        return 0, 0, image.shape[1], image.shape[0]
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def cut(image: np.ndarray, crop: Frame, edge: bool = False, reduction: int = 1) -> np.ndarray:
    """(height, width, 3) uint8: what the image shows in the frame, antialiased.

    At an image's edge the crop fades to black within two pixels.

    Args:
        image: (ceil(H / reduction), ceil(W / reduction), 3) uint8, the image at 1/reduction.
        crop: an unbatched frame without rotation, in the image as a whole.
        edge: outside the image the colours of its edge are carried on, else it is black.
    """
    wanted = _reduction(crop)
    while reduction < wanted:
        image, reduction = _halved(image), 2 * reduction
    if reduction > 1:
        crop = crop.reduced(reduction)
    # OpenCV warps four channels in half the time that it takes for three, with the same result
    warped = cv2.warpAffine(
        cv2.cvtColor(image, cv2.COLOR_RGB2RGBA),
        crop.image_from_crop.numpy()[:2],
        (crop.width, crop.height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE if edge else cv2.BORDER_CONSTANT,
    )
    return cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB)


# How much of the crop's resolution a reduced image must have. From about 0.85 on the crop is
# nearer to an area-resampled one than by a warp from twice the size, which lets through detail
# finer than the crop's pixels: on faces68 at 0.98, a mean difference of 1.1 of 255 against 2.0.
_RESOLUTION_KEPT = 0.9


def _reduction(crop: Frame) -> int:
    """By how much an image is reduced before the warp: 1, 2, 4, 8 ..."""
    shrink, reduction = crop.image_from_crop[0, 0].item(), 1
    while shrink >= 2 * reduction * _RESOLUTION_KEPT:
        reduction *= 2
    return reduction


def _halved(image: np.ndarray) -> np.ndarray:
    """(ceil(H / 2), ceil(W / 2), 3): the means of 2 x 2 pixels."""
    height, width = image.shape[:2]
    if height % 2 or width % 2:  # only whole blocks are averaged fast
        image = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    small = (width + 1) // 2, (height + 1) // 2
    return cv2.resize(image, small, interpolation=cv2.INTER_AREA)


def shuffled_batches(
    rows: np.ndarray, batch: int, seed: int, epoch: int, rank: int = 0, world: int = 1
) -> list[list[int]]:
    """The batches of one pass over the training rows, this process's part of each.

    The order is a function of (seed, epoch), where epoch counts passes. An incomplete last batch is
    left out; a batch larger than the rows is cut to them.

    Raises:
        UserError: a batch cannot be divided evenly between the processes.
    """
    batch = min(batch, len(rows))
    if batch % world:
        raise UserError(f"a batch of {batch} cannot be divided evenly between {world} processes")
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    order = generator.permutation(rows)
    return [
        order[start + rank : start + batch : world].tolist()
        for start in range(0, len(order) - batch + 1, batch)
    ]


def batches_in_order(
    rows: np.ndarray, batch: int, rank: int = 0, world: int = 1
) -> list[list[int]]:
    """Every row once; the batches are the same for any number of processes, dealt out in turn."""
    starts = range(rank * batch, len(rows), world * batch)
    return [rows[start : start + batch].tolist() for start in starts]


class Loader(Generic[T]):
    """Reads batches in `workers` processes, or with 0 in this one.

    persistent: the processes live as long as the loader does, else for one call of `load`.
    """

    def __init__(
        self, samples: Dataset[T], workers: int, device: torch.device, persistent: bool = True
    ) -> None:
        if workers:
            # OpenCV's own threads do not survive the fork into a worker, which would wait for them
            _one_opencv_thread()
        self._batches: list[list[int]] = []
        self._loader = DataLoader(
            samples,
            batch_sampler=self._batches,
            num_workers=workers,
            persistent_workers=persistent and workers > 0,
            worker_init_fn=_one_opencv_thread,  # a spawned worker knows nothing of this process
            collate_fn=collate,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # its own, or the loader would draw from the global one
        )

    def load(self, batches: list[list[int]]) -> Iterator[T]:
        """The batches in order; what is left of an earlier call's is given up.

        Raises:
            UserError: an image cannot be read; the message names it.
        """
        self._batches[:] = batches
        try:
            yield from self._loader
        except UserError as error:  # a worker's error comes with its traceback as text
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None


def _one_opencv_thread(worker: int = 0) -> None:
    cv2.setNumThreads(1)


def load(
    samples: Dataset[T], batches: list[list[int]], workers: int, device: torch.device
) -> Iterator[T]:
    """The batches, read once, as `Loader` reads them."""
    yield from Loader(samples, min(workers, len(batches)), device, persistent=False).load(batches)


def collate(items: Sequence[Any]) -> Any:
    """A batch of samples, or of each of the crops that `Cuts` gives.

    The channels of a pixel stay side by side, as OpenCV has them: to turn each crop takes time.
    """
    if not isinstance(items[0], Sample):
        return [collate(alike) for alike in zip(*items, strict=True)]
    crops = default_collate([sample.crop.permute(1, 2, 0) for sample in items])
    return Sample(crops.permute(0, 3, 1, 2), *default_collate([sample[1:] for sample in items]))


def mean_shape_crop(samples: Samples, rows: np.ndarray, most: int = 1000) -> np.ndarray:
    """(P, 2) float64 mean landmarks in crop pixels, margin left out, of at most `most` rows.

    A landmark that none of them labels is put in the middle of the crop.
    """
    plain = replace(samples, margin=0)
    height, width = samples.crop.height, samples.crop.width
    shapes = []
    for row in evenly_spaced(rows, most).tolist():  # each image is read for its size
        sample = plain[row]
        here = Frame(sample.image_from_crop, height, width)
        shapes.append(here.to_crop(sample.points_image).numpy())
    mean = nanmean(np.array(shapes), 0)
    return np.where(np.isnan(mean), [(width - 1) / 2, (height - 1) / 2], mean)


def margin_for(crop: config.Crop, augment: config.Augment) -> int:
    """Pixels round the crop that a rotated, shrunk, stretched and shifted crop can reach.

    At most half the crop's longer side: what lies farther out is left to `augment.fill`, and the
    loader never hands on more than four crops' pixels for one.
    """
    half = np.array([crop.width, crop.height]) / 2
    angles = np.radians(np.linspace(0, augment.rotate_deg, 91))[:, None]
    turned = np.abs(np.cos(angles)) * half + np.abs(np.sin(angles)) * half[::-1]
    reach = (turned.max(0) - half).max()
    stretch = (1 + augment.scale) * math.sqrt(1 + augment.aspect)
    grown = (reach + half.max()) * stretch - half.max()
    return min(math.ceil(grown + 2 * augment.shift * half.max()), math.ceil(half.max()))


def evenly_spaced(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the rows, the first and the last among them."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]
