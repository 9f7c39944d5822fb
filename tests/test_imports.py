"""The order of the packages: which may import which."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "heatmap"
EVERYWHERE = [*PACKAGE.rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
EVERYWHERE += (ROOT / "experiments").glob("*.py")

# The top-level modules, and which of each other they may import.
MODULES: dict[str, set[str]] = {
    "errors": set(),
    "frame": set(),
    "codec": set(),
    "losses": {"runtime"},
    "draw": set(),
    "schemes": {"runtime"},
    "shape": set(),
    "config": {"runtime"},
    "maps": {"codec", "losses", "runtime"},
}
# Every package may import these modules and the packages before it.
PACKAGES = ["runtime", "data", "networks", "runs", "inference", "evaluation", "training"]
# Curation may import the same as training; neither imports the other.
BELOW = {name: set(PACKAGES[:place]) for place, name in enumerate(PACKAGES)}
BELOW["curation"] = set(PACKAGES) - {"training"}


def imports(path: Path, *, at_module_level: bool = False) -> set[str]:
    """Full names of the modules that a file imports, including those for type checking."""
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
    """Nodes that run on import: no function bodies, nothing for type checking only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _run_on_import(child)


def parts(path: Path) -> set[str]:
    """The modules and packages of heatmap that a file imports: frame, data, networks ..."""
    package = {name for name in imports(path) if name.split(".")[0] == "heatmap"}
    return {name.split(".")[1] for name in package if "." in name}


def importers(library: str) -> set[str]:
    """Paths of the files that import the library, relative to the repository."""
    return {
        str(path.relative_to(ROOT))
        for path in EVERYWHERE
        if library in {name.split(".")[0] for name in imports(path)}
    }


@pytest.mark.parametrize("package", BELOW)
def test_packages_import_one_way(package: str) -> None:
    allowed = {package} | set(MODULES) | BELOW[package]
    if package == "runtime":
        allowed -= set(MODULES) - {"errors"}
    files = sorted((PACKAGE / package).rglob("*.py"))
    assert files
    for path in files:
        forbidden = parts(path) - allowed - {"__version__"}
        assert not forbidden, f"{path.relative_to(ROOT)} imports {sorted(forbidden)}"


@pytest.mark.parametrize("module", MODULES)
def test_top_level_modules_import_only_each_other(module: str) -> None:
    forbidden = parts(PACKAGE / f"{module}.py") - MODULES[module] - {"errors"}
    assert not forbidden, f"{module}.py imports {sorted(forbidden)}"


def test_package_has_no_other_modules() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    assert found - {"__pycache__"} == {*MODULES, *BELOW, "cli", "__init__", "__main__"}


def test_nothing_imports_the_command_line() -> None:
    for path in PACKAGE.rglob("*.py"):
        inside = path.is_relative_to(PACKAGE / "cli") or path.name in ("cli.py", "__main__.py")
        assert inside or "cli" not in parts(path), path


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("segmentation_models_pytorch", "heatmap/networks/"),
        ("wandb", "heatmap/runs/wandb.py"),
        ("tyro", ("heatmap/cli", "tools/")),
        ("av", ("heatmap/inference/media/video.py", "tools/trials/")),
        ("tkinter", "heatmap/inference/media/camera.py"),
        ("onnxruntime", "heatmap/inference/export.py"),
        ("matplotlib", "heatmap/curation/stats.py"),
    ],
)
def test_library_is_imported_in_one_place(library: str, allowed: str | tuple[str, ...]) -> None:
    found = importers(library)
    assert found
    assert all(name.startswith(allowed) for name in found), found


@pytest.mark.parametrize("library", ["wandb", "onnxruntime", "matplotlib", "av"])
def test_rarely_used_libraries_are_imported_late(library: str) -> None:
    for path in PACKAGE.rglob("*.py"):
        found = {name.split(".")[0] for name in imports(path, at_module_level=True)}
        assert library not in found, path


def test_there_are_no_utility_modules() -> None:
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


def test_imports_inside_functions_are_found(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text("import json\ndef f():\n    from heatmap import frame\n    import tyro.x\n")
    assert parts(path) == {"frame"}
    assert imports(path) == {"json", "heatmap.frame", "tyro.x"}
    assert imports(path, at_module_level=True) == {"json"}
