"""Which rows validate and which train."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
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
    rule: Literal["auto", "person", "order"] = "auto",
    share: float = 0.2,
    person_pattern: str = PERSON_PATTERN,
) -> Split:
    """The rows divided into training and validation, the same way every time.

    Args:
        names: the table's file names, in its order.
        rule: "person" keeps all pictures of a person on one side: people, in the order of a hash
            of their names, validate until `share` of the rows is reached. "order" validates with
            the last rows, as the organisers did. "auto" is "person" where every name tells one
            and there are at least ten, else "order".
        share: part of the rows that validates, between 0 and 1.
        person_pattern: regular expression matched at a file name's beginning; its first group is
            the person.

    Raises:
        ValueError: share or pattern cannot be used, a name tells no person under the rule
            "person", there are fewer than two people, or a side would be empty.
    """
    if not 0 < share < 1:
        raise ValueError(f"the validation share must lie between 0 and 1, got {share}")
    if rule == "order":
        return _by_order(len(names), share)

    people = _people(names, person_pattern)
    if rule == "auto" and (None in people or len(set(people)) < 10):
        return _by_order(len(names), share)
    for name, person in zip(names, people, strict=True):
        if person is None:
            raise ValueError(
                f"cannot split by person: {name!r} does not match the pattern {person_pattern!r}; "
                "change the pattern or split by order"
            )
    return _by_person([person for person in people if person is not None], share)


def _by_order(num_rows: int, share: float) -> Split:
    num_training = int(num_rows * (1 - share) + 1e-9)  # 10 * (1 - 0.9) is just below 1
    if not 0 < num_training < num_rows:
        raise ValueError(
            f"cannot split {num_rows} rows with a validation share of {share}: "
            "both training and validation need at least one row"
        )
    return Split(
        rule=f"by order (the last {num_rows - num_training} of {num_rows} rows)",
        validation=np.arange(num_rows) >= num_training,
    )


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


def _by_person(people: Sequence[str], share: float) -> Split:
    num_pictures = Counter(people)
    if len(num_pictures) < 2:
        raise ValueError(
            f"cannot split by person: {len(people)} pictures show {len(num_pictures)} person; "
            "split by order instead"
        )
    validating: set[str] = set()
    num_validating = 0
    for person in sorted(num_pictures, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if num_validating >= share * len(people):
            break
        validating.add(person)
        num_validating += num_pictures[person]
    if len(validating) == len(num_pictures):
        raise ValueError(
            f"cannot split {len(num_pictures)} people with a validation share of {share}: nobody "
            "would be left to train on; lower the share or split by order"
        )
    return Split(
        rule=f"by person ({len(num_pictures)} people, {len(validating)} in validation)",
        validation=np.array([person in validating for person in people]),
    )
