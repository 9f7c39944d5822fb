"""Images, videos and cameras -> drawn copies, and tables of points in the images' own pixels."""

import glob
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from heatmap import draw, frame, schemes
from heatmap.data.contest import ImageFile
from heatmap.errors import UserError
from heatmap.inference.media import camera, video
from heatmap.inference.media.points_files import PointsFiles, points_files
from heatmap.inference.media.tracks import TrackedFace, Tracks
from heatmap.inference.predictor import Predictor, check_box
from heatmap.runtime.files import write_image

logger = logging.getLogger("heatmap")

# (F, 4) boxes of the faces of a file, in an image (H, W, 3) of it; None: one face, in the middle.
Finder = Callable[[Path, np.ndarray], np.ndarray | None]

_AT_ONCE = 8  # images in memory
_SMALL = 400  # px; images whose longer side is shorter are drawn enlarged


def find_files(inputs: Sequence[str]) -> list[Path]:
    """The files that these name: files, folders (their images and videos), or glob patterns.

    Raises UserError for a folder without images, or a pattern without files.
    """
    found: list[Path] = []
    for name in inputs:
        if Path(name).is_dir():
            found += _files_in(Path(name))
        elif glob.has_magic(name) and not Path(name).exists():
            matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207
            if not matches:
                raise UserError(f"no file matches {name}")
            found += [path for path in map(Path, matches) if path.is_file()]
        else:
            found.append(Path(name))
    return list(dict.fromkeys(found))


def _files_in(folder: Path) -> list[Path]:
    entries = sorted(folder.iterdir())
    files = [path for path in entries if path.is_file()]
    found = [path for path in files if _is_video(path) or cv2.haveImageReader(str(path))]
    if not found:
        raise UserError(f"{folder}: there are no images or videos in this folder")
    if left_out := len(entries) - len(found):
        logger.info(
            f"{folder}: what is no image or video is left out ({left_out} files and folders); "
            f"say '{folder / '**' / '*.jpg'}' for all below"
        )
    return found


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in video.SUFFIXES


@dataclass(frozen=True)
class Annotator:
    """How images are looked at and drawn.

    two_pass: as the predictor takes it; smooth: filter videos; ellipses: draw the heatmaps' spread.
    """

    predictor: Predictor
    finder: Finder
    two_pass: bool = False
    smooth: bool = True
    ellipses: bool = False

    def files(self, paths: Sequence[Path], out: Path) -> int:
        """Draws every image and video into the folder, with `points_files`.

        A file that cannot be read is reported; returns how many these are. Videos lose their sound.
        Stopped by Ctrl-C, it keeps the points so far.

        Raises:
            UserError: a drawn copy would take the place of its original.
        """
        targets, failed, stopped = _targets(paths, out), 0, False
        images = [path for path in paths if not _is_video(path)]
        head = {"run": str(self.predictor.path), "landmarks": self.predictor.num_landmarks}
        with points_files(out, head) as points:
            try:
                bar = tqdm(total=len(images), desc="images", unit="img", delay=1, leave=False)
                with bar:
                    for start in range(0, len(images), _AT_ONCE):
                        some = images[start : start + _AT_ONCE]
                        failed += self._images(some, targets, points)
                        bar.update(len(some))
                for path in filter(_is_video, paths):
                    try:
                        self._video(path, targets[path], points)
                    except UserError as error:
                        failed += 1
                        tqdm.write(f"error: {error}", file=sys.stderr)
            except KeyboardInterrupt:
                stopped = True
        if stopped:
            raise KeyboardInterrupt
        return failed

    def camera(self, index: int) -> None:
        """Shows what a camera sees, drawn, in a window, until that is closed.

        Raises UserError without a display, or such a camera.
        """
        window = camera.Window(f"{self.predictor.path} (Esc or q: end)")
        tracks, name = Tracks(self.smooth), Path(f"camera {index}")
        try:
            for image, seconds in tqdm(camera.frames(index), desc=str(name), unit="frame"):
                (faces,) = self._faces([image], [self._boxes(name, image)])
                window.show(self._drawn(image, tracks.follow(faces, seconds)))
                if not window.is_open:
                    break
        finally:
            window.close()

    def _images(self, paths: Sequence[Path], targets: dict[Path, Path], points: PointsFiles) -> int:
        """Draws these images; returns how many could not be read."""
        read, boxes = list[ImageFile](), list[np.ndarray | None]()
        for path in paths:
            try:
                file = ImageFile(path)
                boxes.append(self._boxes(path, file.pixels(1)[0]))
                read.append(file)
            except UserError as error:
                tqdm.write(f"error: {error}", file=sys.stderr)
        for file, faces in zip(read, self._faces(read, boxes), strict=True):
            path, image = file.path, file.pixels(1)[0]
            if not faces:
                logger.warning(f"{path}: no face was found")
            points.add(path, faces)
            enlarged = max(1, -(-_SMALL // max(image.shape[:2])))
            write_image(targets[path], self._drawn(image, faces, enlarged))
        return len(paths) - len(read)

    def _video(self, path: Path, target: Path, points: PointsFiles) -> None:
        source, tracks, read = video.Video(path), Tracks(self.smooth), 0
        bar = tqdm(source, desc=path.name, total=source.expected, unit="frame", delay=1)
        with video.written(target, source) as write, bar:
            for one in bar:
                (faces,) = self._faces([one.image], [self._boxes(path, one.image)])
                faces = tracks.follow(faces, one.seconds)
                points.add(path, faces, (read, round(one.seconds, 6)))
                write(self._drawn(one.image, faces), one.start, one.duration)
                read += 1
            if read == 0:
                raise UserError(f"{path}: none of the video's frames can be decoded")
        if problems := source.report(read):
            logger.warning(problems)

    def _boxes(self, path: Path, image: np.ndarray) -> np.ndarray | None:
        """What the `Finder` says of an image (H, W, 3) of the file; its boxes are checked."""
        boxes = self.finder(path, image)
        for box in [] if boxes is None else boxes:
            check_box(box, image.shape[:2], f"{path}: the box")
        return boxes

    def _faces(
        self, images: Sequence[np.ndarray | ImageFile], boxes: Sequence[np.ndarray | None]
    ) -> list[list[TrackedFace]]:
        """The faces of every image, numbered in the order of its boxes."""
        counts = [1 if here is None else len(here) for here in boxes]
        owners = np.repeat(np.arange(len(boxes)), counts).tolist()
        given = [here for here in boxes if here is not None]
        assert len(given) in (0, len(boxes)), "a finder gives boxes for all images or for none"
        looked_at = [images[index] for index in owners]
        corners = np.concatenate(given) if given else None
        landmarks = self.predictor(looked_at, corners, two_pass=self.two_pass)
        found: list[list[TrackedFace]] = [[] for _ in images]
        for k, index in enumerate(owners):
            parts = [None if part is None else part[k] for part in landmarks[1:]]
            found[index].append(TrackedFace(len(found[index]), landmarks.points_image[k], *parts))
        return found

    def _drawn(
        self, image: np.ndarray, faces: Sequence[TrackedFace], enlarged: int = 1
    ) -> np.ndarray:
        """A copy of the image, so many times larger, with its faces."""
        known = self.predictor.num_landmarks, self.predictor.scheme
        groups, curves = schemes.groups(*known), schemes.curves(*known)
        height, width = image.shape[:2]
        shown_from_image = frame.resizing((height, width), (enlarged * height, enlarged * width))
        if enlarged > 1:
            image = cv2.resize(image, None, None, enlarged, enlarged, cv2.INTER_CUBIC)
        for face in faces:
            points = frame.apply(shown_from_image, torch.from_numpy(face.points_image)).numpy()
            spread = None
            if self.ellipses and face.covariance is not None:
                spread = face.covariance * enlarged**2
            image = draw.draw_landmarks(
                image, points, groups, curves=curves, covariance_image=spread
            )
        return image


def _targets(paths: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Where the drawn copy of every file goes: in folders as the files are, under the same name.

    Formats that are not written get .png or .mp4 behind their names. A copy whose name another has
    already, also on a disk that does not tell A from a, gets a number.
    """
    home = os.path.commonpath([path.absolute().parent for path in paths])
    targets, taken = dict[Path, Path](), set[str]()
    # those that keep their names come first, so that none of them gets a number in vain
    for path in sorted(paths, key=_is_rewritten):
        target = out / path.absolute().relative_to(home)
        if _is_rewritten(path):
            target = target.with_name(target.name + (".mp4" if _is_video(path) else ".png"))
        stem, number = target.stem, 1
        while str(target).casefold() in taken:
            number += 1
            target = target.with_stem(f"{stem}-{number}")
        if number > 1:
            logger.info(f"{path} is drawn to {target}: another file is drawn under its own name")
        if target.absolute() == path.absolute() or (target.exists() and target.samefile(path)):
            told = f"the drawn {path} would take the place of the file itself"
            raise UserError(f"{told}; name another folder with --out")
        taken.add(str(target).casefold())
        targets[path] = target
    return targets


def _is_rewritten(path: Path) -> bool:
    """Whether the drawn copy is of another format."""
    return path.suffix.lower() not in (".jpg", ".jpeg", ".png", ".mp4")
