from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from heatmap import frame
from heatmap.frame import Frame

RULES = [frame.cover, frame.contain]
CENTRED_RULES = pytest.mark.parametrize("rule", RULES, ids=["cover", "contain"])
Rule = Callable[[tuple[int, int], tuple[int, int]], Frame]


def random_sizes(generator: np.random.Generator) -> tuple[tuple[int, int], tuple[int, int]]:
    height, width = generator.integers(60, 1401, 2).tolist()
    crop_height, crop_width = generator.integers(32, 513, 2).tolist()
    return (height, width), (crop_height, crop_width)


def random_affines(generator: np.random.Generator, *leading: int) -> Tensor:
    """(*leading, 3, 3): rotated, scaled, sometimes mirrored, shifted."""
    angle = generator.uniform(-np.pi, np.pi, leading)
    scale = np.exp(generator.uniform(np.log(0.1), np.log(10), leading))
    side = generator.choice([-1.0, 1.0], leading)
    matrix = np.zeros((*leading, 3, 3))
    matrix[..., 0, 0], matrix[..., 0, 1] = scale * np.cos(angle) * side, -scale * np.sin(angle)
    matrix[..., 1, 0], matrix[..., 1, 1] = scale * np.sin(angle) * side, scale * np.cos(angle)
    matrix[..., :2, 2] = generator.uniform(-1400, 1400, (*leading, 2))
    matrix[..., 2, 2] = 1
    return torch.from_numpy(matrix)


def random_points(generator: np.random.Generator, *leading: int) -> Tensor:
    return torch.from_numpy(generator.uniform(-100, 1500, (*leading, 2)))


def test_to_crop_and_to_image_are_inverse() -> None:
    generator = np.random.default_rng(1)
    crop = Frame(random_affines(generator, 200), 64, 48)
    points = random_points(generator, 200, 11)
    assert (crop.to_image(crop.to_crop(points)) - points).abs().max() < 1e-9
    assert (crop.to_crop(crop.to_image(points)) - points).abs().max() < 1e-9


def test_float32_points_are_mapped_in_float64() -> None:
    crop = Frame(random_affines(np.random.default_rng(2)), 64, 48)
    points = random_points(np.random.default_rng(3), 5).float()
    assert crop.to_image(points).dtype == torch.float64
    assert torch.equal(crop.to_image(points), crop.to_image(points.double()))


def test_each_frame_of_a_batch_maps_its_own_points() -> None:
    generator = np.random.default_rng(4)
    affines, points = random_affines(generator, 3, 5), random_points(generator, 3, 5, 7)
    together = frame.apply(affines, points)
    for i in range(3):
        for j in range(5):
            a, (x, y) = affines[i, j], points[i, j].unbind(-1)
            alone = torch.stack(
                [a[0, 0] * x + a[0, 1] * y + a[0, 2], a[1, 0] * x + a[1, 1] * y + a[1, 2]], -1
            )
            assert (together[i, j] - alone).abs().max() < 1e-9


def test_product_of_affines_applies_one_after_the_other() -> None:
    generator = np.random.default_rng(5)
    first, second = random_affines(generator, 50), random_affines(generator, 50)
    points = random_points(generator, 50, 3)
    by_product = frame.apply(second @ first, points)
    assert (by_product - frame.apply(second, frame.apply(first, points))).abs().max() < 1e-8


def test_nan_points_stay_nan_and_do_not_affect_others() -> None:
    generator = np.random.default_rng(6)
    affine, points = random_affines(generator), random_points(generator, 5)
    holed = points.clone()
    holed[2] = torch.nan
    moved, expected = frame.apply(affine, holed), frame.apply(affine, points)
    assert moved[2].isnan().all()
    others = [0, 1, 3, 4]
    assert torch.equal(moved[others], expected[others])


def test_mirrored_x_is_width_minus_1_minus_x() -> None:
    width = 7
    mirror = frame.translation(width - 1, 0) @ torch.diag(
        torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    )
    row = torch.zeros(1, width)
    row[0, 2] = 1
    (x_mirrored,) = frame.apply(mirror, torch.tensor([[2.0, 0.0]]))[0, :1].tolist()
    assert row.flip(1)[0, int(x_mirrored)] == 1
    assert x_mirrored == width - 1 - 2


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8])
def test_heatmap_pixel_is_the_mean_of_the_crop_pixels_it_pools(stride: int) -> None:
    height, width = 3, 5
    y, x = torch.meshgrid(
        torch.arange(float(height * stride)), torch.arange(float(width * stride)), indexing="ij"
    )
    pooled = torch.nn.functional.avg_pool2d(torch.stack([x, y]), stride)  # (2, 3, 5)
    h_y, h_x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points_heatmap = torch.stack([h_x, h_y], -1).double()
    points_crop = frame.apply(frame.crop_from_heatmap(stride), points_heatmap)
    assert torch.allclose(points_crop, pooled.permute(1, 2, 0).double())

    points = random_points(np.random.default_rng(7), 9)
    back = frame.apply(torch.linalg.inv(frame.crop_from_heatmap(stride)), points)
    assert (back - ((points + 0.5) / stride - 0.5)).abs().max() < 1e-9


def test_strides_compose() -> None:
    product = frame.crop_from_heatmap(2) @ frame.crop_from_heatmap(2)
    assert torch.equal(product, frame.crop_from_heatmap(4))


def test_heatmap_to_image_includes_the_stride() -> None:
    generator = np.random.default_rng(8)
    for stride in (1, 2, 4):
        crop = Frame(random_affines(generator), 64, 48)
        points_heatmap = random_points(generator, 6)
        image_from_heatmap = crop.image_from_crop @ frame.crop_from_heatmap(stride)
        at_once = frame.apply(image_from_heatmap, points_heatmap)
        points_crop = (points_heatmap + 0.5) * stride - 0.5
        assert (at_once - crop.to_image(points_crop)).abs().max() < 1e-8


def organisers_crop(
    x: float, y: float, image_hw: tuple[int, int], crop_hw: tuple[int, int]
) -> tuple[float, float]:
    """Where a point lands when an image is resized to cover the crop and its centre is cut out.

    In edge coordinates (the image spans [0, width]) no halves are needed.
    """
    (height, width), (crop_height, crop_width) = image_hw, crop_hw
    factor = max(crop_height / height, crop_width / width)
    left = (width * factor - crop_width) / 2
    top = (height * factor - crop_height) / 2
    return (x + 0.5) * factor - left - 0.5, (y + 0.5) * factor - top - 0.5


def test_cover_is_the_organisers_crop() -> None:
    generator = np.random.default_rng(9)
    for _ in range(200):
        image_hw, crop_hw = random_sizes(generator)
        points = random_points(generator, 4)
        expected = [organisers_crop(x, y, image_hw, crop_hw) for x, y in points.tolist()]
        moved = frame.cover(image_hw, crop_hw).to_crop(points)
        assert (moved - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-9


@CENTRED_RULES
def test_image_centre_is_the_crop_centre(rule: Rule) -> None:
    generator = np.random.default_rng(10)
    for _ in range(50):
        image_hw, crop_hw = random_sizes(generator)
        crop = rule(image_hw, crop_hw)
        assert (crop.height, crop.width) == crop_hw
        centre_crop = torch.tensor([[(crop_hw[1] - 1) / 2, (crop_hw[0] - 1) / 2]])
        expected = torch.tensor([[(image_hw[1] - 1) / 2, (image_hw[0] - 1) / 2]])
        assert (crop.to_image(centre_crop) - expected).abs().max() < 1e-9


def outer_corners(height: int, width: int) -> Tensor:
    """(2, 2) the top-left corner of the first pixel and the bottom-right one of the last."""
    return torch.tensor([[-0.5, -0.5], [width - 0.5, height - 0.5]], dtype=torch.float64)


def test_cover_stays_inside_the_image_and_touches_two_sides() -> None:
    generator = np.random.default_rng(11)
    for _ in range(50):
        image_hw, crop_hw = random_sizes(generator)
        first, last = frame.cover(image_hw, crop_hw).to_image(outer_corners(*crop_hw))
        beyond = torch.stack(
            [outer_corners(*image_hw)[0] - first, last - outer_corners(*image_hw)[1]]
        )
        assert beyond.max() == pytest.approx(0, abs=1e-9)


def test_contain_holds_the_whole_image_and_touches_two_sides() -> None:
    generator = np.random.default_rng(12)
    for _ in range(50):
        image_hw, crop_hw = random_sizes(generator)
        first, last = frame.contain(image_hw, crop_hw).to_crop(outer_corners(*image_hw))
        beyond = torch.stack(
            [outer_corners(*crop_hw)[0] - first, last - outer_corners(*crop_hw)[1]]
        )
        assert beyond.max() == pytest.approx(0, abs=1e-9)


@CENTRED_RULES
def test_padding_shifts_points_by_the_margin(rule: Rule) -> None:
    generator = np.random.default_rng(13)
    for margin in (0, 1, 17):
        image_hw, crop_hw = random_sizes(generator)
        crop = rule(image_hw, crop_hw)
        padded = crop.padded(margin)
        assert (padded.height, padded.width) == (crop_hw[0] + 2 * margin, crop_hw[1] + 2 * margin)
        points = random_points(generator, 5)
        assert (padded.to_crop(points) - crop.to_crop(points) - margin).abs().max() < 1e-9


def test_resizing_maps_corners_to_corners() -> None:
    generator = np.random.default_rng(14)
    for _ in range(50):
        from_hw, to_hw = random_sizes(generator)
        moved = frame.apply(frame.resizing(from_hw, to_hw), outer_corners(*from_hw))
        assert (moved - outer_corners(*to_hw)).abs().max() < 1e-9


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_reduced_pixel_is_at_the_centre_of_its_block(reduction: int) -> None:
    generator = np.random.default_rng(4)
    crop = Frame(random_affines(generator, 3), 40, 30)
    pixels = torch.tensor([[0.0, 0.0], [3.0, 5.0]], dtype=torch.float64)
    blocks = reduction * pixels[:, None] + torch.cartesian_prod(
        torch.arange(reduction), torch.arange(reduction)
    )
    centres = blocks.double().mean(1)
    mapped = crop.reduced(reduction).to_crop(pixels)
    assert (mapped - crop.to_crop(centres)).abs().max() < 1e-9
    assert (crop.reduced(reduction).height, crop.reduced(reduction).width) == (40, 30)


def test_covariance_to_image_matches_mapped_points() -> None:
    generator = np.random.default_rng(15)
    crop = Frame(random_affines(generator, 3), 64, 48)
    cloud = generator.normal(size=(3, 5, 2, 2)) @ generator.normal(size=(3, 5, 2, 400))
    points_crop = torch.from_numpy(cloud).mT  # (3, 5, 400, 2)
    points_image = crop.to_image(points_crop.flatten(1, 2)).unflatten(1, (5, 400))

    def covariance(points: Tensor) -> Tensor:
        centred = points - points.mean(-2, keepdim=True)
        return centred.mT @ centred / points.shape[-2]

    covariance_image = crop.covariance_to_image(covariance(points_crop).float())
    assert covariance_image.shape == (3, 5, 2, 2)
    assert torch.allclose(covariance_image, covariance(points_image), rtol=1e-5, atol=1e-5)


def test_pixel_area_is_the_area_of_a_mapped_pixel() -> None:
    crop = frame.cover((300, 200), (96, 64))
    corners = crop.to_image(torch.tensor([[3.0, 5.0], [4.0, 5.0], [3.0, 6.0]]))
    (a, b), (c, d) = (corners[1:] - corners[0]).tolist()
    assert crop.pixel_area().item() == pytest.approx(abs(a * d - b * c), rel=1e-12)
    assert crop.pixel_area().item() == pytest.approx(3.125**2)
