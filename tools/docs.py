"""Writes the option tables of docs/ from heatmap/config.py: python tools/docs.py
A table goes between `<!-- options: Data as --data. -->` and `<!-- end -->`."""

import ast
import dataclasses
import inspect
import re
import typing
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from heatmap import config
from heatmap.runtime.validate import Function

TABLE = re.compile(r"(<!-- options: (\w+) as (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """Returns a page's text with its option tables updated from config.py."""
    return TABLE.sub(lambda m: m[1] + _option_table(getattr(config, m[2]), m[3]) + m[4], page)


def _option_table(part: Any, prefix: str) -> str:
    hints, meanings = typing.get_type_hints(part, include_extras=True), _docstrings(part)
    rows = [("option", "default", "values", "meaning"), ("---", "---", "---", "---")]
    for field in dataclasses.fields(part):
        if field.name in part.__annotations__ and field.default_factory is dataclasses.MISSING:
            option, values = field.name.replace("_", "-"), _format_values(hints[field.name])
            items = field.default if isinstance(field.default, tuple) else [field.default]
            default = " ".join("required" if v is dataclasses.MISSING else str(v) for v in items)
            rows.append((f"`{prefix}{option}`", default, values, meanings.get(field.name, "")))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = (" | ".join(map(str.ljust, row, [*widths, 0])).rstrip() for row in rows)
    return "".join(f"| {line} |\n" for line in lines)


def _docstrings(part: type) -> dict[str, str]:
    """The docstrings under the fields of a dataclass, each on one line."""
    body = typing.cast(ast.ClassDef, ast.parse(inspect.getsource(part)).body[0]).body
    return {
        ast.unparse(field.target): " ".join(ast.literal_eval(below.value).split())
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr)
    }


def _format_values(hint: Any) -> str:
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return ", ".join(map(str, parts))
    if hint == Function:
        return "function"
    if typing.get_origin(hint) is Annotated:
        return f"{parts[0].__name__} in {hint.__metadata__[0]}"
    formatted = (_format_values(part) for part in parts if part not in (type(None), ...))
    return ", ".join(formatted) if parts else str(hint.__name__).lower()


if __name__ == "__main__":
    for path in (Path(__file__).resolve().parents[1] / "docs").glob("*.md"):
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
