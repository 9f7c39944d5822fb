"""Which rows validate and which train."""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np

from heatmap.data.contest.landmarks import LandmarkTable
from heatmap.data.contest.small_tables import csv_rows, read_rows
from heatmap.data.contest.table import write_rows
from heatmap.errors import UserError
from heatmap.runtime.files import read_json

logger = logging.getLogger("heatmap")

PERSON_PATTERN = r"(.+)_[^_]+$"  # what stands before the last "_" of the file name
Rule = Literal["auto", "person", "order", "hash", "random"]
_PARTS = "train", "validation"
Kind = Literal["none", "person", "order", "hash", "random", "file"]


@dataclass(frozen=True)
class Split:
    """Which rows of a table validate."""

    kind: Kind  # what decides; "none" where all rows train
    rule: str  # the same for people to read: "by person (297 people, 59 in validation)"
    validation: np.ndarray  # (N,) bool, True where a row validates; the others train
    # (R,) int64 rows that do neither, which only a run's split.json names
    excluded: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


def split_rows(
    names: Sequence[str],
    *,
    rule: Rule = "auto",
    share: float = 0.2,
    folds: int | None = None,
    fold: int = 0,
    seed: int = 42,
    person_pattern: str = PERSON_PATTERN,
) -> Split:
    """The rows divided into training and validation, the same way every time.

    Args:
        names: the table's file names, in its order.
        rule: "person" keeps all images of a person on one side: people, in the order of a hash of
            their names, validate until `share` of the rows is reached. "order" validates with the
            last rows, as the organisers did; "hash" with those whose file names have a low SHA-256,
            so that each keeps its side whatever rows come or go; "random" shuffles the rows first.
            "auto" is "person" where every name tells one and there are at least ten, else "order".
        share: part of the rows that validates, in [0, 1); with 0 all rows train.
        folds: divide the rows into so many parts of about the same size, in place of `share`; part
            0 is what a share of 1/folds holds out.
        fold: the part that validates, in [0, folds).
        seed: of the rule "random".
        person_pattern: regular expression matched at a file name's beginning; its first group is
            the person.

    Raises:
        UserError: share, folds or pattern cannot be used, a name tells no person under the rule
            "person", there are fewer than two people, or a side or a part would be empty.
    """
    if folds is None and not 0 <= share < 1:
        raise UserError(f"the validation share must be in [0, 1), not {share}")
    if folds is not None and not (folds >= 2 and 0 <= fold < folds):
        raise UserError(f"there is no fold {fold} of {folds}; folds are at least 2, from 0 on")
    if folds is None and share == 0:
        return Split("none", "none, all rows train", np.zeros(len(names), bool))
    people = people_of(names, person_pattern) if rule in ("auto", "person") else []
    if rule == "auto":
        rule = "order" if None in people or len(set(people)) < 10 else "person"
    match rule:
        case "person":
            how, places = "by person", _places_by_person(names, people, person_pattern)
            part_of = _parts_by_place(places, len(names), share, folds)
        case "hash":
            how, digests = "by hash of the file name", map(_digest, names)
            places = np.array([int.from_bytes(digest[:6], "big") for digest in digests], np.int64)
            part_of = _parts_by_place(places, 2**48, share, folds)
        case "random":
            how = f"at random with seed {seed}"
            order = np.random.default_rng(seed).permutation(len(names))
            part_of = _parts_by_order(order, share, folds)
        case "order":
            how = "by order"
            part_of = _parts_by_order(np.arange(len(names))[::-1], share, folds)
    empty = set(range(folds or 2)) - set(part_of.tolist())
    if empty:
        into = f"with a validation share of {share}: one side would be empty; choose another share"
        if folds is not None:
            into = f"into {folds} folds: fold {min(empty)} would be empty; use fewer folds"
        raise UserError(f"cannot split {len(names)} rows {how} {into}, or split at random")

    validation = part_of == (0 if folds is None else fold)
    count = f"{validation.sum()} of {len(names)} rows"
    if rule == "person":
        num_validating = len({people[row] for row in np.flatnonzero(validation)})
        count = f"{len(set(people))} people, {num_validating} in validation"
    if folds is not None:
        count = f"fold {fold} of {folds}: {count}"
    elif rule == "order":
        count = f"the last {count}"
    return Split(rule, f"{how} ({count})", validation)


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _parts_by_order(order: np.ndarray, share: float, folds: int | None) -> np.ndarray:
    """(N,) int: each row's fold, or 0 where it validates, which the first in the order do."""
    num_training = int(len(order) * (1 - share) + 1e-9)  # 10 * (1 - 0.9) is just below 1
    part_of = np.empty(len(order), int)
    for part, rows in enumerate(np.array_split(order, folds or [len(order) - num_training])):
        part_of[rows] = part
    return part_of


def _parts_by_place(places: np.ndarray, end: int, share: float, folds: int | None) -> np.ndarray:
    """(N,) int: the same for rows with places in [0, end), by equal parts of this range."""
    return places * folds // end if folds else (places >= share * end).astype(int)


def _places_by_person(
    names: Sequence[str], people: Sequence[str | None], pattern: str
) -> np.ndarray:
    """(N,) int64: rows of all people whose names have a lower hash than the row's person."""
    if None in people:
        raise UserError(
            f"cannot split by person: {names[people.index(None)]!r} does not match the pattern "
            f"{pattern!r}; change the pattern or split by order"
        )
    num_images = Counter(person for person in people if person is not None)
    if len(num_images) < 2:
        raise UserError(
            f"cannot split by person: {len(names)} images show {len(num_images)} person; split "
            "by order instead"
        )
    ordered = sorted(num_images, key=_digest)
    starts = accumulate((num_images[person] for person in ordered), initial=0)
    before = dict(zip(ordered, starts, strict=False))
    return np.array([before[person] for person in people if person is not None])


def people_of(names: Sequence[str], pattern: str = PERSON_PATTERN) -> list[str | None]:
    """The person that each name tells, None where it tells none; `pattern` as for `split_rows`.

    Raises:
        UserError: the pattern is not valid, or has no group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"the person pattern {pattern!r} is not valid: {error}") from error
    if compiled.groups == 0:
        raise UserError(f"the person pattern {pattern!r} needs a group (...) around the person")
    matches = [compiled.match(name) for name in names]
    return [match[1] if match else None for match in matches]


def write_split(path: Path, names: Sequence[str], fold_of: np.ndarray) -> None:
    """Writes a table for `read_split`: file_name, and fold or part.

    Args:
        fold_of: (N,) int, the fold in which each row validates; or (N,) bool, whether it does.
    """
    parts, column = fold_of.tolist(), "fold"
    if fold_of.dtype == bool:
        parts, column = [_PARTS[validates] for validates in parts], "part"
    write_rows(path, ["file_name", column], zip(names, parts, strict=True))


def read_split(path: Path, table: LandmarkTable, fold: int = 0) -> Split:
    """The split that a file stores, joined to the training table by file name.

    The file is a table with a column file_name, and either part (train or validation) or fold (0,
    1, ...); or split.json of a run, whose other rows train.

    Args:
        fold: the one that validates, where the table has folds.

    Raises:
        UserError: anything else, an image that only one of the tables has or that stands in it
            twice, or a side that would be empty; with file and row, or the image.
    """
    index_of = {name: index for index, name in enumerate(table.names)}
    excluded, named, has_folds = np.empty(0, np.int64), "", False
    if path.suffix == ".json":
        validation, excluded = _read_split_of_run(path, table, index_of)
    else:
        parts, has_folds = _read_parts(path, table, index_of)
        validation = parts == (fold if has_folds else 1)
        named = f"fold {fold} of {parts.max() + 1}: " if has_folds else ""
    if fold > 0 and not has_folds:
        raise UserError(f"{path} has parts and no folds; leave data.fold 0, not {fold}")
    count = f"{named}{validation.sum()} of {len(validation)} rows"
    if validation.sum() in (0, len(validation) - len(excluded)):
        raise UserError(
            f"{path}: {count} validate, but both training and validation need at least one"
        )
    return Split("file", f"as {path} says ({count})", validation, excluded)


def _read_split_of_run(
    path: Path, table: LandmarkTable, index_of: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) bool, True where a row validates, and the rows that neither validate nor train."""
    stored = read_json(path)
    rows: dict[str, list[int]] = {}
    for part in ("validation", "excluded"):
        names = stored.get(part)
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise UserError(f"{path}: not the split of a run; it holds no list {part!r} of names")
        for name in names:
            if name not in index_of:
                raise UserError(f"{path}, {part}: {name!r} is not in {table.path}")
        rows[part] = [index_of[name] for name in names]
    if stored.get("table") != table.fingerprint():
        logger.warning(
            f"{path} is of a run on another table than {table.path}; rows are joined by file name, "
            "and those that it does not name train"
        )
    validation = np.zeros(len(index_of), bool)
    validation[rows["validation"]] = True
    return validation, np.array(rows["excluded"], np.int64)


def _read_parts(
    path: Path, table: LandmarkTable, index_of: dict[str, int]
) -> tuple[np.ndarray, bool]:
    """(N,) int64 fold of every row, or 1 for validation and 0 for training; and whether folds."""
    header = {cell.strip() for cell in csv_rows(path)[0]}
    if len(header & {"fold", "part"}) != 1:
        raise UserError(
            f"{path}, row 1: expected the columns file_name and either part or fold, found "
            f"{sorted(header)}"
        )
    column = "fold" if "fold" in header else "part"
    parts = np.full(len(index_of), -1)
    for where, (name, part) in read_rows(path, ["file_name", column]):
        index = index_of.get(name)
        if index is None:
            raise UserError(f"{where}, column file_name: {name!r} is not in {table.path}")
        if parts[index] >= 0:
            raise UserError(f"{where}, column file_name: {name!r} stands in a row above already")
        parts[index] = _parse_part(part, column, f"{where}, column {column}")
    if (parts < 0).any():
        unnamed = np.flatnonzero(parts < 0)
        raise UserError(
            f"{path}: {len(unnamed)} of the {len(parts)} images of {table.path} have no row, "
            f"such as {table.names[unnamed[0]]!r}; make the split anew (tools/data.py split)"
        )
    return parts, column == "fold"


def _parse_part(text: str, column: str, where: str) -> int:
    """A fold's number, or a part's place among `_PARTS`."""
    if column == "part":
        if text not in _PARTS:
            raise UserError(f"{where}: expected train or validation, found {text!r}")
        return _PARTS.index(text)
    if not re.fullmatch("[0-9]{1,9}", text):
        raise UserError(f"{where}: expected the number of a fold, found {text!r}")
    return int(text)
