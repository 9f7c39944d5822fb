"""Which face of a video's frame is which of the frames before, and each one's filtered points."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import numpy as np

from heatmap.inference.media.filter import LandmarkFilter

_LEAST_OVERLAP = 0.2  # intersection over union of the same face in two frames
_AWAY_SECONDS = 1.0  # a face that was away for longer gets a new number


class TrackedFace(NamedTuple):
    """A face in an image.

    number: among the faces of its image, or of its video; points_image: (P, 2); confidence: (P,)
    and covariance: (P, 2, 2) as in `heatmap.inference.predictor.Landmarks`.
    """

    number: int
    points_image: np.ndarray
    confidence: np.ndarray | None
    covariance: np.ndarray | None


@dataclass(eq=False)
class _Track:
    number: int
    box: np.ndarray
    seconds: float
    filter: LandmarkFilter = field(default_factory=LandmarkFilter)


class Tracks:
    """The faces of one video, followed by where they are; smooth: their points are filtered."""

    def __init__(self, smooth: bool = True) -> None:
        self._smooth = smooth
        self._tracks: list[_Track] = []
        self._numbers = count()

    def follow(self, faces: Sequence[TrackedFace], seconds: float) -> list[TrackedFace]:
        """The faces of the next frame, in the same order, with the numbers they keep."""
        self._tracks = [t for t in self._tracks if seconds - t.seconds < _AWAY_SECONDS]
        boxes = [np.concatenate([f.points_image.min(0), f.points_image.max(0)]) for f in faces]
        followed = []
        for face, box, track in zip(faces, boxes, self._tracks_of(boxes, seconds), strict=True):
            track.box, track.seconds = box, seconds
            points = face.points_image
            if self._smooth:
                points = track.filter(points, face.covariance, seconds)
            followed.append(face._replace(number=track.number, points_image=points))
        return followed

    def _tracks_of(self, boxes: Sequence[np.ndarray], seconds: float) -> list[_Track]:
        """The track of every box: the one it overlaps most, each taken once, or a new one."""
        found: dict[int, _Track] = {}
        pairs = [(_overlap(box, t.box), k, t) for k, box in enumerate(boxes) for t in self._tracks]
        for overlap, k, track in sorted(pairs, key=lambda pair: -pair[0]):
            if overlap >= _LEAST_OVERLAP and k not in found and track not in found.values():
                found[k] = track
        for k, box in enumerate(boxes):
            if k not in found:
                found[k] = _Track(next(self._numbers), box, seconds)
                self._tracks.append(found[k])
        return [found[k] for k in range(len(boxes))]


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    both = float((np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])).clip(0).prod())
    areas = float((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod())
    return both / max(areas - both, 1e-9)
