"""The mean of submissions, in either contest's form.

Where the submissions were rounded, the mean of the runs' own coordinates, rounded once, is more
exact; this is for files of which nothing else is left.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from heatmap.data.contest import submission
from heatmap.data.formats import kaggle15


def average_submissions(
    submissions: Sequence[Path],
    out: Path,
    *,
    rounding: Literal["auto", "round", "truncate", "none"] = "auto",
) -> int:
    """Writes the mean of the submissions in the first one's order; returns the number of its rows.

    Rows are joined by file name, or by RowId where all files are of that form. The mean is rounded
    once, and the file read back and compared before it gets its name.

    Args:
        rounding: as `write_submission` takes it; "auto" is "round", and "none" for RowId, Location.

    Raises:
        ValueError: a file is missing, malformed or of another form than the first, or answers other
            rows or another number of points; no file is written.
    """
    by_row_id = [kaggle15.is_submission(path) for path in submissions]
    for path, is_by_row_id in zip(submissions, by_row_id, strict=True):
        if is_by_row_id != by_row_id[0]:
            with_row_ids, without = sorted((path, submissions[0]), key=kaggle15.is_submission)[::-1]
            raise ValueError(
                f"{with_row_ids} has the columns RowId and Location, {without} has not; only "
                "submissions of one form can be averaged"
            )
    if by_row_id[0]:
        return kaggle15.average(submissions, out, "none" if rounding == "auto" else rounding)
    return submission.average(submissions, out, "round" if rounding == "auto" else rounding)
