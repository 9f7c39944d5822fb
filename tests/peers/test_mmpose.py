"""Values that mmpose (github.com/open-mmlab/mmpose, Apache 2.0) publishes in its own tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from stub import Stub
from torch import Tensor

from heatmap import codec, config
from heatmap.data.samples import Samples
from heatmap.evaluation import metrics
from heatmap.inference.predict import View
from heatmap.losses import adaptive_wing
from heatmap.networks import CropPrediction
from heatmap.runs.per_image import Errors


# tests/test_models/test_losses/test_heatmap_losses.py, TestAdaptiveWingLoss: the mean of all pixels
@pytest.mark.parametrize("prediction, expected", [(0.0, 0.0), (1.0, 8.4959)])
def test_adaptive_wing_loss_of_a_constant_map(prediction: float, expected: float) -> None:
    zeros = torch.zeros(1, 3, 2, 2)
    loss, _ = adaptive_wing(zeros + prediction, zeros)
    assert loss.mean().item() == pytest.approx(expected, abs=5e-5)


def errors_of(predicted: list[Any], truth: list[Any], folder: Path) -> Errors:
    """Errors of points (N, P, 2) in images of the crop's size; the third landmark is unlabelled."""
    points, labels = torch.tensor(predicted).float(), np.float32(truth)
    labels[:, 2] = np.nan
    paths = [folder / f"{row}.png" for row in range(len(truth))]
    for row, path in enumerate(paths):
        assert cv2.imwrite(str(path), np.full((64, 64, 3), 255 * row, np.uint8))

    def predict(images: Tensor) -> CropPrediction:
        return CropPrediction(points[images.mean((1, 2, 3)).long()], None, None)

    view = View(Stub(predict).eval(), Samples(paths, labels, config.Crop(height=64, width=64)))
    return metrics.measure_errors([view], np.arange(len(truth)), points[0], batch=2, workers=0)


def scores(errors: Errors, distance: np.ndarray, limit: float) -> dict[str, Any]:
    """The scores with each distance as an image's NME, scaled so that 8 % is the limit in px."""
    return metrics.summary(replace(errors, nme=0.08 * distance / limit))


# The next three: tests/test_evaluation/test_functional/test_keypoint_eval.py
PREDICTED = [[10, 4], [10, 18], [0, 0], [40, 40], [20, 10]]
TRUTH = [[10, 0], [10, 10], [0, 0], [30, 30], [0, 10]]


def test_mean_distance_and_nme(tmp_path: Path) -> None:
    errors = errors_of([PREDICTED], [TRUTH], tmp_path)
    assert np.nanmean(errors.distance) == pytest.approx(11.5355339, abs=1e-6)
    # mmpose divides by a given factor, here 1; we divide by the eye distance, here 10 px
    nme_percent = metrics.summary(errors)["nme_percent"]
    assert nme_percent / 100 * 10 == pytest.approx(11.5355339, abs=1e-6)


def test_share_of_correct_landmarks(tmp_path: Path) -> None:
    zeros = [[0, 0]] * 5
    predicted = [[10, 0], [20, 20], [0, 0], [30, 30], [0, 10]]
    errors = errors_of([predicted, zeros], [TRUTH, zeros], tmp_path)
    # mmpose counts below 0.5 times 10 px, we count above: only a distance of 5 px would differ
    wrong = [scores(errors, errors.distance[:, k], 5.0)["failure_8"] for k in range(5)]
    assert wrong == [0, 0.5, None, 0, 0], "None where nothing is labelled, -1 there"
    assert 1 - scores(errors, errors.distance, 5.0)["failure_8"] == 0.875
    assert np.isnan(errors.nme[1]), "as there, an image whose normaliser is 0 does not count"


def test_area_under_the_curve(tmp_path: Path) -> None:
    errors = errors_of([PREDICTED], [TRUTH], tmp_path)

    def by_steps(steps: int, limit: float) -> float:
        """The mean share of landmarks within 0, 1 / steps, 2 / steps, ... of the limit in px."""
        limits = limit * np.arange(steps).clip(1e-9) / steps
        return 1 - np.mean([scores(errors, errors.distance, at)["failure_8"] for at in limits])

    assert by_steps(4, 20.0) == pytest.approx(0.375)
    # mmpose's 4 steps lie below the curve; ours is its area, so that no number of steps matters
    for limit in 10.0, 20.0:
        area = scores(errors, errors.distance, limit)["auc_8"]
        assert area == pytest.approx(by_steps(200, limit), abs=1 / 200)


# tests/test_codecs/test_msra_heatmap.py, test_udp_heatmap.py, test_megvii_heatmap.py: 192 x 256
# images, 48 x 64 heatmaps, points in their inner 80 %, sigma 2 (Megvii: a blur of 11 pixels, to cv2
# sigma 2, and a height of 255). These round the points and allow 5 to 10 px; plain MSRA and Megvii
# round the Gaussian's centre, too, ours does not. The scale is in image pixels per heatmap pixel:
# UDP's grids meet at the outermost pixels' centres, the others' at the first pixel's; ours at the
# edges (heatmap.frame), as in resizing.
@pytest.mark.parametrize("decoder", ["window", "parabola"])
@pytest.mark.parametrize(
    "scale, height", [((4, 4), 1), ((191 / 47, 255 / 63), 1), ((4, 4), 255)],
    ids=["MSRA", "UDP", "Megvii"],
)  # fmt: skip
def test_round_trip(scale: tuple[float, float], height: int, decoder: str) -> None:
    unit = torch.rand(100, 2, generator=torch.Generator().manual_seed(0))
    points_image = (0.1 + 0.8 * unit) * torch.tensor([192, 256])
    heatmaps = height * codec.render(points_image / torch.tensor(scale), 64, 48, sigma=2.0)
    decoded = codec.decode(heatmaps, 2.0, decoder).points_heatmap * torch.tensor(scale)
    assert (decoded - points_image).norm(dim=-1).max() < 0.02
