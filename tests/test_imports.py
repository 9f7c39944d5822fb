"""Who may know whom: the rules that keep the package's rooms apart."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "heatmap"
EVERYWHERE = [*PACKAGE.rglob("*.py"), *(ROOT / "tools").glob("*.py")]
EVERYWHERE += (ROOT / "experiments").glob("*.py")


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
            whole = node.module in ("heatmap", "heatmap.contest", "experiments")
            names |= {f"{node.module}.{a.name}" for a in node.names} if whole else {node.module}
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


def rooms(path: Path) -> set[str]:
    """The parts of the package that a file imports: frame, contest, networks ..."""
    package = {name for name in imports(path) if name.split(".")[0] == "heatmap"}
    return {name.split(".")[1] for name in package if "." in name}


def importers(library: str) -> set[str]:
    """Files that import the library, relative to the repository."""
    return {
        str(path.relative_to(ROOT))
        for path in EVERYWHERE
        if library in {name.split(".")[0] for name in imports(path)}
    }


def files_of(room: str) -> list[Path]:
    folder = PACKAGE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]


# Every part of the package that has few friends, and these.
ALLOWED = {
    "frame": set(),
    "codec": set(),
    "losses": set(),
    "calibration": {"files"},
    "compiling": set(),
    "draw": set(),
    "annotate": {"annotate", "contest", "draw", "files", "frame", "predictor", "topology"},
    "config": set(),
    "topology": set(),
    "shape": {"contest"},
    "symmetry": {"columns", "contest", "files", "shape", "topology"},
    "pose": {"contest", "shape"},
    "stopwatch": set(),
    "files": set(),
    "html": set(),
    "per_image": {"files"},
    "columns": set(),
    "distributed": set(),
    "contest": {"contest", "files"},
    "formats": {"contest", "files", "formats"},
    "maps": {"codec", "compiling", "losses"},
    "networks": {"networks", "codec", "compiling", "config", "frame", "losses", "maps"},
    "augment": {"config", "frame"},
    "crop_cache": {"contest"},
    "samples": {"config", "contest", "crop_cache", "frame"},
    "mirror": {"files"},
    "schedule": {"config"},
    "record": {"files", "mirror"},
    "compare": {"columns", "compare", "config", "contest", "files", "html", "per_image", "record"},
    "parallel": set(),
    "duplicates": set(),
    "card": {"checkpoint", "columns", "config", "files", "record", "topology"},
    "check": {"columns", "contest", "duplicates", "parallel", "samples"},
    "stored_split": {"contest", "parallel"},
    "stats": {"config", "contest", "files", "parallel", "pose", "samples"},
}


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_knows_only_its_friends(room: str) -> None:
    for path in files_of(room):
        strangers = rooms(path) - ALLOWED[room]
        assert not strangers, f"{path.relative_to(ROOT)} imports {sorted(strangers)}"


def test_only_the_loop_sees_networks_and_contest() -> None:
    both = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if {"networks", "contest"} <= rooms(path) and path.parent.name != "bench"
    }
    assert both <= {"run.py", "train.py", "predict.py", "evaluate.py", "pictures.py"}


def test_only_networks_know_segmentation_models() -> None:
    found = importers("segmentation_models_pytorch")
    assert found
    assert all(name.startswith("heatmap/networks/") for name in found)


def test_only_the_command_and_the_tools_know_tyro() -> None:
    found = importers("tyro")
    assert "heatmap/command.py" in found
    assert all(name == "heatmap/command.py" or name.startswith("tools/") for name in found)


def test_only_the_mirror_knows_wandb() -> None:
    assert importers("wandb") == {"heatmap/mirror.py"}
    assert "wandb" not in imports(PACKAGE / "mirror.py", at_module_level=True)


def test_only_videos_know_av_and_only_the_camera_knows_windows() -> None:
    assert importers("av") == {"heatmap/annotate/video.py"}
    assert importers("tkinter") == {"heatmap/annotate/camera.py"}


def test_only_the_export_knows_onnx() -> None:
    assert importers("onnxruntime") == {"heatmap/export.py"}
    found = imports(PACKAGE / "export.py", at_module_level=True)
    assert "onnxruntime" not in {name.split(".")[0] for name in found}


def test_only_the_plots_know_matplotlib() -> None:
    assert importers("matplotlib") == {"heatmap/stats.py"}
    found = imports(PACKAGE / "stats.py", at_module_level=True)
    assert "matplotlib" not in {name.split(".")[0] for name in found}


@pytest.mark.parametrize("room", ["config", "command"])
def test_the_command_line_starts_without_torch(room: str) -> None:
    found = imports(PACKAGE / f"{room}.py", at_module_level=True)
    assert found
    slow = {"torch", "cv2", "numpy", "kornia", "wandb", "segmentation_models_pytorch"}
    assert not {name.split(".")[0] for name in found} & slow
    package = {name for name in found if name.split(".")[0] == "heatmap"}
    assert package <= {"heatmap", "heatmap.config", "heatmap.files"}


def test_there_is_no_room_for_odds_and_ends() -> None:
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


def test_an_import_hidden_in_a_function_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text(
        "import json\ndef f():\n    from heatmap import frame, contest\n    import tyro.x\n"
    )
    assert rooms(path) == {"frame", "contest"}
    assert imports(path) == {"json", "heatmap.frame", "heatmap.contest", "tyro.x"}
    assert imports(path, at_module_level=True) == {"json"}
