"""Draws predicted landmarks on images, videos and camera streams, and writes their points."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from heatmap import draw, frame, schemes
from heatmap.data.contest import ImageFile
from heatmap.errors import UserError
from heatmap.inference.media import camera, video
from heatmap.inference.media.detect import Finder
from heatmap.inference.media.paths import Outputs
from heatmap.inference.media.points_files import AddFaces, points_files
from heatmap.inference.media.tracks import TrackedFace, Tracks
from heatmap.inference.predictor import Predictor, check_box
from heatmap.runtime.files import write_image

logger = logging.getLogger("heatmap")

_BATCH = 8  # images
_MIN_DRAWN_SIDE = 400  # px; images whose longer side is shorter are enlarged


@contextmanager
def _reported() -> Iterator[None]:
    """Reports a file's error, so that the others go on."""
    try:
        yield
    except UserError as error:
        tqdm.write(f"error: {error}", file=sys.stderr)


@dataclass(frozen=True)
class Annotator:
    """Draws a predictor's landmarks."""

    predictor: Predictor
    finder: Finder | None = None  # None: one face per image, cropped as in training
    two_pass: bool = False  # see `Predictor`
    smooth: bool = True  # filter the points of videos and cameras
    ellipses: bool = False  # draw the spread of the heatmaps

    def files(self, paths: Sequence[Path], out: Path, overwrite: bool = False) -> int:
        """Writes annotated copies of images and videos (without sound), and `points_files`.

        Reports the files that cannot be read or drawn, and returns their number. Any other error,
        or Ctrl-C, keeps the points so far.

        Raises:
            UserError: no file can be read, or `Outputs` refuses to write one.
        """
        is_video = {path: video.is_video(path) for path in paths}
        videos = [path for path in paths if is_video[path]]
        images = [path for path in paths if not is_video[path]]
        head = {"run": str(self.predictor.path), "landmarks": self.predictor.num_landmarks}
        shown = partial(tqdm, desc="images", unit="img", leave=False, disable=not images)
        stopped, answered = None, set[Path]()
        with Outputs(out, paths, overwrite) as outputs:
            copies = outputs.copies()
            tables = outputs.claim("points.csv"), outputs.claim("points.json")
            with points_files(*tables, head) as add_faces:

                def add(path: Path, *face_values: Any) -> None:
                    answered.add(path)
                    add_faces(path, *face_values)

                try:
                    with shown(total=len(images)) as bar:
                        for start in range(0, len(images), _BATCH):
                            batch = images[start : start + _BATCH]
                            with suppress(UserError):
                                self._images(batch, copies, outputs, add)
                            for path in batch:  # after an error, one by one
                                if path not in answered:
                                    with _reported():
                                        self._images([path], copies, outputs, add)
                            bar.update(len(batch))
                    for path in videos:
                        with _reported():
                            self._video(path, copies[path], add)
                            outputs.written.append(copies[path])
                except BaseException as error:
                    stopped = error
                num_drawn = len(outputs.written)
                if not answered:
                    reason = f"no input could be processed, so nothing is written to {out}"
                    raise stopped or UserError(reason)
            outputs.written += tables
        if stopped:
            raise stopped
        return len(paths) - num_drawn

    def camera(self, index: int) -> None:
        """Shows a camera's stream with its landmarks until the window is closed.

        Raises UserError if there is no display or no such camera.
        """
        window = camera.Window(f"{self.predictor.path} (Esc or q to quit)")
        tracks, name = Tracks(self.smooth), Path(f"camera {index}")
        try:
            for image, seconds in tqdm(camera.frames(index), desc=str(name), unit="frame"):
                (faces,) = self._faces([image], [self._boxes(name, image)])
                window.show(self._annotated(image, tracks.follow(faces, seconds)))
                if not window.is_open:
                    break
        finally:
            window.close()

    def _images(
        self, paths: Sequence[Path], copies: dict[Path, Path], outputs: Outputs, add: AddFaces
    ) -> None:
        """Draws these images until one cannot be read or drawn, which raises a UserError."""
        files = list(map(ImageFile, paths))
        boxes = [self._boxes(file.path, file.pixels(1)[0]) for file in files]
        for file, faces in zip(files, self._faces(files, boxes), strict=True):
            path, image = file.path, file.pixels(1)[0]
            if not faces:
                logger.warning(f"{path}: no face found")
            scale = max(1, -(-_MIN_DRAWN_SIDE // max(image.shape[:2])))
            write_image(copies[path], self._annotated(image, faces, scale))
            outputs.written.append(copies[path])
            add(path, faces, None, None)

    def _video(self, path: Path, target: Path, add: AddFaces) -> None:
        source, tracks, num_read = video.Video(path), Tracks(self.smooth), 0
        bar = tqdm(source, desc=path.name, total=source.expected, unit="frame", delay=1)
        with video.write_video(target, source) as write, bar:
            for image, start, duration, seconds in bar:
                (faces,) = self._faces([image], [self._boxes(path, image)])
                faces = tracks.follow(faces, seconds)
                write(self._annotated(image, faces), start, duration)
                add(path, faces, num_read, round(seconds, 6))
                num_read += 1
            if num_read == 0:
                raise UserError(f"{path}: none of the video's frames can be decoded")
        if problems := source.problems(num_read):
            logger.warning(problems)

    def _boxes(self, path: Path, image: np.ndarray) -> np.ndarray | None:
        if self.finder is None:
            return None
        boxes = self.finder(path, image)
        for box in boxes:
            check_box(box, image.shape[:2], f"{path}: the box")
        return boxes

    def _faces(
        self, images: Sequence[np.ndarray | ImageFile], boxes: Sequence[np.ndarray | None]
    ) -> list[list[TrackedFace]]:
        """The faces of each image, numbered in the order of its boxes."""
        counts = [1 if b is None else len(b) for b in boxes]
        repeated = [image for image, n in zip(images, counts, strict=True) for _ in range(n)]
        known = [b for b in boxes if b is not None]
        corners = np.concatenate(known) if known else None
        landmarks = self.predictor(repeated, corners, two_pass=self.two_pass)
        rows = zip(*(repeat(None) if part is None else part for part in landmarks), strict=False)
        return [[TrackedFace(number, *next(rows)) for number in range(n)] for n in counts]

    def _annotated(
        self, image: np.ndarray, faces: Sequence[TrackedFace], scale: int = 1
    ) -> np.ndarray:
        """Draws faces on a copy of the image, enlarged by `scale`."""
        scheme = self.predictor.num_landmarks, self.predictor.scheme
        groups, curves = schemes.groups(*scheme), schemes.curves(*scheme)
        height, width = image.shape[:2]
        drawn_from_image = frame.resizing((height, width), (scale * height, scale * width))
        if scale > 1:
            image = cv2.resize(image, None, None, scale, scale, cv2.INTER_CUBIC)
        for face in faces:
            points = frame.apply(drawn_from_image, torch.from_numpy(face.points_image)).numpy()
            covariance = face.covariance if self.ellipses else None
            if covariance is not None:
                covariance = covariance * scale**2
            image = draw.draw_landmarks(
                image, points, groups, curves=curves, covariance_image=covariance
            )
        return image
