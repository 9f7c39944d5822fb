"""Damaged files of a run are refused in one line, or still mean something."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from trials.mutants import mutant

from heatmap import schemes
from heatmap.config import Experiment, to_dict
from heatmap.errors import UserError
from heatmap.evaluation import calibration, compare
from heatmap.runs.folder import Machine, RunFolder, Split, Summary, WandbArguments
from heatmap.runs.ledger import read_metrics, rewind
from heatmap.runs.per_image import write_per_image
from heatmap.runtime.files import read_json

SUMMARY = {
    "best_mse": 2.5, "best_epoch": 2, "mean_shape_mse": 60.0, "epochs": 3, "steps": 9,
    "minutes": 4.0,
}  # fmt: skip
MACHINE = {"date": "2026-11-28", "commit": None, "device": "cpu", "processor": "x", "cpu_cores": 2}
SPLIT = {"kind": "person", "rule": "by person", "table": "f00d", "validation": ["a_1.jpg"]}
CALIBRATION = {
    "calibration": {"peak_weight": 0.0, "spread_weight": 1, "doubt": [0, 1], "error_px": [1, 2]},
    "fitted_images": 3, "checked_images": 3,
    "deciles": [{"landmarks": 3, "expected_px": 1.0, "observed_px": 2.0}],
}  # fmt: skip
SCHEME = {"permutation": [1, 0, 2], "groups": {"eyes": [0, 2], "nose": [2, 3]}}
ROWS = [{"step": s, "epoch": s, "time/seconds": 0.5, "val/mse": 5.0, "lr": None} for s in (1, 2)]
WANDB = {"id": "a", "mode": "offline"}
PREDICTIONS = {"step": 2, "columns": ["image", "file_name"], "rows": [["01-a.jpg", "a.jpg", None]]}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A finished run, whose files are written by hand."""
    files = RunFolder(tmp_path / "a")
    files.predictions.mkdir(parents=True)
    contents = {
        files.config: to_dict(Experiment(name="a")), files.summary: SUMMARY, files.split: SPLIT,
        files.machine: MACHINE, files.calibration: CALIBRATION, files.wandb: WANDB,
        files.predictions_table: PREDICTIONS, files.path / "symmetry.json": SCHEME,
        files.scores: {"mse": 3.0, "mean_shape_mse": 9.0, "table": "f00d"},
    }  # fmt: skip
    for path, values in contents.items():
        path.write_text(json.dumps(values))
    files.metrics.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    numbers = {name: np.array([2.0, np.nan]) for name in ("mse", "nme", "width", "height")}
    write_per_image(files.per_image, ["a_1.jpg", "a_2.jpg"], numbers)
    shutil.copytree(files.path, tmp_path / "other")
    return files


def use(run: RunFolder) -> None:
    """Reads every file of the run as the commands do."""
    read_json(run.split, Split)
    read_json(run.machine, Machine)
    read_json(run.summary, Summary)
    read_json(run.wandb, WandbArguments)
    schemes.read_scheme(run.path / "symmetry.json", 3)
    checked = calibration.read(run.path)
    assert checked is not None
    expected = checked.calibration.expected_error(np.ones(2), np.ones(2))
    assert np.isfinite(expected).all()
    runs = compare.read_runs([run.path, run.path.with_name("other")])
    compare.format_comparison(compare.compare_runs(runs, 10))
    read_metrics(run.path)
    rewind(run.path, 2)


@pytest.mark.parametrize(
    "name",
    [
        "config.json", "summary.json", "split.json", "machine.json", "calibration.json",
        "wandb.json", "predictions/table.json", "symmetry.json", "evaluation.json",
        "metrics.jsonl", "per_image.csv",
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_in_one_line_or_still_read(run: RunFolder, name: str) -> None:
    path, generator = run.path / name, random.Random(name)
    whole = path.read_bytes()
    use(run)
    num_refused = 0
    for _ in range(50):
        run.summary.write_text(json.dumps(SUMMARY))  # rewinding removes it
        run.metrics.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        path.write_bytes(mutant(whole, generator))
        try:
            use(run)
        except UserError as error:
            num_refused += 1
            message = str(error)
            assert str(run.path) in message and "\n" not in message and len(message) < 500
    assert num_refused > 10


def test_a_table_of_errors_without_rows_is_refused(run: RunFolder) -> None:
    run.per_image.write_text("file_name,mse,nme,width,height\n")
    with pytest.raises(UserError, match=r"per_image.csv: the table has a header but no rows"):
        use(run)
