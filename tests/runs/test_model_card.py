"""The model card of a finished run."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from heatmap.config import Augment, Crop, Data, Direct, Experiment, Train, UNet, Wandb
from heatmap.runs import model_card
from heatmap.runs.checkpoint import load_trained
from heatmap.training import loop
from heatmap.training.prepare import prepare

ENCODER = "tu-test_resnet"


@pytest.fixture(scope="module")
def heatmap_run(tiny_contest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, into which tests may write."""
    experiment = Experiment(
        name="tiny",
        data=Data(root=tiny_contest, split="order", validation=0.25, workers=0),
        crop=Crop(height=32, width=48),
        augment=Augment(rotate_deg=10, scale=0.15, fill="edge"),
        model=UNet(encoder=ENCODER, weights="none", width=6, coordinate_loss="wing"),
        train=Train(epochs=2, batch=4, device="cpu", compile="off", ema=0.9),
        wandb=Wandb(mode="off"),
    )
    folder = tmp_path_factory.mktemp("run")
    loop.train(prepare(experiment), folder)
    return folder


def card(folder: Path) -> str:
    return (folder / "MODEL.md").read_text(encoding="utf-8")


def rows(text: str) -> dict[str, str]:
    """The tables' rows by their first cell."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(len(line) == 2 for line in cells)
    return dict(map(tuple, cells))


def test_the_card_describes_the_run(heatmap_run: Path, tiny_contest: Path) -> None:
    text, cells = card(heatmap_run), rows(card(heatmap_run))
    summary = json.loads((heatmap_run / "summary.json").read_text())
    assert text.startswith("# tiny: 7 facial landmarks\n")
    best = f"{summary['best_mse']:.3f} px² in epoch {summary['best_epoch']}"
    assert cells["contest MSE"] == best
    assert cells["contest MSE of the mean shape"] == f"{summary['mean_shape_mse']:.3f} px²"
    assert cells["epochs"] == f"{summary['epochs']} ({summary['steps']} steps)"
    machine = json.loads((heatmap_run / "machine.json").read_text())
    assert cells["minutes"] == f"{summary['minutes']:.1f} on {machine['processor']}"
    assert cells["date"].startswith(machine["date"])
    assert cells["folder"] == tiny_contest.name
    assert (cells["training images"], cells["validation images"]) == ("9", "3")
    assert cells["split"] == "by order (the last 3 of 12 rows)"
    count = sum(p.numel() for p in load_trained(heatmap_run).network.parameters())
    assert cells["network"] == f"UNet, {count / 1e6:.2f} M parameters"
    assert cells["start weights"] == "random weights"
    assert cells["crop"].startswith("height 32, width 48, rule cover")
    assert cells["model"].startswith(f"encoder {ENCODER}, stride 4, width 6, sigma ")
    assert "loss adaptive_wing" in cells["model"] and "coordinate_loss wing" in cells["model"]
    assert cells["augment"].startswith("rotate_deg 10.0, scale 0.15, fill edge")
    assert cells["optimizer"].startswith("kind adamw, lr 0.001")
    assert cells["schedule"].startswith("kind cosine")
    assert "batch 4" in cells["train"] and "ema 0.9" in cells["train"]


@pytest.mark.parametrize(
    ("kind", "shared"),
    [("person", "no"), ("hash", "possible"), ("file", "possible"), (None, "unknown")],
)
def test_the_split_decides_whether_a_person_can_be_on_both_sides(
    heatmap_run: Path, kind: str | None, shared: str
) -> None:
    path = heatmap_run / "split.json"
    before = path.read_text()
    split = json.loads(before)
    split.pop("kind", None)
    path.write_text(json.dumps(split | ({"kind": kind} if kind else {})))
    model_card.write(heatmap_run)
    assert rows(card(heatmap_run))["same person on both sides"] == shared
    path.write_text(before)
    model_card.write(heatmap_run)


def test_evaluating_the_run_adds_its_scores(heatmap_run: Path, tool: Callable[..., int]) -> None:
    before = card(heatmap_run)
    assert "run `heatmap evaluate`" in before
    assert tool("evaluate", heatmap_run, "--decoder", "parabola") == 0
    assert tool("evaluate", heatmap_run / "last.pt") == 0
    assert card(heatmap_run) == before
    assert tool("evaluate", heatmap_run) == 0
    scores = json.loads((heatmap_run / "evaluation.json").read_text())
    text = card(heatmap_run)
    assert re.search(rf"^failure rate at 8 % +{scores['failure_8']:.3f}$", text, re.MULTILINE)
    for name, size in scores["sizes"].items():
        line = rf"^  {re.escape(name)} \({size['images']}\) +{size['mse']:.3f} px²$"
        assert re.search(line, text, re.MULTILINE)
    assert rows(text) == rows(before)


def test_a_direct_run_on_all_rows_has_no_score(tiny_contest: Path, tmp_path: Path) -> None:
    experiment = Experiment(
        name="all",
        data=Data(root=tiny_contest, validation=0, workers=0),
        crop=Crop(height=40, width=32, rule="contain", trim_border=9),
        model=Direct(encoder=ENCODER, weights="none", loss="smooth_l1"),
        train=Train(epochs=1, batch=6, device="cpu"),
        wandb=Wandb(mode="off"),
    )
    loop.train(prepare(experiment), tmp_path / "run")
    cells = rows(card(tmp_path / "run"))
    assert cells["contest MSE"] == "none, since all rows are training rows"
    assert (cells["training images"], cells["validation images"]) == ("12", "0")
    assert "rule contain" in cells["crop"] and "trim_border 9" in cells["crop"]
    assert cells["model"] == f"encoder {ENCODER}, loss smooth_l1"
    assert cells["network"].startswith("Direct, ") and "stride" not in cells["model"]
