"""The model card of a whole run says what the run's files say."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from heatmap.config import Augment, Crop, Data, Direct, Experiment, Train, UNet, Wandb
from heatmap.runs import model_card
from heatmap.training import loop
from heatmap.training.prepare import prepare

ENCODER = "tu-test_resnet"


@pytest.fixture(scope="module")
def heatmap_run(tiny_contest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; what tests write into it they may find there."""
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


def test_it_says_what_the_run_was(heatmap_run: Path, tiny_contest: Path) -> None:
    text, found = card(heatmap_run), rows(card(heatmap_run))
    summary = json.loads((heatmap_run / "summary.json").read_text())
    assert text.startswith("# tiny: 7 facial landmarks\n")
    assert found["contest MSE"] == f"{summary['best_mse']:.3f} px²"
    assert found["of the mean shape"] == f"{summary['mean_shape_mse']:.3f} px²"
    assert found["best epoch"] == str(summary["best_epoch"])
    assert found["epochs"] == f"{summary['epochs']} ({summary['steps']} steps)"
    machine = json.loads((heatmap_run / "machine.json").read_text())
    assert found["minutes"] == f"{summary['minutes']:.1f} on {machine['processor']}"
    assert found["date"].startswith(machine["date"])
    assert found["folder"] == tiny_contest.name
    assert (found["images trained on"], found["images validated on"]) == ("9", "3")
    assert found["split"] == "by order (the last 3 of 12 rows)"
    assert found["network"] == f"UNet on {ENCODER}"
    assert found["start weights"] == "none"
    assert found["crop"].startswith("height 32, width 48, rule cover")
    assert found["heatmaps"].startswith("stride 4, width 6, sigma ")
    assert found["loss"] == "adaptive_wing + wing"
    assert found["augmentation"] == "rotate_deg 10, scale 0.15"
    assert found["running mean of weights"] == "0.9"


@pytest.mark.parametrize(
    ("kind", "told"),
    [("person", "no"), ("hash", "possible"), ("file", "possible"), (None, "unknown")],
)
def test_whether_people_are_apart_is_the_kind_of_the_split(
    heatmap_run: Path, kind: str | None, told: str
) -> None:
    path = heatmap_run / "split.json"
    before = path.read_text()
    split = json.loads(before)
    split.pop("kind", None)
    path.write_text(json.dumps(split | ({"kind": kind} if kind else {})))
    model_card.write(heatmap_run)
    assert rows(card(heatmap_run))["a person on both sides"] == told
    path.write_text(before)
    model_card.write(heatmap_run)


def test_its_parameters_are_those_that_train(heatmap_run: Path) -> None:
    from heatmap.runs.checkpoint import load_trained

    count = sum(p.numel() for p in load_trained(heatmap_run).network.parameters())
    assert rows(card(heatmap_run))["parameters"] == f"{count / 1e6:.2f} M"


def test_its_tables_line_up(heatmap_run: Path) -> None:
    blocks = [part for part in card(heatmap_run).split("\n\n") if part.startswith("|")]
    assert len(blocks) == 3
    for block in blocks:
        assert len({len(line) for line in block.splitlines()}) == 1


def test_evaluation_enters_it(heatmap_run: Path, tool: Callable[..., int]) -> None:
    before = card(heatmap_run)
    assert "tools/evaluate.py` adds" in before
    assert tool("evaluate", heatmap_run, "--decoder", "parabola") == 0
    assert tool("evaluate", heatmap_run / "last.pt") == 0
    assert card(heatmap_run) == before
    assert tool("evaluate", heatmap_run) == 0
    scores = json.loads((heatmap_run / "evaluation.json").read_text())
    text = card(heatmap_run)
    assert re.search(rf"^failure rate at 8 % +{scores['failure_8']:.3f}$", text, re.MULTILINE)
    for name, size in scores["sizes"].items():
        told = rf"^  {re.escape(name)} \({size['images']}\) +{size['mse']:.3f} px²$"
        assert re.search(told, text, re.MULTILINE)
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
    found = rows(card(tmp_path / "run"))
    assert found["contest MSE"] == "none, since all rows were trained on"
    assert (found["images trained on"], found["images validated on"]) == ("12", "0")
    assert "rule contain" in found["crop"] and "trim_border 9" in found["crop"]
    assert found["heatmaps"] == "none"
    assert found["loss"] == "smooth_l1" and found["augmentation"] == "none"
