"""Kills training runs and damages input files; nothing may be lost, or be read wrongly."""

import os
import shutil
import sys
import tempfile
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from heatmap.cli.running import parse_and_call, run_command
from heatmap.config import Index, Seed
from heatmap.errors import UsageError


def torture(*, kills: Index = 0, inputs: Index = 0, seed: Seed = 0) -> None:
    """Kill training runs at random moments, and read damaged files.

    Prints a table of what happened. On a fault, exits with code 1 and keeps its files.

    Args:
        kills: number of SIGKILLs, over all recipes. Every killed run is resumed to its end and
            compared with an uninterrupted one, file by file and bit by bit.
        inputs: number of damaged files. Each must be refused in one line, or be read as another
            library reads it.
        seed: seed of the moments and the damage. Input N of a seed is always the same; a moment
            also depends on the machine's speed.
    """
    if not kills + inputs:
        raise UsageError("nothing to do; pass --kills N or --inputs N")
    # before torch is imported: one thread each, no network and no compiler
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1"}
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    if not (_torture_runs(folder, kills, seed) and _torture_readers(folder, inputs, seed)):
        sys.exit(f"error: faults found; their files are in {folder}")
    shutil.rmtree(folder)


def _torture_runs(folder: Path, kills: int, seed: int) -> bool:
    if not kills:
        return True
    from trials.kills import RECIPES, format_outcomes, torture

    (folder / "runs").mkdir()
    recipes = torture(folder / "runs", kills, seed)
    outcomes = list(tqdm(recipes, "recipes", len(RECIPES), disable=None))
    print(format_outcomes(outcomes), *chain(*(o.problems for o in outcomes)), sep="\n")
    return not any(outcome.problems for outcome in outcomes)


def _torture_readers(folder: Path, count: int, seed: int) -> bool:
    if not count:
        return True
    from trials.inputs import FAULTS, format_verdicts, fuzz
    from trials.subjects import subjects

    inputs = fuzz(folder / "inputs", count, seed, subjects())
    verdicts = list(tqdm(inputs, "inputs", count, disable=None))
    print(format_verdicts(verdicts))
    return not any(verdict.kind in FAULTS for verdict in verdicts)


if __name__ == "__main__":
    sys.exit(run_command(lambda: parse_and_call(torture, "torture.py", sys.argv[1:])))
