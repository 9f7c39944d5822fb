import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from heatmap.config import Experiment, Wandb
from heatmap.errors import UserError
from heatmap.runs.ledger import Ledger, read_metrics, rewind

CONFIG = {"name": "tiny"}
EPOCH = {"epoch": 1, "time/seconds": 0.5, "loss": 1.0}
ROWS = [
    {"step": s, "loss": 0.1 / (s + 1), "epoch": s, "time/seconds": 0.5, "note": f"row {s}"}
    for s in range(12)
]


def record_in(folder: Path, **changes: Any) -> Ledger:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return Ledger(folder, Experiment(name="tiny", wandb=Wandb(mode="off")), **changes)


def log_rows(record: Ledger, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        record.log(row["step"], {key: value for key, value in row.items() if key != "step"})


def test_logged_rows_read_back_unchanged(tmp_path: Path) -> None:
    with record_in(tmp_path) as record:
        log_rows(record, ROWS)
        record.finish({"best": 1})
    assert read_metrics(tmp_path) == ROWS
    assert [next(iter(row)) for row in read_metrics(tmp_path)] == ["step"] * 12


def test_nan_and_infinities_are_null(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    with record_in(tmp_path) as record:
        record.log(3, {"loss": float("nan"), "mse": float("inf"), "nme": np.float64(0.5)})
        record.finish({"groups": {"jaw": float("nan")}, "sizes": [1.0, float("-inf")]})
    text = (tmp_path / "metrics.jsonl").read_text()
    row = {"step": 3, "loss": None, "mse": None, "nme": 0.5}
    assert json.loads(text, parse_constant=refuse) == row
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert summary == {"groups": {"jaw": None}, "sizes": [1.0, None]}


def test_steps_increase_and_images_come_before_their_row(tmp_path: Path) -> None:
    with record_in(tmp_path) as record:
        record.log(4, EPOCH)
        with pytest.raises(AssertionError):
            record.log(4, EPOCH)
        with pytest.raises(AssertionError):
            record.image("validation", 4, np.zeros((6, 8, 3), np.uint8))
    assert len(read_metrics(tmp_path)) == 1


def test_an_image_keeps_its_shape_and_colours(tmp_path: Path) -> None:
    image = np.zeros((24, 40, 3), np.uint8)
    image[:, :16] = (250, 120, 10)
    with record_in(tmp_path) as record:
        record.image("validation", 7, image)
    path = tmp_path / "images" / "validation_0000007.jpg"
    read = np.asarray(cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB))
    assert read.shape == image.shape
    np.testing.assert_allclose(read[:, :8], image[:, :8], atol=4)
    assert list(tmp_path.glob("images/*")) == [path]


def test_rewind_restores_the_state_at_a_step(tmp_path: Path) -> None:
    image = np.zeros((6, 8, 3), np.uint8)
    with record_in(tmp_path) as record:
        log_rows(record, ROWS[:6])
        record.image("validation", 6, image)
        early = (tmp_path / "metrics.jsonl").read_bytes()
        record.predictions(6, ["mse"], [(image, "ada.jpg", [1.0])])
    (tmp_path / "images" / "validation_0000005.jpg").write_bytes(b"early")
    with (tmp_path / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"step": 6, **EPOCH}) + '\n{"step": 7, "lo')
    (tmp_path / "summary.json").write_text("{}")

    rewind(tmp_path, 6)
    assert (tmp_path / "predictions" / "01-ada.jpg").exists()
    rewind(tmp_path, 5)

    assert not (tmp_path / "predictions").exists()
    assert (tmp_path / "metrics.jsonl").read_bytes() == early
    assert [path.name for path in tmp_path.glob("images/*")] == ["validation_0000005.jpg"]
    assert not (tmp_path / "summary.json").exists()


def test_an_incomplete_last_line_is_ignored_and_a_bad_line_is_refused(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    row = json.dumps({"step": 0, **EPOCH})
    metrics.write_text(row + '\n{"step": 1, "lo')
    assert read_metrics(tmp_path) == [{"step": 0, **EPOCH}]
    for line, problem in (
        ('{"step": 1, "lo', "not JSON, or cut short"),
        ("[1]", r"the content must be an object \(Row\), not \[1\]"),
        (row.replace("1.0", "NaN"), "NaN is not a finite number"),
        (row.replace("1.0", "1e999"), "1e999 is not a finite number"),
        (row.replace('"loss"', '"epoch"'), "'epoch' occurs twice"),
        ("[" * 100_000, "nested too deeply"),
        (row.replace("1.0", "[" * 60 + "]" * 60), "nested too deeply"),
        ('{"step": "\xff"}', "not JSON"),
    ):
        metrics.write_bytes(f"{row}\n{line}\n{row}\n".encode("latin-1"))
        with pytest.raises(UserError, match=rf"metrics\.jsonl, line 2: .*{problem}"):
            read_metrics(tmp_path)
    metrics.unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl: "):
        read_metrics(tmp_path)


def test_a_damaged_table_of_predictions_deletes_nothing(tmp_path: Path) -> None:
    with record_in(tmp_path) as record:
        record.predictions(3, ["mse"], [(np.zeros((6, 8, 3), np.uint8), "ada.jpg", [1.0])])
    table = tmp_path / "predictions" / "table.json"
    for rows, problem in (
        ([[]], "rows.0 must be a list of"),
        ([["01-ada.jpg"]], "rows.0 must be a list of"),
        ([["01-ada.jpg", "ada.jpg", "1.0"]], r"rows.0.2 must be a number, not '1.0'"),
        ([[None, "ada.jpg"]], "rows.0.0 must be text"),
        (3, "rows must be a list"),
    ):
        table.write_text(json.dumps({"step": 3, "columns": ["mse"], "rows": rows}))
        with pytest.raises(UserError, match=f"table.json: {problem}"):
            rewind(tmp_path, 1)
        assert (tmp_path / "predictions" / "01-ada.jpg").exists()


def test_other_files_survive_a_resume(tmp_path: Path) -> None:
    image = np.zeros((6, 8, 3), np.uint8)
    with record_in(tmp_path) as record:
        record.image("validation", 3, image)
        record.predictions(3, ["mse"], [(image, "ada.jpg", [1.0])])
        record.log(3, EPOCH)
    stray = [
        tmp_path / "images" / name
        for name in ("me.jpg", "holiday_2024.jpg", "x_y.jpg", "IMG_2024123.jpg", "validation_9.jpg")
    ]
    stray += [tmp_path / "predictions" / "mine.jpg", tmp_path / "pictures" / "me_2024.jpg"]
    stray[-1].parent.mkdir()
    for path in stray:
        path.write_bytes(b"mine")
    record_in(tmp_path, after_step=1).close()
    left = {path for path in tmp_path.glob("*/*") if path.is_file()}
    assert left == set(stray)


def test_the_longest_file_name_is_recorded(tmp_path: Path) -> None:
    name = "a" * 251 + ".jpg"
    with record_in(tmp_path) as record:
        record.predictions(3, ["mse"], [(np.zeros((6, 8, 3), np.uint8), name, [1.0])])
    (path,) = tmp_path.glob("predictions/*.jpg")
    assert path.name == "01-" + "a" * 248 + ".jpg"
