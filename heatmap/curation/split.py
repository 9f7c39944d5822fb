"""A split that is stored, and proof that its parts share no person and no image."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from heatmap.data import contest
from heatmap.errors import UserError
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
) -> str:
    """Divides the training rows of a contest and writes the table that `data.split_file` takes.

    Args:
        rule, share, folds, seed, person_pattern: as `contest.split_rows` takes them.
        workers: processes that read the images, to compare their files byte for byte.

    Returns:
        The images and people of each part and what stands in several parts, for people to read.

    Raises:
        UserError: what cannot be read or divided, or images that stand in several parts though
            persons were to be kept apart; the table is then written all the same.
    """
    folder = contest.find_folder(root)
    table = contest.read_landmarks(folder.train_table, progress=True)
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

    hash_of = partial(_hash_of, folder.train_images)
    contents = [*in_processes(hash_of, table.names, workers, "reading")]
    people = contest.people_of(table.names, person_pattern)
    images = [" = ".join(table.names[row] for row in g) for g in _in_several(contents, parts)]
    if splits[0].kind == "person" and images:
        raise UserError(
            f"{out}: the split was to keep persons apart, but {len(images)} images stand in "
            f"several parts under different names, such as {images[0]}; remove or exclude one of "
            "each, or give a pattern that tells their names as one person's"
        )
    are_told = None not in people
    lines = [f"split {splits[0].rule.partition(' (')[0]}", "", f"{'':10}  images  people"]
    for part in np.unique(parts).tolist():
        label = f"fold {part}" if folds else ("validation" if part else "train")
        rows = np.flatnonzero(parts == part)
        num_people = len({people[row] for row in rows}) if are_told else "-"
        lines.append(f"{label:10}  {len(rows):>8}  {num_people:>6}")
    lines += ["", "in more than one part"]
    shared = [str(people[rows[0]]) for rows in _in_several(people, parts)] if are_told else []
    for kind, found in {"people": shared, "images": images}.items():
        such = f"  such as {', '.join(found[:3])}" if found else ""
        is_told = are_told or kind == "images"
        lines.append(f"  {kind:10}  {len(found) if is_told else 'not told by the names'}{such}")
    unread = [name for name, content in zip(table.names, contents, strict=True) if content is None]
    if unread:
        lines.append(
            f"{len(unread)} images cannot be read and were not compared, such as {unread[0]!r}"
        )
    return "\n".join(lines)


def _in_several(keys: Sequence[Hashable], parts: np.ndarray) -> list[list[int]]:
    """The rows of every key, None left out, that occurs in more than one part."""
    rows_of = defaultdict[Hashable, list[int]](list)
    for row, key in enumerate(keys):
        rows_of[key].append(row)
    rows_of.pop(None, None)
    return [rows for rows in rows_of.values() if len(np.unique(parts[rows])) > 1]


def _hash_of(images: Path, name: str) -> bytes | None:
    """SHA-256 of an image's file, None where it cannot be read."""
    try:
        with (images / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
