"""Draws predicted landmarks on images, videos and camera streams, and writes their points."""

import glob
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count, repeat
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from heatmap import draw, frame, schemes
from heatmap.data.contest import ImageFile
from heatmap.errors import UserError
from heatmap.inference.media import camera, video
from heatmap.inference.media.detect import Finder
from heatmap.inference.media.points_files import AddFaces, points_files
from heatmap.inference.media.tracks import TrackedFace, Tracks
from heatmap.inference.predictor import Predictor, check_box
from heatmap.runtime.files import write_image

logger = logging.getLogger("heatmap")

_BATCH = 8  # images
_MIN_DRAWN_SIDE = 400  # px; images whose longer side is shorter are enlarged


def find_files(inputs: Sequence[str]) -> list[Path]:
    """Returns the files named by paths, glob patterns and folders (their images and videos).

    Raises UserError if a folder has no images or videos, or a pattern matches nothing.
    """
    files: list[Path] = []
    for name in inputs:
        if Path(name).is_dir():
            files += _files_in(Path(name))
        elif glob.has_magic(name) and not Path(name).exists():
            matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207
            if not matches:
                raise UserError(f"no file matches {name}")
            files += [path for path in map(Path, matches) if path.is_file()]
        else:
            files.append(Path(name))
    return list(dict.fromkeys(files))


def _files_in(folder: Path) -> list[Path]:
    entries = sorted(folder.iterdir())
    files = [path for path in entries if path.is_file()]
    files = [path for path in files if _is_video(path) or cv2.haveImageReader(str(path))]
    if not files:
        raise UserError(f"{folder}: no images or videos in this folder")
    if skipped := len(entries) - len(files):
        has_subfolders = any(path.is_dir() for path in entries)
        hint = f"; for subfolders, pass '{folder / '**' / '*.jpg'}'" if has_subfolders else ""
        logger.info(f"{folder}: skipped {skipped} entries (not images or videos){hint}")
    return files


def _is_video(path: Path) -> bool:
    return video.is_video(path)


@dataclass(frozen=True)
class Annotator:
    """Draws a predictor's landmarks."""

    predictor: Predictor
    finder: Finder | None = None  # None: one face per image, cropped as in training
    two_pass: bool = False  # see `Predictor`
    smooth: bool = True  # filter the points of videos and cameras
    ellipses: bool = False  # draw the spread of the heatmaps

    def files(self, paths: Sequence[Path], out: Path) -> int:
        """Writes annotated copies of images and videos (without sound), and `points_files`.

        Reports the files that cannot be read, and returns their number. Ctrl-C keeps the points so
        far. Raises UserError if no file can be read, or a copy would overwrite its original.
        """
        targets, failed, is_interrupted = _targets(paths, out), 0, False
        images = [path for path in paths if not _is_video(path)]
        head = {"run": str(self.predictor.path), "landmarks": self.predictor.num_landmarks}
        bar = tqdm(total=len(images), desc="images", unit="img", leave=False, disable=not images)
        with points_files(out, head) as add_faces:
            try:
                with bar:
                    for start in range(0, len(images), _BATCH):
                        batch = images[start : start + _BATCH]
                        failed += self._images(batch, targets, add_faces)
                        bar.update(len(batch))
                for path in filter(_is_video, paths):
                    try:
                        self._video(path, targets[path], add_faces)
                    except UserError as error:
                        failed += 1
                        tqdm.write(f"error: {error}", file=sys.stderr)
            except KeyboardInterrupt:
                is_interrupted = True
            if failed == len(paths):
                raise UserError(f"no input could be processed, so nothing is written to {out}")
        if is_interrupted:
            raise KeyboardInterrupt
        return failed

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

    def _images(self, paths: Sequence[Path], targets: dict[Path, Path], add: AddFaces) -> int:
        """Draws these images; returns how many could not be read."""
        files, boxes = list[ImageFile](), list[np.ndarray | None]()
        for path in paths:
            try:
                file = ImageFile(path)
                boxes.append(self._boxes(path, file.pixels(1)[0]))
                files.append(file)
            except UserError as error:
                tqdm.write(f"error: {error}", file=sys.stderr)
        for file, faces in zip(files, self._faces(files, boxes), strict=True):
            path, image = file.path, file.pixels(1)[0]
            if not faces:
                logger.warning(f"{path}: no face found")
            add(path, faces, None, None)
            scale = max(1, -(-_MIN_DRAWN_SIDE // max(image.shape[:2])))
            write_image(targets[path], self._annotated(image, faces, scale))
        return len(paths) - len(files)

    def _video(self, path: Path, target: Path, add: AddFaces) -> None:
        source, tracks, num_read = video.Video(path), Tracks(self.smooth), 0
        bar = tqdm(source, desc=path.name, total=source.expected, unit="frame", delay=1)
        with video.write_video(target, source) as write, bar:
            for image, start, duration, seconds in bar:
                (faces,) = self._faces([image], [self._boxes(path, image)])
                faces = tracks.follow(faces, seconds)
                add(path, faces, num_read, round(seconds, 6))
                write(self._annotated(image, faces), start, duration)
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


def _targets(paths: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Path of each file's annotated copy: in the same subfolder, under the same name if possible.

    Formats that cannot be written get .png or .mp4 appended. A name that is taken, ignoring case,
    gets a number.
    """
    common = os.path.commonpath([path.absolute().parent for path in paths])
    targets, taken = dict[Path, Path](), set[str]()
    kept = {path: path.suffix.lower() in (".jpg", ".jpeg", ".png", ".mp4") for path in paths}
    # files that keep their suffix come first, so that they get no number
    for path in sorted(paths, key=lambda path: not kept[path]):
        target = out / path.absolute().relative_to(common)
        if not kept[path]:
            target = target.with_name(target.name + (".mp4" if _is_video(path) else ".png"))
        stems = chain([target.stem], (f"{target.stem}-{number}" for number in count(2)))
        free = (t for t in map(target.with_stem, stems) if str(t).casefold() not in taken)
        if (unique := next(free)) != target:
            logger.info(f"{path}: written to {unique}, because {target} is taken")
            target = unique
        if target.absolute() == path.absolute() or (target.exists() and target.samefile(path)):
            raise UserError(f"{path}: the copy would overwrite it; choose another folder (--out)")
        taken.add(str(target).casefold())
        targets[path] = target
    return targets
