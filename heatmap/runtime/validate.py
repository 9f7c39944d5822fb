"""Checks values from outside, such as options and JSON, against type hints."""

import dataclasses
import difflib
import functools
import json
import math
import re
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeVar, Unpack

from heatmap.errors import UserError

T = TypeVar("T")

# "FILE.py:NAME" or "MODULE:NAME"; `functions.imported` returns the function
Function = Annotated[str, "function"]

_MAX_DEPTH = 50  # of lists and objects in JSON
_PLAIN = {bool: "true or false", int: "an integer", float: "a number", str: "text", Path: "a path"}
_FUNCTION, _FUNCTION_FORM = re.compile(r".+:[^\W\d]\w*"), "FILE.py:FUNCTION"
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


def parse_json(text: str | bytes, kind: type[T]) -> T:
    """Parses JSON whose value is of the type `kind`, as for `typed`.

    Raises:
        UserError: the text is not strict JSON, is nested too deeply, names a field twice, or holds
            a value of another type.
    """
    try:
        value = json.loads(
            text, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_without_repeats
        )
        level = [value]
        for _ in range(_MAX_DEPTH):
            outer = (each for each in level if isinstance(each, dict | list))
            level = list(
                chain.from_iterable(o.values() if isinstance(o, dict) else o for o in outer)
            )
        if level:
            raise RecursionError
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"not JSON, or cut short ({error})") from None
    except RecursionError:
        raise UserError("lists or objects are nested too deeply") from None
    return typed(kind, value)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise UserError(f"{text[:60]} is not a finite number")
    return number


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise UserError(f"the field {repeated!r} occurs twice")
    return values


def typed(kind: type[T], value: Any, name: str = "") -> T:
    """Returns the value as the type `kind`, checked down to its last field.

    Nothing is guessed: text is not a number, 4.0 not an integer and 1 not true. But a list becomes
    a tuple, text a `Path`, and an object the dataclass or NamedTuple whose fields it holds.
    `Annotated[int, "[1, 9)"]` is an integer in that interval. In a union of dataclasses the field
    "type" names one; the default is the first. A TypedDict may have further keys. A class's
    `_renamed` maps old names of its fields to new ones, or to None for removed fields.

    Args:
        name: dotted name of the value, for errors.

    Raises:
        UserError: the value is of another type. The message names the field, what was expected
            and the nearest choice or field.
    """
    return typing.cast(T, _typed(kind, value, name))


def _typed(kind: Any, value: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        value = _typed(arguments[0], value, name)
        if kind == Function:
            if not _FUNCTION.fullmatch(value):
                raise _wrong(name, f"{_FUNCTION_FORM} or MODULE:FUNCTION", value)
            return value
        for interval in arguments[1:]:
            if isinstance(interval, str):  # the rest is for the command line
                value = _within(interval, value, name)
        return value
    if origin is Literal:
        return one_of(arguments, value, name)
    if origin in (typing.Union, types.UnionType):
        return _any_of(arguments, value, name)
    if origin in (tuple, list, Sequence):
        return _items(origin, arguments, value, name)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong(name, "an object", value)
        return {key: _typed(arguments[1], value[key], _join(name, key)) for key in value}
    return _plain(kind, value, name) if kind in _PLAIN else _object(kind, value, name)


def _plain(kind: type, value: Any, name: str) -> Any:
    also = {float: int, Path: str}.get(kind, kind)
    is_valid = isinstance(value, kind | also) and isinstance(value, bool) == (kind is bool)
    if is_valid and kind is float:
        is_valid = abs(value) <= 1e308  # also False for NaN and integers beyond every float
    if is_valid and kind in (str, Path):  # paths may hold undecodable bytes as surrogates
        is_valid = not re.search("[\0\ud800-\udfff]" if kind is str else "\0", str(value))
    if not is_valid:
        raise _wrong(name, _PLAIN[kind], value)
    return kind(value)


def _within(interval: str, value: float, name: str) -> float:
    low, high = (float(end) for end in interval[1:-1].split(","))
    if value < low or (value == low and interval[0] == "("):
        raise _wrong(name, f"{'above' if interval[0] == '(' else 'at least'} {low:.12g}", value)
    if value > high or (value == high and interval[-1] == ")"):
        raise _wrong(name, f"{'below' if interval[-1] == ')' else 'at most'} {high:.12g}", value)
    return value


def one_of(choices: Sequence[Any], value: Any, name: str) -> Any:
    """Returns the value if it is a choice; otherwise a UserError lists them."""
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    *others, last = map(str, choices)
    wanted = f"{', '.join(others)} or {last}" if others else last
    raise UserError(f"{_wrong(name, wanted, value)}{nearest(value, choices)}")


def _any_of(kinds: Sequence[Any], value: Any, name: str) -> Any:
    """Choices and functions, or dataclasses, or one type; and None, if it is among the kinds."""
    if value is None and types.NoneType in kinds:
        return None
    kinds = [kind for kind in kinds if kind is not types.NoneType]
    if len(kinds) == 1:
        return _typed(kinds[0], value, name)
    if not dataclasses.is_dataclass(kinds[0]):
        choices = [choice for kind in kinds if kind != Function for choice in typing.get_args(kind)]
        if Function in kinds:
            if ":" in str(value):
                return _typed(Function, value, name)
            choices.append(_FUNCTION_FORM)
        return one_of(choices, value, name)
    if not isinstance(value, Mapping):
        kind = next((kind for kind in kinds if isinstance(value, kind)), kinds[0])
        return _object(kind, value, name)
    by_name = {kind.__name__: kind for kind in kinds}
    selected = one_of(list(by_name), value.get("type", next(iter(by_name))), _join(name, "type"))
    fields = {key: value[key] for key in value if key != "type"}
    return _object(by_name[selected], fields, name)


def _items(origin: Any, kinds: Sequence[Any], value: Any, name: str) -> Any:
    if not isinstance(value, list | tuple):
        raise _wrong(name, "a list", value)
    if origin is not tuple or kinds[-1] is Ellipsis:
        kinds = [kinds[0]] * len(value)
    elif typing.get_origin(kinds[-1]) is Unpack:  # tuple[str, *tuple[float, ...]]
        rest, _ = typing.get_args(typing.get_args(kinds[-1])[0])
        kinds = [*kinds[:-1], *[rest] * (len(value) - len(kinds) + 1)]
    if len(kinds) != len(value):
        raise _wrong(name, f"a list of {len(kinds)} values", value)
    numbered = enumerate(zip(kinds, value, strict=True))
    items = [_typed(kind, item, _join(name, str(number))) for number, (kind, item) in numbered]
    return tuple(items) if origin is tuple else items


def _object(kind: Any, value: Any, name: str) -> Any:
    """A dataclass, NamedTuple or TypedDict."""
    is_open = typing.is_typeddict(kind)
    if not is_open and isinstance(value, kind):
        return value  # it was checked when it was made
    is_made_of_fields = is_open or dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")
    if not isinstance(value, Mapping) or not is_made_of_fields:  # a tensor is not
        raise _wrong(name, f"an object ({kind.__name__})", value)
    hints, required = _fields(kind)
    renamed = getattr(kind, "_renamed", {})
    names = {key: renamed.get(key, key) for key in value}
    fields = {new: value[key] for key, new in names.items() if new is not None}
    for key in fields:
        if key not in hints and not is_open:
            near = nearest(key, list(hints))
            raise UserError(f"{_join(name, str(key))}: {kind.__name__} has no such field{near}")
    for key in hints:
        if key in fields:
            fields[key] = _typed(hints[key], fields[key], _join(name, key))
        elif key in required:
            raise UserError(f"{_join(name, key)} is missing")
    return fields if is_open else kind(**fields)


@functools.cache
def _fields(kind: Any) -> tuple[dict[str, Any], set[str]]:
    """The types of a class's fields, and the names of those without a default."""
    hints = typing.get_type_hints(kind, include_extras=True)
    if typing.is_typeddict(kind):
        plain = {key: hint.__args__[0] if typing.get_origin(hint) is NotRequired else hint
                 for key, hint in hints.items()}  # fmt: skip
        return plain, set(kind.__required_keys__)
    if dataclasses.is_dataclass(kind):
        own, missing = dataclasses.fields(kind), dataclasses.MISSING
        required = {f.name for f in own if f.default is missing and f.default_factory is missing}
        return {field.name: hints[field.name] for field in own}, required
    return hints, set(hints) - set(kind._field_defaults)


def check_fields(instance: Any, prefix: str) -> None:
    """Checks and converts the fields of a dataclass that is being made, even a frozen one."""
    kind: Any = type(instance)
    for name, hint in _fields(kind)[0].items():
        value = _typed(hint, getattr(instance, name), _join(prefix, name))
        object.__setattr__(instance, name, value)


def nearest(value: Any, choices: Iterable[Any]) -> str:
    """Returns "; did you mean ...?" with the choice most like a value, or "" if none is like it."""
    lowered = {str(choice).lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(value)[:60].lower(), lowered, 1, 0.5)
    return f"; did you mean {lowered[near[0]]!r}?" if near else ""


def _join(prefix: str, name: str) -> str:
    shown = name if name.isprintable() and len(name) <= 60 else _short.repr(name)
    return f"{prefix}.{shown}" if prefix else shown


def _wrong(name: str, wanted: str, value: Any) -> UserError:
    shown = " ".join(_short.repr(value).split())  # a tensor's has several lines
    return UserError(f"{name or 'the content'} must be {wanted}, not {shown}")
