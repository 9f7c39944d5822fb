"""Experiments as JSON values with one fault each, and what each fault may mean."""

import copy
import math
import random
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple

from heatmap import config

# Any text is valid here, so a misspelt one cannot be told from another.
TEXTS = {
    "name", "root", "split_file", "exclude", "person_pattern", "boxes", "weights", "symmetry",
    "cache", "encoder", "start", "project", "entity", "group", "job_type", "tags",
}  # fmt: skip
SECTIONS = (
    "data", "crop", "augment", "model", "optimizer", "schedule", "train", "wandb", "stages",
)  # fmt: skip
KINDS = "type", "choice", "not finite", "huge", "negative", "missing", "renamed", "section"


class Mutant(NamedTuple):
    """Changed values of an experiment."""

    kind: str  # one of KINDS
    field: str  # dotted name of the changed field
    values: dict[str, Any]
    meaning: dict[str, Any] | None  # the only values that it may be read as; None: refuse it


def mutants(values: dict[str, Any], count: int, seed: int = 0) -> Iterator[Mutant]:
    """Yields mutants of the values of `config.to_dict`."""
    generator = random.Random(seed)
    while count > 0:
        if mutant := _mutant(values, generator.choice(KINDS), generator):
            count -= 1
            yield mutant


def same(values: Any, others: Any) -> bool:
    """Whether JSON values mean the same; true is not 1, but 1.0 is."""
    if isinstance(values, dict) and isinstance(others, dict):
        return values.keys() == others.keys() and all(same(values[k], others[k]) for k in values)
    if isinstance(values, list) and isinstance(others, list):
        return len(values) == len(others) and all(map(same, values, others))
    is_same_type = isinstance(values, str | bool | None) is isinstance(others, str | bool | None)
    return is_same_type and values == others


def _mutant(values: dict[str, Any], kind: str, generator: random.Random) -> Mutant | None:
    """A mutant of this kind, or None if the drawn field has none."""
    changed = copy.deepcopy(values)
    if kind == "section":
        name = generator.choice(SECTIONS)
        changed[name] = generator.choice([None, 3, "adamw", [1], True, {"": 0}])
        return Mutant(kind, name, changed, None)
    parts = [("", changed), *((name, changed[name]) for name in SECTIONS if name != "stages")]
    for number, stage in enumerate(changed["stages"]):
        parts += [(f"stages.{number}", stage)]
        parts += [(f"stages.{number}.{name}", stage[name]) for name in ("schedule", "rates")]
    prefix, part = generator.choice(parts)
    name = generator.choice([key for key in part if key not in SECTIONS and key != "rates"])
    value, field = part[name], f"{prefix}.{name}".lstrip(".")
    meaning = None
    if kind == "missing":
        del part[name]
        default = _default(prefix, values["model"]["type"], name)
        if default is not MISSING:
            meaning = copy.deepcopy(changed)
            _part(meaning, prefix)[name] = default
    elif kind == "renamed":
        part[name + generator.choice("sx_")] = part.pop(name)
    elif wrong := _wrong(kind, name, value, generator):
        part[name] = generator.choice(wrong)
    else:
        return None
    return Mutant(kind, field, changed, meaning)


def _wrong(kind: str, name: str, value: Any, generator: random.Random) -> list[Any]:
    """Values that no field with this value may have."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_list = isinstance(value, list) and bool(value) and not isinstance(value[0], str)
    if is_list and kind in ("not finite", "huge", "negative"):
        return [[*value[:-1], wrong] for wrong in _wrong(kind, name, 0.5, generator)]
    if kind == "type":
        wrong: list[Any] = [{}, {"a": 1}, [[]]]
        if is_number:
            wrong += [str(value), True, [value], float(value)]  # the last is valid if it is equal
        elif isinstance(value, bool):
            wrong += [int(value), str(value), float(value)]
        elif is_list:
            wrong += [value[:-1], [*value, 1], value[0], str(value), [str(v) for v in value]]
        elif isinstance(value, str):
            wrong += [3, 0.5, True, [value]]
        return wrong
    if kind == "choice" and isinstance(value, str) and name not in TEXTS:
        return [value[1:], value.upper(), value + "s", f" {value}", ""]
    if kind == "not finite" and is_number:
        return [math.nan, math.inf, -math.inf]
    if kind == "huge" and is_number:
        return [10**30, 1e300, 10**400]
    if kind == "negative" and is_number:
        return [-1, -0.5]
    return []


def _default(prefix: str, model: str, name: str) -> Any:
    """The default of a field as a JSON value, or MISSING."""
    if (prefix, name) == ("model", "type"):
        return "UNet"
    kinds = {f.name: f.default_factory for f in fields(config.Experiment) + fields(config.Stage)}
    kinds["model"] = getattr(config, model)
    last = prefix.rpartition(".")[2]
    kind: Any = config.Stage if last.isdigit() else kinds.get(last, config.Experiment)
    (default,) = (f.default for f in fields(kind) if f.name == name)
    default = str(default) if isinstance(default, Path) else default
    return list(default) if isinstance(default, tuple) else default


def _part(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    part: Any = values
    for key in filter(None, prefix.split(".")):
        part = part[int(key)] if isinstance(part, list) else part[key]
    return part  # type: ignore[no-any-return]
