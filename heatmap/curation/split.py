"""A split that is stored, and proof that its parts share no person and no picture."""

import hashlib
from collections.abc import Hashable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from heatmap.data import contest
from heatmap.runtime.parallel import in_processes


def store_split(
    root: Path,
    out: Path,
    *,
    rule: contest.Rule = "auto",
    share: float = 0.2,
    folds: int | None = None,
    seed: int = 42,
    person_pattern: str = contest.PERSON_PATTERN,
    workers: int = 1,
    progress: bool = False,
) -> str:
    """Divides the training rows of a contest and writes the table that `data.split_file` takes.

    Args:
        root: of the contest.
        out: the table to write.
        rule, share, folds, seed, person_pattern: as `contest.split_rows` takes them.
        workers: processes that read the pictures, to compare their files byte for byte.

    Returns:
        The pictures and people of each part and what stands in several parts, for people to read.

    Raises:
        ValueError: what cannot be read or divided, or pictures that stand in several parts though
            persons were to be kept apart; the table is then written all the same.
    """
    folder = contest.find_folder(root)
    table = contest.read_landmarks(folder.train_table, progress=progress)
    if folds is None and share == 0:
        raise ValueError("with a share of 0 all rows train, and there is nothing to store")
    splits = [
        contest.split_rows(
            table.names, rule=rule, share=share, folds=folds, fold=fold, seed=seed,
            person_pattern=person_pattern,
        )
        for fold in range(folds or 1)
    ]  # fmt: skip
    validation = np.stack([split.validation for split in splits])
    parts = validation[0] if folds is None else validation.argmax(0)
    contest.write_split(out, table.names, parts)

    hashing = in_processes(partial(_hash_of, folder.train_images), table.names, workers)
    bar = tqdm(hashing, "reading", len(parts), delay=1, unit="img", disable=not progress)
    contents, people = list(bar), contest.people_of(table.names, person_pattern)
    pictures = [" = ".join(table.names[row] for row in g) for g in _in_several(contents, parts)]
    if splits[0].kind == "person" and pictures:
        raise ValueError(
            f"{out}: the split was to keep persons apart, but {len(pictures)} pictures stand in "
            f"several parts under different names, such as {pictures[0]}; remove or exclude one of "
            "each, or give a pattern that tells their names as one person's"
        )
    are_told = None not in people
    lines = [f"split {splits[0].rule.partition(' (')[0]}", "", f"{'':10}  pictures  people"]
    for part in np.unique(parts).tolist():
        label = f"fold {part}" if folds else ("validation" if part else "train")
        rows = np.flatnonzero(parts == part)
        num_people = len({people[row] for row in rows}) if are_told else "-"
        lines.append(f"{label:10}  {len(rows):>8}  {num_people:>6}")
    lines += ["", "in more than one part"]
    shared = [str(people[rows[0]]) for rows in _in_several(people, parts)] if are_told else []
    for name, found, number in (
        ("people", shared, len(shared) if are_told else "not told by the names"),
        ("pictures", pictures, len(pictures)),
    ):
        such = f"  such as {', '.join(found[:3])}" if found else ""
        lines.append(f"  {name:10}  {number}{such}")
    unreadable = [table.names[row] for row in range(len(parts)) if contents[row] is None]
    if unreadable:
        lines.append(
            f"{len(unreadable)} pictures cannot be read and were not compared, such as "
            f"{unreadable[0]!r}"
        )
    return "\n".join(lines)


def _in_several(keys: Sequence[Hashable], parts: np.ndarray) -> list[list[int]]:
    """The rows of every key, None left out, that occurs in more than one part."""
    rows_of: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        if key is not None:
            rows_of.setdefault(key, []).append(row)
    return [rows for rows in rows_of.values() if len(np.unique(parts[rows])) > 1]


def _hash_of(images: Path, name: str) -> bytes | None:
    """SHA-256 of a picture's file, None where it cannot be read."""
    try:
        with (images / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
