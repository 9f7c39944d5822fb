"""Compare runs: settings, learning curves, and errors image by image."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from heatmap.cli.running import parse_and_call, run_command
from heatmap.errors import UsageError


def compare(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN RUN ...")],
    *,
    html: Path | None = None,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Compare runs with the first one, on the images that validated in all of them.

    Differences come with a 95 % interval, from a bootstrap over people (over images if file names
    do not identify people).

    Args:
        runs: run folders, or evaluations inside them (RUN/evaluation-NAME). wandb:ENTITY/PROJECT/ID
            is a run in Weights & Biases.
        html: also write the comparison as a page with charts to this file.
        json_file: also write the comparison as JSON to this file.
    """
    if len(runs) < 2:
        raise UsageError("name at least two runs")
    from heatmap.evaluation import compare
    from heatmap.runs.wandb import fetch
    from heatmap.runtime.files import write_json, write_text

    with tempfile.TemporaryDirectory() as downloads:
        folders = []
        for run in runs:
            path = str(run).removeprefix("wandb:")
            folders.append(fetch(path, Path(downloads)) if path != str(run) else run)
        comparison = compare.compare_runs(compare.read_runs(folders))
    print(compare.format_comparison(comparison))
    if html is not None:
        write_text(html, compare.comparison_page(comparison))
    if json_file is not None:
        write_json(json_file, comparison)


def main(arguments: Sequence[str]) -> int:
    return run_command(lambda: parse_and_call(compare, "heatmap compare", arguments))
