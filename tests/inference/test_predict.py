"""Several views of an image are merged in image pixels."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from stub import Stub
from torch import Tensor

from heatmap import config, frame, schemes
from heatmap.data import samples
from heatmap.data.samples import Samples
from heatmap.inference.predict import Prediction, View, predict
from heatmap.networks import CropPrediction, Network

CPU = torch.device("cpu")
SIZES = [(90, 121), (301, 204), (64, 64), (77, 150)]  # height, width
CROPS = [
    config.Crop(height=40, width=37),
    config.Crop(height=33, width=48, rule="contain"),
    config.Crop(height=40, width=36, rule="box", box_scale=1.5),
]


def moments(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (..., 2) and covariance (..., 2, 2) of (..., H, W) weights, in pixels."""
    y, x = torch.meshgrid(*(torch.arange(n).double() for n in weights.shape[-2:]), indexing="ij")
    pixels = torch.stack([x, y], -1).flatten(0, 1)
    share = weights.double().flatten(-2)
    share = share / share.sum(-1, keepdim=True)
    mean = share @ pixels
    offsets = pixels - mean[..., None, :]
    return mean, torch.einsum("...n,...ni,...nj->...ij", share, offsets, offsets)


def symmetric(crop: config.Crop) -> Network:
    """A network of 15 landmarks that predicts a mirrored image as the mirrored prediction.

    A landmark is the centre of the brightness under a mask. Its mirrored landmark has the mirrored
    mask.
    """
    masks = torch.rand(15, crop.height, crop.width, generator=torch.Generator().manual_seed(3)) ** 4
    masks = masks + masks[schemes.mirror_permutation(15)].flip(-1)

    def look(images: Tensor) -> CropPrediction:
        weights = (0.1 + images.mean(1))[:, None] * masks
        mean, covariance = moments(weights)
        return CropPrediction(mean.float(), weights.amax((-2, -1)), covariance.float())

    return Stub(look)


def reads_dots(images: Tensor) -> CropPrediction:
    """Landmarks 0 and 1: right and left of the red and green dots; the others: the blue dot."""
    red, green, blue = moments(images.square())[0].unbind(1)
    is_right = (red[:, :1] > green[:, :1]).expand(-1, 2)
    right, left = torch.where(is_right, red, green), torch.where(is_right, green, red)
    points = torch.stack([right, left, *[blue] * 13], 1)
    return CropPrediction(points.float(), None, None)


def fixed(points_crop: np.ndarray, peak: Any, covariance_crop: np.ndarray | None) -> Network:
    """A network that predicts the same for every image."""

    def look(images: Tensor) -> CropPrediction:
        parts = (points_crop, peak, covariance_crop)
        return CropPrediction(
            *(
                None
                if part is None
                else torch.tensor(part).float().expand(len(images), *part.shape)
                for part in parts
            )
        )

    return Stub(look, len(points_crop))


def written(folder: Path, images: Sequence[np.ndarray]) -> list[Path]:
    paths = [folder / f"{k}.png" for k in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        assert cv2.imwrite(str(path), image[..., ::-1])
    return paths


@pytest.fixture
def noise(tmp_path: Path) -> list[Path]:
    generator = np.random.default_rng(2)
    return written(tmp_path, [generator.integers(0, 256, (*hw, 3), np.uint8) for hw in SIZES])


def of(paths: list[Path], crop: config.Crop, num_landmarks: int = 15) -> Samples:
    boxes = np.array([(0.2 * w, 0.1 * h, 0.7 * w, 0.9 * h) for h, w in SIZES])
    nothing = np.full((len(paths), num_landmarks, 2), np.nan, np.float32)
    return Samples(paths, nothing, crop, boxes if crop.rule == "box" else None)


def together(views: list[View], batch: int = 3, **options: Any) -> Prediction:
    """The predictions of all images as one."""
    rows = np.arange(len(views[0].samples))
    found = list(predict(views, rows, batch=batch, workers=0, **options))
    assert np.array_equal(np.concatenate([one.rows for one in found]), rows)
    parts = zip(*(one[1:4] for one in found), strict=True)
    points, peak, covariance = (None if p[0] is None else np.concatenate(p) for p in parts)
    return found[0]._replace(rows=rows, points_image=points, peak=peak, covariance_image=covariance)


@pytest.mark.parametrize("crop", CROPS, ids=lambda crop: crop.rule)
def test_a_mirrored_view_changes_nothing_for_a_symmetric_network(
    noise: list[Path], crop: config.Crop
) -> None:
    plain = View(symmetric(crop), of(noise, crop))
    mirrored = replace(plain, mirrored=True)
    expected = together([plain])
    for views in ([mirrored], [plain, mirrored]):
        found = together(views)
        assert np.abs(found.points_image - expected.points_image).max() < 1e-4
        np.testing.assert_allclose(found.peak, expected.peak, rtol=1e-5)
        np.testing.assert_allclose(found.covariance_image, expected.covariance_image, rtol=1e-4)
        weighted = together(views, weighted=True)
        assert np.abs(weighted.points_image - expected.points_image).max() < 1e-4


@pytest.mark.parametrize("crop", CROPS, ids=lambda crop: crop.rule)
def test_every_view_finds_the_dots(tmp_path: Path, crop: config.Crop) -> None:
    truth, images = [], []
    for height, width in SIZES:
        dots = np.array([(0.36, 0.41), (0.58, 0.47), (0.46, 0.62)]) * (width, height)
        y, x = np.mgrid[:height, :width]
        squared = (x[..., None] - dots[:, 0]) ** 2 + (y[..., None] - dots[:, 1]) ** 2
        images.append(
            (250 * np.exp(-squared / 2 / (0.05 * min(height, width)) ** 2)).astype(np.uint8)
        )
        truth.append(dots[[1, 0, *[2] * 13]])
    plain = View(Stub(reads_dots), of(written(tmp_path, images), crop))
    zooms = [replace(plain.samples, zoom=zoom) for zoom in (1.0, 1 / 1.1, 1.1)]
    views = [replace(plain, samples=s, mirrored=side) for s in zooms for side in (False, True)]
    for some in ([plain], *([view] for view in views), views):
        found = together(some)
        # the dots are read to a few hundredths of a crop's pixel
        for points, dots, (height, width) in zip(found.points_image, truth, SIZES, strict=True):
            assert np.abs(points - dots).max() < 0.08 * max(1, max(height, width) / 36)
    alone = [together([view]).points_image for view in views]
    np.testing.assert_allclose(together(views).points_image, np.mean(alone, 0), atol=1e-9)


def test_a_zoomed_crop_enlarges_its_middle(noise: list[Path]) -> None:
    plain = of(noise, CROPS[0])
    larger = replace(plain, zoom=1.25, margin=4)
    middle, corner = torch.tensor([[18.0, 19.5]]), torch.tensor([[0.0, 0.0]])
    for row in range(len(plain)):
        here = frame.Frame(plain[row].image_from_crop, 40, 37)
        inside = frame.Frame(larger[row].image_from_crop, 48, 45).padded(-4)
        assert (here.to_image(middle) - inside.to_image(middle)).abs().max() < 1e-9
        shrunk = middle + (corner - middle) / 1.25
        assert (here.to_image(shrunk) - inside.to_image(corner)).abs().max() < 1e-5
        assert larger[row].crop.shape == (3, 48, 45)


def test_images_are_read_once_and_cut_once_per_distinct_crop(
    noise: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, int] = {"ImageFile": 0, "cut": 0}

    def counting(name: str) -> Callable[..., Any]:
        function = getattr(samples, name)

        def counted(*arguments: Any) -> Any:
            calls[name] += 1
            return function(*arguments)

        return counted

    for name in calls:
        monkeypatch.setattr(samples, name, counting(name))
    one, same, other = of(noise, CROPS[2]), of(list(noise), CROPS[2]), of(noise, CROPS[0])
    moved = replace(one, boxes_image=one.boxes_image + 1)
    crops = [one, replace(one, zoom=1.1), same, other, moved]
    views = [View(Stub(reads_dots), s, mirrored=m) for s in crops for m in (False, True)]
    together(views)
    assert calls == {"ImageFile": len(noise), "cut": 4 * len(noise)}


def test_points_are_averaged_over_all_views_and_peaks_over_those_with_heatmaps(
    noise: list[Path],
) -> None:
    generator = np.random.default_rng(8)
    points = generator.uniform(5, 30, (3, 7, 2))
    peaks, covariances = generator.uniform(0.1, 1, (2, 7)), spreads(generator, 2)
    networks = [fixed(points[0], peaks[0], covariances[0]), fixed(points[1], None, None)]
    networks.append(fixed(points[2], peaks[1], covariances[1]))
    views = [View(n, of(noise, c, 7)) for n, c in zip(networks, CROPS, strict=True)]
    alone, found = [together([view]) for view in views], together(views)
    mean = np.mean([one.points_image for one in alone], 0)
    np.testing.assert_allclose(found.points_image, mean, atol=1e-9)
    np.testing.assert_allclose(found.peak, (alone[0].peak + alone[2].peak) / 2, rtol=1e-6)
    mean = (alone[0].covariance_image + alone[2].covariance_image) / 2
    np.testing.assert_allclose(found.covariance_image, mean, rtol=1e-9)
    assert np.array_equal(found.frame.image_from_crop, alone[0].frame.image_from_crop)
    assert together(views[1:2]).peak is None


def spreads(generator: np.random.Generator, count: int) -> np.ndarray:
    """(count, 7, 2, 2) covariances."""
    roots = generator.normal(0, 1.5, (count, 7, 2, 2))
    return roots @ roots.swapaxes(-1, -2) + 0.3 * np.eye(2)


def test_weighted_views_minimise_the_variance(noise: list[Path]) -> None:
    generator = np.random.default_rng(9)
    points, covariances = generator.uniform(5, 30, (3, 7, 2)), spreads(generator, 3)
    covariances[1, 4] = covariances[2, 4] = 0  # no peak in two maps
    covariances[2, 5] = np.nan
    covariances[:, 6] = [[[0, 0], [0, 0]], [[1, 2], [2, 1]], [[1, 1], [1, 1]]]
    peaks = np.full(7, 0.5)
    views = [
        View(fixed(p, peaks, c), of(noise, crop, 7))
        for p, c, crop in zip(points, covariances, CROPS, strict=True)
    ]
    alone, found = [together([view]) for view in views], together(views, weighted=True)
    for image in range(len(noise)):
        for k in range(7):
            useful = [[0, 1, 2]] * 4 + [[0], [0, 1], [0, 1, 2]]
            precision, moment = np.zeros((2, 2)), np.zeros(2)
            for one in (alone[i] for i in useful[k]):
                inverse = np.eye(2) if k == 6 else np.linalg.inv(one.covariance_image[image, k])
                precision += inverse
                moment += inverse @ one.points_image[image, k]
            expected = np.linalg.solve(precision, moment)
            np.testing.assert_allclose(found.points_image[image, k], expected, atol=1e-6)
            if k < 6:
                covariance = found.covariance_image[image, k]
                np.testing.assert_allclose(covariance, np.linalg.inv(precision), rtol=1e-6)
    assert np.isfinite(found.points_image).all()
    plain = together(views).points_image
    assert np.abs(plain - found.points_image)[:, :4].max() > 0.5
    np.testing.assert_allclose(plain[:, 6], found.points_image[:, 6], atol=1e-6)


def test_batch_size_does_not_matter_and_networks_keep_their_mode(noise: list[Path]) -> None:
    crop = CROPS[0]
    first, second = View(symmetric(crop), of(noise, crop)), View(Stub(reads_dots), of(noise, crop))
    first.network.train()
    second.network.eval()
    whole, single = (together([first, second], batch=batch) for batch in (4, 1))
    np.testing.assert_allclose(whole.points_image, single.points_image, atol=1e-4)
    assert first.network.training and not second.network.training
