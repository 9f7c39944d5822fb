"""setup.cfg declares what the package imports."""

import ast
import configparser
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


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
