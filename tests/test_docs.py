"""The documentation: its commands run, its options and links exist, its tables are up to date."""

import contextlib
import functools
import io
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import docs
from heatmap import cli
from heatmap.runtime.files import write_image

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "experiments" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FILE = re.compile(r"# (\w+\.py)\n")  # the first line of a block to save instead of running it
BLOCK = re.compile(r"^```(bash|python)([a-z ]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
POOLED = ("check", "stats", "split")
RUN_ELSEWHERE = {"export.md"}  # its example needs an ONNX file: tests/inference/test_export.py
NOT_RUN = {"network", "gpu", "camera", "long"}
TOOL = re.compile(r"tools/(?:benchmark/)?\w+\.py|heatmap")

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path) -> Iterator[tuple[str, set[str], str]]:
    """The language, the marks and the text of a page's code blocks."""
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield match[1], set(match[2].split()), match[3]


def commands(block: str) -> list[list[str]]:
    """The words of every command; comments are left out, continued lines are joined."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_tool(script: str, arguments: list[str]) -> tuple[int, str]:
    """Runs heatmap or a script of the repository here; returns its exit code and output."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(sys, "argv", [script, *arguments])
        try:
            if script == "heatmap":
                return cli.main(), output.getvalue()
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stopped:
            return int(stopped.code or 0), output.getvalue()
    return 0, output.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: data to train on, a small run twice, and images."""
    folder = tmp_path_factory.mktemp("docs")
    training = (
        "--model.width 16 --crop.height 64 --crop.width 64 --train.epochs 1 --train.batch 8 "
        "--data.workers 0 --augment.mirror 0 --wandb.mode off"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, count in (("DIR", 20), ("OTHER", 4)):
            make = ["make", name, "--count", str(count), "--test-count", "3", "--workers", "1"]
            assert run_tool("heatmap", ["data", *make, "--seed", str(count)])[0] == 0
        command = ["train", "quickstart", "--data.root", "DIR", "--out", "RUN"]
        assert run_tool("heatmap", command + training.split())[0] == 0
    shutil.copytree(folder / "RUN", folder / "RUN2")
    shutil.copytree(folder / "DIR" / "test" / "images", folder / "photos")
    for name in ("a.jpg", "b.jpg"):
        write_image(folder / name, np.full((120, 100, 3), 90, np.uint8))
    return folder


@pytest.mark.slow
@by_page
def test_commands_run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "example"}  # of the page, as in a notebook
    for language, marks, block in blocks(page):
        assert marks <= NOT_RUN
        if marks:
            continue
        if file := FILE.match(block):
            Path(file[1]).write_text(block)
        elif language == "bash":
            for words in commands(block):
                run_command(words)
        elif page.name not in RUN_ELSEWHERE:
            exec(compile(block, str(page), "exec"), names)


def run_command(words: list[str]) -> None:
    script, *arguments = words[words[0] == "python" :]
    assert TOOL.fullmatch(script), f"cannot run {words}"
    if arguments[:1] == ["submit"]:  # other pages write the same file
        Path(words[words.index("--out") + 1]).unlink(missing_ok=True)
    # each process of a pool would import torch
    is_pooled = arguments[:2] in (["data", name] for name in POOLED)
    code, _ = run_tool(script, arguments + ["--workers", "1"] * is_pooled)
    assert code == 0, f"{shlex.join(words)} exits with {code}"


@by_page
def test_options_of_commands_exist(page: Path) -> None:
    for language, _, block in blocks(page):
        for words in commands(block) if language == "bash" else []:
            scripts = [index for index, word in enumerate(words) if TOOL.fullmatch(word)]
            if not scripts:
                continue
            script, *arguments = words[scripts[0] :]
            options = {word.partition("=")[0] for word in arguments if word.startswith("--")}
            command = subcommand(arguments) if script == "heatmap" else ()
            unknown = options - options_of(script, *command)
            assert not unknown, f"{shlex.join(words)}: no option {', '.join(sorted(unknown))}"


@by_page
def test_options_of_experiments_named_in_the_text_exist(page: Path) -> None:
    named = set(re.findall(r"`(--[a-z]+\.[a-z0-9.-]+)", page.read_text(encoding="utf-8")))
    experiments = ("unet", "dense_unet", "resnet50", "resnet50_blocks")
    known = (options_of("heatmap", "train", name) for name in experiments)
    assert not named - set().union(*known)


def existing(experiment: str) -> str:
    """Another experiment for one that the page writes."""
    return "unet" if experiment.endswith(".py") and not (ROOT / experiment).exists() else experiment


def subcommand(arguments: list[str]) -> tuple[str, ...]:
    """The arguments that choose what --help of heatmap shows."""
    match arguments:
        case ["train", "--resume", *_]:
            return "train", "unet"
        case ["train", experiment, *_]:
            return "train", existing(experiment)
        case ["submit", *options] if "--average" in options:
            return "submit", "--average"
        case ["data", "show", experiment, *_]:
            return "data", "show", existing(experiment)
        case ["data", "convert" | "export", *_]:
            return tuple(arguments[:3])
        case ["data", *_]:
            return tuple(arguments[:2])
    return tuple(arguments[:1])


@functools.cache
def options_of(script: str, *arguments: str) -> set[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("COLUMNS", "200")
        code, text = run_tool(script, [*arguments, "--help"])
    assert code == 0
    return set(re.findall(r"--[a-z0-9][a-z0-9.-]*", text)) | {"--help", "--resume"}


@by_page
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@by_page
def test_option_tables_are_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert docs.with_tables(text) == text, "python tools/docs.py writes them"


def test_readme_is_short_and_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 140
    for page in [*PAGES[1:], ROOT / "CHANGELOG.md"]:
        assert f"({page.relative_to(ROOT)})" in text
