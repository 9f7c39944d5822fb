"""A trained run as a function: images in, landmarks in image pixels out."""

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
from heatmap.inference.predict import View, placed, predict_view
from heatmap.runs.checkpoint import TrainedRun, load_trained
from heatmap.runtime.machine import chosen_device
from heatmap.runtime.stopwatch import Stopwatch

Image = np.ndarray | Path | str | ImageFile


class Landmarks(NamedTuple):
    """Landmarks of N faces, P each, as NumPy arrays.

    Attributes:
        points_image: (N, P, 2) float64, (x, y) in pixels of each face's own image. Integer
            coordinates are pixel centres.
        confidence: (N, P) float32, height of each heatmap's peak: about 1 where the network is
            sure, near 0 where it does not see the landmark. None if the network has no heatmaps.
        covariance: (N, P, 2, 2) float64, expected squared error in square image pixels. For a run
            without a shape prior it is the spread of each heatmap, which is not an error bar: a
            sharp heatmap is as wide as its training target. None if the network has no heatmaps.
    """

    points_image: np.ndarray
    confidence: np.ndarray | None
    covariance: np.ndarray | None


class Predictor:
    """Predicts the landmarks of faces with a trained run.

    Example:
        >>> predictor = heatmap.Predictor("runs/unet")
        >>> landmarks = predictor(["a.jpg", "b.jpg"])
        >>> landmarks.points_image.shape  # two faces, 971 landmarks, (x, y)
        (2, 971, 2)

    Args:
        run: run folder (its best checkpoint), checkpoint file, or a loaded run, whose network is
            not changed.
        device: "auto" (the GPU if there is one), "cpu" or "cuda".
        batch: images per forward pass. Defaults to the run's training batch.
        true_pixels: predict where the landmarks are, without the offset of the training labels.

    Attributes:
        num_landmarks: number P of landmarks per face.
        path: the loaded checkpoint.
        crop: size and rule of the network's crops, a `heatmap.config.Crop`.
        scheme: the run's landmark scheme, or None.

    Raises:
        UserError: there is no such checkpoint or device, or `batch` is below 1.
    """

    def __init__(
        self,
        run: Path | str | TrainedRun,
        device: str = "auto",
        batch: int | None = None,
        *,
        true_pixels: bool = False,
    ) -> None:
        if batch is not None and batch < 1:
            raise UserError(f"batch must be at least 1, got {batch}")
        trained = run if isinstance(run, TrainedRun) else load_trained(Path(run))
        self.crop, self.path, self.scheme = trained.experiment.crop, trained.path, trained.scheme
        self.num_landmarks = trained.network.num_landmarks
        self.batch = batch or trained.experiment.train.batch
        self._device = chosen_device(device)
        self._network = placed(trained.network, self._device)
        self._true_pixels = true_pixels
        self._precision = trained.experiment.train.precision
        self._mean_shape_crop = trained.mean_shape_crop

    def __call__(
        self,
        images: Sequence[Image],
        boxes: np.ndarray | Sequence[Sequence[float]] | None = None,
        *,
        two_pass: bool = False,
    ) -> Landmarks:
        """Predicts one face per image.

        Args:
            images: N paths, or uint8 RGB arrays (H, W, 3); sizes may differ.
            boxes: (N, 4) x0, y0, x1, y1 in image pixels, one per face. A run with crop.rule box
                expects boxes like those it was trained on, other runs the bounds of the landmarks.
                By default images are cropped as in training.
            two_pass: predict again from a crop fitted to the first prediction.

        Raises:
            UserError: an image cannot be read, a box is empty or outside its image, the run
                needs boxes, or a landmark is not finite.
        """
        if isinstance(images, str | Path | ImageFile):
            raise UserError(f"expected a list of images, got one; write [{str(images)!r}]")
        if boxes is not None:
            boxes = _box_array(boxes, len(images))
        elif self.crop.rule == "box":
            raise UserError(f"{self.path} was trained on boxes (crop.rule box), so it needs boxes")
        parts = []
        for start in range(0, len(images), self.batch):
            batch = slice(start, start + self.batch)
            files = [_image_file(image) for image in images[batch]]
            if boxes is not None:
                for index, file in enumerate(files, start):
                    check_box(boxes[index], file.image_hw, f"box {index}")
            samples = self._samples(None if boxes is None else boxes[batch])
            landmarks = self._predict(samples, files)
            if two_pass:
                frames = self._frames_of_faces(landmarks.points_image, samples, files)
                landmarks = self._predict(replace(samples, frames=frames), files)
            parts.append(landmarks)
        if not parts:
            return Landmarks(np.empty((0, self.num_landmarks, 2)), None, None)
        columns = zip(*parts, strict=True)
        return Landmarks._make(None if c[0] is None else np.concatenate(c) for c in columns)

    def _samples(self, boxes: np.ndarray | None) -> Samples:
        unlabelled = np.broadcast_to(np.float32(np.nan), (self.batch, self.num_landmarks, 2))
        samples = Samples([], unlabelled, self.crop)
        if boxes is None or self.crop.rule == "box":
            return replace(samples, boxes_image=boxes)
        bounds = torch.stack([self._mean_shape_crop.amin(0), self._mean_shape_crop.amax(0)])
        corners = torch.from_numpy(boxes).unflatten(-1, (2, 2))
        crop_hw = self.crop.height, self.crop.width
        return replace(samples, frames=[frame.matching(box, bounds, crop_hw) for box in corners])

    def _frames_of_faces(
        self, points_image: np.ndarray, samples: Samples, files: Sequence[ImageFile]
    ) -> list[Frame]:
        """Frames that place these faces as in training; where that fails, the sample's own."""
        crop_hw, frames = (self.crop.height, self.crop.width), []
        for row, points in enumerate(torch.from_numpy(points_image)):
            try:
                frames.append(frame.matching(points, self._mean_shape_crop, crop_hw))
            except UserError:
                image_from_crop = samples.cut(row, files[row]).image_from_crop
                frames.append(Frame(image_from_crop, *crop_hw))
        return frames

    def _predict(self, samples: Samples, files: Sequence[ImageFile]) -> Landmarks:
        batch = collate([samples.cut(row, file) for row, file in enumerate(files)])
        view = View(self._network, samples, self._precision, true_pixels=self._true_pixels)
        with torch.no_grad():
            inputs = augment.plain(*(tensor.to(self._device) for tensor in batch[:3]))
            prediction = predict_view(view, inputs, Stopwatch(self._device))
        landmarks = Landmarks(*prediction.numpy())
        for file, points in zip(files, landmarks.points_image, strict=True):
            if not np.isfinite(points).all():
                raise UserError(f"{file.path}: {self.path} predicts landmarks that are not finite")
        return landmarks


def _image_file(image: Image) -> ImageFile:
    if isinstance(image, np.ndarray):
        return ImageFile.in_memory(image)
    return image if isinstance(image, ImageFile) else ImageFile(Path(image))


def check_box(box_image: np.ndarray, image_hw: tuple[int, int], name: str) -> None:
    """Raises UserError if (4,) x0, y0, x1, y1 is empty or entirely outside the image."""
    x0, y0, x1, y1 = box_image.tolist()
    box = f"{name} from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g})"
    if not (np.isfinite(box_image).all() and x0 < x1 and y0 < y1):
        raise UserError(f"{box} is empty; expected x0 < x1 and y0 < y1")
    height, width = image_hw
    if x1 < 0 or y1 < 0 or x0 > width - 1 or y0 > height - 1:
        raise UserError(f"{box} is outside the image of {width} x {height} pixels")


def _box_array(boxes: np.ndarray | Sequence[Sequence[float]], count: int) -> np.ndarray:
    """(N, 4) float64."""
    array = np.asarray(boxes, np.float64)
    if array.size == 0:
        array = array.reshape(0, 4)
    if array.shape != (count, 4):
        raise UserError(f"boxes must have shape ({count}, 4), one per image, got {array.shape}")
    return array
