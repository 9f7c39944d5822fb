"""Values are checked against type hints, down to the last field."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import pytest

from heatmap.errors import UserError
from heatmap.runtime.validate import Function, check_fields, parse_json, typed


class Point(NamedTuple):
    x: float
    y: float = 0.0


ORIGIN = Point(0.0)


@dataclass(frozen=True)
class Circle:
    radius: Annotated[float, "(0, 10]"]
    centre: Point = ORIGIN

    def __post_init__(self) -> None:
        check_fields(self, "circle")


@dataclass(frozen=True)
class Square:
    sides: tuple[int, ...] = ()
    marks: dict[str, Path | None] = field(default_factory=dict)


class Drawing(TypedDict):
    shapes: list[Circle | Square]
    colour: NotRequired[Literal["red", "green"] | Literal[1, 2] | None]


def test_objects_lists_and_paths_are_built() -> None:
    text = """{"shapes": [{"radius": 2, "centre": {"x": 1}},
                           {"type": "Square", "sides": [1, 2], "marks": {"a": "b/c", "d": null}}],
               "colour": null, "later": [{"anything": true}]}"""
    assert parse_json(text, Drawing) == {
        "shapes": [Circle(2, Point(1)), Square((1, 2), {"a": Path("b/c"), "d": None})],
        "colour": None,
        "later": [{"anything": True}],
    }


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"the content must be an object \(Drawing\), not \[\]"),
        ({}, "shapes is missing"),
        ({"shapes": "ab"}, "shapes must be a list, not 'ab'"),
        ({"shapes": [{}]}, "shapes.0.radius is missing"),
        ({"shapes": [{"radius": 0}]}, "shapes.0.radius must be above 0, not 0"),
        ({"shapes": [{"radius": 11}]}, "shapes.0.radius must be at most 10, not 11"),
        ({"shapes": [{"radius": True}]}, "shapes.0.radius must be a number, not True"),
        ({"shapes": [{"radios": 1}]}, "shapes.0.radios: Circle has no such .*; did you mean 'ra"),
        ({"shapes": [{"radius": 1, "centre": {"x": None}}]}, "shapes.0.centre.x must be a number"),
        ({"shapes": [{"radius": 1, "centre": [1, 2]}]}, r"centre must be an object \(Point\)"),
        ({"shapes": [{"type": "square"}]}, "0.type must be Circle or Square, .* mean 'Square'"),
        ({"shapes": [{"type": "Square", "sides": [1.0]}]}, "sides.0 must be an integer, not 1.0"),
        ({"shapes": [{"type": "Square", "marks": {"a": 1}}]}, "marks.a must be a path, not 1"),
        ({"shapes": [], "colour": "rad"}, "colour must be red, green, 1 or 2, not 'rad'; .*'red'"),
        ({"shapes": [], "colour": "x" * 9999}, r"not 'xxx.{30,60}xxx'$"),
        ({"shapes": [{"x" * 9999: 1}]}, r"shapes.0.'xxx.{30,60}xxx': Circle has no such field$"),
    ],
)
def test_the_wrong_field_is_named_with_what_was_expected(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        typed(Drawing, value)


def test_a_dataclass_checks_its_own_fields() -> None:
    centre: Any = {"x": 1, "y": 2}
    assert Circle(1, centre).centre == Point(1, 2)
    with pytest.raises(UserError, match=r"^circle\.radius must be a number, not nan"):
        Circle(float("nan"))


Loss = Literal["mse", "mae"] | Function


@pytest.mark.parametrize("value", ["mse", "my/file.py:loss", "package.module:loss"])
def test_a_function_is_named_by_its_file_or_module(value: str) -> None:
    assert typed(Loss, value) == value


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Loss, "msa", "must be mse, mae or FILE.py:FUNCTION, not 'msa'; did you mean 'mse'"),
        (Loss, "mine.py:", "must be FILE.py:FUNCTION or MODULE:FUNCTION, not 'mine.py:'"),
        (Loss, len, "must be mse, mae or FILE.py:FUNCTION, not <built-in"),
        (Function | None, "mine.py", "must be FILE.py:FUNCTION or MODULE:FUNCTION, not 'mine.py'"),
        (Function | None, 3, "must be text, not 3"),
    ],
)
def test_what_names_no_function_is_refused(kind: Any, value: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        typed(kind, value, "loss")
    assert message in str(error.value)
