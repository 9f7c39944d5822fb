"""A split that is stored, and proof that its parts share no person, no file name, no picture."""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from tqdm import tqdm

from heatmap.data import contest
from heatmap.runtime.parallel import in_processes

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Overlap:
    """What stands in more than one part.

    num_people: in all parts; None where a file name tells no person, and then there are no
    `people`. names: file names that occur in several parts. pictures: groups of file names whose
    files are the same, byte for byte, and lie in several parts. unreadable: file names of pictures
    that could not be compared.
    """

    num_people: int | None
    people: list[str]
    names: list[str]
    pictures: list[list[str]]
    unreadable: list[str]


@dataclass(frozen=True)
class StoredSplit:
    """A split as it was written.

    rule: as `contest.Split` says it, without the numbers; sizes: of each part, by name, its
    pictures and its people (None where names do not tell them); overlap: of the parts.
    """

    rule: str
    sizes: dict[str, tuple[int, int | None]]
    overlap: Overlap


def store_split(
    root: Path,
    out: Path,
    *,
    rule: Literal["auto", "person", "order", "hash", "random"] = "auto",
    share: float = 0.2,
    folds: int | None = None,
    seed: int = 42,
    person_pattern: str = contest.PERSON_PATTERN,
    workers: int = 1,
    progress: bool = False,
) -> StoredSplit:
    """Divides the training rows of a contest and writes the table that `data.split_file` takes.

    Args:
        root: of the contest.
        out: the table to write.
        rule, share, folds, seed, person_pattern: as `contest.split_rows` takes them.
        workers: processes that read the pictures.

    Raises:
        ValueError: what cannot be read or divided, or persons that the rule "person" was to keep
            apart and are not; the table is then written all the same.
    """
    folder = contest.find_folder(root)
    table = contest.read_landmarks(folder.train_table, progress=progress)
    if folds is None and share == 0:
        raise ValueError("with a share of 0 all rows train, and there is nothing to store")
    splits = [
        contest.split_rows(
            table.names,
            rule=rule,
            share=share,
            folds=folds,
            fold=fold,
            seed=seed,
            person_pattern=person_pattern,
        )
        for fold in range(folds or 1)
    ]
    validation = np.stack([split.validation for split in splits])
    parts = validation[0] if folds is None else validation.argmax(0)
    contest.write_split(out, table.names, parts)
    for fold, split in enumerate(splits):
        read = contest.read_split(out, table, fold)
        assert np.array_equal(read.validation, split.validation), "the table is what was divided"
    shared = overlap(
        table.names, parts, folder.train_images,
        person_pattern=person_pattern, workers=workers, progress=progress,
    )  # fmt: skip
    name = splits[0].rule.partition(" (")[0]
    assert name != "by person" or not shared.people
    if name == "by person" and shared.pictures:
        raise ValueError(
            f"{out}: the split was to keep persons apart, but {len(shared.pictures)} pictures "
            f"stand in several parts under different names, such as "
            f"{' and '.join(map(repr, shared.pictures[0]))}; remove or exclude one of each, or "
            "give a pattern that tells their names as one person's"
        )
    people = contest.people_of(table.names, person_pattern)
    sizes = dict[str, tuple[int, int | None]]()
    for part in np.unique(parts).tolist():
        rows = np.flatnonzero(parts == part).tolist()
        is_told = shared.num_people is not None
        num_people = len({people[row] for row in rows}) if is_told else None
        label = f"fold {part}" if folds else ("validation" if part else "train")
        sizes[label] = len(rows), num_people
    return StoredSplit(name, sizes, shared)


def table(stored: StoredSplit) -> str:
    """The split as lines that line up, for people."""
    width = max(len("pictures"), *map(len, stored.sizes))
    lines = [f"split {stored.rule}", "", f"{'':<{width}}  pictures  people"]
    for name, (pictures, people) in stored.sizes.items():
        lines.append(f"{name:<{width}}  {pictures:>8}  {'-' if people is None else people:>6}")
    shared = stored.overlap
    told = "not told by the names" if shared.num_people is None else str(len(shared.people))
    lines += ["", "in more than one part"]
    for name, number, examples in (
        ("people", told, shared.people),
        ("file names", len(shared.names), shared.names),
        ("pictures", len(shared.pictures), [" = ".join(group) for group in shared.pictures]),
    ):
        such = f"  such as {', '.join(examples[:3])}" if examples else ""
        lines.append(f"  {name:<{width}}  {number}{such}")
    if shared.unreadable:
        lines.append(
            f"{len(shared.unreadable)} pictures cannot be read and were not compared, such as "
            f"{shared.unreadable[0]!r}"
        )
    return "\n".join(lines)


def overlap(
    names: Sequence[str],
    parts: np.ndarray,
    images: Path,
    *,
    person_pattern: str = contest.PERSON_PATTERN,
    workers: int = 1,
    progress: bool = False,
) -> Overlap:
    """Compares the parts of a split, reading every picture's file.

    Args:
        names: of N rows; parts: (N,) the part that each is in.
        images: folder of the pictures.
        person_pattern: as `contest.split_rows` takes it.
        workers: processes that read the pictures.

    Raises:
        ValueError: the pattern cannot be used, or a process was killed.
    """
    people = contest.people_of(names, person_pattern)
    known = [person for person in people if person is not None]
    are_told = len(known) == len(names)
    hashing = in_processes(partial(_hash_of, images), names, workers)
    contents = list(tqdm(hashing, "reading", len(names), delay=1, unit="img", disable=not progress))
    readable = [row for row, content in enumerate(contents) if content is not None]
    repeated = in_several([contents[row] for row in readable], parts[readable])
    pictures: dict[bytes | None, list[str]] = {content: [] for content in repeated}
    for name, content in zip(names, contents, strict=True):
        if content in pictures:
            pictures[content].append(name)
    return Overlap(
        num_people=len(set(known)) if are_told else None,
        people=in_several(known, parts) if are_told else [],
        names=in_several(names, parts),
        pictures=list(pictures.values()),
        unreadable=[n for n, content in zip(names, contents, strict=True) if content is None],
    )


def in_several(keys: Sequence[Key], parts: np.ndarray) -> list[Key]:
    """The keys that occur in more than one part, in the order of their first rows.

    Args:
        keys: N; parts: (N,).
    """
    first = dict[Key, int]()
    found = dict[Key, None]()
    for key, part in zip(keys, parts.tolist(), strict=True):
        if first.setdefault(key, part) != part:
            found[key] = None
    return list(found)


def _hash_of(images: Path, name: str) -> bytes | None:
    """SHA-256 of a picture's file, None where it cannot be read."""
    try:
        with (images / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
