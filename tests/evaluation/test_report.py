import csv
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import Elements, shown
from tiny_runs import DIRECT, trained

from heatmap.evaluation import calibration, metrics, report
from heatmap.evaluation.charts import GREY
from heatmap.evaluation.metrics import Evaluation, evaluate_run
from heatmap.evaluation.report import write_report
from heatmap.inference.ensemble import Ensemble
from heatmap.runs.per_image import Errors

CPU = torch.device("cpu")
Tool = Callable[..., int]


@pytest.fixture(scope="module")
def run(tiny_contest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "heat", tiny_contest, 2)


@pytest.fixture(scope="module")
def direct(tiny_contest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "straight"
    return trained(folder, tiny_contest, 2, model=DIRECT)


@pytest.fixture
def checked() -> calibration.CheckedCalibration:
    """A calibration of a network whose errors grow with its spread."""
    spread = np.linspace(1, 9, 4000).reshape(200, 20)
    distance = np.random.default_rng(0).rayleigh(spread)
    first = np.arange(200) % 2 == 0
    checked = calibration.fit_and_check(distance, np.full_like(spread, np.nan), spread, first)
    assert checked is not None
    return checked


def text_of(page: str) -> str:
    """The visible text of a page, in one line."""
    without = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", without))).replace("\xa0", " ")


def page_of(ensemble: Ensemble, evaluation: Evaluation, out: Path) -> str:
    return write_report(ensemble, evaluation, out, CPU).read_text("utf-8")


def test_evaluate_writes_the_page_of_a_run(
    run: Path, tiny_contest: Path, tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool("evaluate", run, "--report", tmp_path / "page", "--device", "cpu") == 0
    assert f"report: {tmp_path / 'page' / 'report.html'}" in capsys.readouterr().out
    page = (tmp_path / "page" / "report.html").read_text("utf-8")
    elements = Elements(page)
    assert not elements.of("script")
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import|https?:", page)
    assert len(page) < 10e6

    text, scores = text_of(page), json.loads((run / "evaluation.json").read_text())
    assert f"Report of heat on {tiny_contest.name} UNet on tu-test_resnet, 7 landmarks" in text
    assert f"{scores['mse']:.3f} px²" in text and f"{scores['nme_percent']:.2f} %" in text
    for curve in ("training loss", "validation MSE, px²", "learning rate", "NME, %"):
        assert curve in text
    assert "200 labelled landmarks in each half" in text, "there are only 21"
    assert page.count("<title>landmark 3 (all):") == 3, "error, bias and spread"

    with (run / "per_image.csv").open(newline="") as file:
        images = sorted(csv.DictReader(file), key=lambda line: -float(line["mse"]))
    tiles = re.findall(r"(\w+\.jpg): ([\d.]+) px²", text)
    expected = [(line["file_name"], f"{float(line['mse']):.1f}") for line in images]
    assert tiles[:6] == expected, "all six, from the worst"
    assert sorted(tiles[6:]) == sorted(expected[1:5]), "the four in the middle"


def test_a_browser_shows_the_page(
    run: Path, tmp_path: Path, checked: calibration.CheckedCalibration
) -> None:
    ensemble = Ensemble.load([run])
    evaluation = replace(evaluate_run(ensemble, None, CPU), checked=checked)
    page = write_report(ensemble, evaluation, tmp_path, CPU)
    for width, seen in zip((400, 1280), shown(page, (400, 1280), tmp_path), strict=True):
        assert seen["page_width"] <= width == seen["screen_width"]
        assert seen["images"] == [report.TILE] * 10
        assert len(seen["charts"]) == 8 and min(seen["charts"]) > 300
        for part in ("The worst images", "Time per image", "least sure fifth"):
            assert part in seen["text"]


def test_the_calibration_is_shown_by_tenths(
    run: Path, tmp_path: Path, checked: calibration.CheckedCalibration
) -> None:
    ensemble = Ensemble.load([run])
    evaluation = replace(evaluate_run(ensemble, None, CPU), checked=checked)
    text = text_of(page_of(ensemble, evaluation, tmp_path))
    assert "was fitted on 100 images and checked on 100 others" in text
    for number, decile in enumerate(checked.deciles, start=1):
        assert f" {number} {decile.expected_px:.2f} {decile.observed_px:.2f} " in text
    off = max(abs(one.expected_px / one.observed_px - 1) for one in checked.deciles)
    assert 0 < off < 0.15 and f"off by {100 * off:.1f} %" in text


def test_a_direct_network_has_no_confidence(direct: Path, tool: Tool, tmp_path: Path) -> None:
    (direct / "calibration.json").write_text("{}")  # of an earlier evaluation
    assert tool("evaluate", direct, "--report", tmp_path, "--device", "cpu") == 0
    text = text_of((tmp_path / "report.html").read_text("utf-8"))
    assert "A single direct network has no confidence" in text
    assert "expected error, px" not in text and "heatmap" not in text.lower()
    assert not (direct / "calibration.json").exists()


def test_the_spread_of_several_runs_is_their_disagreement(
    run: Path, direct: Path, tiny_contest: Path, tool: Tool, tmp_path: Path
) -> None:
    assert tool("evaluate", direct, run, "--tta", "scale", "--report", tmp_path) == 0
    page = (tmp_path / "report.html").read_text("utf-8")
    text = text_of(page)
    folder = direct / "evaluation-with-heat-scale"
    assert f"Report of straight and heat on {tiny_contest.name}, --tta scale" in text
    assert f"Direct on tu-test_resnet, 7 landmarks, crops of 32 × 48 px; {direct}/best.pt" in text
    assert f"UNet on tu-test_resnet, 7 landmarks, crops of 32 × 48 px; {run}/best.pt" in text
    assert "scored together, on the mean of their landmarks." in text
    assert "these runs together" in text and "this run" not in page
    with np.load(folder / "errors.npz") as arrays:
        assert (arrays["spread"] > 0).all()
    assert "━━ straight ━━ heat" in text, "the curves are named"


@pytest.mark.parametrize(
    ("names", "tta", "signs"),
    [
        (["heat"], "", "the height of the heatmap's peak and how wide the heatmap is"),
        (["heat"], "scale", "the heights of the heatmaps' peaks and how far the views disagree"),
        (["straight"], "scale", "how far the views disagree"),
        (["straight", "twin"], "", "how far the runs disagree"),
        (["straight", "heat"], "", "the heights of the heatmaps' peaks and how far the runs dis"),
    ],
)
def test_the_report_names_the_indicators_of_the_calibration(
    run: Path, direct: Path, tmp_path: Path, names: list[str], tta: str, signs: str
) -> None:
    (tmp_path / "twin").mkdir()
    (tmp_path / "twin" / "best.pt").write_bytes((direct / "best.pt").read_bytes())
    folders = {"heat": run, "straight": direct, "twin": tmp_path / "twin"}
    ensemble = Ensemble.load([folders[name] for name in names], tta=tta or "none")
    spread = np.random.default_rng(1).uniform(1, 9, (200, 20))
    peak = np.random.default_rng(2).uniform(0.1, 1, spread.shape)
    if "heat" not in names:
        peak[:] = np.nan
    distance = np.random.default_rng(0).rayleigh(spread / np.nan_to_num(peak, nan=1))
    checked = calibration.fit_and_check(distance, peak, spread, np.arange(200) % 2 == 0)
    evaluation = replace(evaluate_run(ensemble, None, CPU), checked=checked)
    text = text_of(page_of(ensemble, evaluation, tmp_path))
    assert f"in image pixels, is computed from {signs}" in text


def test_titles_name_options_that_differ_from_training(
    run: Path, direct: Path, tmp_path: Path
) -> None:
    def title(*runs: Path) -> str:
        return report.title(Ensemble.load(runs), tmp_path / "faces")

    assert title(run) == "Report of heat on faces"
    assert title(run / "last.pt") == "Report of heat-last on faces"
    assert title(run, direct, run / "last.pt") == "Report of heat, straight and heat-last on faces"
    ensemble = replace(Ensemble.load([run], weighted=True), boxes=Path("x/b.csv"))
    assert report.title(ensemble, tmp_path).endswith(", --weighted --boxes b.csv")
    ensemble = Ensemble.load([direct, run], tta="scale")
    ensemble.runs[1].network.landmark_decoder = "parabola"
    assert report.title(ensemble, tmp_path).endswith(", --tta scale --decoder parabola")


def test_runs_with_equal_folder_names_have_a_curve_each(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "heat")
    ensemble = Ensemble.load([run, tmp_path / "heat"])
    text = text_of(page_of(ensemble, evaluate_run(ensemble, None, CPU), tmp_path))
    assert f"━━ {run} ━━ {tmp_path / 'heat'}" in text


def test_a_run_without_a_ledger_has_a_page(run: Path, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "best.pt").write_bytes((run / "best.pt").read_bytes())
    ensemble = Ensemble.load([tmp_path / "alone"])
    text = text_of(page_of(ensemble, evaluate_run(ensemble, None, CPU), tmp_path))
    assert "has no metrics.jsonl" in text


@pytest.fixture
def errors() -> Errors:
    """Errors of the tiny contest's 12 images; the fourth landmark is never labelled."""
    generator = np.random.default_rng(3)
    offset = generator.normal((2, 0), 1.5, (12, 7, 2))
    offset[:, 3] = np.nan
    offset[7] = np.nan
    labelled = np.isfinite(offset[..., 0])
    bias = np.where(labelled.any(0)[:, None], np.nansum(offset, 0), np.nan) / 11
    distance = np.linalg.norm(offset, axis=-1)
    mse = np.full(12, np.nan)
    mse[labelled.any(1)] = np.nanmean(offset[labelled.any(1)] ** 2, (1, 2))
    return Errors(
        rows=np.arange(12), mse=mse, nme=np.where(labelled.any(1), np.nansum(distance, 1) / 400,
        np.nan), normaliser="box", distance=distance.astype(np.float32),
        peak=np.full((12, 7), np.nan), spread=np.full((12, 7), np.nan, np.float16),
        mean_shape_mse=mse + 50, image_hw=generator.integers(60, 400, (12, 2)), bias=bias,
        groups={"all": range(7)},
    )  # fmt: skip


@pytest.fixture
def page_on(run: Path, tmp_path: Path) -> Callable[..., str]:
    """The page of the run with other errors instead of its own."""

    def write(errors: Errors, checked: calibration.CheckedCalibration | None = None) -> str:
        ensemble = Ensemble.load([run])
        evaluation = evaluate_run(ensemble, None, CPU)
        scores = metrics.summary(errors)
        evaluation = replace(evaluation, errors=errors, scores=scores, checked=checked)
        return page_of(ensemble, evaluation, tmp_path)

    return write


def test_errors_on_the_face_are_bias_and_spread(
    errors: Errors, page_on: Callable[..., str]
) -> None:
    page = page_on(errors)
    parts = [
        [
            float(v) if v != "–" else math.nan
            for v in re.findall(rf"landmark {k} \(all\): (\S+?)(?: px)?<", page)
        ]
        for k in range(7)
    ]
    for k in (0, 1, 2, 4, 5, 6):
        rms, bias, spread = parts[k]
        assert rms == pytest.approx(np.sqrt(np.nanmean(errors.distance[:, k] ** 2)), abs=0.01)
        assert bias == pytest.approx(np.hypot(*errors.bias[k]), abs=0.01)
        assert rms**2 == pytest.approx(bias**2 + spread**2, rel=0.02)
    assert np.isnan(parts[3]).all() and page.count(GREY) == 3, "grey if never labelled"


def test_fifths_hold_a_fifth_each_in_order() -> None:
    by = np.array([5.0, 1, 4, np.nan, 2, 3, 0])
    values = np.array([50.0, 10, 40, 7, 20, np.nan, 0])
    bars = report.fifths(by, values, "least", "most")
    assert [bar.name for bar in bars] == ["least", "second", "third", "fourth", "most"]
    assert [bar.percent for bar in bars] == [0, 20, 40, 80, 100]
    assert report.fifths(by[:3], values[:3], "least", "most")[-1].percent is None


def test_images_are_ordered_by_doubt_and_not_by_size(
    errors: Errors, page_on: Callable[..., str]
) -> None:
    """Every second image is sure, and rightly so. The others are smaller, with smaller errors."""
    sure = np.arange(12) % 2 == 0
    length = np.where(sure, 1000.0, 50.0)
    distance = np.where(sure, 10.0, 2.5)[:, None].repeat(7, 1)
    fitted = calibration.Calibration(0.0, 1.0, [0, math.log(20)], [1, 20])
    sized = replace(errors, nme=distance[:, 0] / length, distance=distance, spread=distance)
    expected = report.expected_nme(sized, fitted)
    assert (expected[sure] < expected[~sure].min()).all()
    np.testing.assert_allclose(expected, fitted.expected_error(0 * length, distance[:, 0]) / length)
    checked = calibration.CheckedCalibration(fitted, 6, 6, [calibration.Decile(9, 1.0, 1.0)])
    text = text_of(page_on(sized, checked))
    assert re.search(r"surest fifth 1\.00 % .*least sure fifth 5\.00 %", text)


def test_the_page_compares_the_run_with_the_mean_shape(
    errors: Errors, page_on: Callable[..., str]
) -> None:
    bad = replace(errors, mse=errors.mean_shape_mse * 5, nme=errors.nme + 1)
    page = page_on(bad)
    text = text_of(page)
    assert "Worse than the mean shape, which ignores the image." in text
    removed = 100 * (1 - np.nanmean(errors.mse) / np.nanmean(errors.mean_shape_mse))
    assert f"{removed:.1f} % less than the mean shape" in text_of(page_on(errors))
    assert "less than the mean shape" not in text
    ticks = re.findall(r'text-anchor="end">(.+?)<', page)
    assert ticks[:6] == ["0", "20", "40", "60", "80", "100"], "images, %, though none is below 10 %"


def test_missing_turns_and_nme_are_explained(errors: Errors, page_on: Callable[..., str]) -> None:
    of_images = set(vars(errors)) - {"normaliser", "bias", "groups"}
    two = replace(errors, **{name: getattr(errors, name)[:2] for name in of_images})
    text = text_of(page_on(replace(two, nme=np.full(2, np.nan))))
    assert "Errors by head turn are missing: 2 of 2 faces" in text
    assert "There is no NME: no image has the landmarks that define its normaliser." in text
