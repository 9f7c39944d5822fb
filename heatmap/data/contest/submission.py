"""The submission: written, read back, and scored against the withheld answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from heatmap.data.contest.landmarks import as_numbers
from heatmap.data.contest.score import contest_mse, squared_errors
from heatmap.data.contest.small_tables import AskedPoints
from heatmap.data.contest.table import ANSWERS, read_points, write_points
from heatmap.runtime.files import write_atomically

Rounding = Literal["round", "truncate", "none"]


@dataclass(frozen=True)
class Submission:
    """The answers for the test images, or the withheld truth, which has the same columns.

    names: file names, in the file's order.
    points_image: (N, K, 2) float64, image pixels; point k of a row is the k-th one asked for.
    """

    path: Path
    names: list[str]
    points_image: np.ndarray


@dataclass(frozen=True)
class SubmissionScore:
    """A submission's errors.

    names: file names, in the order of the solution.
    per_picture: (N,) float64, px^2, as `squared_errors` gives them; mse: their `contest_mse`.
    """

    names: list[str]
    per_picture: np.ndarray
    mse: float


def write_submission(
    path: Path,
    asked: AskedPoints,
    names: Sequence[str],
    answers: np.ndarray,
    *,
    rounding: Rounding = "round",
) -> None:
    """Writes the landmarks asked for, one row for each row of `asked` and in its order.

    The file is read back and compared before it gets its name.

    Args:
        names: N file names of the predictions, in any order.
        answers: (N, K, 2) in image pixels, the landmarks asked for of each of these images.
        rounding: "round" to the nearest integer (a half to the even one), "truncate" toward zero
            as the organisers did, "none" for 4 decimals.

    Raises:
        ValueError: names are missing, additional or duplicate, there are more or fewer landmarks
            than asked for, or one is not finite.
    """
    if len(names) != len(answers):
        raise ValueError(f"{len(names)} file names for {len(answers)} predictions")
    num_asked = asked.indices.shape[1]
    if answers.shape[1:] != (num_asked, 2):
        raise ValueError(
            f"{asked.path} asks for {num_asked} landmarks of each image, but the predictions hold "
            f"{answers.shape[1]}"
        )
    rows = _rows_in_order_of(asked.names, names, f"the predictions for {asked.path}")
    answers = answers[rows].astype(np.float64)
    for name, answer in zip(asked.names, answers, strict=True):
        if not np.isfinite(answer).all():
            raise ValueError(f"{path}: not written, the prediction for {name!r} is not finite")
    _write_checked(path, asked.names, rounded(answers, rounding))


def average(submissions: Sequence[Path], out: Path, rounding: Rounding) -> int:
    """The part of `average_submissions` that is about this form; returns the number of images."""
    first = read_submission(submissions[0])
    total = first.points_image.copy()
    for path in submissions[1:]:
        total += _joined(first, read_submission(path), f"{path}, joined to {first.path}")
    _write_checked(out, first.names, rounded(total / len(submissions), rounding))
    return len(first.names)


def _write_checked(path: Path, names: list[str], answers: np.ndarray) -> None:
    with write_atomically(path) as temporary:
        write_points(temporary, names, answers, ANSWERS)
        written = read_submission(temporary)
        # Four decimals are half of 1e-4 off at most.
        if written.names != names or np.abs(written.points_image - answers).max() > 1e-4:
            raise OSError(f"{path}: not written, what was written does not read back the same")


def rounded(values: np.ndarray, rounding: Rounding) -> np.ndarray:
    """Coordinates to the integers that a submission holds, or as they are for "none"."""
    match rounding:
        case "round":
            return np.rint(values)
        case "truncate":
            return np.trunc(values)
        case "none":
            return values


def write_answers(path: Path, names: Sequence[str], points_image: np.ndarray) -> None:
    """Writes a file in a submission's form, such as the sample or the withheld solution.

    Args:
        points_image: (N, K, 2), as `write_points` takes them; only a solution may hold NaN.
    """
    with write_atomically(path) as temporary:
        write_points(temporary, names, points_image, ANSWERS)


def read_submission(path: Path) -> Submission:
    """The submission in a file: comma-separated, file_name, Point_M0_X, Point_M0_Y, ...

    Raises:
        ValueError: the table is malformed or a cell is empty; the message names row and column.
    """
    submission = read_solution(path)
    empty = np.argwhere(np.isnan(submission.points_image))
    if len(empty):
        row, point, axis = empty[0]
        raise ValueError(
            f"{path}, row {row + 2}, column Point_M{point}_{'XY'[axis]}: empty, but a submission "
            "needs every number"
        )
    return submission


def read_solution(path: Path) -> Submission:
    """The withheld answers: like a submission, but unlabelled landmarks are empty and become NaN.

    Raises:
        ValueError: the table is malformed; the message names row and column.
    """
    names, stored = read_points(path, np.float64, ANSWERS)
    return Submission(path, names, as_numbers(stored, np.float64))


def score_submission(submission: Path, solution: Path) -> SubmissionScore:
    """The errors of a submission against the solution, joined by file name.

    Raises:
        ValueError: a file is malformed, the files name different images, or they hold different
            numbers of points.
    """
    answers, truth = read_submission(submission), read_solution(solution)
    joined = _joined(truth, answers, f"{submission}, scored by {solution}")
    per_picture = squared_errors(joined, truth.points_image)
    return SubmissionScore(truth.names, per_picture, contest_mse(per_picture))


def _joined(first: Submission, other: Submission, what: str) -> np.ndarray:
    """The other's points in the order of the first; both must have the same names and points."""
    wanted, found = first.points_image.shape[1], other.points_image.shape[1]
    if wanted != found:
        raise ValueError(
            f"{other.path} holds {found} points for each picture, {first.path} {wanted}"
        )
    return other.points_image[_rows_in_order_of(first.names, other.names, what)]


def _rows_in_order_of(wanted: Sequence[str], found: Sequence[str], what: str) -> np.ndarray:
    """(N,) int64: where in `found` each of the wanted names is; both must hold the same names."""
    rows = {name: row for row, name in enumerate(found)}
    problems = {
        "missing": [name for name in wanted if name not in rows],
        "not asked for": sorted(rows.keys() - set(wanted)),
        "duplicate": [name for row, name in enumerate(found) if rows[name] != row],
    }
    for problem, names in problems.items():
        if names:
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise ValueError(f"{what}: {len(names)} pictures are {problem}: {some}")
    return np.array([rows[name] for name in wanted], np.int64)
