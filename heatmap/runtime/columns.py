"""Rows of text that line up."""

from collections.abc import Sequence


def lined_up(rows: Sequence[Sequence[str]], left: int = 1) -> list[list[str]]:
    """The rows, of one length, with cells as wide as their column; all but `left` end in line."""
    columns = []
    for number, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        columns.append([c.ljust(width) if number < left else c.rjust(width) for c in column])
    return [list(row) for row in zip(*columns, strict=True)]


def as_lines(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """The rows as lines, two spaces between their columns; `left` as `lined_up` takes it."""
    return ["  ".join(cells).rstrip() for cells in lined_up(rows, left)]
