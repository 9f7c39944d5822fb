"""Numbers of many rows of text at once: every step works on all their bytes.

np.loadtxt is as fast in one thread, but lets no other thread work meanwhile, and it stops at an
empty cell: with it, two cores read the contest's table at four fifths of the speed.
"""

from collections.abc import Sequence

import numpy as np

from heatmap.data.contest.landmarks import UNLABELLED

# How many digits a number may have at each width: two of 1 make one of 2, and so on.
_WIDTHS = ((1, np.uint8), (2, np.uint16), (4, np.uint32), (8, np.uint64))
_POWERS = 10 ** np.arange(20, dtype=np.uint64)


def parse_rows(
    rows: Sequence[bytes],
    num_cells: int,
    separator: bytes,
    dtype: type[np.floating],
    farthest: float,
) -> np.ndarray | None:
    """The numbers of N rows, or None: then something in them needs a closer look.

    Args:
        rows: text without line ends; cells hold a whole or decimal number without a plus, a space
            or an exponent, or nothing, in pairs.
        num_cells: of every row, even.
        dtype: of the numbers, unless these are whole and small.
        farthest: from 0 that a number may be.

    Returns:
        (N, num_cells): int16 with `UNLABELLED` for empty cells, or `dtype` with NaN for them, each
        the number of its type that is nearest to the text.
    """
    # Every cell lies between two marks; the first mark is made here.
    text = np.frombuffer(b"\n".join([b"", *rows, b""]), np.uint8)
    digits = text - np.uint8(ord("0"))
    is_digit, is_line_end, is_dot = digits < 10, text == ord("\n"), text == ord(".")
    marks = np.flatnonzero(is_line_end | (text == ord(separator)))
    starts, ends = marks[:-1] + 1, marks[1:]
    if (
        len(ends) != len(rows) * num_cells
        or not is_line_end[ends[num_cells - 1 :: num_cells]].all()
    ):
        return None
    values = _values(digits, is_digit)
    if values is None:
        return None

    # Cells are empty or end with a digit, only their first byte may be a minus, and a dot stands
    # between two digits. There are no other bytes.
    empty, negative = starts == ends, text.take(starts) == ord("-")
    num_dots, num_minus = np.count_nonzero(is_dot), np.count_nonzero(text == ord("-"))
    num_plain = np.count_nonzero(is_digit) + len(marks) + num_dots + num_minus
    ends_well = (empty | is_digit.take(ends - 1)).all() and (empty[0::2] == empty[1::2]).all()
    if num_plain != len(text) or np.count_nonzero(negative) != num_minus or not ends_well:
        return None

    last = values.take(ends - 1)  # 0 where empty
    nothing: float
    if num_dots == 0:
        largest = last.max()
        if largest > farthest:
            return None
        if largest <= np.iinfo(np.int16).max:
            numbers, nothing = last.astype(np.int16), UNLABELLED
        else:
            numbers, nothing = last.astype(dtype), np.nan
    else:
        decimals = _decimals(is_dot, is_digit, values, last, marks, dtype, farthest)
        if decimals is None:
            return None
        numbers, nothing = decimals, np.nan
    np.negative(numbers, out=numbers, where=negative)
    numbers[empty] = nothing
    return numbers.reshape(len(rows), num_cells)


def _values(digits: np.ndarray, is_digit: np.ndarray) -> np.ndarray | None:
    """The number that the digits up to each byte make, 0 where it is none; None if one is too long.

    Neighbours pair up: numbers of one digit become numbers of two, these of four, ...
    """
    full = is_digit.view(np.uint8).copy()  # 1 where a number of the present width fills it
    values = digits * full
    for width, dtype in _WIDTHS:
        before = np.multiply(values[:-width] * full[width:], 10**width, dtype=dtype)
        values = values.astype(dtype)
        values[width:] += before
        full[width:] &= full[:-width]
        if not (full[2 * width :] & is_digit[: -2 * width]).any():
            return values
        if width == 1:
            of_two = values
    # Behind 16 digits 64 bits have room for two more.
    values[16:] += np.multiply(of_two[:-16] * full[16:], 10**16, dtype=np.uint64)
    return None if (full[3:] & full[:-3]).any() else values


def _decimals(
    is_dot: np.ndarray,
    is_digit: np.ndarray,
    values: np.ndarray,
    last: np.ndarray,
    marks: np.ndarray,
    dtype: type[np.floating],
    farthest: float,
) -> np.ndarray | None:
    """The numbers of the cells between the marks without their signs, some of which have a dot."""
    is_token = is_dot.copy()
    is_token[marks] = True
    tokens = np.flatnonzero(is_token)
    dotted = is_dot.take(tokens)
    if (dotted[1:] & dotted[:-1]).any() or not is_digit.take(tokens[dotted] - 1).all():
        return None
    end = np.flatnonzero(~dotted)[1:]  # of every cell, among the tokens
    has_dot, dot = dotted.take(end - 1), tokens.take(end - 1)
    places = np.where(has_dot, tokens.take(end) - dot - 1, 0)
    before = np.where(has_dot, values.take(dot - 1), 0).astype(np.uint64)
    if (before >= _POWERS[18 - places]).any():
        return None
    digits = before * _POWERS[places] + last
    # One division of exact numbers is rounded once, as it should be.
    numbers = digits / _POWERS[places].astype(np.float64)
    if numbers.max() > farthest:
        return None
    if digits.max() < 2**53:
        return numbers.astype(dtype)
    # More digits than a float64 holds: near enough, unless it lies between two of the asked type.
    low, high = ((numbers * (1 + side * 2.0**-51)).astype(dtype) for side in (-1, 1))
    return low if np.array_equal(low, high) else None
