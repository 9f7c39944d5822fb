"""The order of the packages: who may import whom."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "heatmap"
EVERYWHERE = [*PACKAGE.rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
EVERYWHERE += (ROOT / "experiments").glob("*.py")

# The ideas, one file each, and what each may import of the others.
IDEAS: dict[str, set[str]] = {
    "errors": set(),
    "frame": set(),
    "codec": set(),
    "losses": set(),
    "draw": set(),
    "schemes": set(),
    "shape": set(),
    "config": set(),
    "maps": {"codec", "losses", "runtime"},
}
# Every package may import those before it, and the ideas.
PACKAGES = ["runtime", "data", "networks", "runs", "inference", "evaluation", "training"]
# Curation stands beside training: it imports what training may, and training does not import it.
BELOW = {name: set(PACKAGES[:place]) for place, name in enumerate(PACKAGES)}
BELOW["curation"] = set(PACKAGES) - {"training"}


def imports(path: Path, *, at_module_level: bool = False) -> set[str]:
    """Full names of the modules that a file imports, also those only for type checking."""
    tree = ast.parse(path.read_text())
    nodes = _run_on_import(tree) if at_module_level else ast.walk(tree)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively, which hides what it imports"
            assert node.module
            # `from heatmap import frame` imports heatmap.frame
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when the module is imported: no function bodies, nothing only for type checking."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _run_on_import(child)


def parts(path: Path) -> set[str]:
    """The ideas and packages of heatmap that a file imports: frame, data, networks ..."""
    package = {name for name in imports(path) if name.split(".")[0] == "heatmap"}
    return {name.split(".")[1] for name in package if "." in name}


def importers(library: str) -> set[str]:
    """Files that import the library, relative to the repository."""
    return {
        str(path.relative_to(ROOT))
        for path in EVERYWHERE
        if library in {name.split(".")[0] for name in imports(path)}
    }


@pytest.mark.parametrize("package", BELOW)
def test_packages_import_one_way(package: str) -> None:
    allowed = {package} | set(IDEAS) | BELOW[package]
    if package == "runtime":
        allowed -= set(IDEAS) - {"errors"}
    files = sorted((PACKAGE / package).rglob("*.py"))
    assert files
    for path in files:
        against = parts(path) - allowed - {"__version__"}
        assert not against, f"{path.relative_to(ROOT)} imports {sorted(against)}"


@pytest.mark.parametrize("idea", IDEAS)
def test_ideas_stand_alone(idea: str) -> None:
    against = parts(PACKAGE / f"{idea}.py") - IDEAS[idea] - {"errors"}
    assert not against, f"{idea}.py imports {sorted(against)}"


def test_nothing_else_lies_in_the_package() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    assert found - {"__pycache__"} == {*IDEAS, *BELOW, "cli", "__init__", "__main__"}


def test_nothing_imports_the_command_line() -> None:
    for path in PACKAGE.rglob("*.py"):
        inside = path.is_relative_to(PACKAGE / "cli") or path.name in ("cli.py", "__main__.py")
        assert inside or "cli" not in parts(path), path


@pytest.mark.parametrize(
    ("library", "where"),
    [
        ("segmentation_models_pytorch", "heatmap/networks/"),
        ("wandb", "heatmap/runs/wandb.py"),
        ("tyro", ("heatmap/cli", "tools/")),
        ("av", "heatmap/inference/media/video.py"),
        ("tkinter", "heatmap/inference/media/camera.py"),
        ("onnxruntime", "heatmap/inference/export.py"),
        ("matplotlib", "heatmap/curation/stats.py"),
    ],
)
def test_one_place_knows_a_library(library: str, where: str | tuple[str, ...]) -> None:
    found = importers(library)
    assert found
    assert all(name.startswith(where) for name in found), found


@pytest.mark.parametrize("library", ["wandb", "onnxruntime", "matplotlib", "av"])
def test_what_few_need_is_imported_late(library: str) -> None:
    for path in PACKAGE.rglob("*.py"):
        found = {name.split(".")[0] for name in imports(path, at_module_level=True)}
        assert library not in found or library == "av", path


def test_there_is_no_place_for_odds_and_ends() -> None:
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


def test_an_import_hidden_in_a_function_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text("import json\ndef f():\n    from heatmap import frame\n    import tyro.x\n")
    assert parts(path) == {"frame"}
    assert imports(path) == {"json", "heatmap.frame", "tyro.x"}
    assert imports(path, at_module_level=True) == {"json"}
