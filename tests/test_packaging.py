"""setup.cfg declares what the package imports."""

import ast
import configparser
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Trains a step, evaluates and predicts without libraries that are rarely used.
WITHOUT = """
import sys
from importlib.machinery import PathFinder
from pathlib import Path

MISSING = "wandb", "av", "dsntnn", "matplotlib", "onnx", "onnxruntime"

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in MISSING else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
from heatmap.cli import evaluate, predict, train

data = Path(sys.argv[1])
Path("tiny.py").write_text(
    "from heatmap.config import *\\n"
    "EXPERIMENT = Experiment(name='tiny', crop=Crop(height=32, width=32),"
    " model=UNet(encoder='tu-test_resnet', weights='none', width=6))"
)
tiny = ["tiny.py", "--data.root", str(data), "--data.workers", "0", "--data.validation", "0.25"]
steps = ["--train.max-steps", "1", "--train.batch", "2", "--train.compile", "off"]
off = ["--train.device", "cpu", "--wandb.mode", "off"]
image = next((data / "test" / "images").iterdir())
assert train.main([*tiny, *steps, *off, "--out", "run"]) == 0
assert evaluate.main(["run", "--device", "cpu"]) == 0
assert predict.main(["run", str(image), "--out", "drawn", "--device", "cpu"]) == 0
assert predict.main(["run", "none.mp4", "--out", "drawn", "--device", "cpu"]) == 1
"""


def declared(section: str, option: str) -> set[str]:
    """Names of the distributions in an option of setup.cfg, in lower case and with dashes."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    names = re.findall(r"^[\w.-]+", setup[section][option], re.MULTILINE)
    return {name.lower().replace("_", "-") for name in names}


def imported() -> set[str]:
    """Distributions of the modules that the package imports, at the top or inside functions."""
    modules = set[str]()
    for path in (ROOT / "heatmap").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.split(".")[0])
    distributions = packages_distributions()
    others = modules - sys.stdlib_module_names - {"heatmap", "experiments"}
    return {distributions[name][0].lower().replace("_", "-") for name in others}


def test_every_imported_library_is_declared() -> None:
    required = declared("options", "install_requires")
    optional = declared("options.extras_require", "export")
    assert imported() <= required | optional


def test_libraries_of_the_benchmark_are_not_required() -> None:
    bench_only = declared("options.extras_require", "bench")
    assert not bench_only & (declared("options", "install_requires") | imported())


def test_training_evaluation_and_prediction_need_no_rarely_used_library(
    tiny_contest: Path, tmp_path: Path
) -> None:
    (tmp_path / "none.mp4").touch()
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT, tiny_contest], cwd=tmp_path, capture_output=True,
        text=True, timeout=200, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "drawn" / "points.csv").is_file()
    assert "none.mp4: reading videos needs PyAV: run pip install av" in result.stderr
