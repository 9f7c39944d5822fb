"""Hold runs against each other: what differs, how they learned, which is better and how surely."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from heatmap.cli.running import run_command
from heatmap.errors import UsageError


def compare(
    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN RUN ...")],
    *,
    html: Path | None = None,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Compare runs on the images that validated in all of them.

    Every run is held against the first one, image by image; the bootstrap over people (over
    images, where file names tell no people) says how far chance reaches.

    Args:
        runs: run folders, or evaluations of them (RUN/evaluation-NAME, as evaluate.py leaves them
            for other data, --tta and so on); wandb:ENTITY/PROJECT/ID is a run in Weights & Biases.
        html: also write a page with charts here.
        json_file: also write everything that is told here.
    """
    if len(runs) < 2:
        raise UsageError("name at least two runs")
    from heatmap.evaluation import compare
    from heatmap.runs.wandb import fetch
    from heatmap.runtime.files import write_json, write_text

    with tempfile.TemporaryDirectory() as fetched:
        folders = []
        for run in runs:
            path = run.removeprefix("wandb:")
            folders.append(fetch(path, Path(fetched)) if path != run else Path(run))
        told = compare.compare_runs(compare.read_runs(folders))
    print(compare.format_comparison(told))
    if html is not None:
        write_text(html, compare.comparison_page(told))
    if json_file is not None:
        write_json(json_file, told)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return run_command(lambda: tyro.cli(compare, prog="compare.py", args=arguments))
