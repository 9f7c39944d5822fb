import json
import operator
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark import gpu, measuring, readers
from benchmark.on_maps import SIGMA, WEIGHT_MAP, paper_loss
from benchmark.races import RACES

from heatmap import losses, maps
from heatmap.data.contest import image_paths, read_landmarks

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/bench.py", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_one_command_races_peers_and_limits(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    small = "--batch", 2, "--landmarks", 7, "--size", 16, "--seconds", 0.01
    done = run("decode", *small, "--device", "cpu", "--busy-cores", 1, "--json", out, "--markdown")
    assert done.returncode == 0, done.stderr
    assert "busy cores: 1" in done.stdout
    assert "| decode 2×7×16×16" in done.stdout
    results = json.loads(out.read_text())["results"]
    assert [r["kind"] for r in results].count("peer") == 2
    by_name = {r["name"]: r for r in results}
    ours, peer = by_name["window soft-argmax"], by_name["kornia spatial_soft_argmax2d"]
    assert float(ours["error"].split()[0]) < float(peer["error"].split()[0])
    best = min(r["milliseconds"] for r in results if r["kind"] == "peer")
    assert ours["times_best_peer"] == pytest.approx(best / ours["milliseconds"])


@pytest.mark.slow
@pytest.mark.parametrize("race", ["loss", "step", "predict", "data", "table"])
def test_every_race_runs(race: str) -> None:
    settings = measuring.Settings(
        device=torch.device("cpu"),
        batch=2,
        landmarks=5,
        size=16,
        seconds=0.01,
        encoder="resnet18",
        rows=70,
    )
    for results in RACES[race](settings):
        assert all(r.milliseconds > 0 for r in results)
        assert any(r.kind == "ours" for r in results)
        for result in results:
            if result.error:
                assert float(result.error.split()[0]) < (3 if race == "data" else 1e-3)
        assert results[0].race in measuring.format_results(results, markdown=False)


@pytest.mark.slow
def test_the_figures_of_a_gpu_can_be_walked_through_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "tools" / "benchmark" / "gpu.py", tmp_path / "out"]
    done = subprocess.run(
        [*map(str, command), "--device", "cpu", "--tiny"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    figures = (tmp_path / "out" / "figures.log").read_text()
    assert figures.splitlines()[-1].endswith("done")
    for letter, section in gpu.SECTIONS.items():
        assert f"== {letter} {section.title}\n" in figures
    assert "one CUDA graph: skipped: no GPU" in figures
    assert json.loads((tmp_path / "out" / "trace.json").read_text())["traceEvents"]


def test_a_section_that_fails_or_comes_too_late_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(bench: gpu.Bench) -> None:
        raise RuntimeError("no such kernel")

    sections = {
        "A": gpu.Section("broken", broken),
        "B": gpu.Section("long", broken, least=100),
        "C": gpu.Section("good", lambda bench: bench.say("a figure")),
    }
    monkeypatch.setattr(gpu, "SECTIONS", sections)
    bench = gpu.Bench(tmp_path, torch.device("cpu"), 10, False, time.monotonic())
    assert not gpu.run_sections(bench, list(sections))
    figures = (tmp_path / "figures.log").read_text()
    assert "A failed: RuntimeError: no such kernel" in figures
    assert "B long: skipped: 100 s are needed" in figures
    assert "a figure" in figures
    assert gpu.run_sections(bench, ["C"])


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--only", "A,Z"], "no section 'Z'"), (["--device", "cuda"], "torch sees no GPU")],
)
def test_wrong_usage_of_the_figures_is_refused(
    options: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path / "out"), *options])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_printed_loss_is_the_one_that_is_raced() -> None:
    heights, points = torch.rand(2, 3, 16, 11), 11 * torch.rand(2, 3, 2)
    targets = maps.targets_of(points, torch.ones(2, 3), (16, 11), SIGMA, WEIGHT_MAP)
    loss, _ = maps.loss_of_block(heights.flatten(2), targets, losses.adaptive_wing)
    printed = paper_loss(heights, points)
    assert loss.sum().item() / heights.numel() == pytest.approx(printed.item(), rel=1e-5)


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs Linux's /proc")
def test_other_processes_spin_while_it_measures_and_no_longer() -> None:
    before = set(_children())
    with measuring.spinning(2):
        started = set(_children()) - before
        assert len(started) == 2
    assert not started & set(_children())


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_the_table_of_the_race_is_the_contests(tmp_path: Path) -> None:
    path = tmp_path / "landmarks.csv"
    readers.write_table(path, 2100, 3)
    table = read_landmarks(path)  # which refuses a name that stands twice
    assert table.points_image.shape == (2100, 3, 2)
    assert table.points_image.stored.dtype == np.int16
    readers.make_images(tmp_path / "images", 2100)
    assert len(image_paths(tmp_path / "images", table.names, path)) == 2100


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs Linux's /proc")
def test_memory_is_that_of_the_action_alone() -> None:
    held = bytearray(300 << 20)
    held[::4096] = b"x" * len(held[::4096])
    for mib in (0, 50):
        found = readers.alone(operator.mul, b"x", mib << 20)
        assert len(found.result) == mib << 20
        assert abs(found.peak_mib - mib) < 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("decode", "--batch", 0), "must be positive"),
        (("decode", "--busy-cores", -1), "must not be negative"),
        (("decode", "--size", 1), "--size must be at least 8"),
        (("table", "--rows", 0), "--rows must be positive, not 0"),
        (("decoed",), "decode"),
    ],
)
def test_wrong_usage_is_refused(
    tool: Callable[..., int],
    arguments: tuple[object, ...],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tool("bench", *arguments) == 2
    assert words in capsys.readouterr().err
