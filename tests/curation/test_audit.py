"""Injected label errors are found, described, listed and excluded."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_faces import NUM, predictions

from heatmap import config, schemes, shape
from heatmap.curation.audit.injected import KINDS, SCALE, SHIFT, Recall, format_recalls, self_test
from heatmap.curation.audit.residuals import AuditData, score_labels, tail_scores
from heatmap.data import contest
from heatmap.training import loop
from heatmap.training.prepare import prepare

Tool = Callable[..., int]


def rates(recalls: list[Recall]) -> dict[str, float]:
    return {recall.kind: recall.found / recall.injected for recall in recalls}


def test_self_test_finds_all_kinds_with_an_accurate_run_only(
    drawn: AuditData,
) -> None:
    recalls = self_test(drawn, 0.03)
    assert [recall.kind for recall in recalls] == list(KINDS)
    assert sum(r.found for r in recalls) >= 0.95 * sum(r.injected for r in recalls)
    assert all(0 < r.unseen_injected < r.injected for r in recalls)
    blind = replace(
        drawn,
        predicted_image=predictions(drawn.points_image, 0.3),
        expected_px=20 * drawn.expected_px,
    )
    blind_rates = rates(self_test(blind, 0.03))
    assert blind_rates[SHIFT] < 0.5 and blind_rates[SCALE] < 0.5


def turned(face: np.ndarray, degrees: float) -> np.ndarray:
    z = shape.of(face[None])[0]
    middle = z.mean()
    return shape.points((z - middle) * np.exp(1j * np.deg2rad(degrees)) + middle)


def test_reasons_describe_the_injected_errors(drawn: AuditData) -> None:
    points = drawn.points_image.copy()
    mouth = np.array(drawn.groups["mouth"])
    points[7, mouth] = points[7, mouth[::-1]]
    points[131] = points[131, drawn.permutation]
    points[260] += 0.2 * shape.face_size(shape.of(points[260]))
    points[310] = points[310].mean(0) + 1.3 * (points[310] - points[310].mean(0))
    points[340] = turned(points[340], 20)
    laid = shape.onto(shape.of(points[[11]]), shape.of(points[360]))[0]
    points[360] = shape.points(laid)
    scores = score_labels(replace(drawn, points_image=points))
    expected = {
        7: "the runs see the mouth elsewhere",
        131: "left and right landmarks swapped",
        260: "the whole face is shifted",
        310: "too large or too small",
        340: "the whole face is rotated",
        360: "another face",
    }
    assert set(scores.top(0.02)) >= set(expected)
    for row, essential in expected.items():
        reasons = scores.reasons(row)
        assert any(essential in reason for reason in reasons), (row, reasons)
    assert scores.reasons(scores.ranking[-1]) == []


def test_an_unlikely_shape_is_found_even_if_the_run_makes_the_same_mistake(
    drawn: AuditData,
) -> None:
    points, seen = drawn.points_image.copy(), drawn.predicted_image.copy()
    brow = np.array(drawn.groups["left brow"])
    points[100, brow] += 0.06 * shape.face_size(shape.of(points[100]))
    seen[100] = points[100]
    scores = score_labels(replace(drawn, points_image=points, predicted_image=seen))
    assert 100 in scores.top(0.01)
    assert "brow lies" in scores.reasons(100)[0]


def test_agreement_of_the_runs_is_a_reason(drawn: AuditData) -> None:
    apart = np.full(NUM, 5.0)
    apart[[40, 80]] = 0.1
    scores = score_labels(replace(drawn, disagreement_px=apart))
    for row in (40, 80):
        reasons = scores.reasons(row)
        assert any("the runs agree" in reason for reason in reasons)


def test_trained_faces_are_compared_with_each_other(drawn: AuditData) -> None:
    """Their residuals are small. An error that is large among them is still found."""
    known = np.flatnonzero(drawn.is_trained)
    seen = drawn.predicted_image.copy()
    seen[known] = drawn.points_image[known] + 0.1 * (seen - drawn.points_image)[known]
    points = drawn.points_image.copy()
    points[known[::40]] += 0.02 * shape.face_size(shape.of(points[known[::40]]))[:, None, None]
    scores = score_labels(replace(drawn, points_image=points, predicted_image=seen))
    assert np.isin(known[::40], scores.top(0.02)).all()


def test_unlabelled_landmarks_and_faces_are_not_suspicious(drawn: AuditData) -> None:
    points = drawn.points_image.copy()
    rng = np.random.default_rng(8)
    points[rng.random(points.shape[:2]) < 0.2] = np.nan
    points[::10, 5:] = np.nan
    points[33] = np.nan
    holed = replace(drawn, points_image=points)
    scores = score_labels(holed)
    assert scores.score[33] == 0 and np.isfinite(scores.score).all()
    assert min(rates(self_test(holed, 0.03)).values()) > 0.7


def test_tail_scores_are_log_shares_and_outliers_do_not_change_them() -> None:
    rng = np.random.default_rng(2)
    values, everyone = rng.exponential(size=(5000, 1)), np.ones(5000, bool)
    scores = tail_scores(values, everyone)[0][:, 0]
    for share in (0.05, 0.01, 0.002):
        at = np.argsort(-values[:, 0])[round(share * 5000)]
        assert 10 ** -scores[at] == pytest.approx(share, rel=0.5)
    mixed = values.copy()
    mixed[:50] += 30
    after = tail_scores(mixed, everyone)[0][:, 0]
    assert after[50:] == pytest.approx(scores[50:], rel=0.2, abs=0.05)
    assert after[:50].min() > 5
    is_even = np.arange(5000) % 2 == 0
    holed = np.where(is_even[:, None], values, np.nan)
    assert np.array_equal(np.isnan(tail_scores(holed, everyone)[0][:, 0]), ~is_even)
    apart = tail_scores(np.where(is_even[:, None], 100 * values, values), is_even)[0]
    assert np.allclose(apart[is_even], tail_scores(values[is_even], is_even[is_even])[0])


@pytest.fixture
def folder(drawn: AuditData, tmp_path: Path) -> Path:
    """A contest with 150 of the faces on plain images; two have wrong labels."""
    root = contest.Folder(root=tmp_path / "DIR")
    root.train_images.mkdir(parents=True)
    points = drawn.points_image[:150].copy()
    points[31] = points[31, drawn.permutation]
    mouth = np.array(drawn.groups["mouth"])
    points[77, mouth] += np.random.default_rng(0).normal(0, 9, (len(mouth), 2))
    points[5, 2] = np.nan
    names = [f"{row:03}.jpg" for row in range(150)]
    for name in names:
        cv2.imwrite(str(root.train_images / name), np.full((160, 160, 3), 90, np.uint8))
    contest.write_landmarks(root.train_table, names, points)
    scheme = schemes.Scheme(drawn.permutation, drawn.groups)
    (tmp_path / "symmetry.json").write_text(json.dumps(scheme.to_dict()))
    return root.root


def trained(folder: Path, out: Path, **data: object) -> None:
    """Writes a run of a coordinate network after two training steps."""
    experiment = config.Experiment(
        name="run",
        data=config.Data(root=folder, workers=0, **data),
        crop=config.Crop(height=32, width=32),
        model=config.Direct(encoder="tu-test_resnet", weights="none"),
        train=config.Train(batch=8, max_steps=2, device="cpu", compile="off"),
        wandb=config.Wandb(mode="off"),
    )
    loop.train(prepare(experiment), out)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_audit_ranks_images_and_writes_a_page(
    folder: Path, tool: Tool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trained(folder, tmp_path / "run", validation=0.2)
    audited = ["data", "audit", folder, "--run", "run", "--symmetry", "symmetry.json"]
    options = ["--top", "0.1", "--count", "12"]
    assert tool(*audited, *options, "--exclude-to", "bad.csv") == 0
    output = capsys.readouterr().out
    assert "120 of 150 images were trained on by every run" in output and "too small" in output
    assert "found in the first 10 %" in output and "on faces new to a run" in output
    rows = rows_of(tmp_path / "audit.csv")
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, 151)]
    by_name = {row["file_name"]: row for row in rows}
    assert max(int(by_name[name]["rank"]) for name in ("031.jpg", "077.jpg")) <= 4
    assert by_name["077.jpg"]["group"] == "mouth"
    assert by_name["005.jpg"]["turn"] == "" and abs(float(by_name["006.jpg"]["turn"])) < 1
    assert by_name["000.jpg"]["trained"] == "1" and by_name["149.jpg"]["trained"] == "0"
    table = contest.read_landmarks(folder / "train" / "landmarks.csv")
    excluded = contest.read_excluded(tmp_path / "bad.csv", table)
    assert len(excluded) == 15 and 31 in excluded

    page = (tmp_path / "review.html").read_text("utf-8")
    shown = json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])
    assert shown["table"] == table.fingerprint and list(shown["groups"]) == list(
        schemes.groups(971)
    )
    faces = {face["name"]: face for face in shown["faces"]}
    assert set(faces) == {row["file_name"] for row in rows[:12]}
    shares = [face["share"] for face in shown["faces"]]
    assert shares == sorted(shares, reverse=True) and sum(shares) <= 1
    sides = {"1": "trained on", "0": "new to a run"}
    for name, face in faces.items():
        assert face["side"] == sides[by_name[name]["trained"]]
        assert "; ".join(face["reasons"]) == by_name[name]["reasons"]


def test_folds_predict_every_image_unseen(
    folder: Path, tool: Tool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for fold in range(2):
        trained(folder, tmp_path / f"fold{fold}", folds=2, fold=fold)
    runs = ["--run", "fold0", "fold1", "--symmetry", "symmetry.json"]
    assert tool("data", "audit", folder, *runs) == 0
    assert "0 of 150 images were trained on by every run" in capsys.readouterr().out
    assert {row["trained"] for row in rows_of(tmp_path / "audit.csv")} == {"0"}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "--data.folds 5 --data.fold 0"),
        (["--run", "run", "--top", "0"], 2, "--top"),
        (["--run", "run", "--review", "review.txt"], 2, "--review"),
        (["--run", "run"], 1, "no such checkpoint"),
        (["--run", "run", "--symmetry", "none.json"], 1, "none.json"),
    ],
)
def test_invalid_audit_options_are_refused(
    folder: Path,
    tool: Tool,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    options: list[str],
    code: int,
    message: str,
) -> None:
    assert tool("data", "audit", folder, *options) == code
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "audit.csv").exists()


@pytest.mark.parametrize(("found", "is_doubtful"), [(40, True), (50, False)])
def test_a_poor_self_test_is_said(found: int, is_doubtful: bool) -> None:
    text = format_recalls([Recall("jitter", 100, found, 0, 0)], 0.03)
    assert ("too inaccurate" in text) == is_doubtful
