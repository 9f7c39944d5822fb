"""Writes submissions, reads them back and scores them against the withheld solution."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from heatmap.data.contest.landmarks import as_floats
from heatmap.data.contest.score import contest_mse, squared_errors
from heatmap.data.contest.small_tables import AskedPoints
from heatmap.data.contest.table import ANSWERS, read_points, write_landmarks
from heatmap.errors import UserError
from heatmap.runtime.columns import counted
from heatmap.runtime.files import write_atomically

Rounding = Literal["round", "truncate", "none"]


@dataclass(frozen=True)
class Submission:
    """A submission, or the withheld solution, which has the same columns."""

    path: Path
    names: list[str]  # file names, in the file's order
    points_image: np.ndarray  # (N, K, 2) float64; point k of an image is its k-th requested point


class SubmissionScore(NamedTuple):
    names: list[str]  # file names, in the order of the solution
    per_image: np.ndarray  # (N,) float64, px^2, by `squared_errors`
    mse: float  # px^2, by `contest_mse`


def write_submission(
    path: Path, asked: AskedPoints, answers: np.ndarray, rounding: Rounding = "round"
) -> None:
    """Writes a submission and reads it back to check it.

    Args:
        answers: (N, K, 2) in image pixels, the requested points in the order of `asked`.
        rounding: "round" to the nearest integer (halves to even), "truncate" toward zero
            as the organisers did, "none" for 4 decimals.

    Raises:
        UserError: the shape is wrong, or a point is not finite.
    """
    num_images, num_asked = asked.indices.shape
    if answers.shape != (num_images, num_asked, 2):
        wanted = f"{num_asked} landmarks of {num_images} images"
        raise UserError(f"{asked.path} asks for {wanted}, but the predictions are {answers.shape}")
    answers = answers.astype(np.float64)
    for name, answer in zip(asked.names, answers, strict=True):
        if not np.isfinite(answer).all():
            raise UserError(
                f"{path}: not written, because the prediction for {name!r} is not finite"
            )
    _write_checked(path, asked.names, rounded(answers, rounding))


def average(
    submissions: Sequence[Path], out: Path, rounding: Rounding, weights: Sequence[float]
) -> int:
    """Averages submissions, joined by file name, and returns the number of images."""
    first = read_submission(submissions[0])
    total = weights[0] * first.points_image
    for path, weight in zip(submissions[1:], weights[1:], strict=True):
        points = _joined(first, read_submission(path), f"{path}, joined to {first.path}")
        total += weight * points
    _write_checked(out, first.names, rounded(total / sum(weights), rounding))
    return len(first.names)


def _write_checked(path: Path, names: list[str], answers: np.ndarray) -> None:
    with write_atomically(path) as temporary:
        write_landmarks(temporary, names, answers, ANSWERS)
        written = read_submission(temporary)
        # 4 decimals are off by at most half of 1e-4
        if written.names != names or np.abs(written.points_image - answers).max() > 1e-4:
            raise OSError(f"{path}: not written, because the file read back differs")


def rounded(values: np.ndarray, rounding: Rounding) -> np.ndarray:
    """Rounds coordinates to integers, unless `rounding` is "none"."""
    if rounding == "none":
        return values
    return np.rint(values) if rounding == "round" else np.trunc(values)


def write_answers(path: Path, names: Sequence[str], points_image: np.ndarray) -> None:
    """Writes (N, K, 2) points as a sample submission, or a solution, which may hold NaN."""
    write_landmarks(path, names, points_image, ANSWERS)


def read_submission(path: Path) -> Submission:
    """Reads a submission: comma-separated, file_name, Point_M0_X, Point_M0_Y, ...

    Raises:
        UserError: the table is malformed or a cell is empty; the message names row and column.
    """
    submission = read_solution(path)
    empty = np.argwhere(np.isnan(submission.points_image))
    if len(empty):
        row, point, axis = empty[0]
        raise UserError(
            f"{path}, row {row + 2}, column Point_M{point}_{'XY'[axis]}: the cell is empty; a "
            "submission needs every coordinate"
        )
    return submission


def read_solution(path: Path) -> Submission:
    """Reads a solution: like a submission, but unlabelled landmarks are empty and become NaN.

    Raises:
        UserError: the table is malformed; the message names row and column.
    """
    names, stored = read_points(path, np.float64, ANSWERS)
    return Submission(path, names, as_floats(stored, np.float64))


def score_submission(submission: Path, solution: Path) -> SubmissionScore:
    """Scores a submission against the solution, joined by file name.

    Raises:
        UserError: a table is malformed, or the two differ in images or in the number of points.
    """
    answers, truth = read_submission(submission), read_solution(solution)
    joined = _joined(truth, answers, f"{submission}, scored by {solution}")
    per_image = squared_errors(joined, truth.points_image)
    return SubmissionScore(truth.names, per_image, contest_mse(per_image))


def _joined(first: Submission, other: Submission, where: str) -> np.ndarray:
    """`other`'s points in `first`'s order; both must have the same names and number of points."""
    expected, count = first.points_image.shape[1], other.points_image.shape[1]
    if count != expected:
        message = f"{other.path} has {count} points per image, but {first.path} has {expected}"
        raise UserError(message)
    rows = {name: row for row, name in enumerate(other.names)}
    missing = [name for name in first.names if name not in rows]
    extra = sorted(rows.keys() - set(first.names))
    for names, problem in ((missing, "missing"), (extra, "not asked for")):
        if names:
            examples = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise UserError(f"{where}: {counted(len(names), 'image')} {problem}: {examples}")
    return other.points_image[[rows[name] for name in first.names]]
