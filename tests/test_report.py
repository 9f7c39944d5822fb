import csv
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import shown

from heatmap import calibration, config, evaluate, report, train
from heatmap.ensemble import Ensemble
from heatmap.evaluate import Errors
from heatmap.report import write_report
from heatmap.run import prepare

CPU = torch.device("cpu")
Tool = Callable[..., int]


def trained(folder: Path, root: Path, model: config.Model) -> Path:
    """A run of two steps; the last 6 of the tiny contest's 12 rows validate."""
    experiment = config.Experiment(
        name=folder.name,
        data=config.Data(root=root, split="order", validation=0.5, workers=0),
        crop=config.Crop(height=32, width=48),
        model=model,
        train=config.Train(batch=4, max_steps=2, device="cpu", compile="off"),
        wandb=config.Wandb(mode="off"),
    )
    train.train(prepare(experiment), folder)
    return folder


@pytest.fixture(scope="module")
def run(tiny_contest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = config.UNet(encoder="tu-test_resnet", weights="none", width=6)
    return trained(tmp_path_factory.mktemp("runs") / "heat", tiny_contest, model)


@pytest.fixture(scope="module")
def direct(tiny_contest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = config.Direct(encoder="tu-test_resnet", weights="none")
    return trained(tmp_path_factory.mktemp("runs") / "straight", tiny_contest, model)


@pytest.fixture
def checked() -> calibration.Checked:
    """A calibration as of a network that knows how wrong it is."""
    spread = np.linspace(1, 9, 4000).reshape(200, 20)
    distance = np.random.default_rng(0).rayleigh(spread)
    first = np.arange(200) % 2 == 0
    found = calibration.fit_and_check(distance, np.full_like(spread, np.nan), spread, first)
    assert found is not None
    return found


def text_of(page: str) -> str:
    """What is read on the page, in one line."""
    without = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", without))).replace("\xa0", " ")


def test_evaluate_writes_the_page_of_a_run(
    run: Path, tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool("evaluate", run, "--report", tmp_path / "page", "--device", "cpu") == 0
    assert f"report: {tmp_path / 'page' / 'report.html'}" in capsys.readouterr().out
    page = (tmp_path / "page" / "report.html").read_text("utf-8")
    assert "<script" not in page and not re.search(r"https?:|src=\"(?!data:)", page)
    assert len(page) < 10e6

    text, scores = text_of(page), json.loads((run / "evaluation.json").read_text())
    assert "Report of heat" in text
    assert f"{scores['mse']:.3f} px²" in text and f"{scores['nme_percent']:.2f} %" in text
    way = 100 * (1 - scores["mse"] / scores["mean_shape_mse"])
    assert f"{way:.1f} % of the way" in text
    for curve in ("training loss", "validation MSE, px²", "learning rate", "NME, %"):
        assert curve in text
    assert "200 labelled landmarks in each half" in text, "there are only 21"
    assert page.count("<title>landmark 3 (all):") == 3, "on the face by error, bias and spread"

    with (run / "per_image.csv").open(newline="") as file:
        pictures = sorted(csv.DictReader(file), key=lambda line: -float(line["mse"]))
    told = re.findall(r"(\w+\.jpg): ([\d.]+) px²", text)
    expected = [(line["file_name"], f"{float(line['mse']):.1f}") for line in pictures]
    assert told[:6] == expected, "all six, from the worst"
    assert sorted(told[6:]) == sorted(expected[1:5]), "the four in the middle"


def test_a_browser_shows_the_page(run: Path, tmp_path: Path, checked: calibration.Checked) -> None:
    ensemble = Ensemble.load([run])
    _, folder = evaluate.evaluate_run(ensemble, None, CPU)
    calibration.write(folder, checked)
    page = write_report(ensemble, None, folder, tmp_path, CPU)
    for width, found in zip((400, 1280), shown(page, (400, 1280), tmp_path), strict=True):
        assert found["page_width"] <= width == found["screen_width"]
        assert found["pictures"] == [report.TILE] * 10
        assert len(found["charts"]) == 8 + 10 and min(found["charts"]) > 200
        for part in ("The worst pictures", "How long a picture takes", "least sure fifth"):
            assert part in found["text"]


def test_the_calibration_is_shown_by_tenths(
    run: Path, tmp_path: Path, checked: calibration.Checked
) -> None:
    ensemble = Ensemble.load([run])
    _, folder = evaluate.evaluate_run(ensemble, None, CPU)
    calibration.write(folder, checked)
    text = text_of(write_report(ensemble, None, folder, tmp_path, CPU).read_text("utf-8"))
    assert "was fitted on 100 pictures and is checked here on 100 others" in text
    for number, decile in enumerate(checked.deciles, start=1):
        assert f" {number} {decile.expected_px:.2f} {decile.observed_px:.2f} " in text
    off = max(abs(one.expected_px / one.observed_px - 1) for one in checked.deciles)
    assert 0 < off < 0.15 and f"off by {100 * off:.1f} %" in text


def test_a_direct_network_does_not_know_how_wrong_it_is(
    direct: Path, tool: Tool, tmp_path: Path
) -> None:
    (direct / "calibration.json").write_text("{}")  # of an earlier life
    assert tool("evaluate", direct, "--report", tmp_path, "--device", "cpu") == 0
    text = text_of((tmp_path / "report.html").read_text("utf-8"))
    assert "A direct network gives coordinates and nothing that tells how sure it is" in text
    assert "expected error, px" not in text
    assert not (direct / "calibration.json").exists()


def test_several_runs_tell_by_their_disagreement(
    run: Path, direct: Path, tool: Tool, tmp_path: Path, checked: calibration.Checked
) -> None:
    assert tool("evaluate", direct, run, "--tta", "scale", "--report", tmp_path) == 0
    text = text_of((tmp_path / "report.html").read_text("utf-8"))
    folder = direct / "evaluation-with-heat-scale"
    assert "with-heat-scale" in text
    spread = evaluate.read(folder).spread
    assert (spread > 0).all()
    assert "━━ straight ━━ heat" in text, "both curves have their names"
    told = "".join(report._confidence(checked, Ensemble.load([direct, run])))
    assert "how far the views disagree" in told


def test_a_run_without_a_ledger_has_a_page_too(run: Path, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "best.pt").write_bytes((run / "best.pt").read_bytes())
    ensemble = Ensemble.load([tmp_path / "alone"])
    _, folder = evaluate.evaluate_run(ensemble, None, CPU)
    text = text_of(write_report(ensemble, None, folder, tmp_path, CPU).read_text("utf-8"))
    assert "holds no metrics.jsonl" in text


def test_damaged_files_are_told_and_leave_the_old_page(run: Path, tmp_path: Path) -> None:
    ensemble = Ensemble.load([run])
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(ValueError, match=r"errors\.npz: not a readable file"):
        write_report(ensemble, None, tmp_path, tmp_path, CPU)
    assert (tmp_path / "report.html").read_text() == "old"


def test_a_submission_has_no_report(tool: Tool, tmp_path: Path) -> None:
    assert tool("evaluate", "a.csv", "--solution", "b.csv", "--report", tmp_path) == 2


@pytest.fixture
def errors() -> Errors:
    """23 pictures with 5 landmarks, of which the fourth is never labelled."""
    generator = np.random.default_rng(3)
    offset = generator.normal((2, 0), 1.5, (23, 5, 2))
    offset[:, 3] = np.nan
    offset[7] = np.nan
    labelled = np.isfinite(offset[..., 0])
    bias = np.where(labelled.any(0)[:, None], np.nansum(offset, 0), np.nan) / 22
    distance = np.linalg.norm(offset, axis=-1)
    nme = np.nansum(distance, 1) / 400
    nme[7] = np.nan
    return Errors(
        rows=np.arange(23), mse=nme**2, nme=nme, normaliser="box",
        distance=distance.astype(np.float32), peak=np.full((23, 5), np.nan),
        spread=np.full((23, 5), np.nan, np.float16), mean_shape_mse=nme + 50,
        image_hw=generator.integers(60, 400, (23, 2)), bias=bias, groups={"all": range(5)},
    )  # fmt: skip


def test_errors_on_the_face_are_bias_and_spread(errors: Errors) -> None:
    shape = torch.arange(10.0, dtype=torch.float64).reshape(5, 2) ** 1.3
    page = "".join(report._face(errors, shape))
    told = [
        [
            float(v) if v != "–" else math.nan
            for v in re.findall(rf"landmark {k} \(all\): (\S+?)(?: px)?<", page)
        ]
        for k in range(5)
    ]
    for k in (0, 1, 2, 4):
        rms, bias, spread = told[k]
        assert rms == pytest.approx(np.sqrt(np.nanmean(errors.distance[:, k] ** 2)), abs=0.01)
        assert bias == pytest.approx(np.hypot(*errors.bias[k]), abs=0.01)
        assert rms**2 == pytest.approx(bias**2 + spread**2, rel=0.02)
    assert np.isnan(told[3]).all() and page.count("#666666") == 3, "grey where nothing is labelled"


def test_fifths_hold_a_fifth_each_in_order() -> None:
    by = np.array([5.0, 1, 4, np.nan, 2, 3, 0])
    values = np.array([50.0, 10, 40, 7, 20, np.nan, 0])
    found = report._fifths(by, values, ["a", "b", "c", "d", "e"])
    assert list(found.values()) == [0, 10, 20, 40, 50]
    assert math.isnan(report._fifths(by[:3], values[:3], ["a", "b", "c", "d"])["d"])


def test_faces_without_a_pose_are_told(errors: Errors) -> None:
    truth = np.full((23, 5, 2), np.nan, np.float32)
    pieces = "".join(report._classes(errors, evaluate.summary(errors), None, truth))
    assert "How far heads are turned is not known: 0 of 23 faces" in pieces
    nothing = replace(errors, nme=np.full(23, np.nan))
    assert "No picture has a length" in report._cumulative(nothing, evaluate.summary(errors))
