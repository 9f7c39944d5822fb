"""Functions that an experiment names are imported from files and modules."""

import math
from pathlib import Path

import pytest

from heatmap.errors import UserError
from heatmap.runtime.functions import imported, module_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / tmp_path.name
    folder.mkdir()
    (folder / "mine.py").write_text(
        f"from {folder.name}.other import two\n\ndef power(x):\n    return x ** (two + 1)\n"
    )
    (folder / "other.py").write_text("two = 2\n")
    (folder / "broken.py").write_text("1 / 0")
    return folder


def test_a_function_of_a_file_or_a_module_is_imported(folder: Path) -> None:
    assert imported("math:sqrt") is math.sqrt
    by_file, by_module = imported(f"{folder}/mine.py:power"), imported(f"{folder.name}.mine:power")
    assert by_file(2) == by_module(2) == 8


def test_a_file_that_is_loaded_is_not_run_again(folder: Path) -> None:
    module = module_of(folder / "mine.py")
    assert imported(f"{folder.name}/mine.py:power") is module.power


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("none.py:power", "none.py: FileNotFoundError"),
        ("no_such_module:power", "No module named 'no_such_module'"),
        ("math:power", "math has no function power"),
        ("math:pi", "math has no function pi"),
        ("broken.py:power", "broken.py: ZeroDivisionError: division by zero"),
    ],
)
def test_what_cannot_be_imported_is_named(folder: Path, name: str, problem: str) -> None:
    name = f"{folder}/{name}" if ".py" in name else name
    with pytest.raises(UserError) as error:
        imported(name)
    assert str(error.value).startswith(f"cannot import the function {name}: ")
    assert problem in str(error.value) and "\n" not in str(error.value)
