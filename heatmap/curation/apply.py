"""Applies the corrections of a review to a copy of the training table."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from heatmap.data import contest
from heatmap.data.contest.small_tables import csv_rows
from heatmap.data.contest.table import add_name, open_table, parse_cells, parse_row
from heatmap.errors import UserError
from heatmap.runtime.columns import as_lines
from heatmap.runtime.files import folder_when_complete

REVIEWS = "good", "bad", "corrected"


class Change(NamedTuple):
    """What a review changed in the label of an image."""

    file_name: str
    review: str  # one of `REVIEWS`
    landmarks: int  # that changed
    mean_px: float  # distance by which they moved, NaN where they were added or removed
    max_px: float


def columns(num_landmarks: int) -> list[str]:
    """Returns the columns of a table of corrections; cells of unchanged landmarks are empty."""
    points = [f"Point_{index}_{axis}" for index in range(num_landmarks) for axis in "XY"]
    return ["review", "table", "pinned", "file_name", *points]


def apply(root: Path, corrections: Path, out: Path) -> list[Change]:
    """Writes a contest folder with corrected training labels and links to all images.

    Rows without a change are copied byte for byte. A label that was reviewed as bad keeps its row
    but no landmarks, so that it neither trains nor validates, and a stored split stays valid.

    Args:
        root: contest folder; it is not changed.
        corrections: the table saved by the page of `review.write_review`.
        out: folder to write.

    Returns:
        The reviewed images, in the order of the corrections.

    Raises:
        UserError: a file cannot be read, the corrections are malformed or were made for another
            table, or `out` is not an empty folder.
    """
    folder = contest.find_folder(root)
    table = contest.read_landmarks(folder.train_table, progress=True)
    corrected = _read_corrections(corrections, table)
    with folder_when_complete(out) as new_root:
        new = contest.Folder(root=new_root)
        new.train_table.parent.mkdir()
        changes = _write_table(folder.train_table, new.train_table, corrected)
        folders = folder.train_images, folder.test_images.parent, folder.solution.parent
        for old in (*folders, folder.boxes):
            if old.exists():
                (new_root / old.relative_to(folder.root)).symlink_to(old.resolve())
    return [changes[name] for name in corrected]


def _read_corrections(
    path: Path, table: contest.LandmarkTable
) -> dict[str, tuple[str, np.ndarray]]:
    """Review and (P, 2) corrected points by file name, NaN where unchanged."""
    header, *rows = csv_rows(path)
    if header != columns(table.num_landmarks):
        raise UserError(
            f"{path}, row 1: expected corrections of {table.num_landmarks} landmarks, as the page "
            "of heatmap data audit saves them"
        )
    known, rows_by_name, corrected = set(table.names), dict[str, int](), {}
    for row, (review, fingerprint, _, *cells) in enumerate(rows, start=2):
        where, name = f"{path}, row {row}", add_name(rows_by_name, cells[0], row, path)
        if fingerprint != table.fingerprint:
            raise UserError(
                f"{where}: made for another table than {table.path}, or for an earlier state of "
                "it; apply the corrections to that table, or audit this one"
            )
        if name not in known:
            raise UserError(f"{where}, column file_name: {name!r} is not in {table.path}")
        if review not in REVIEWS:
            expected = ", ".join(REVIEWS)
            raise UserError(f"{where}: the review must be one of {expected}, got {review!r}")
        points = parse_cells(cells, header[3:], where).reshape(-1, 2)
        if review != "corrected" and np.isfinite(points).any():
            raise UserError(f"{where}: reviewed as {review}, but it has corrected landmarks")
        corrected[name] = review, points
    return corrected


def _write_table(
    source: Path, target: Path, corrected: dict[str, tuple[str, np.ndarray]]
) -> dict[str, Change]:
    delimiter, header, rows = open_table(source)
    changes = {}
    with target.open("wb") as file:
        file.write(delimiter.join(header).encode() + b"\n")
        for row, _, line in rows:
            name, *cells = line.decode().split(delimiter)
            if name.strip() in corrected:
                review, points = corrected[name.strip()]
                label = parse_row(line, delimiter, header, f"{source}, row {row}").reshape(-1, 2)
                changes[name.strip()] = _change(name.strip(), review, label, points)
                if review == "bad":
                    cells = [""] * len(cells)
                pairs = zip(cells, points.ravel().tolist(), strict=True)
                cells = [old if np.isnan(new) else f"{new:.2f}" for old, new in pairs]
                line = delimiter.join([name, *cells]).encode()
            file.write(line + b"\n")
    return changes


def _change(name: str, review: str, label: np.ndarray, points: np.ndarray) -> Change:
    changed = np.isfinite((label if review == "bad" else points)[:, 0])
    moved = np.linalg.norm(points - label, axis=1)
    moved = moved[np.isfinite(moved)]
    mean, most = (float(moved.mean()), float(moved.max())) if len(moved) else (np.nan, np.nan)
    return Change(name, review, int(changed.sum()), mean, most)


def format_changes(changes: Sequence[Change]) -> str:
    """Formats what changed as a text table, with the share of false alarms."""
    table = [["file_name", "review", "landmarks", "mean px", "max px"]]
    for name, review, landmarks, *distances in changes:
        px = ["" if np.isnan(one) else f"{one:.1f}" for one in distances]
        table.append([name, review, str(landmarks), *px])
    counts = Counter(change.review for change in changes)
    parts = ", ".join(f"{counts[review]} {review}" for review in REVIEWS)
    share = f"; {100 * counts['good'] / len(changes):.0f} % were false alarms" if changes else ""
    return "\n".join([*as_lines(table, left=2), f"{len(changes)} reviewed: {parts}{share}"])
