"""A trained run as a function: images in, landmarks in their own pixels out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from heatmap import frame
from heatmap.data import augment
from heatmap.data.contest import ImageFile
from heatmap.data.samples import Samples, collate
from heatmap.errors import UserError
from heatmap.frame import Frame
from heatmap.inference.predict import View, predict_view
from heatmap.runs.checkpoint import TrainedRun, load_trained
from heatmap.runtime.machine import chosen_device
from heatmap.runtime.stopwatch import Stopwatch

Image = np.ndarray | Path | str | ImageFile


class Landmarks(NamedTuple):
    """Landmarks of N faces.

    points_image: (N, P, 2) float64, (x, y) in the images' own pixels; integers are pixel centres.
    confidence: (N, P) float32 heights of the heatmaps' peaks: about 1 where the network is sure,
        near 0 where it sees no such landmark.
    covariance: (N, P, 2, 2) float64 spread of the heatmaps, in square image pixels. It is no error
        bar: a sharp heatmap is as wide as it was trained to be.
    Without heatmaps, confidence and covariance are None.
    """

    points_image: np.ndarray
    confidence: np.ndarray | None
    covariance: np.ndarray | None


class Predictor:
    """A run that looks at images.

    It leaves thread counts, gradient mode, seeds and backend flags as they are.

    Args:
        run: folder of a run, or a checkpoint.
        device: auto is the GPU where there is one.
        batch: images that the network sees at once; that of the run's training unless given.

    Raises:
        UserError: no checkpoint there, no such device, or a batch of none.
    """

    def __init__(
        self, run: Path | str | TrainedRun, device: str = "auto", batch: int | None = None
    ) -> None:
        if batch is not None and batch < 1:
            raise UserError(f"a batch has 1 image or more, not {batch}")
        trained = run if isinstance(run, TrainedRun) else load_trained(Path(run))
        self.crop, self.path, self.scheme = trained.experiment.crop, trained.path, trained.scheme
        self.num_landmarks = trained.network.num_landmarks
        self.batch = batch or trained.experiment.train.batch
        self._device = chosen_device(device)
        self._network = trained.network.to(self._device).eval()
        self._precision = trained.experiment.train.precision
        self._mean_shape_crop = trained.mean_shape_crop

    def __call__(
        self,
        images: Sequence[Image],
        boxes: np.ndarray | Sequence[Sequence[float]] | None = None,
        *,
        two_pass: bool = False,
    ) -> Landmarks:
        """The landmarks of N faces, one in every image.

        An image is cropped as in training, unless a box says where its face is.

        Args:
            images: uint8 RGB arrays (H, W, 3) of any sizes, or files, of which a large JPEG is
                decoded at the crop's scale.
            boxes: (N, 4) x0, y0, x1, y1 in image pixels. For a run with crop.rule box they are like
                those of its training table; for the others they are the bounds of the landmarks,
                which then fill the crop as the mean training face fills its own.
            two_pass: look again, at a crop that the first landmarks fill in the same way.

        Raises:
            UserError: an image cannot be read, a box is empty or outside its image, or the run
                needs boxes.
        """
        if isinstance(images, str | Path | ImageFile):
            raise UserError(f"images is a list of images, not one: say [{str(images)!r}]")
        if boxes is not None:
            boxes = _box_array(boxes, len(images))
        elif self.crop.rule == "box":
            raise UserError(f"{self.path} was trained on boxes (crop.rule box), so it needs boxes")
        parts = []
        for start in range(0, len(images), self.batch):
            part = slice(start, start + self.batch)
            files = [_opened(image) for image in images[part]]
            if boxes is not None:
                for index, file in enumerate(files, start):
                    check_box(boxes[index], file.image_hw, f"box {index}")
            samples = self._samples(None if boxes is None else boxes[part])
            found = self._look(samples, files)
            if two_pass:
                frames = self._nearer(samples, found.points_image, files)
                found = self._look(replace(samples, frames=frames), files)
            parts.append(found)
        if not parts:
            return Landmarks(np.empty((0, self.num_landmarks, 2)), None, None)
        points_image = np.concatenate([part.points_image for part in parts])
        others = zip(*(part[1:] for part in parts), strict=True)
        joined = (None if some[0] is None else np.concatenate(some) for some in others)
        return Landmarks(points_image, *joined)

    def _samples(self, boxes: np.ndarray | None) -> Samples:
        """How a batch is cropped."""
        nothing = np.broadcast_to(np.float32(np.nan), (self.batch, self.num_landmarks, 2))
        samples = Samples([], nothing, self.crop)
        if boxes is None:
            return samples
        if self.crop.rule == "box":
            return replace(samples, boxes_image=boxes)
        shape = self._mean_shape_crop
        bounds = torch.stack([shape.amin(0), shape.amax(0)])
        corners = torch.from_numpy(boxes).unflatten(-1, (2, 2))
        crop_hw = self.crop.height, self.crop.width
        return replace(samples, frames=[frame.matching(box, bounds, crop_hw) for box in corners])

    def _nearer(
        self, samples: Samples, points_image: np.ndarray, files: Sequence[ImageFile]
    ) -> list[Frame]:
        """The second look's crops; what is no face at all keeps the crop that it had."""
        crop_hw, frames = (self.crop.height, self.crop.width), []
        for row, points in enumerate(torch.from_numpy(points_image)):
            try:
                frames.append(frame.matching(points, self._mean_shape_crop, crop_hw))
            except UserError:
                image_from_crop = samples.cut(row, files[row]).image_from_crop
                frames.append(Frame(image_from_crop, *crop_hw))
        return frames

    def _look(self, samples: Samples, files: Sequence[ImageFile]) -> Landmarks:
        cuts = [samples.cut(row, file) for row, file in enumerate(files)]
        view = View(self._network, samples, self._precision)
        with torch.no_grad():
            crops = (part.to(self._device) for part in collate(cuts)[:3])
            seen = predict_view(view, augment.plain(*crops), Stopwatch(self._device))
        return Landmarks(*seen.numpy())


def _opened(image: Image) -> ImageFile:
    if isinstance(image, np.ndarray):
        return ImageFile.in_memory(image)
    return image if isinstance(image, ImageFile) else ImageFile(Path(image))


def check_box(box_image: np.ndarray, image_hw: tuple[int, int], where: str) -> None:
    """Raises UserError unless (4,) x0, y0, x1, y1 are a box, at least partly in the image."""
    x0, y0, x1, y1 = box_image.tolist()
    told = f"{where}: from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g})"
    if not (np.isfinite(box_image).all() and x0 < x1 and y0 < y1):
        raise UserError(f"{told} is no box; x0 must be below x1, and y0 below y1")
    height, width = image_hw
    if x1 < 0 or y1 < 0 or x0 > width - 1 or y0 > height - 1:
        raise UserError(f"{told} is outside the image, which has {width} x {height} pixels")


def _box_array(boxes: np.ndarray | Sequence[Sequence[float]], count: int) -> np.ndarray:
    """(N, 4) float64."""
    found = np.asarray(boxes, np.float64)
    if found.size == 0:
        found = found.reshape(0, 4)
    if found.shape != (count, 4):
        expected = f"({count}, 4) numbers x0, y0, x1, y1 for {count} images"
        raise UserError(f"boxes are {expected}, not {found.shape}")
    return found
