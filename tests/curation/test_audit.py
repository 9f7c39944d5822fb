"""Label errors that were put into labels are found, told in words, left out and repaired."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from heatmap.curation.audit.detectors import tails

from heatmap import config, schemes, shape
from heatmap.curation.audit import Labels, Recall, audit, self_test
from heatmap.curation.audit.folder import repair
from heatmap.curation.audit.injected import JITTER, ORDER, ROW, SCALE, SHIFT
from heatmap.data import contest
from heatmap.data.synthetic import landmarks, sample_face
from heatmap.training import loop
from heatmap.training.prepare import prepare

Tool = Callable[..., int]
NUM = 600


@pytest.fixture(scope="module")
def drawn() -> Labels:
    """600 drawn faces, of whose 971 landmarks every twelfth or so is labelled, in folds of 120."""
    known = schemes.mirror_permutation(971)
    some = np.append(np.arange(0, 971, 24), 970)
    chosen = np.union1d(some, known[some])
    place = np.full(971, -1)
    place[chosen] = np.arange(len(chosen))
    groups, start = {}, 0
    for name, members in schemes.groups(971).items():
        stop = start + np.isin(chosen, members).sum()
        groups[name] = range(start, stop)
        start = stop
    faces = [sample_face(11, index) for index in range(NUM)]
    return Labels(
        points_image=np.round([landmarks(face)[chosen] for face in faces]),
        image_hw=np.array([(face.camera.height, face.camera.width) for face in faces]),
        fold=np.arange(NUM) // 120,
        clip=np.full(NUM, -1),
        groups=groups,
        permutation=place[known[chosen]],
    )


def with_run(labels: Labels, error: float) -> Labels:
    """A run that sees the truth, but for an error in sizes of the face."""
    rng = np.random.default_rng(3)
    size = shape.face_size(shape.of(labels.points_image))[:, None, None]
    num = len(size)
    seen = labels.points_image + error * size * rng.normal(size=(num, 1, 2))
    seen += error * size * rng.normal(size=labels.points_image.shape)
    trained = np.arange(num) % 3 == 0
    return replace(labels, seen_image=seen.astype(np.float32), trained=trained)


def rates(recalls: list[Recall]) -> dict[str, float]:
    return {recall.kind: recall.found / recall.injected for recall in recalls}


def test_errors_of_shape_are_found_by_the_labels_alone(drawn: Labels) -> None:
    found = rates(self_test(drawn))
    assert found[ORDER] >= 0.95 and found[JITTER] >= 0.95
    assert found[ROW] > 0.3
    assert SHIFT not in found


def test_with_a_run_all_kinds_are_found_and_with_one_that_sees_nothing_not(drawn: Labels) -> None:
    recalls = [recall for recall in self_test(with_run(drawn, 0.015)) if recall.counted]
    found = rates(recalls)
    assert set(found) == {ORDER, ROW, JITTER, SCALE, SHIFT}
    assert sum(r.found for r in recalls) >= 0.95 * sum(r.injected for r in recalls)
    assert all(0 < r.unseen_injected < r.injected for r in recalls)
    blind = rates(self_test(with_run(drawn, 0.3)))
    assert blind[SHIFT] < 0.5 and blind[SCALE] < 0.5


def test_the_reason_names_contour_and_error(drawn: Labels) -> None:
    points = drawn.points_image.copy()
    members = np.array(drawn.groups["mouth"])
    points[7, members] = points[7, members[::-1]]
    points[130] = points[130, drawn.permutation]
    jaw = np.array(drawn.groups["jaw"])
    points[260, jaw] += np.random.default_rng(1).normal(0, 6, (len(jaw), 2))
    findings = audit(replace(drawn, points_image=points))
    assert set(findings.listed(0.01)) >= {7, 130, 260}
    told = {row: findings.reasons(row, drawn.groups) for row in (7, 130, 260)}
    assert any("the mouth would fit in another order" in reason for reason in told[7])
    assert any("left and right names exchanged" in reason for reason in told[130])
    assert any("the jaw is" in reason and "as jagged" in reason for reason in told[260])
    calm = findings.order[-1]
    assert findings.reasons(calm, drawn.groups) == []


def test_a_person_whose_labels_are_all_wrong_does_not_explain_itself(drawn: Labels) -> None:
    points = drawn.points_image.copy()
    brow = np.array(drawn.groups["left brow"])
    wrong = np.arange(240, 260)  # all in fold 2
    points[wrong[:, None], brow] += 0.05 * shape.face_size(shape.of(points[wrong]))[:, None, None]
    findings = audit(replace(drawn, points_image=points))
    assert np.isin(wrong, findings.listed(0.05)).mean() > 0.8


def test_unlabelled_landmarks_and_faces_are_no_errors(drawn: Labels) -> None:
    points = drawn.points_image.copy()
    rng = np.random.default_rng(8)
    points[rng.random(points.shape[:2]) < 0.2] = np.nan
    points[::10, 5:] = np.nan
    points[33] = np.nan
    findings = audit(replace(drawn, points_image=points))
    assert findings.score[33] == 0 and np.isfinite(findings.score).all()
    found = rates(self_test(replace(drawn, points_image=points)))
    assert found[ORDER] > 0.7 and found[JITTER] > 0.9


def test_tails_are_the_share_of_the_suspicious_and_errors_do_not_change_them() -> None:
    rng = np.random.default_rng(2)
    values = rng.exponential(size=5000)
    found = tails(values)
    for share in (0.05, 0.01, 0.002):
        at = np.argsort(-values)[round(share * 5000)]
        assert 10 ** -found[at] == pytest.approx(share, rel=0.5)
    mixed = values.copy()
    mixed[:50] += 30
    assert tails(mixed)[50:] == pytest.approx(found[50:], rel=0.2, abs=0.05)
    assert tails(mixed)[:50].min() > 5
    holed = np.where(np.arange(5000) % 2, values, np.nan)
    assert (tails(holed)[::2] == 0).all()


def test_repairs_put_jagged_contours_back_and_leave_all_else(drawn: Labels) -> None:
    points = drawn.points_image.copy()
    rng = np.random.default_rng(4)
    rows = np.array([3, 150, 271, 590])
    mouth = np.array(drawn.groups["mouth"])
    size = shape.face_size(shape.of(points[rows]))[:, None, None]
    points[rows[:, None], mouth] += 0.06 * size * rng.normal(size=(4, len(mouth), 2))
    labels = replace(drawn, points_image=points)
    findings = audit(labels)
    changed, repaired = repair(labels, findings, np.append(rows, 9))
    assert changed.tolist() == rows.tolist()
    truth = drawn.points_image[rows]
    before, after = (np.linalg.norm(p - truth, axis=2) for p in (points[rows], repaired))
    assert after[:, mouth].mean() < 0.5 * before[:, mouth].mean()
    others = np.setdiff1d(np.arange(points.shape[1]), mouth)
    assert np.mean(repaired[:, others] == points[rows][:, others]) > 0.9


@pytest.fixture
def folder(drawn: Labels, tmp_path: Path) -> Path:
    """150 of the faces as a contest with plain pictures; the labels of one are in disorder."""
    root = contest.Folder(root=tmp_path / "DIR")
    root.train_images.mkdir(parents=True)
    points = drawn.points_image[:150].copy()
    points[31] = points[31, drawn.permutation]
    mouth = np.array(drawn.groups["mouth"])
    points[77, mouth] += np.random.default_rng(0).normal(0, 9, (len(mouth), 2))
    points[5, 2] = np.nan
    names = [f"{row:03}.jpg" for row in range(150)]
    for name, (height, width) in zip(names, drawn.image_hw, strict=False):
        cv2.imwrite(str(root.train_images / name), np.full((height, width, 3), 90, np.uint8))
    contest.write_landmarks(root.train_table, names, points)
    scheme = schemes.Scheme(drawn.permutation, drawn.groups)
    (tmp_path / "symmetry.json").write_text(json.dumps(scheme.to_dict()))
    return root.root


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_tool_ranks_lists_repairs_and_tells_false_alarms(
    folder: Path, tool: Tool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--symmetry", "symmetry.json", "--top", "0.1", "--count", "12"]
    written = ["--exclude-to", "bad.csv", "--repair-to", "repaired.csv"]
    assert tool("data", "audit", folder, *options, *written) == 0
    said = capsys.readouterr().out
    assert "all but *" in said and "found in the first 10 %" in said
    rows = rows_of(tmp_path / "audit.csv")
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, 151)]
    first = {row["file_name"]: row for row in rows[:2]}
    assert set(first) == {"031.jpg", "077.jpg"} and "exchanged" in first["031.jpg"]["reasons"]
    assert first["077.jpg"]["contour"] == "mouth"
    assert float(rows[1]["score"]) > float(rows[2]["score"]) + 0.5
    turns = {row["file_name"]: row["turn"] for row in rows}
    assert turns["005.jpg"] == "" and abs(float(turns["006.jpg"])) < 1
    sheet = cv2.imread(str(tmp_path / "audit.jpg"))
    assert sheet.shape[0] == 2 * 256 + 4
    table = contest.read_landmarks(folder / "train" / "landmarks.csv")
    excluded = contest.read_excluded(tmp_path / "bad.csv", table)
    assert len(excluded) == 15 and 31 in excluded
    repaired = contest.read_landmarks(tmp_path / "repaired.csv")
    assert repaired.names == table.names
    same = (repaired.points_image[:] == table.points_image[:]).all((1, 2))
    assert (
        not same[77]
        and same[31]
        and same.sum() > 130
        and np.isnan(repaired.points_image[5, 2]).all()
    )

    for row, verdict in zip(rows, ["bad", "good", "good", "bad"], strict=False):
        row["verdict"] = verdict
    rows[-1]["verdict"] = "bad"  # far below the list
    with (tmp_path / "looked.csv").open("w", newline="") as file:
        table_file = csv.DictWriter(file, rows[0])
        table_file.writeheader()
        table_file.writerows(rows)
    looked = ["--looked", "looked.csv", "--out", "again.csv", "--exclude-to", "fewer.csv"]
    assert tool("data", "audit", folder, *options, *looked) == 0
    assert (
        "false alarms: 2 of 4 listed pictures that were looked at, 50 %" in capsys.readouterr().out
    )
    assert [row["verdict"] for row in rows_of(tmp_path / "again.csv")][:5] == [
        "bad", "good", "good", "bad", "",
    ]  # fmt: skip
    left_out = [row["file_name"] for row in rows_of(tmp_path / "fewer.csv")]
    assert len(left_out) == 14 and rows[-1]["file_name"] in left_out


def test_the_tool_holds_labels_to_what_runs_see(
    folder: Path, tool: Tool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    experiment = config.Experiment(
        name="run",
        data=config.Data(root=folder, validation=0.2, workers=0),
        crop=config.Crop(height=32, width=32),
        model=config.Direct(encoder="tu-test_resnet", weights="none"),
        train=config.Train(batch=8, max_steps=2, device="cpu", compile="off"),
        wandb=config.Wandb(mode="off"),
    )
    loop.train(prepare(experiment), tmp_path / "run")
    assert tool("data", "audit", folder, "--run", "run", "--symmetry", "symmetry.json") == 0
    said = capsys.readouterr().out
    assert "120 of 150 pictures were trained on by every run" in said
    assert "shifted by 10 %" in said and "faces new to the runs" in said
    trained = {row["file_name"]: row["trained"] for row in rows_of(tmp_path / "audit.csv")}
    assert trained["000.jpg"] == "1" and trained["149.jpg"] == "0"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--top", "0"], 2, "--top"),
        (["--sheet", "audit.gif"], 2, "--sheet"),
        (["--looked", "verdicts.csv"], 1, "row 3, column verdict: 'maybe' is neither good nor bad"),
        (["--symmetry", "none.json"], 1, "none.json"),
    ],
)
def test_what_cannot_be_is_refused(
    folder: Path,
    tool: Tool,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    options: list[str],
    code: int,
    message: str,
) -> None:
    (tmp_path / "verdicts.csv").write_text("file_name,verdict\n001.jpg,good\n002.jpg,maybe\n")
    assert tool("data", "audit", folder, *options) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "audit.csv").exists()


@pytest.mark.slow
def test_errors_in_real_labels_are_found(faces68: Path, tool: Tool, tmp_path: Path) -> None:
    options = ["--out", tmp_path / "audit.csv", "--sheet", tmp_path / "audit.png"]
    assert tool("data", "audit", faces68, *options) == 0
    first = [row["file_name"] for row in rows_of(tmp_path / "audit.csv")[:5]]
    # these were looked at: jaws that jump, a mouth on the cheek
    assert {"Chris_Cirino_30.jpg", "Marieta_Chrousala_12.jpg", "Elton_John_10.jpg"} <= set(first)
