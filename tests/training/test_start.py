"""The functions of the package: train, resume, evaluate and predict."""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

import heatmap
from heatmap import losses
from heatmap.codec import Decoded
from heatmap.config import Experiment
from heatmap.errors import UserError
from heatmap.runs.folder import RunFolder
from heatmap.runtime.functions import imported

FUNCTIONS = """
from dataclasses import replace


def cubic(prediction, target):
    return (prediction - target).abs() ** 3


def inverted(batch, draws):
    return replace(batch, images=1 - batch.images)
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FUNCTIONS)
    return path


@pytest.fixture
def extended(tiny: Experiment, mine: Path) -> Experiment:
    """An experiment with the functions of a file."""
    return replace(
        tiny,
        model=replace(tiny.model, loss=f"{mine}:cubic"),
        augment=replace(tiny.augment, extra=f"{mine}:inverted"),
        train=replace(tiny.train, epochs=1),
    )


def test_a_run_is_trained_once_and_scored_by_image_and_landmark(
    tiny: Experiment, tmp_path: Path
) -> None:
    tiny = replace(tiny, train=replace(tiny.train, epochs=1))
    out = str(tmp_path / "run")
    summary = heatmap.train(tiny, out)
    assert (summary.run, summary.epochs, summary.steps) == (Path(out), 1, 4)
    with pytest.raises(UserError, match="already holds a run"):
        heatmap.train(tiny, out)
    assert heatmap.resume(out) == summary
    with pytest.raises(UserError, match="cannot change --seed"):
        heatmap.resume(out, lambda experiment: replace(experiment, seed=7))

    for options, message in (
        ({"decoder": "windo"}, "decoder must be window, .* did you mean 'window'"),
        ({"tta": "mirror,skale"}, "tta must be none, mirror or scale, not 'skale'"),
        ({"device": "gpu"}, "device must be auto, cpu or cuda, not 'gpu'"),
    ):
        with pytest.raises(UserError, match=message):
            heatmap.evaluate(out, **options)
    with pytest.raises(UserError, match="expected at least one run"):
        heatmap.evaluate([])

    evaluation = heatmap.evaluate(out, device="cpu")
    assert evaluation.scores["mse"] == summary.best_mse
    with RunFolder(Path(out)).per_image.open(newline="") as file:
        rows = list(csv.DictReader(file))
    images = evaluation.per_image
    assert images["file_name"] == [row["file_name"] for row in rows]
    assert np.allclose(images["mse"], [float(row["mse"]) for row in rows], atol=1e-6)
    mse = evaluation.scores["mse"]
    assert f"MSE {mse:.3f} px²" in repr(evaluation)
    assert len(repr(evaluation)) < 200 + len(out)
    landmarks = evaluation.per_landmark
    assert {len(column) for column in landmarks.values()} == {7}
    assert np.average(landmarks["mse"], weights=landmarks["images"]) == pytest.approx(
        np.mean(images["mse"]), rel=1e-5
    )


def test_a_decoder_may_be_a_function(tiny: Experiment, tmp_path: Path) -> None:
    heatmap.train(replace(tiny, train=replace(tiny.train, epochs=1)), tmp_path)

    def corner(heatmaps: Tensor, sigma: float) -> Decoded:
        zeros = heatmaps.new_zeros(len(heatmaps), 2)
        return Decoded(zeros, zeros[:, 0], (zeros + sigma).diag_embed())

    for decoder, name in ((corner, "corner"), (lambda *options: corner(*options), "lambda")):
        evaluation = heatmap.evaluate(tmp_path, decoder=decoder, device="cpu")
        assert evaluation.errors and not evaluation.errors.peak.any()
        assert evaluation.folder.name == f"evaluation-{name}"
        assert evaluation.ensemble.options == f"--decoder {name}"


def test_a_run_with_functions_predicts_without_them_but_resumes_only_with_them(
    extended: Experiment, mine: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    summary = heatmap.train(extended, run)
    assert f"{mine}:cubic" in (run / "config.json").read_text()
    mine.unlink()
    del sys.modules[f"{mine.parent.name}.mine"]
    imported.cache_clear()
    losses.of_heatmaps.cache_clear()
    assert heatmap.evaluate(run, device="cpu").scores["mse"] == summary.best_mse
    (run / "summary.json").unlink()  # as if the run had been stopped
    with pytest.raises(
        UserError, match=f"^cannot import the function {mine}:cubic: .*No such file"
    ):
        heatmap.resume(run)
