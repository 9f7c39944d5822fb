"""Writes points.csv, one row per landmark, and points.json, one line per face.

Both use these names. A value that does not apply is empty in points.csv, null in points.json.

    image                    path of the image or video, as the user gave it
    frame, seconds           of a video's frame, from 0
    face                     number of the face in its image or video, from 0
    landmark                 index of the landmark, from 0; only in points.csv
    x, y                     in image pixels; integers are pixel centres
    confidence               height of the heatmap's peak
    cov_xx, cov_xy, cov_yy   spread of the heatmap around the point, in square pixels
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np

from heatmap.inference.media.tracks import TrackedFace
from heatmap.runtime.files import write_atomically

FACE_COLUMNS = ("image", "frame", "seconds", "face")
LANDMARK_COLUMNS = ("x", "y", "confidence", "cov_xx", "cov_xy", "cov_yy")

# (path of the image or video, its faces, frame, seconds)
AddFaces = Callable[[Path, Sequence[TrackedFace], int | None, float | None], None]


@contextmanager
def points_files(csv_path: Path, json_path: Path, head: dict[str, Any]) -> Iterator[AddFaces]:
    """Yields a function that writes faces to both files; points.json begins with `head`.

    The files appear when the block ends without an error.
    """
    with (
        write_atomically(csv_path) as csv_part,
        write_atomically(json_path) as json_part,
        # a name that is not UTF-8 has its bytes escaped, as in JSON
        csv_part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as csv_file,
        json_part.open("w", encoding="utf-8") as json_file,
    ):
        table = csv.writer(csv_file, lineterminator="\n")
        separators = chain(["\n"], repeat(",\n"))
        table.writerow([*FACE_COLUMNS, "landmark", *LANDMARK_COLUMNS])
        start, _, end = json.dumps({**head, "faces": []}).rpartition("]")
        json_file.write(start)

        def add(
            path: Path, faces: Sequence[TrackedFace], frame: int | None, seconds: float | None
        ) -> None:
            for face in faces:
                cells, rows = [str(path), frame, seconds, face.number], _landmark_rows(face)
                table.writerows([*cells, landmark, *row] for landmark, row in enumerate(rows))
                values = [*cells, *zip(*rows, strict=True)]
                line = dict(zip((*FACE_COLUMNS, *LANDMARK_COLUMNS), values, strict=True))
                json_file.write(next(separators) + json.dumps(line))

        yield add
        json_file.write(f"\n]{end}\n")


def _landmark_rows(face: TrackedFace) -> list[list[float | None]]:
    """`LANDMARK_COLUMNS` of each landmark."""
    table = np.full((len(face.points_image), len(LANDMARK_COLUMNS)), np.nan)
    table[:, :2] = face.points_image
    if face.confidence is not None:
        table[:, 2] = face.confidence
    if face.covariance is not None:
        table[:, 3:] = face.covariance.reshape(-1, 4)[:, [0, 1, 3]]
    return [[x if np.isfinite(x) else None for x in row] for row in table.round(4).tolist()]
