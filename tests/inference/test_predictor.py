"""The predictor crops as in training, returns image pixels and leaves the process unchanged."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from stub import Stub
from tiny_runs import trained
from torch import Tensor

import heatmap
from heatmap import config
from heatmap.data.contest import read_image
from heatmap.data.samples import Samples
from heatmap.inference.ensemble import Ensemble
from heatmap.inference.predict import View, placed, predict
from heatmap.inference.predictor import Landmarks, Predictor
from heatmap.networks import CropPrediction
from heatmap.runs import checkpoint
from heatmap.runs.checkpoint import TrainedRun

CPU = torch.device("cpu")
SIZES = [(90, 121), (301, 204), (64, 64), (77, 150), (520, 431)]  # height, width
BOXES = np.array([(0.2 * w, 0.1 * h, 0.7 * w, 0.9 * h) for h, w in SIZES])
CROPS = [
    config.Crop(height=40, width=37),
    config.Crop(height=33, width=48, rule="contain", trim_border=9),
    config.Crop(height=40, width=36, rule="box", box_scale=1.5),
]
GREY = np.zeros((9, 8, 3), np.uint8)
MEAN_SHAPE = torch.tensor([[9.0, 12.0], [27, 11], [18, 30], [16, 22]], dtype=torch.float64)


def predictor(
    read: Callable[[Tensor], CropPrediction], crop: config.Crop, batch: int = 2
) -> Predictor:
    experiment = config.Experiment(name="stub", crop=crop)
    trained = TrainedRun(
        path=Path("stub"),
        experiment=experiment,
        network=Stub(read, len(MEAN_SHAPE)),
        mean_shape_crop=MEAN_SHAPE,
        scheme=None,
        table_hash="",
        training_rows=torch.arange(0),
        validation_rows=torch.arange(0),
        validation_mse=None,
    )
    return Predictor(trained, "cpu", batch)


def mean_shape(images: Tensor) -> CropPrediction:
    """Predicts the mean training face for every crop."""
    points = MEAN_SHAPE.float().expand(len(images), -1, -1)
    return CropPrediction(
        points, torch.ones(points.shape[:2]), torch.eye(2).expand(*points.shape, 2)
    )


def dots(images: Tensor) -> CropPrediction:
    """Predicts the centres of the red, green and blue dots, and of all three."""
    weights = torch.cat([images, images.mean(1, keepdim=True)], 1).double().square()
    y, x = torch.meshgrid(*(torch.arange(n).double() for n in images.shape[-2:]), indexing="ij")
    total = weights.sum((-2, -1))
    points = torch.stack([(weights * axis).sum((-2, -1)) / total for axis in (x, y)], -1)
    return CropPrediction(points.float(), None, None)


@pytest.fixture
def noise(tmp_path: Path) -> list[Path]:
    """Images with a black border; the last one is a JPEG that training decodes at half size."""
    generator = np.random.default_rng(2)
    paths = []
    for k, hw in enumerate(SIZES):
        image = generator.integers(0, 256, (*hw, 3), np.uint8)
        image[: 3 + k] = image[:, : 2 * k] = 0
        paths.append(tmp_path / f"{k}.{'jpg' if k == 4 else 'png'}")
        assert cv2.imwrite(str(paths[-1]), image)
    return paths


@pytest.mark.parametrize("crop", CROPS, ids=lambda crop: crop.rule)
def test_crops_equal_those_of_training_bit_for_bit(noise: list[Path], crop: config.Crop) -> None:
    seen: list[Tensor] = []

    def recording(images: Tensor) -> CropPrediction:
        seen.append(images.clone())
        return mean_shape(images)

    boxes = BOXES if crop.rule == "box" else None
    nothing = np.full((len(noise), 4, 2), np.nan, np.float32)
    training = Samples(noise, nothing, crop, boxes)
    expected = torch.stack([training[row].crop for row in range(len(noise))]).float() / 255
    ours = predictor(recording, crop)
    found = ours(noise, boxes)
    assert [len(images) for images in seen] == [2, 2, 1]
    assert torch.equal(torch.cat(seen), expected)

    view = View(Stub(mean_shape, len(MEAN_SHAPE)), training)
    (evaluated,) = predict([view], np.arange(5), batch=5, workers=0)
    assert np.array_equal(found.points_image, evaluated.points_image)
    assert np.array_equal(found.covariance, evaluated.covariance_image)

    seen.clear()  # arrays give the same crops as files
    ours([read_image(path) for path in noise[:4]], None if boxes is None else boxes[:4])
    assert torch.equal(torch.cat(seen), expected[:4])


@pytest.mark.parametrize("crop", CROPS[:2], ids=lambda crop: crop.rule)
def test_landmarks_fill_their_box(noise: list[Path], crop: config.Crop) -> None:
    shape = MEAN_SHAPE.numpy()
    extent = np.ptp(shape, axis=0)
    corners = np.array([(10.0, 20.0), (-30, 5), (20, 11), (3, 3), (300, 100)])
    boxes = np.concatenate([corners, corners + np.array([[1], [3], [0.5], [2], [9]]) * extent], 1)
    found = predictor(mean_shape, crop)(noise, boxes).points_image
    np.testing.assert_allclose(found.min(1), boxes[:, :2], atol=1e-4)
    np.testing.assert_allclose(found.max(1), boxes[:, 2:], atol=1e-4)


def face(size_hw: tuple[int, int], centre: tuple[float, float], scale: float) -> tuple[Any, Any]:
    """An image of three dots placed as in the mean shape, and its four landmarks."""
    offsets = MEAN_SHAPE.numpy() - MEAN_SHAPE.numpy().mean(0)
    points = np.array(centre) + scale * offsets
    points[3] = points[:3].mean(0)
    y, x = np.mgrid[: size_hw[0], : size_hw[1]]
    squared = (x[..., None] - points[:3, 0]) ** 2 + (y[..., None] - points[:3, 1]) ** 2
    return (250 * np.exp(-squared / 2 / (2 * scale) ** 2)).astype(np.uint8), points


def test_the_second_pass_crops_to_the_face() -> None:
    # a face of 30 px in an image that is shrunk nine times by the first crop
    image, truth = face((400, 333), (120.3, 230.6), 1.6)
    scales: list[float] = []

    def recording(images: Tensor) -> CropPrediction:
        found = dots(images)
        scales.append(float((found.points_crop[0, 1] - found.points_crop[0, 0]).norm()))
        return found

    ours = predictor(recording, CROPS[0])
    once, twice = ours([image]).points_image[0], ours([image], two_pass=True).points_image[0]
    assert scales[0] == scales[1] < 4
    assert scales[2] == pytest.approx((MEAN_SHAPE[1] - MEAN_SHAPE[0]).norm().item(), rel=0.15)
    assert np.abs(twice - truth).max() < 0.15 < np.abs(once - truth).max()


def test_a_second_pass_without_a_face_repeats_the_first(noise: list[Path]) -> None:
    def lost(images: Tensor) -> CropPrediction:
        return CropPrediction(torch.full((len(images), 4, 2), 7.0), None, None)

    for crop, boxes in ((CROPS[1], None), (CROPS[2], BOXES)):
        ours = predictor(lost, crop)
        once, twice = ours(noise, boxes), ours(noise, boxes, two_pass=True)
        np.testing.assert_allclose(once.points_image, twice.points_image, atol=1e-9)


def test_predicting_leaves_the_process_unchanged(noise: list[Path]) -> None:
    def state() -> list[object]:
        return [
            torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(),
            torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()),
            cv2.getNumThreads(), torch.backends.cudnn.benchmark, torch.backends.cudnn.enabled,
            torch.are_deterministic_algorithms_enabled(), torch.is_inference_mode_enabled(),
        ]  # fmt: skip

    images = [read_image(path) for path in noise]
    copies = [image.copy() for image in images]
    before = state()
    found = predictor(mean_shape, CROPS[0])(images, two_pass=True)
    assert state() == before
    assert all(np.array_equal(a, b) for a, b in zip(images, copies, strict=True))
    with torch.no_grad():
        predictor(mean_shape, CROPS[0])(images)
        assert not torch.is_grad_enabled()
    assert isinstance(found, Landmarks) and found.points_image.dtype == np.float64


@pytest.mark.slow
def test_calls_do_not_leak_memory() -> None:
    """Compares resident memory after the caches have filled."""
    ours, image = predictor(mean_shape, CROPS[0]), np.full((200, 300, 3), 77, np.uint8)

    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    for _ in range(100):
        ours([image])
    before = resident_mb()
    for _ in range(1000):
        ours([image])
    assert resident_mb() - before < 2  # one leaked image a call would be 170 MB


def test_a_loaded_run_keeps_its_network(tiny_run: Path) -> None:
    trained = checkpoint.load_trained(tiny_run)
    paths = [np.full((50, 60, 3), shade, np.uint8) for shade in (20, 90)]
    first = Predictor(trained, "cpu")
    expected = first(paths).points_image
    trained.network.train()
    second = Predictor(trained, "cpu")
    assert trained.network.training
    assert np.array_equal(second(paths).points_image, expected)
    assert placed(trained.network.eval(), CPU) is trained.network
    elsewhere = placed(trained.network, torch.device("meta"))
    assert elsewhere.mean.is_meta and not trained.network.mean.is_meta
    views = Ensemble((trained,)).views([], np.empty((0, 7, 2)), torch.device("meta"))
    assert views[0].network.mean.is_meta
    assert np.array_equal(first(paths).points_image, expected)


def test_networks_without_heatmaps_have_no_confidence(noise: list[Path]) -> None:
    found = predictor(dots, CROPS[0])(noise)
    assert found.points_image.shape == (5, 4, 2)
    assert found.confidence is None and found.covariance is None
    assert predictor(dots, CROPS[0])([]).points_image.shape == (0, 4, 2)
    assert predictor(dots, CROPS[0])([], []).points_image.shape == (0, 4, 2)


@pytest.mark.parametrize(
    ("crop", "images", "boxes", "words"),
    [
        (2, [GREY], None, "it needs boxes"),
        (0, [GREY.astype(float)], None, "uint8 RGB array, got .* float64"),
        (0, [GREY[..., 0]], None, r"got \(9, 8\)"),
        (0, [Path("nowhere.png")], None, "nowhere.png: the image does not exist"),
        (0, [GREY], [(1, 2, 3, 4)] * 2, r"shape \(1, 4\), one per image, got \(2, 4\)"),
        (0, [GREY], [(5, 2, 3, 4)], r"box 0 from \(5, 2\) to \(3, 4\) is empty"),
        (0, [GREY], [(1, 2, np.nan, 4)], "box 0 from"),
        (0, [GREY], [(8, 2, 9, 4)], "outside the image of 8 x 9 pixels"),
        (0, "face.jpg", None, r"a list of images, got one; write \['face.jpg'\]"),
    ],
)
def test_wrong_input_is_reported(crop: int, images: Any, boxes: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        predictor(mean_shape, CROPS[crop])(images, boxes)


def test_landmarks_that_are_not_finite_are_an_error(noise: list[Path]) -> None:
    def without_red(images: Tensor) -> CropPrediction:
        points, *rest = mean_shape(images)
        return CropPrediction(points.where(images[:, 0].any(), np.nan), *rest)

    found = predictor(without_red, CROPS[0])
    assert np.isfinite(found(noise).points_image).all()
    with pytest.raises(ValueError, match=r"an image in memory: .* landmarks that are not finite"):
        found([np.zeros((40, 40, 3), np.uint8)])


@pytest.fixture(scope="module")
def tiny_run(tiny_contest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run") / "tiny", tiny_contest)


def test_a_run_folder_predicts_as_its_evaluation_does(tiny_contest: Path, tiny_run: Path) -> None:
    paths = sorted((tiny_contest / "test" / "images").iterdir())
    found = heatmap.Predictor(tiny_run, device="cpu")(paths)
    trained = checkpoint.load_trained(tiny_run / "best.pt")
    nothing = np.full((len(paths), 7, 2), np.nan, np.float32)
    samples = Samples.of(trained.experiment, paths, nothing)
    rows = np.arange(len(paths))
    (expected,) = predict([View(trained.network, samples)], rows, batch=len(paths), workers=0)
    np.testing.assert_allclose(found.points_image, expected.points_image, atol=1e-3)
    np.testing.assert_allclose(found.confidence, expected.peak, rtol=1e-4)
    assert found.covariance is not None and found.covariance.shape == (5, 7, 2, 2)


def test_importing_the_package_does_not_import_torch() -> None:
    words = "import sys, heatmap; assert 'torch' not in sys.modules; print(heatmap.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'Predicter'"):
        heatmap.Predicter  # noqa: B018
