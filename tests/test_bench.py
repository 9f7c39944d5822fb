import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from heatmap import bench, losses, maps

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
@pytest.mark.parametrize("race", ["loss", "step", "predict", "data"])
def test_every_race_runs(race: str) -> None:
    settings = bench.Settings(
        device=torch.device("cpu"), batch=2, landmarks=5, size=16, seconds=0.01, encoder="resnet18"
    )
    for results in bench.RACES[race](settings):
        assert all(r.milliseconds > 0 for r in results)
        assert any(r.kind == "ours" for r in results)
        for result in results:
            if result.error:
                assert float(result.error.split()[0]) < (3 if race == "data" else 1e-3)
        assert results[0].race in bench.table(results, markdown=False)


def test_the_printed_loss_is_the_one_that_is_raced() -> None:
    heights, points = torch.rand(2, 3, 16, 11), 11 * torch.rand(2, 3, 2)
    targets = maps.targets_of(points, torch.ones(2, 3), (16, 11), bench.SIGMA, bench.WEIGHT_MAP)
    loss, _ = maps.loss_of_block(heights.flatten(2), targets, losses.adaptive_wing)
    printed = bench._paper_loss(heights, points)
    assert loss.sum().item() / heights.numel() == pytest.approx(printed.item(), rel=1e-5)


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs Linux's /proc")
def test_other_processes_spin_while_it_measures_and_no_longer() -> None:
    before = set(_children())
    with bench.spinning(2):
        started = set(_children()) - before
        assert len(started) == 2
    assert not started & set(_children())


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_wrong_sizes_are_refused() -> None:
    done = run("decode", "--batch", 0)
    assert done.returncode == 2
    assert "must be positive" in done.stderr
    assert "must not be negative" in run("decode", "--busy-cores", -1).stderr
    assert "--size must be at least 8" in run("decode", "--size", 1).stderr
    assert run("decoed").returncode == 2
