"""Which rows validate and which train."""

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np

from heatmap.data.contest.landmarks import LandmarkTable
from heatmap.data.contest.small_tables import csv_rows
from heatmap.runtime.files import write_atomically

PERSON_PATTERN = r"(.+)_[^_]+$"  # what stands before the last "_" of the file name


@dataclass(frozen=True)
class Split:
    """Which rows of a table validate.

    rule: how it was decided, for people to read: "by person (297 people, 59 in validation)".
    validation: (N,) bool, True where a row validates; the others train.
    """

    rule: str
    validation: np.ndarray


def split_rows(
    names: Sequence[str],
    *,
    rule: Literal["auto", "person", "order", "hash", "random"] = "auto",
    share: float = 0.2,
    folds: int | None = None,
    fold: int = 0,
    seed: int = 42,
    person_pattern: str = PERSON_PATTERN,
) -> Split:
    """The rows divided into training and validation, the same way every time.

    Args:
        names: the table's file names, in its order.
        rule: "person" keeps all pictures of a person on one side: people, in the order of a hash
            of their names, validate until `share` of the rows is reached. "order" validates with
            the last rows, as the organisers did. "hash" validates with the rows whose file
            names have a low SHA-256, so that each keeps its side whatever rows come or go. "random"
            shuffles the rows first. "auto" is "person" where every name tells one and there are at
            least ten, else "order".
        share: part of the rows that validates, in [0, 1); with 0 all rows train.
        folds: where given, the rows are divided into so many parts of about the same size, and
            `share` is not used. Part 0 is what a share of 1/folds holds out, and every row is in
            one part.
        fold: the part that validates, in [0, folds).
        seed: of the rule "random".
        person_pattern: regular expression matched at a file name's beginning; its first group is
            the person.

    Raises:
        ValueError: share, folds or pattern cannot be used, a name tells no person under the rule
            "person", there are fewer than two people, or a side or a part would be empty.
    """
    if folds is None and not 0 <= share < 1:
        raise ValueError(f"the validation share must be in [0, 1), not {share}")
    if folds is not None and not (folds >= 2 and 0 <= fold < folds):
        raise ValueError(f"there is no fold {fold} of {folds}; folds are at least 2, from 0 on")
    if folds is None and share == 0:
        return Split(rule="none, all rows train", validation=np.zeros(len(names), bool))
    if rule == "order":
        return _by_order(len(names), share, folds, fold)
    if rule == "random":
        return _at_random(len(names), share, folds, fold, seed)
    if rule == "hash":
        return _by_hash(names, share, folds, fold)

    people = people_of(names, person_pattern)
    if rule == "auto" and (None in people or len(set(people)) < 10):
        return _by_order(len(names), share, folds, fold)
    for name, person in zip(names, people, strict=True):
        if person is None:
            raise ValueError(
                f"cannot split by person: {name!r} does not match the pattern {person_pattern!r}; "
                "change the pattern or split by order"
            )
    return _by_person([person for person in people if person is not None], share, folds, fold)


def _by_order(num_rows: int, share: float, folds: int | None, fold: int) -> Split:
    validation = _first_rows(np.arange(num_rows)[::-1], share, folds, fold)
    part = "the last " if folds is None else _name(folds, fold)
    return Split(f"by order ({part}{validation.sum()} of {num_rows} rows)", validation)


def _at_random(num_rows: int, share: float, folds: int | None, fold: int, seed: int) -> Split:
    order = np.random.default_rng(seed).permutation(num_rows)
    validation = _first_rows(order, share, folds, fold)
    part = f"at random with seed {seed} ({_name(folds, fold)}"
    return Split(f"{part}{validation.sum()} of {num_rows} rows)", validation)


def _by_hash(names: Sequence[str], share: float, folds: int | None, fold: int) -> Split:
    """By the place of each name's hash in [0, 1), which no other row has a part in."""
    digests = [hashlib.sha256(name.encode()).digest() for name in names]
    places = np.array([int.from_bytes(digest[:6], "big") / 2**48 for digest in digests])
    if folds is None:
        validation = places < share
        if validation.all() or not validation.any():
            raise ValueError(
                f"cannot split {len(names)} rows by hash with a validation share of {share}: one "
                "side would be empty"
            )
    else:
        fold_of = (places * folds).astype(int)
        empty = set(range(folds)) - set(fold_of.tolist())
        if empty:
            raise ValueError(
                f"cannot split {len(names)} rows by hash into {folds} folds: fold {min(empty)} "
                "would be empty; use fewer folds"
            )
        validation = fold_of == fold
    rule = f"by hash of the file name ({_name(folds, fold)}"
    return Split(f"{rule}{validation.sum()} of {len(names)} rows)", validation)


def _first_rows(order: np.ndarray, share: float, folds: int | None, fold: int) -> np.ndarray:
    """(N,) bool, True for the share of the rows that is first in the order, or for one part."""
    num_rows = len(order)
    if folds is None:
        num_training = int(num_rows * (1 - share) + 1e-9)  # 10 * (1 - 0.9) is just below 1
        if not 0 < num_training < num_rows:
            raise ValueError(
                f"cannot split {num_rows} rows with a validation share of {share}: "
                "both training and validation need at least one row"
            )
        validating = order[: num_rows - num_training]
    else:
        if folds > num_rows:
            raise ValueError(f"cannot split {num_rows} rows into {folds} folds; use fewer folds")
        validating = np.array_split(order, folds)[fold]
    validation = np.zeros(num_rows, bool)
    validation[validating] = True
    return validation


def _name(folds: int | None, fold: int) -> str:
    return "" if folds is None else f"fold {fold} of {folds}: "


def people_of(names: Sequence[str], pattern: str = PERSON_PATTERN) -> list[str | None]:
    """The person that each name tells, None where it tells none.

    Args:
        pattern: as `split_rows` takes it.

    Raises:
        ValueError: the pattern is not valid, or has no group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"the person pattern {pattern!r} is not valid: {error}") from error
    if compiled.groups == 0:
        raise ValueError(f"the person pattern {pattern!r} needs a group (...) around the person")
    matches = [compiled.match(name) for name in names]
    return [match[1] if match else None for match in matches]


def _by_person(people: Sequence[str], share: float, folds: int | None, fold: int) -> Split:
    num_rows, num_pictures = len(people), Counter(people)
    if len(num_pictures) < 2:
        raise ValueError(
            f"cannot split by person: {num_rows} pictures show {len(num_pictures)} person; "
            "split by order instead"
        )
    ordered = sorted(num_pictures, key=lambda name: hashlib.sha256(name.encode()).digest())
    ends = accumulate(num_pictures[person] for person in ordered)
    before = {person: end - num_pictures[person] for person, end in zip(ordered, ends, strict=True)}
    if folds is None:
        validating = {person for person in ordered if before[person] < share * num_rows}
        if len(validating) == len(ordered):
            raise ValueError(
                f"cannot split {len(ordered)} people with a validation share of {share}: nobody "
                "would be left to train on; lower the share or split by order"
            )
    else:
        fold_of = {person: before[person] * folds // num_rows for person in ordered}
        empty = set(range(folds)) - set(fold_of.values())
        if empty:
            raise ValueError(
                f"cannot split {num_rows} pictures of {len(ordered)} people into {folds} folds: "
                f"nobody would be in fold {min(empty)}; use fewer folds or split at random"
            )
        validating = {person for person in ordered if fold_of[person] == fold}
    return Split(
        f"by person ({_name(folds, fold)}{len(ordered)} people, {len(validating)} in validation)",
        np.array([person in validating for person in people]),
    )


def write_split(path: Path, names: Sequence[str], fold_of: np.ndarray) -> None:
    """Writes a table for `read_split`: comma; file_name, fold (int), or part where it is bool.

    Args:
        fold_of: (N,) int, the fold in which each row validates; or (N,) bool, True where a row
            validates.
    """
    parts, column = fold_of.tolist(), "fold"
    if fold_of.dtype == bool:
        parts, column = ["validation" if validates else "train" for validates in parts], "part"
    with (
        write_atomically(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file_name", column])
        table.writerows(zip(names, parts, strict=True))


def read_split(path: Path, table: LandmarkTable, fold: int = 0) -> Split:
    """The split that a table (comma or TAB) stores, joined to the training table by file name.

    It has a column file_name, and either part (train or validation) or fold (0, 1, ...).

    Args:
        fold: the one that validates, where the table has folds.

    Raises:
        ValueError: anything else, a row of the training table that is not named exactly once, or a
            side that would be empty; the message names file and row, or the picture.
    """
    rows = csv_rows(path)
    header = [cell.strip() for cell in rows[0]] if rows else []
    column = "fold" if "fold" in header else "part"
    if not {"file_name", column} <= set(header) or {"fold", "part"} <= set(header):
        raise ValueError(
            f"{path}, row 1: expected the columns file_name and either part or fold, found {header}"
        )
    index_of = {name: index for index, name in enumerate(table.names)}
    parts = np.full(len(index_of), -1)
    for row, cells in enumerate(rows[1:], start=2):
        where = f"{path}, row {row}"
        if len(cells) != len(header):
            raise ValueError(f"{where}: {len(cells)} cells where the header has {len(header)}")
        name, part = (cells[header.index(wanted)].strip() for wanted in ("file_name", column))
        index = index_of.get(name)
        if index is None:
            raise ValueError(f"{where}, column file_name: {name!r} is not in {table.path}")
        if parts[index] >= 0:
            raise ValueError(f"{where}, column file_name: {name!r} stands in a row above already")
        parts[index] = _parse_part(part, column, f"{where}, column {column}")
    if (parts < 0).any():
        unnamed = np.flatnonzero(parts < 0)
        raise ValueError(
            f"{path}: {len(unnamed)} of the {len(parts)} pictures of {table.path} have no row, "
            f"such as {table.names[unnamed[0]]!r}; make the split anew (tools/data.py split)"
        )
    if column == "part" and fold > 0:
        raise ValueError(f"{path} has parts and no folds; leave data.fold 0, not {fold}")
    validation = parts == (1 if column == "part" else fold)
    named = "" if column == "part" else _name(int(parts.max()) + 1, fold)
    if validation.all() or not validation.any():
        raise ValueError(
            f"{path}, column {column}: {named}{validation.sum()} of {len(parts)} rows validate, "
            "but both training and validation need at least one"
        )
    return Split(f"as {path} says ({named}{validation.sum()} of {len(parts)} rows)", validation)


def _parse_part(text: str, column: str, where: str) -> int:
    """A fold's number; of parts 1 for validation and 0 for training."""
    if column == "part":
        if text not in ("train", "validation"):
            raise ValueError(f"{where}: expected train or validation, found {text!r}")
        return int(text == "validation")
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ValueError(f"{where}: expected the number of a fold, found {text!r}")
    return int(text)
