"""Splits the rows of a table into training and validation."""

import hashlib
import logging
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import numpy as np

from heatmap.data.contest.landmarks import LandmarkTable
from heatmap.data.contest.small_tables import csv_rows, read_rows
from heatmap.data.contest.table import write_rows
from heatmap.errors import UsageError, UserError
from heatmap.runtime.files import read_json

logger = logging.getLogger("heatmap")

PERSON_PATTERN = r"(.+)_[^_]+$"  # the part before the file name's last "_"
Rule = Literal["auto", "person", "order", "hash", "random"]
_PARTS = "train", "validation"
Kind = Literal["none", "person", "order", "hash", "random", "file"]


class _SplitOfRun(TypedDict):
    """The file names in a run's split.json."""

    validation: list[str]
    excluded: list[str]
    table: NotRequired[str | None]


@dataclass(frozen=True)
class Split:
    """Which rows of a table are for validation; the others are for training."""

    kind: Kind  # "none" if all rows train
    rule: str  # readable, such as "by person (297 people, 59 in validation)"
    validation: np.ndarray  # (N,) bool
    # (R,) int64 rows in neither part, only from a run's split.json
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
    """Splits the rows into training and validation, deterministically.

    Args:
        names: the table's file names, in its order.
        rule: what goes into validation. "person": people in the order of their names' hashes, with
            all their images, until `share` of the rows is reached. "order": the last rows, as the
            organisers did. "hash": file names with a low SHA-256, so adding or removing rows never
            moves another one. "random": a random sample. "auto" is "person" if every name
            contains a person and there are at least ten people, else "order".
        share: fraction of the rows in validation, in [0, 1); with 0 all rows train.
        folds: number of folds of about equal size, instead of `share`; fold 0 is the validation
            part of a share of 1/folds.
        fold: the validation fold, in [0, folds).
        seed: for the rule "random".
        person_pattern: regular expression matched at the start of a file name; its first group is
            the person.

    Raises:
        UsageError: a part would be empty, the pattern is not valid, or the rule is "person" and a
            name contains no person or all contain the same.
    """
    if folds is None and share == 0:
        return Split("none", "none, all rows train", np.zeros(len(names), bool))
    people = people_of(names, person_pattern) if rule in ("auto", "person") else []
    if rule == "auto":
        rule = "order" if None in people or len(set(people)) < 10 else "person"
    if rule == "person":
        _check_people(names, people, person_pattern)
    others = {"random": f"at random with seed {seed}", "hash": "by hash of the file name"}
    how = others.get(rule, f"by {rule}")
    part_of = _parts(people if rule == "person" else names, rule, share, folds, seed)
    if empty := set(range(folds or 2)) - set(part_of.tolist()):
        into = f"with a validation share of {share}: one part would be empty; choose another share"
        if folds is not None:
            into = f"into {folds} folds: fold {min(empty)} would be empty; use fewer folds"
        raise UsageError(f"cannot split {len(names)} rows {how} {into}, or split at random")
    validation = part_of == (0 if folds is None else fold)
    count = f"{validation.sum()} of {len(names)} rows"
    if rule == "person":
        validating = {people[row] for row in np.flatnonzero(validation)}
        count = f"{len(set(people))} people, {len(validating)} in validation"
    if folds is not None:
        count = f"fold {fold} of {folds}: {count}"
    elif rule == "order":
        count = f"the last {count}"
    return Split(rule, f"{how} ({count})", validation)


def _check_people(names: Sequence[str], people: Sequence[str | None], pattern: str) -> None:
    problem = ""
    if None in people:
        problem = f"{names[people.index(None)]!r} does not match the pattern {pattern!r}"
    elif len(set(people)) < 2:
        problem = f"{len(names)} images show {len(set(people))} person"
    if problem:
        raise UsageError(
            f"cannot split by person: {problem}; split by order, or change the pattern"
        )


def _parts(
    keys: Sequence[str | None], rule: Rule, share: float, folds: int | None, seed: int
) -> np.ndarray:
    """(N,) int fold of each row; without folds, 0 for validation and 1 for training."""
    if rule in ("person", "hash"):
        hashes = [hashlib.sha256(str(key).encode()).digest() for key in keys]
        places, end = [int.from_bytes(digest[:6], "big") for digest in hashes], 2**48
        if rule == "person":  # so that parts have about the same number of rows
            ordered, end = sorted(hashes), len(keys)
            places = [bisect_left(ordered, digest) for digest in hashes]
        place = np.array(places, np.int64)
        return place * folds // end if folds else (place >= share * end).astype(int)
    order = np.arange(len(keys))[::-1]
    if rule == "random":
        order = np.random.default_rng(seed).permutation(len(keys))
    num_training = int(len(keys) * (1 - share) + 1e-9)  # 10 * (1 - 0.9) is just below 1
    part_of = np.empty(len(keys), int)
    for part, rows in enumerate(np.array_split(order, folds or [len(keys) - num_training])):
        part_of[rows] = part
    return part_of


def people_of(names: Sequence[str], pattern: str = PERSON_PATTERN) -> list[str | None]:
    """Returns the person in each name, or None; `pattern` as for `split_rows`.

    Raises:
        UsageError: the pattern is not valid, or has no group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"the person pattern {pattern!r} is not valid: {error}") from error
    if compiled.groups == 0:
        raise UsageError(f"the person pattern {pattern!r} needs a group (...) around the person")
    matches = [compiled.match(name) for name in names]
    return [match[1] if match else None for match in matches]


def write_split(path: Path, names: Sequence[str], fold_of: np.ndarray) -> None:
    """Writes a table for `read_split`: file_name, and fold or part.

    Args:
        fold_of: (N,) int, the fold of each row; or (N,) bool, true for validation.
    """
    parts, column = fold_of.tolist(), "fold"
    if fold_of.dtype == bool:
        parts, column = [_PARTS[is_validation] for is_validation in parts], "part"
    splits = [["file_name", "part"], ["file_name", "fold"]]
    write_rows(path, ["file_name", column], zip(names, parts, strict=True), replaces=splits)


def read_split(path: Path, table: LandmarkTable, fold: int = 0) -> Split:
    """Reads a stored split and joins it to the training table by file name.

    Args:
        path: a table with the columns file_name and part (train or validation) or fold (0, 1, ...);
            or a run's split.json; rows it does not list are for training.
        fold: the validation fold, if the table has folds.

    Raises:
        UserError: the file is malformed, the images differ from the training table's, or a part
            would be empty; the message names file and row, or the image.
    """
    row_of = {name: row for row, name in enumerate(table.names)}
    if path.suffix == ".json":
        has_folds, (validation, excluded) = False, _read_split_of_run(path, table, row_of)
    else:
        parts, has_folds = _read_parts(path, table, row_of)
        validation, excluded = parts == (fold if has_folds else 1), np.empty(0, np.int64)
    count = f"{validation.sum()} of {len(validation)} rows"
    if has_folds:
        count = f"fold {fold} of {parts.max() + 1}: {count}"
    elif fold > 0:
        raise UsageError(f"{path} has parts, not folds; data.fold must be 0, got {fold}")
    if validation.sum() in (0, len(validation) - len(excluded)):
        raise UserError(f"{path}: {count} in validation; both parts need at least one row")
    return Split("file", f"from {path} ({count})", validation, excluded)


def _read_split_of_run(
    path: Path, table: LandmarkTable, row_of: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) bool, true for validation, and the (R,) excluded rows."""
    stored = read_json(path, _SplitOfRun)
    rows: dict[str, list[int]] = {}
    for part, names in (("validation", stored["validation"]), ("excluded", stored["excluded"])):
        for name in names:
            if name not in row_of:
                raise UserError(f"{path}, {part}: {name!r} is not in {table.path}")
        rows[part] = [row_of[name] for name in names]
    if stored.get("table") != table.fingerprint:
        logger.warning(
            f"{path} is from a run on a different table than {table.path}; rows are joined by file "
            "name, and rows it does not list are for training"
        )
    validation = np.zeros(len(row_of), bool)
    validation[rows["validation"]] = True
    return validation, np.array(rows["excluded"], np.int64)


def _read_parts(
    path: Path, table: LandmarkTable, row_of: dict[str, int]
) -> tuple[np.ndarray, bool]:
    """(N,) int64 fold of each row, or 1 for validation and 0 for training; whether it has folds."""
    header = {cell.strip() for cell in csv_rows(path)[0]}
    if len(header & {"fold", "part"}) != 1:
        raise UserError(
            f"{path}, row 1: expected the columns file_name and either part or fold, found "
            f"{','.join(sorted(header))!r}"
        )
    column = "fold" if "fold" in header else "part"
    parts = np.full(len(row_of), -1)
    for where, (name, text) in read_rows(path, ["file_name", column]):
        row = row_of.get(name)
        if row is None:
            raise UserError(f"{where}, column file_name: {name!r} is not in {table.path}")
        if parts[row] >= 0:
            raise UserError(f"{where}, column file_name: {name!r} is already in a row above")
        if column == "part" and text not in _PARTS:
            raise UserError(f"{where}, column part: expected train or validation, found {text!r}")
        if column == "fold" and not re.fullmatch("[0-9]{1,9}", text):
            raise UserError(f"{where}, column fold: expected a fold's number, found {text!r}")
        parts[row] = _PARTS.index(text) if column == "part" else int(text)
    missing = np.flatnonzero(parts < 0)
    if len(missing):
        raise UserError(
            f"{path}: {len(missing)} of the {len(parts)} images of {table.path} have no row, such "
            f"as {table.names[missing[0]]!r}; make a new split (heatmap data split)"
        )
    return parts, column == "fold"
