"""Tracks the faces of a video from frame to frame, and filters their points."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import numpy as np

from heatmap.inference.media.filter import LandmarkFilter

_MIN_OVERLAP = 0.2  # intersection over union of the same face in two frames
_MAX_GAP_SECONDS = 1.0  # a face that returns later gets a new number


class TrackedFace(NamedTuple):
    """A face in an image; the arrays are rows of `heatmap.Landmarks`."""

    number: int  # in its image or video
    points_image: np.ndarray  # (P, 2)
    confidence: np.ndarray | None  # (P,)
    covariance: np.ndarray | None  # (P, 2, 2)


@dataclass(eq=False)
class _Track:
    number: int
    box: np.ndarray
    seconds: float
    filter: LandmarkFilter = field(default_factory=LandmarkFilter)


class Tracks:
    """The faces of one video, matched by their boxes; with `smooth`, their points are filtered."""

    def __init__(self, smooth: bool = True) -> None:
        self._smooth = smooth
        self._tracks: list[_Track] = []
        self._numbers = count()

    def follow(self, faces: Sequence[TrackedFace], seconds: float) -> list[TrackedFace]:
        """Returns the next frame's faces in the same order, with the numbers of their tracks."""
        self._tracks = [t for t in self._tracks if seconds - t.seconds < _MAX_GAP_SECONDS]
        boxes = [np.concatenate([f.points_image.min(0), f.points_image.max(0)]) for f in faces]
        followed = []
        for face, box, track in zip(faces, boxes, self._tracks_of(boxes, seconds), strict=True):
            track.box, track.seconds = box, seconds
            if self._smooth:
                points = track.filter(face.points_image, face.covariance, seconds)
                face = face._replace(points_image=points)
            followed.append(face._replace(number=track.number))
        return followed

    def _tracks_of(self, boxes: Sequence[np.ndarray], seconds: float) -> list[_Track]:
        """Gives each box the unused track that it overlaps most, or a new one."""
        matched: dict[int, _Track] = {}
        pairs = [(_overlap(box, t.box), k, t) for k, box in enumerate(boxes) for t in self._tracks]
        for overlap, k, track in sorted(pairs, key=lambda pair: -pair[0]):
            if overlap >= _MIN_OVERLAP and k not in matched and track not in matched.values():
                matched[k] = track
        for k, box in enumerate(boxes):
            if k not in matched:
                matched[k] = _Track(next(self._numbers), box, seconds)
                self._tracks.append(matched[k])
        return [matched[k] for k in range(len(boxes))]


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    intersection = float((np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0).prod())
    areas = float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod())
    return intersection / max(areas - intersection, 1e-9)
