"""Predicted landmarks as files: points.csv, a row a landmark, and points.json, a line a face.

The columns of the one are the names in the other; what is not known is empty or null.

    image               the file, as it was named
    frame, seconds        of a video, counted from 0
    face                  number in its image or video
    landmark              counted from 0
    x, y                  in the image's own pixels; integers are pixel centres
    confidence            height of the heatmap's peak
    cov_xx, cov_xy, cov_yy   spread of the heatmap round the point, in square pixels
"""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from heatmap.inference.media.tracks import TrackedFace
from heatmap.runtime.files import write_atomically

_OF_FACE = ("image", "frame", "seconds", "face")
_OF_LANDMARK = ("x", "y", "confidence", "cov_xx", "cov_xy", "cov_yy")


class PointsFiles:
    """The two files while they are written, face by face: a long video's points fill no memory."""

    def __init__(self, table: TextIO, lines: TextIO) -> None:
        self._table, self._lines = csv.writer(table, lineterminator="\n"), lines
        self._table.writerow([*_OF_FACE, "landmark", *_OF_LANDMARK])
        self._separator = "\n"

    def add(
        self, path: Path, faces: Sequence[TrackedFace], when: tuple[int, float] | None = None
    ) -> None:
        """Writes the faces of an image, or of a video's frame (its number and seconds)."""
        frame, seconds = when or (None, None)
        for face in faces:
            of_face, numbers = [str(path), frame, seconds, face.number], _numbers(face)
            self._table.writerows([*of_face, k, *row] for k, row in enumerate(numbers))
            columns = [*of_face, *zip(*numbers, strict=True)]
            line = dict(zip((*_OF_FACE, *_OF_LANDMARK), columns, strict=True))
            self._lines.write(self._separator + json.dumps(line))
            self._separator = ",\n"


@contextmanager
def points_files(folder: Path, head: dict[str, Any]) -> Iterator[PointsFiles]:
    """The two files of a folder, in whole; points.json begins with `head`."""
    with (
        write_atomically(folder / "points.csv") as table,
        write_atomically(folder / "points.json") as lines,
        table.open("w", newline="", encoding="utf-8") as table_file,
        lines.open("w", encoding="utf-8") as lines_file,
    ):
        start, _, end = json.dumps({**head, "faces": []}).rpartition("]")
        lines_file.write(start)
        yield PointsFiles(table_file, lines_file)
        lines_file.write(f"\n]{end}\n")


def _numbers(face: TrackedFace) -> list[list[float | None]]:
    """`_OF_LANDMARK` of every landmark."""
    columns = np.full((len(face.points_image), len(_OF_LANDMARK)), np.nan)
    columns[:, :2] = face.points_image
    if face.confidence is not None:
        columns[:, 2] = face.confidence
    if face.covariance is not None:
        columns[:, 3:] = face.covariance.reshape(-1, 4)[:, [0, 1, 3]]
    rows = columns.round(4).tolist()
    return [[number if np.isfinite(number) else None for number in row] for row in rows]
