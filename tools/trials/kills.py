"""Kills training runs at random moments, resumes them, and compares them with whole runs."""

import faulthandler
import json
import multiprocessing
import os
import random
import re
import runpy
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from heatmap.data.contest import Folder, write_landmarks
from heatmap.runtime.columns import as_lines
from heatmap.schemes import mirror_permutation

ROOT = Path(__file__).resolve().parents[2]
PHASES = "start-up", "epoch", "validation", "saving"
_SECONDS, _EPOCHS = 600, 3
_SAVING = re.compile(r"heatmap/(runs/\w+|runtime/files|training/reporting)\.py.* in (?!load|read)")
_CONTEXT = multiprocessing.get_context("forkserver")  # saves the imports
_CONTEXT.set_forkserver_preload(
    ["heatmap.cli.train", "heatmap.training.loop", "heatmap.networks.unet", __name__]
)
_DATA = 'data=Data(split="order", validation=0.7, workers={workers}), wandb=Wandb(mode="off"),'
_HEATMAP = f"""
from heatmap.config import *

EXPERIMENT = Experiment(
    name="heatmap", {_DATA}
    crop=Crop(height=32, width=32),
    augment=Augment(mirror=0.5, rotate_deg=10, scale=0.2, shift=0.1, brightness=0.2),
    model=UNet(
        architecture="linknet", encoder="tu-test_efficientnet", weights="none", width=16
    ),
    optimizer=Optimizer(lr=0.01),
    train=Train(epochs=3, batch=4, device="cpu", ema=0.9, keep_every=2, checkpoint_minutes=0),
)
"""
_DIRECT = f"""
from heatmap.config import *

EXPERIMENT = Experiment(
    name="direct", {_DATA}
    crop=Crop(height=32, width=32),
    augment=Augment(mirror=0.5, rotate_deg=10, scale=0.2, shift=0.1),
    model=Direct(encoder="tu-test_efficientnet", weights="none", hidden=16, dropout=0.2),
    stages=(Stage(epochs=1, rates=FROZEN_ENCODER), Stage(epochs=2, start="best", lr=0.0003)),
    train=Train(batch=4, device="cpu", checkpoint_minutes=0),
)
"""


class Recipe(NamedTuple):
    name: str
    experiment: str
    workers: int = 0
    processes: int = 1


RECIPES = (
    Recipe("heatmap", _HEATMAP),
    Recipe("heatmap, 2 workers", _HEATMAP, workers=2),
    Recipe("direct in stages", _DIRECT),
    Recipe("direct in stages, 2 workers", _DIRECT, workers=2),
    Recipe("heatmap, 2 processes", _HEATMAP, processes=2),
)


@dataclass
class Outcome:
    """What became of a recipe's runs."""

    recipe: str
    fired: Counter[str] = field(default_factory=Counter)  # kills, by what the process was doing
    missed: int = 0  # kills that came after the end
    resumed: int = 0  # runs that ended after their kills
    problems: list[str] = field(default_factory=list)


def torture(
    folder: Path, kills: int, seed: int, recipes: Sequence[Recipe] = RECIPES
) -> Iterator[Outcome]:
    """Yields the outcome of each recipe, with its share of the kills.

    Args:
        folder: where the contest and the runs go.
        seed: seed of the moments; their effect also depends on the machine's speed.
    """
    _make_contest(folder / "data")
    # as tests/conftest.py does
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TORCHDYNAMO_DISABLE": "1"}
    for index, recipe in enumerate(recipes):
        share = (index + 1) * kills // len(recipes) - index * kills // len(recipes)
        generator = random.Random(f"{seed} {recipe.name}")
        yield _torture(_Runs(recipe, folder / recipe.name, folder / "data"), share, generator)


def format_outcomes(outcomes: Sequence[Outcome]) -> str:
    head = ["recipe", "kills", *PHASES, "too late", "resumed to the end", "different"]
    rows = [
        [
            o.recipe, f"{o.fired.total()}", *(f"{o.fired[phase]}" for phase in PHASES),
            f"{o.missed}", f"{o.resumed}", f"{len(o.problems)}",
        ]
        for o in outcomes
    ]  # fmt: skip
    return "\n".join(as_lines([head, *rows]))


def _torture(runs: "_Runs", kills: int, generator: random.Random) -> Outcome:
    outcome, whole = Outcome(runs.recipe.name), runs.folder / "whole" / "run"
    try:
        start = time.monotonic()
        runs.finish(whole)
        seconds, expected, trial = time.monotonic() - start, end_state(whole), 0
        while outcome.fired.total() < kills and outcome.missed < 2 * kills:
            trial += 1
            run = runs.folder / f"trial {trial}" / "run"
            if _kill_repeatedly(runs, run, seconds, (outcome, kills), generator):
                runs.finish(run)
                outcome.resumed += 1
            actual = end_state(run)
            names = sorted(expected.keys() | actual.keys())
            if different := [name for name in names if expected.get(name) != actual.get(name)]:
                outcome.problems.append(f"{run} and {whole} differ in {', '.join(different)}")
    except RuntimeError as error:
        outcome.problems.append(str(error))
    return outcome


def _kill_repeatedly(
    runs: "_Runs", run: Path, seconds: float, counted: tuple[Outcome, int], generator: random.Random
) -> bool:
    """Kills a run once or more, and returns whether it still has to end."""
    outcome, kills = counted
    while outcome.fired.total() < kills:
        phase = runs.kill(run, seconds, generator)
        if not phase:
            outcome.missed += 1
            return False
        outcome.fired[phase] += 1
        if generator.random() < 0.4:
            break
    return True


class _Runs:
    """Starts the processes of one recipe's runs."""

    def __init__(self, recipe: Recipe, folder: Path, data: Path) -> None:
        self.recipe, self.folder, self._data = recipe, folder, data
        folder.mkdir()
        self._experiment = folder / "recipe.py"
        self._experiment.write_text(recipe.experiment.format(workers=recipe.workers))

    def finish(self, run: Path) -> None:
        """Starts or resumes a run and waits for its end; raises RuntimeError if it fails."""
        for process in self._start(run):
            process.join(_SECONDS)
            _check_code(process, run)

    def kill(self, run: Path, seconds: float, generator: random.Random) -> str:
        """Starts or resumes a run, and kills one of its processes at a random moment.

        One kill in five may come before the ledger is opened, the others come after.

        Args:
            seconds: duration of a whole run.

        Returns:
            What the process was doing, one of `PHASES`; empty if it ended before.
        """
        ledger, moment = run / "wandb.json", seconds * generator.random()
        before = ledger.stat().st_mtime_ns if ledger.exists() else 0
        processes = self._start(run)
        number, is_early = generator.randrange(len(processes)), generator.random() < 0.2
        victim = processes[number]
        while not is_early and victim.is_alive():
            if ledger.exists() and ledger.stat().st_mtime_ns != before:
                break
            time.sleep(0.005)
        time.sleep(0.2 * moment if is_early else 0.8 * moment * self._missing(run))
        phase = _killed(victim, _stack(run, number))
        for process in processes:
            if phase and process is not victim:
                process.terminate()  # as torchrun does
            process.join(_SECONDS)
        if not phase:
            _check_code(victim, run)
        return phase

    def _missing(self, run: Path) -> float:
        """The fraction of the epochs that is left."""
        metrics = run / "metrics.jsonl"
        return 1 - metrics.read_bytes().count(b"\n") / _EPOCHS if metrics.exists() else 1.0

    def _start(self, run: Path) -> list[BaseProcess]:
        arguments = ["--resume", run]
        if not (run / "config.json").exists():
            arguments = [self._experiment, "--data.root", self._data, "--out", run]
        run.parent.mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        processes, count = list[BaseProcess](), self.recipe.processes
        for number in range(count):
            environment = {"WANDB_RUN_ID": "torture"}
            if count > 1:  # as torchrun does
                environment |= {
                    "MASTER_ADDR": "localhost", "MASTER_PORT": f"{port}",
                    "WORLD_SIZE": f"{count}", "LOCAL_WORLD_SIZE": f"{count}",
                    "RANK": f"{number}", "LOCAL_RANK": f"{number}",
                }  # fmt: skip
            _stack(run, number).unlink(missing_ok=True)
            target = [str(argument) for argument in arguments], run, number, environment
            processes.append(_CONTEXT.Process(target=_train, args=target))
            processes[-1].start()
        return processes


def _train(arguments: list[str], run: Path, number: int, environment: dict[str, str]) -> None:
    """Runs tools/train.py; from now on SIGUSR1 writes its stack to a file."""
    log = os.open(_log(run), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of the loader's workers
    stack = _stack(run, number)
    with stack.with_suffix(".new").open("w") as file:
        faulthandler.register(signal.SIGUSR1, file, all_threads=False)
        stack.with_suffix(".new").rename(stack)
        sys.argv = ["train.py", *arguments]
        runpy.run_path(str(ROOT / "tools" / "train.py"), run_name="__main__")


def _killed(victim: BaseProcess, stack: Path) -> str:
    """Kills a process and returns what it was doing; empty if it had ended."""
    assert victim.pid
    if stack.exists() and victim.is_alive():
        os.kill(victim.pid, signal.SIGUSR1)
        for _ in range(20):
            time.sleep(0.005)
            if stack.stat().st_size:
                break
    victim.kill()
    victim.join(_SECONDS)
    if victim.exitcode != -signal.SIGKILL:
        return ""
    text = stack.read_text() if stack.exists() else ""
    if _SAVING.search(text):
        return "saving"
    if re.search(" in (_validate|add|update)$", text, re.MULTILINE):
        return "validation"
    return "epoch" if "_train_epoch" in text else "start-up"


def _check_code(process: BaseProcess, run: Path) -> None:
    if process.exitcode != 0:
        raise RuntimeError(f"{run}: exit code {process.exitcode}, see {_log(run)}")


def _log(run: Path) -> Path:
    return run.with_name("log.txt")


def _stack(run: Path, number: int) -> Path:
    return run.with_name(f"stack-{number}.txt")


def end_state(run: Path) -> dict[str, Any]:
    """The contents of all files of a finished run by name, without clocks."""
    readers = {
        ".pt": lambda path: _comparable(torch.load(path, weights_only=True)),
        ".jsonl": lambda path: [
            _comparable(json.loads(row)) for row in path.read_text().splitlines()
        ],
        ".json": lambda path: _comparable(json.loads(path.read_text())),
        ".md": lambda path: re.sub(r"\| (minutes|date) .*", "", path.read_text()),
    }
    files = sorted(path for path in run.rglob("*") if path.is_file())
    return {
        path.relative_to(run).as_posix(): readers.get(path.suffix, Path.read_bytes)(path)
        for path in files
    }


# and the commit, which may change between runs
_CLOCKS = re.compile(r"time/.*|(validation_)?seconds|minutes|date|commit")


def _comparable(value: Any) -> Any:
    """Tensors as bytes and numbers as text, so that NaN equals NaN; without clocks."""
    if isinstance(value, dict):
        return {k: _comparable(v) for k, v in value.items() if not _CLOCKS.fullmatch(str(k))}
    if isinstance(value, list | tuple):
        return [_comparable(each) for each in value]
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)}", value.numpy().tobytes()
    return repr(value)


def _make_contest(root: Path) -> None:
    """Writes 58 images of a face of 15 dots, each of its own colour, at random places."""
    folder, generator = Folder(root=root), np.random.default_rng(3)
    folder.train_images.mkdir(parents=True)
    names, mirrored = [f"{index:02}.png" for index in range(58)], mirror_permutation(15)
    half = generator.uniform(-12, 12, (15, 2))
    points = half + half[mirrored] * (-1, 1) + generator.uniform(16, 32, (len(names), 1, 2))
    for name, face in zip(names, points, strict=True):
        image = np.full((48, 48, 3), 20, np.uint8)
        for index, place in enumerate(face.round().astype(int).tolist()):
            cv2.circle(image, place, 2, (250, 15 * index, 250 - 15 * index), -1)
        (folder.train_images / name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
    write_landmarks(folder.train_table, names, points)
