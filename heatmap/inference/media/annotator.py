"""Photographs, videos and cameras -> drawn copies, and tables of points in their own pixels."""

import glob
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from heatmap import draw, frame, schemes
from heatmap.data.contest import Photograph
from heatmap.inference.media import camera, video
from heatmap.inference.media.points_files import PointsFiles, points_files
from heatmap.inference.media.tracks import Face, Tracks
from heatmap.inference.media.video import Video
from heatmap.inference.predictor import Predictor, check_box
from heatmap.runtime.files import write_picture

logger = logging.getLogger("heatmap")

# (F, 4) boxes of the faces of a file, in a picture (H, W, 3) of it; None: one face, in the middle.
Finder = Callable[[Path, np.ndarray], np.ndarray | None]

_AT_ONCE = 8  # photographs in memory
_SMALL = 400  # px; photographs whose longer side is shorter are drawn enlarged


def find_files(inputs: Sequence[str]) -> list[Path]:
    """The files that these name: files, folders (their pictures and videos), or glob patterns.

    Raises:
        ValueError: a folder without pictures, or a pattern without files.
    """
    found: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.is_file())
            some = [file for file in files if is_video(file) or cv2.haveImageReader(str(file))]
            if not some:
                raise ValueError(f"{name}: there are no pictures or videos in this folder")
            if len(some) < len(files):
                left_out = len(files) - len(some)
                logger.info(f"{name}: what is no picture or video is left out ({left_out} files)")
            if folders := sum(file.is_dir() for file in path.iterdir()):
                deeper = path / "**" / "*.jpg"
                logger.info(f"{name}: its folders are left out ({folders}); say '{deeper}' for all")
            found += some
        elif glob.has_magic(name) and not path.exists():
            some = [Path(file) for file in sorted(glob.glob(name, recursive=True))]  # noqa: PTH207
            if not some:
                raise ValueError(f"no file matches {name}")
            found += [file for file in some if file.is_file()]
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def is_video(path: Path) -> bool:
    """Whether a file is taken for a video, by its name."""
    return path.suffix.lower() in video.SUFFIXES


@dataclass(frozen=True)
class Annotator:
    """How pictures are looked at and drawn.

    two_pass: as the predictor takes it; smooth: the points of videos lose their jitter; ellipses:
    the spread of the heatmaps is drawn.
    """

    predictor: Predictor
    finder: Finder
    two_pass: bool = False
    smooth: bool = True
    ellipses: bool = False

    def files(self, paths: Sequence[Path], out: Path) -> int:
        """Draws every photograph and video into the folder, with `points_files`.

        A file that cannot be read is told, and the others go on. Videos keep size, rate and length;
        their sound is left out. Stopped by Ctrl-C, it keeps the points so far.

        Returns:
            How many files could not be looked at.

        Raises:
            ValueError: a drawn copy would take the place of its original.
        """
        targets, failed, stopped = _targets(paths, out), 0, False
        photographs = [path for path in paths if not is_video(path)]
        head = {"run": str(self.predictor.path), "landmarks": self.predictor.num_landmarks}
        with points_files(out, head) as points:
            try:
                with tqdm(
                    total=len(photographs), desc="photographs", unit="img", delay=1, leave=False
                ) as bar:
                    for start in range(0, len(photographs), _AT_ONCE):
                        some = photographs[start : start + _AT_ONCE]
                        failed += self._photographs(some, targets, points)
                        bar.update(len(some))
                for path in filter(is_video, paths):
                    failed += not _done(self._video, path, targets[path], points)
            except KeyboardInterrupt:
                stopped = True
        if stopped:
            raise KeyboardInterrupt
        return failed

    def camera(self, index: int) -> None:
        """Shows what a camera sees, drawn, in a window, until that is closed.

        Raises:
            ValueError: no display, or no such camera.
        """
        window = camera.Window(f"{self.predictor.path} (Esc or q: end)")
        tracks, name = Tracks(self.smooth), Path(f"camera {index}")
        try:
            for image, seconds in tqdm(camera.pictures(index), desc=str(name), unit="frame"):
                (faces,) = self._faces([(image, self._boxes(name, image))])
                window.show(self._drawn(image, tracks.follow(faces, seconds)))
                if not window.is_open:
                    break
        finally:
            window.close()

    def _photographs(
        self, paths: Sequence[Path], targets: dict[Path, Path], points: PointsFiles
    ) -> int:
        """Draws these photographs; returns how many could not be looked at."""
        read: list[Path] = []
        looked_at: list[tuple[Photograph, np.ndarray | None]] = []

        def decode(path: Path) -> None:
            photograph = Photograph(path)
            looked_at.append((photograph, self._boxes(path, photograph.pixels(1)[0])))
            read.append(path)

        failed = sum(not _done(decode, path) for path in paths)
        found = self._faces(looked_at)
        for path, (photograph, _), faces in zip(read, looked_at, found, strict=True):
            if not faces:
                logger.warning(f"{path}: no face was found")
            points.add(path, faces)
            image, _ = photograph.pixels(1)
            enlarged = max(1, -(-_SMALL // max(image.shape[:2])))
            write_picture(targets[path], self._drawn(image, faces, enlarged))
        return failed

    def _video(self, path: Path, target: Path, points: PointsFiles) -> None:
        source, tracks, read = Video(path), Tracks(self.smooth), 0
        with ExitStack() as stack:
            bar = tqdm(source, desc=path.name, total=source.expected, unit="frame", delay=1)
            for one in stack.enter_context(bar):
                (faces,) = self._faces([(one.image, self._boxes(path, one.image))])
                faces = tracks.follow(faces, one.seconds)
                points.add(path, faces, read, one.seconds)
                drawn = self._drawn(one.image, faces)
                if read == 0:
                    shown_hw = drawn.shape[0], drawn.shape[1]
                    writer = stack.enter_context(video.written(target, source, shown_hw))
                elif drawn.shape[:2] != shown_hw:  # a stream may change its size on its way
                    drawn = cv2.resize(drawn, shown_hw[::-1], interpolation=cv2.INTER_AREA)
                writer.write(drawn, one.start, one.duration)
                read += 1
        if read == 0:
            raise ValueError(f"{path}: none of the video's pictures can be decoded")
        if told := source.report(read):
            logger.warning(told)

    def _boxes(self, path: Path, image: np.ndarray) -> np.ndarray | None:
        """Where the faces are in a picture (H, W, 3) of the file, as a `Finder` says.

        Raises:
            ValueError: outside the picture.
        """
        boxes = self.finder(path, image)
        for box in [] if boxes is None else boxes:
            check_box(box, (image.shape[0], image.shape[1]), f"{path}: the box")
        return boxes

    def _faces(
        self, pictures: Sequence[tuple[np.ndarray | Photograph, np.ndarray | None]]
    ) -> list[list[Face]]:
        """The faces of every picture, numbered in the order of its boxes."""
        found: list[list[Face]] = [[] for _ in pictures]
        owners: list[int] = []  # of each face, the picture
        boxes: list[np.ndarray | None] = []
        for index, (_, here) in enumerate(pictures):
            boxes += [None] if here is None else list(here)
            owners += [index] * (len(boxes) - len(owners))
        given = [box for box in boxes if box is not None]
        assert len(given) in (0, len(boxes)), "a finder gives boxes for all pictures or for none"
        landmarks = self.predictor(
            [pictures[index][0] for index in owners],
            np.array(given) if given else None,
            two_pass=self.two_pass,
        )
        for k, index in enumerate(owners):
            parts = [None if part is None else part[k] for part in landmarks]
            found[index].append(Face(len(found[index]), landmarks.points_image[k], *parts[1:]))
        return found

    def _drawn(self, image: np.ndarray, faces: Sequence[Face], enlarged: int = 1) -> np.ndarray:
        """A copy of the picture, so many times larger, with its faces."""
        known = self.predictor.num_landmarks, self.predictor.scheme
        image_hw = image.shape[0], image.shape[1]
        shown_hw = enlarged * image_hw[0], enlarged * image_hw[1]
        if enlarged > 1:
            image = cv2.resize(image, shown_hw[::-1], interpolation=cv2.INTER_CUBIC)
        shown_from_image = frame.resizing(image_hw, shown_hw)
        for face in faces:
            points = frame.apply(shown_from_image, torch.from_numpy(face.points_image)).numpy()
            spread = None
            if self.ellipses and face.covariance is not None:
                spread = face.covariance * enlarged**2
            image = draw.draw_landmarks(
                image, points, schemes.groups(*known), curves=schemes.curves(*known),
                covariance_image=spread,
            )  # fmt: skip
        return image


def _done(action: Callable[..., None], *arguments: object) -> bool:
    """Whether it could be done; what was wrong is told."""
    try:
        action(*arguments)
    except ValueError as error:
        tqdm.write(f"error: {error}", file=sys.stderr)
        return False
    return True


def _targets(paths: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Where the drawn copy of every file goes: in folders as the files are, under the same name.

    Raises:
        ValueError: a copy would take the place of an original.
    """
    home = os.path.commonpath([path.absolute().parent for path in paths])
    targets = {}
    for path in paths:
        target = out / path.absolute().relative_to(home)
        kept = (".mp4",) if is_video(path) else (".jpg", ".jpeg", ".png")
        if path.suffix.lower() not in kept:
            target = target.with_name(target.name + (".mp4" if is_video(path) else ".png"))
        if target.absolute() == path.absolute() or (target.exists() and target.samefile(path)):
            raise ValueError(
                f"the drawn {path} would take the place of the file itself; name another folder "
                "with --out"
            )
        targets[path] = target
    return targets
