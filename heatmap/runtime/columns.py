"""Rows of text that line up."""

from collections.abc import Sequence


def lined_up(rows: Sequence[Sequence[str]], left: int = 1) -> list[list[str]]:
    """The rows with every cell as wide as its column's widest.

    Args:
        rows: of one length.
        left: so many columns begin in one place, the others end in one.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]


def as_lines(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """The rows as lines, two spaces between their columns; `left` as `lined_up` takes it."""
    return ["  ".join(cells).rstrip() for cells in lined_up(rows, left)]
