"""Stores a split, and checks that its parts share no person and no image."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from heatmap.data import contest
from heatmap.errors import UserError
from heatmap.runtime.columns import counted
from heatmap.runtime.files import read_bytes
from heatmap.runtime.parallel import in_processes


def store_split(
    root: Path,
    out: Path,
    *,
    folds: int | None = None,
    person_pattern: str = contest.PERSON_PATTERN,
    workers: int = 1,
    **options: Any,
) -> str:
    """Divides the training rows of a contest and writes the table that `data.split_file` takes.

    Args:
        folds, person_pattern, options: see `contest.split_rows`.
        workers: processes that read the images, whose files are compared byte for byte.

    Returns:
        A text with the images and people of each part, and those in more than one part.

    Raises:
        UserError: the rows cannot be read or divided, or a split by person has the same image in
            several parts. The table is written in the last case too.
    """
    folder = contest.find_folder(root)
    table = contest.read_landmarks(folder.train_table, progress=True)
    split_rows = partial(
        contest.split_rows, table.names, folds=folds, person_pattern=person_pattern, **options
    )
    splits = [split_rows(fold=fold) for fold in range(folds or 1)]
    validation = np.stack([split.validation for split in splits])
    parts = validation[0] if folds is None else validation.argmax(0)
    contest.write_split(out, table.names, parts)

    hash_file = partial(_hash_file, folder.train_images)
    hashes = [*in_processes(hash_file, table.names, workers, "reading")]
    shared = _in_several_parts(hashes, parts)
    shared_images = [" = ".join(table.names[row] for row in rows) for rows in shared]
    if splits[0].kind == "person" and shared_images:
        raise UserError(
            f"{out}: {counted(len(shared_images), 'image')} in several parts under different "
            f"names, such as {shared_images[0]}, although the split is by person; exclude one of "
            "each, or pass a --person-pattern that assigns these names to one person"
        )
    lines = [f"split {splits[0].rule.partition(' (')[0]}", ""]
    people = contest.people_of(table.names, person_pattern)
    lines += _format_parts(parts, people, shared_images, folds is not None)
    unread = [name for name, digest in zip(table.names, hashes, strict=True) if digest is None]
    if unread:
        lines.append(
            f"images not compared because they cannot be read: {len(unread)}, such as {unread[0]!r}"
        )
    return "\n".join(lines)


def _format_parts(
    parts: np.ndarray, people: Sequence[str | None], shared_images: Sequence[str], are_folds: bool
) -> list[str]:
    has_people = None not in people
    lines = [f"{'':10}  images  people"]
    for part in np.unique(parts).tolist():
        label = f"fold {part}" if are_folds else ("validation" if part else "train")
        rows = np.flatnonzero(parts == part).tolist()
        num_people = len({people[row] for row in rows}) if has_people else "-"
        lines.append(f"{label:10}  {len(rows):>8}  {num_people:>6}")
    shared_people = [str(people[rows[0]]) for rows in _in_several_parts(people, parts)]
    return [
        *lines,
        "",
        "in more than one part",
        _format_shared("people", shared_people) if has_people else "  people      not in the names",
        _format_shared("images", shared_images),
    ]


def _format_shared(kind: str, shared: Sequence[str]) -> str:
    examples = f"  such as {', '.join(shared[:3])}" if shared else ""
    return f"  {kind:10}  {len(shared)}{examples}"


def _in_several_parts(keys: Sequence[Hashable], parts: np.ndarray) -> list[list[int]]:
    """The rows of every key that occurs in more than one part; None is not a key."""
    rows_of = defaultdict[Hashable, list[int]](list)
    for row, key in enumerate(keys):
        rows_of[key].append(row)
    rows_of.pop(None, None)
    return [rows for rows in rows_of.values() if len(np.unique(parts[rows])) > 1]


def _hash_file(images: Path, name: str) -> bytes | None:
    """SHA-256 of an image file, None if it cannot be read."""
    try:
        return hashlib.sha256(read_bytes(images / name)).digest()
    except UserError:
        return None
