"""setup.cfg declares what the package imports."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from heatmap import cli

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
from heatmap.cli import data as data_command, evaluate, predict, train

data = Path(sys.argv[1])
Path("tiny.py").write_text(
    "from heatmap.config import *\\n"
    "EXPERIMENT = Experiment(name='tiny', crop=Crop(height=32, width=32),"
    " model=UNet(encoder='tu-test_resnet', weights='none', width=6))"
)
tiny = ["tiny.py", "--data.root", str(data), "--data.workers", "0", "--data.validation", "0.25"]
steps = ["--train.max-steps", "1", "--train.batch", "2", "--train.compile", "off"]
off = ["--train.device", "cpu"]
image = next((data / "test" / "images").iterdir())
assert train.main([*tiny, *steps, *off, "--out", "run"]) == 0
assert evaluate.main(["run", "--device", "cpu"]) == 0
assert predict.main(["run", str(image), "--out", "drawn", "--device", "cpu"]) == 0
assert predict.main(["run", "none.mp4", "--out", "drawn", "--device", "cpu"]) == 1
assert data_command.main(["stats", str(data), "--workers", "1"]) == 1
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
    optional |= declared("options.extras_require", "full")
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
    assert "wandb is missing: run pip install wandb" in result.stdout
    assert "error: matplotlib is missing: run pip install matplotlib" in result.stderr


@pytest.mark.slow  # a wheel is built and installed, and five commands import torch
@pytest.mark.timeout(900)
def test_a_wheel_trains_predicts_and_exports_without_the_checkout() -> None:
    result = subprocess.run(
        ["bash", ROOT / "tools" / "check_install.sh", "--offline"], capture_output=True, text=True,
        check=False, env=os.environ | {"PYTHON": sys.executable},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "installed and run: heatmap_landmarks-" in result.stdout


@pytest.mark.slow  # makes an environment
def test_the_quickstart_stops_if_torch_for_cpus_cannot_be_reached(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    for name in ("tools/setup.sh", "tools/quickstart.sh", "setup.cfg"):
        shutil.copy(ROOT / name, tmp_path / name)
    nowhere = dict.fromkeys(("https_proxy", "HTTPS_PROXY", "PIP_PROXY"), "http://127.0.0.1:9")
    result = subprocess.run(
        ["bash", tmp_path / "tools" / "quickstart.sh"], capture_output=True, text=True, check=False,
        env=os.environ | nowhere | {"PYTHON": sys.executable, "HEATMAP_CPU": "1"}, timeout=250,
    )  # fmt: skip
    assert result.returncode == 1
    *_, message = result.stderr.splitlines()
    assert message.startswith("error: no torch from https://download.pytorch.org/whl/cpu")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--tyro-print-completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("evaluate", "symmetry", "kaggle15", "--optimizer.lr", "--exclude-to"):
        assert word in script
    assert cli.main(["--tyro-print-completion", "cmd"]) == 2
    if shell == "bash":
        script += "COMP_WORDS=(heatmap evaluate --re); COMP_CWORD=2; _tyro_heatmap; "
        script += "printf '%s,' ${COMPREPLY[@]}\n"
        result = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
        assert result.stdout == "--report,"
