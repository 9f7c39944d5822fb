import itertools
import json
import operator
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark import gpu, measuring, readers
from benchmark.on_maps import SIGMA, WEIGHT_MAP, paper_loss
from benchmark.races import RACES

from heatmap import losses, maps
from heatmap.data.contest import image_paths, read_landmarks

Tool = Callable[..., int]


@pytest.mark.slow
def test_the_command_races_peers_and_limits(
    tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    small = "--batch", 2, "--landmarks", 7, "--size", 16, "--seconds", 0.01
    options = "--device", "cpu", "--busy-cores", 1, "--json", out, "--markdown"
    assert tool("bench", "decode", *small, *options) == 0
    output = capsys.readouterr().out
    assert "busy cores: 1" in output
    assert "| decode 2×7×16×16" in output
    results = json.loads(out.read_text())["results"]
    assert [r["kind"] for r in results].count("peer") == 2
    by_name = {r["name"]: r for r in results}
    ours, peer = by_name["window soft-argmax"], by_name["kornia spatial_soft_argmax2d"]
    assert float(ours["error"].split()[0]) < float(peer["error"].split()[0])
    best = min(r["milliseconds"] for r in results if r["kind"] == "peer")
    assert ours["times_best_peer"] == pytest.approx(best / ours["milliseconds"])


SMALL = measuring.Settings(
    device=torch.device("cpu"),
    batch=2,
    landmarks=5,
    size=16,
    seconds=0.01,
    encoder="tu-test_resnet",
    rows=70,
)


@pytest.mark.slow
@pytest.mark.parametrize("race", ["loss", "step", "predict", "data", "table"])
def test_every_race_runs(race: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # starting separate processes would take most of the time
    monkeypatch.setattr(readers, "alone", lambda *arguments: readers.measured(*arguments))
    for results in RACES[race](SMALL):
        assert all(r.milliseconds and r.milliseconds > 0 for r in results)
        assert any(r.kind == "ours" for r in results)
        for result in results:
            if result.error:
                assert float(result.error.split()[0]) < (3 if race == "data" else 1e-3)
        assert results[0].race in measuring.format_results(results, markdown=False)


@pytest.mark.slow
def test_every_gpu_section_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(out), "--device", "cpu", "--tiny"])
    assert gpu.main() == 0
    figures = (out / "figures.log").read_text()
    assert figures.endswith("done\n")
    for name in gpu.SECTIONS:
        assert f"== {name}\n" in figures


def test_a_failed_section_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(bench: gpu.Bench) -> None:
        raise RuntimeError("no such kernel")

    sections = {"broken": broken, "good": lambda bench: bench.log("a figure")}
    monkeypatch.setattr(gpu, "SECTIONS", sections)
    bench = gpu.Bench(tmp_path, torch.device("cpu"), False)
    assert not gpu.run_sections(bench, list(sections))
    figures = (tmp_path / "figures.log").read_text()
    assert "broken failed: RuntimeError: no such kernel" in figures and "a figure" in figures
    assert gpu.run_sections(bench, ["good"])


def test_the_gpu_script_refuses_a_missing_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 2 and "torch finds no GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("successes", [0, 1, 2])  # then memory runs out, in warm-up or timing
def test_running_out_of_memory_is_reported_in_the_contenders_row(
    successes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, held, calls = list["weakref.ref[torch.Tensor]"](), list[int](), itertools.count()

    def fill_memory() -> None:
        values = torch.ones(10)
        tensors.append(weakref.ref(values))
        if next(calls) >= successes:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 210 GiB")

    def empty_cache() -> None:
        held.append(sum(tensor() is not None for tensor in tensors))

    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    contenders = [
        measuring.Contender("peer", "peer", fill_memory),
        measuring.Contender("ours", "ours", lambda: None, lambda _: (0.5, "px"), images=2),
    ]
    peer, ours = measuring.race("a race", contenders, SMALL)
    assert (peer.error, peer.milliseconds, peer.peak_mib) == ("out of memory", None, None)
    assert ours.milliseconds and ours.times_best_peer is None and ours.error == "0.5 px"
    assert held == [0]  # all tensors were freed before the cache was emptied
    row = measuring.format_results([peer, ours], markdown=True).splitlines()[2]
    assert "out of memory" in row and "None" not in row


def test_other_errors_end_a_race() -> None:
    contender = measuring.Contender("ours", "ours", lambda: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        measuring.race("a race", [contender], SMALL)


def test_a_race_ends_in_time_not_counting_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(measuring.time, "monotonic", lambda: now)
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now)

    def rounds(first_seconds: float, seconds: float) -> int:
        durations, calls = itertools.chain([first_seconds], itertools.repeat(seconds)), 0

        def action() -> None:
            nonlocal calls, now
            now += next(durations)
            calls += 1

        settings = replace(SMALL, seconds=100)
        contender = measuring.Contender("ours", "ours", action)
        (result,) = measuring.race("a race", [contender], settings)
        assert result.milliseconds == pytest.approx(1e3 * seconds)
        return calls - 2  # the first two warm up

    assert rounds(first_seconds=10, seconds=10) == 4
    assert rounds(first_seconds=80, seconds=10) == 4
    assert rounds(first_seconds=90, seconds=90) == 1


def test_results_are_written_after_each_race(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bench.json"

    def races(settings: measuring.Settings) -> Iterator[list[measuring.Result]]:
        for number in range(2):
            contender = measuring.Contender("ours", "ours", lambda: None)
            yield measuring.race(f"race {number}", [contender], settings)
            written = [r["race"] for r in json.loads(out.read_text())["results"]]
            assert written == ["race 0", "race 1"][: number + 1]

    monkeypatch.setitem(RACES, "loss", races)
    assert tool("bench", "loss", "--device", "cpu", "--seconds", 0.01, "--json", out) == 0


def test_paper_loss_equals_ours() -> None:
    heatmaps, points = torch.rand(2, 3, 16, 11), 11 * torch.rand(2, 3, 2)
    targets = maps.targets_of(points, torch.ones(2, 3), (16, 11), SIGMA, WEIGHT_MAP)
    loss, _ = maps.loss_of_block(heatmaps.flatten(2), targets, losses.adaptive_wing)
    expected = paper_loss(heatmaps, points).item()
    assert loss.sum().item() / heatmaps.numel() == pytest.approx(expected, rel=1e-5)


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs Linux's /proc")
def test_busy_cores_end_with_the_measurement() -> None:
    before = set(_children())
    with measuring.spinning(2):
        started = set(_children()) - before
        assert len(started) == 2
    assert not started & set(_children())


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_the_raced_table_is_a_contest_table(tmp_path: Path) -> None:
    path = tmp_path / "landmarks.csv"
    readers.write_table(path, 2100, 3)
    table = read_landmarks(path)  # refuses repeated names
    assert table.points_image.shape == (2100, 3, 2)
    assert table.points_image.stored.dtype == np.int16
    readers.make_images(tmp_path / "images", 2100)
    assert len(image_paths(tmp_path / "images", table.names, path)) == 2100


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs Linux's /proc")
def test_measured_memory_excludes_other_memory() -> None:
    held = bytearray(300 << 20)
    held[::4096] = b"x" * len(held[::4096])
    for mib in (0, 50):
        measured = readers.alone(operator.mul, b"x", mib << 20)
        assert len(measured.result) == mib << 20
        assert abs(measured.peak_mib - mib) < 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("decode", "--size", 64, 1), "--size.1 must be at least 8, not 1"),
        (("table", "--seconds", "nan"), "--seconds must be a number, not nan"),
        (("decoed",), "decode"),
    ],
)
def test_the_command_refuses_wrong_options(
    tool: Tool, arguments: tuple[object, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool("bench", *arguments) == 2
    assert words in capsys.readouterr().err
