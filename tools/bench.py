"""Races heatmap against its peers and the machine's limits."""

import itertools
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import tyro

from heatmap.cli.running import parse_and_call, run_command
from heatmap.config import Count, Index, Positive

Size = Annotated[int, "[8, 4096]"]


def bench(
    what: Annotated[
        Literal["decode", "loss", "step", "predict", "data", "table", "all"], tyro.conf.Positional
    ] = "all",
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    landmarks: Count = 971,
    size: tuple[Size, ...] = (),
    batch: tuple[Count, ...] = (),
    encoder: str = "resnet34",
    rows: Count = 20_000,
    seconds: Positive = 4.0,
    busy_cores: Index = 0,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    markdown: bool = False,
) -> None:
    """Measure time, memory and error of one race or of all.

    A race takes a minute at most, besides compiling. If a contender runs out of memory, its row
    reports that.

    Args:
        what: decode or loss of heatmaps, a training step, prediction, reading images (data), or
            reading the training table.
        landmarks: landmarks per image.
        size: heatmap height and width for decode and loss, which accept several; default 64.
        batch: images per batch, several for decode and loss; default 8, and on CUDA 64.
        encoder: encoder for step, predict and data.
        rows: rows of the table; the contest's has 393930 and needs 6 GB of disk space.
        seconds: measuring time per contender.
        busy_cores: number of cores that other processes keep busy during the races.
        json_file: file to write the results to, after each race.
        markdown: print Markdown tables.
    """
    from benchmark.measuring import Settings, format_results, spinning
    from benchmark.on_networks import step_profile
    from benchmark.races import RACES

    from heatmap.runtime import machine
    from heatmap.runtime.files import write_json

    torch_device = machine.chosen_device(device)
    on_gpu = torch_device.type == "cuda"
    sizes, batches = size or (64,), batch or ((64,) if on_gpu else (8,))
    about = machine.describe(torch_device)
    print(
        f"{about['processor']}, {about['cpu_cores']} cores, torch {about['torch']} with "
        f"{about['threads']} threads, {about['date']}, commit {about['commit']}"
        f"{f', busy cores: {busy_cores}' if busy_cores else ''}\n"
    )
    results = []
    for name in RACES if what == "all" else (what,):
        combinations = list(itertools.product(batches, sizes))
        for num_images, map_size in (
            combinations if name in ("decode", "loss") else combinations[:1]
        ):
            settings = Settings(
                device=torch_device,
                batch=num_images,
                landmarks=landmarks,
                size=map_size,
                seconds=seconds,
                encoder=encoder,
                rows=rows,
            )
            with spinning(busy_cores):
                for race_results in RACES[name](settings):
                    print(format_results(race_results, markdown=markdown), flush=True)
                    results += [asdict(result) for result in race_results]
                    if json_file is not None:
                        write_json(json_file, {"machine": about, "results": results})
        if name == "step" and on_gpu:
            print(step_profile(settings))


if __name__ == "__main__":
    sys.exit(run_command(lambda: parse_and_call(bench, "bench.py", sys.argv[1:])))
