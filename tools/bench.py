"""Race heatmap against its peers and the machine's limits."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from heatmap.cli.running import run_command
from heatmap.errors import UsageError


def bench(
    what: Annotated[
        Literal["decode", "loss", "step", "predict", "data", "table", "all"], tyro.conf.Positional
    ] = "all",
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    landmarks: int = 971,
    size: tuple[int, ...] = (),
    batch: tuple[int, ...] = (),
    encoder: str = "resnet34",
    rows: int = 20_000,
    seconds: float = 4.0,
    busy_cores: int = 0,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    markdown: bool = False,
) -> None:
    """Measure time, memory and error of one part or of all.

    Args:
        what: decode and loss on maps, a training step, prediction, or reading images or the
            training table.
        landmarks: maps an image.
        size: of the heatmaps of decode and loss; on CUDA 64 and 128 unless given, else 64.
        batch: images; on CUDA 64 and 256 for decode and loss and 64 else, on CPUs 8.
        encoder: of step, predict and data.
        rows: of the table; the contest's has 393930, and takes 6 GB on disk for the while.
        seconds: of measuring, for every contender.
        busy_cores: this many other processes spin meanwhile, each on a core of its own.
        json_file: also write the results here.
        markdown: print tables for a README.
    """
    from benchmark.measuring import Settings, format_results, spinning, to_json
    from benchmark.on_networks import step_profile
    from benchmark.races import RACES

    from heatmap.runtime import machine
    from heatmap.runtime.files import write_json
    from heatmap.runtime.machine import chosen_device

    if landmarks < 1 or any(n < 1 for n in batch) or seconds <= 0:
        raise UsageError("--landmarks, --batch and --seconds must be positive")
    if any(n < 8 for n in size):
        raise UsageError("--size must be at least 8; smaller maps show no heatmap")
    if rows < 1:
        raise UsageError(f"--rows must be positive, not {rows}")
    if busy_cores < 0:
        raise UsageError(f"--busy-cores must not be negative, not {busy_cores}")
    where = chosen_device(device)
    on_gpu = where.type == "cuda"
    sizes = size or ((64, 128) if on_gpu else (64,))
    batches = batch or ((64, 256) if on_gpu else (8,))
    about = machine.describe(where)
    print(
        f"{about['processor']}, {about['cpu_cores']} cores, torch {about['torch']} with "
        f"{about['threads']} threads, {about['date']}, commit {about['commit']}"
        f"{f', busy cores: {busy_cores}' if busy_cores else ''}\n"
    )
    results = []
    for name in RACES if what == "all" else (what,):
        on_maps = name in ("decode", "loss")
        for some_batch in batches if on_maps else batches[:1]:
            for some_size in sizes if on_maps else sizes[:1]:
                settings = Settings(
                    device=where,
                    batch=some_batch,
                    landmarks=landmarks,
                    size=some_size,
                    seconds=seconds,
                    encoder=encoder,
                    rows=rows,
                )
                with spinning(busy_cores):
                    for part in RACES[name](settings):
                        print(format_results(part, markdown=markdown), flush=True)
                        results += part
        if name == "step" and on_gpu:
            print(step_profile(settings))
    if json_file is not None:
        write_json(json_file, {"machine": about, "results": to_json(results)})


if __name__ == "__main__":
    sys.exit(run_command(lambda: tyro.cli(bench)))
