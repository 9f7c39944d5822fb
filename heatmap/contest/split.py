"""Which rows validate and which train."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np

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
    rule: Literal["auto", "person", "order", "random"] = "auto",
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
            the last rows, as the organisers did. "random" shuffles the rows first. "auto" is
            "person" where every name tells one and there are at least ten, else "order".
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

    people = _people(names, person_pattern)
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


def _people(names: Sequence[str], pattern: str) -> list[str | None]:
    """The person that each name tells, None where it tells none."""
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
