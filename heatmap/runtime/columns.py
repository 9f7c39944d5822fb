"""Text tables with aligned columns, and counts with their nouns."""

from collections.abc import Sequence


def counted(count: int, noun: str) -> str:
    """Returns "1 image" or "2 images"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def lined_up(rows: Sequence[Sequence[str]], left: int = 1) -> list[list[str]]:
    """Pads cells of equally long rows: the first `left` columns left-aligned, others right."""
    columns = []
    for number, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        columns.append([c.ljust(width) if number < left else c.rjust(width) for c in column])
    return [list(row) for row in zip(*columns, strict=True)]


def as_lines(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Formats rows as lines with two spaces between aligned columns (see `lined_up`)."""
    return ["  ".join(cells).rstrip() for cells in lined_up(rows, left)]
