from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from heatmap import codec, frame
from heatmap.codec import REACH
from heatmap.frame import Frame

HEIGHT, WIDTH = 37, 53
SIGMAS = pytest.mark.parametrize("sigma", [1.0, 1.5, 2.2, 3.0])


def uniform_points(
    generator: np.random.Generator, count: int, x: tuple[float, float], y: tuple[float, float]
) -> Tensor:
    return torch.from_numpy(
        np.stack([generator.uniform(*x, count), generator.uniform(*y, count)], -1)
    )


def inside(generator: np.random.Generator, count: int, border: float) -> Tensor:
    """(count, 2) points at least `border` pixels inside the outermost pixel centres."""
    return uniform_points(
        generator, count, (border, WIDTH - 1 - border), (border, HEIGHT - 1 - border)
    )


def rendered(points: Tensor, sigma: float) -> Tensor:
    return codec.render(points.float(), HEIGHT, WIDTH, sigma)


def gaussian(points: Tensor, sigma: float) -> Tensor:
    """(P, HEIGHT, WIDTH) float64 Gaussians, written without the codec."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return torch.stack(
        [
            torch.from_numpy(np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2)))
            for px, py in points.tolist()
        ]
    )


# round trip: image -> crop -> heatmap -> image


class RoundTrip(NamedTuple):
    """Landmarks of one image, and the affine from its heatmap."""

    image_from_heatmap: Tensor
    height: int
    width: int
    sigma: float
    points_image: Tensor


def random_round_trip(generator: np.random.Generator, stride: int) -> RoundTrip:
    """A rotated, scaled, mirrored crop; landmarks at least 3 sigma inside its heatmap."""
    image_hw = tuple(generator.integers(60, 1401, 2).tolist())
    height, width = generator.integers(24, 65, 2).tolist()
    crop_hw = height * stride, width * stride
    rule = frame.cover if generator.random() < 0.5 else frame.contain
    angle, scale = generator.uniform(-np.pi, np.pi), generator.uniform(0.7, 1.4)
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    side = generator.choice([-1, 1])
    turned = torch.tensor(
        [[cosine * side, sine, 0], [-sine * side, cosine, 0], [0, 0, 1]], dtype=torch.float64
    )
    middle = (crop_hw[1] - 1) / 2, (crop_hw[0] - 1) / 2
    crop_from_new = frame.translation(*middle) @ turned @ frame.translation(-middle[0], -middle[1])
    crop = Frame(rule(image_hw, crop_hw).image_from_crop @ crop_from_new, *crop_hw)
    image_from_heatmap = crop.image_from_crop @ frame.crop_from_heatmap(stride)
    sigma = generator.uniform(1, 3)
    border = 3 * sigma
    points_heatmap = uniform_points(
        generator, 60, (border, width - 1 - border), (border, height - 1 - border)
    )
    points_image = frame.apply(image_from_heatmap, points_heatmap)
    return RoundTrip(image_from_heatmap, height, width, sigma, points_image)


def round_trip_errors(
    trip: RoundTrip, change: Callable[[Tensor], Tensor] = lambda maps: maps
) -> Tensor:
    """(P, 2) errors after rendering and decoding, in heatmap pixels."""
    heatmap_from_image = torch.linalg.inv(trip.image_from_heatmap)
    points_heatmap = frame.apply(heatmap_from_image, trip.points_image).float()
    maps = codec.render(points_heatmap, trip.height, trip.width, trip.sigma)
    decoded = codec.decode(change(maps), trip.sigma)
    decoded_image = frame.apply(trip.image_from_heatmap, decoded.points_heatmap)
    return (decoded_image - trip.points_image) @ heatmap_from_image[:2, :2].mT


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_exact_labels_survive_the_round_trip(stride: int) -> None:
    generator = np.random.default_rng(stride)
    errors = torch.stack(
        [round_trip_errors(random_round_trip(generator, stride)) for _ in range(60)]
    )
    assert errors.square().mean((1, 2)).sqrt().max() <= 0.01
    assert errors.mean(1).abs().max() <= 0.003


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_low_peaks_in_bf16_survive_the_round_trip(stride: int) -> None:
    generator = np.random.default_rng(10 + stride)
    for _ in range(30):
        trip = random_round_trip(generator, stride)
        peaks = torch.from_numpy(generator.uniform(0.2, 1, (60, 1, 1))).float()
        exact = round_trip_errors(trip)
        low = round_trip_errors(trip, lambda maps, peaks=peaks: maps * peaks)
        coarse = round_trip_errors(trip, lambda maps, peaks=peaks: (maps * peaks).bfloat16())
        assert (low - exact).abs().max() < 1e-4
        assert (coarse - exact).abs().max() < 0.02


# render


@SIGMAS
def test_target_is_a_gaussian_of_height_1_at_the_unrounded_landmark(sigma: float) -> None:
    points = inside(np.random.default_rng(20), 7, border=0)
    assert (rendered(points, sigma) - gaussian(points, sigma)).abs().max() < 1e-5


@SIGMAS
def test_landmark_outside_is_rendered_at_most_at_its_reach(sigma: float) -> None:
    reach = REACH * sigma
    points = torch.tensor([[-0.9 * reach, 9.0], [-40, 9], [20, 90], [90, -90]])
    drawn = torch.tensor(
        [[-0.9 * reach, 9.0], [-reach, 9], [20, HEIGHT - 1 + reach], [WIDTH - 1 + reach, -reach]]
    )
    assert (rendered(points, sigma) - gaussian(drawn, sigma)).abs().max() < 1e-5


def test_targets_keep_leading_axes_and_dtype() -> None:
    points = torch.rand(2, 3, 5, 2, dtype=torch.float64)
    maps = codec.render(points, 11, 13, 1.5)
    assert maps.shape == (2, 3, 5, 11, 13)
    assert maps.dtype == torch.float64
    assert torch.equal(maps[1, 2, 4], codec.render(points[1, 2, 4], 11, 13, 1.5))


@SIGMAS
def test_dilated_factors_give_the_dilated_target(sigma: float) -> None:
    points = inside(np.random.default_rng(21), 40, border=-2 * REACH * sigma)
    along_y, along_x = codec.log_gaussian_factors(points.float(), HEIGHT, WIDTH, sigma)
    dilated_y, dilated_x = codec.dilated(along_y.exp()), codec.dilated(along_x.exp())
    separable = dilated_y[:, :, None] * dilated_x[:, None, :]
    for target, dilated in zip(rendered(points, sigma), separable, strict=True):
        expected = cv2.dilate(target.numpy(), np.ones((3, 3), np.uint8))
        assert np.array_equal(dilated.numpy(), expected)


# decode: position


def errors_at_left_border(x: tuple[float, float], sigma: float) -> tuple[Tensor, Tensor]:
    """(P,) errors of x, of exact maps and of low ones in bf16, for landmarks at such an x."""
    generator = np.random.default_rng(30)
    points = uniform_points(generator, 2000, x, (-REACH * sigma, HEIGHT - 1 + REACH * sigma))
    maps = rendered(points, sigma)
    peaks = torch.from_numpy(generator.uniform(0.2, 1, (2000, 1, 1))).float()
    exact = codec.decode(maps, sigma).points_heatmap - points
    coarse = codec.decode((maps * peaks).bfloat16(), sigma).points_heatmap - points
    assert (codec.decode(maps * peaks, sigma).points_heatmap - points - exact).abs().max() < 1e-3
    return exact[:, 0], coarse[:, 0]


@SIGMAS
def test_decoding_is_exact_one_pixel_inside_the_border(sigma: float) -> None:
    exact, coarse = errors_at_left_border((1, 3 * sigma), sigma)
    assert exact.abs().max() < 0.003
    assert coarse.mean().abs() < 0.003
    assert coarse.abs().max() <= 0.1


@SIGMAS
def test_landmarks_outside_are_decoded_up_to_the_reach(sigma: float) -> None:
    exact, coarse = errors_at_left_border((-REACH * sigma, 1), sigma)
    assert exact.abs().max() < 0.003
    assert coarse.mean().abs() < 0.01


@SIGMAS
def test_all_four_borders_are_alike(sigma: float) -> None:
    generator = np.random.default_rng(31)
    near = uniform_points(generator, 300, (-REACH * sigma, 2), (-REACH * sigma, 2))
    far = torch.tensor([WIDTH - 1, HEIGHT - 1]) - near
    for points in (near, far, torch.stack([near[:, 0], far[:, 1]], -1)):
        error = codec.decode(rendered(points, sigma), sigma).points_heatmap - points
        assert error.abs().max() < 0.003


@SIGMAS
def test_landmark_far_outside_is_decoded_at_the_reach(sigma: float) -> None:
    points = torch.tensor([[-30.0, 12.3], [WIDTH + 500, 12.3], [20.6, -30], [20.6, HEIGHT + 30]])
    reach = REACH * sigma
    expected = torch.tensor(
        [[-reach, 12.3], [WIDTH - 1 + reach, 12.3], [20.6, -reach], [20.6, HEIGHT - 1 + reach]]
    )
    decoded = codec.decode(rendered(points, sigma), sigma).points_heatmap
    assert (decoded - expected).abs().max() < 0.003


@SIGMAS
def test_no_map_decodes_to_a_point_beyond_the_reach(sigma: float) -> None:
    maps = torch.rand(500, 11, 13, generator=torch.Generator().manual_seed(1)) ** 9
    points = codec.decode(maps, sigma).points_heatmap
    assert points.isfinite().all()
    lowest, highest = points.amin(0), points.amax(0)
    assert (lowest >= -REACH * sigma - 1e-6).all()
    assert (highest <= torch.tensor([12, 10]) + REACH * sigma + 1e-6).all()


def test_values_outside_the_window_do_not_matter() -> None:
    sigma, point = 1.5, torch.tensor([[14.3, 20.8]])
    alone = rendered(point, sigma)
    radius = codec.window_radius(sigma, "window")
    littered = torch.full_like(alone, 0.9)
    rows, columns = slice(21 - radius, 22 + radius), slice(14 - radius, 15 + radius)
    littered[:, rows, columns] = alone[:, rows, columns]
    for got, expected in zip(
        codec.decode(littered, sigma), codec.decode(alone, sigma), strict=True
    ):
        assert torch.equal(got, expected)


def test_negative_values_do_not_matter() -> None:
    sigma, point = 1.5, torch.tensor([[14.3, 20.8]])
    alone = rendered(point, sigma)
    negative = torch.where(alone < 1e-3, -5.0, alone)
    error = codec.decode(negative, sigma).points_heatmap - point
    assert error.abs().max() < 0.003


def test_map_without_positive_values_decodes_to_its_highest_pixel() -> None:
    maps = torch.full((4, 11, 13), -1.0)
    maps[1] = 0
    maps[2, 3, 8] = -0.25
    maps[3, 10, 12] = -0.5
    decoded = codec.decode(maps, 1.5)
    assert decoded.points_heatmap.tolist() == [[0, 0], [0, 0], [8, 3], [12, 10]]
    assert decoded.peak.tolist() == [-1, 0, -0.25, -0.5]
    assert torch.equal(decoded.covariance, torch.zeros(4, 2, 2))


def test_single_bright_pixel_is_the_point() -> None:
    for y, x in [(0, 0), (0, 12), (10, 5), (5, 6), (9, 11)]:
        lit = torch.zeros(1, 11, 13)
        lit[0, y, x] = 0.3
        decoded = codec.decode(lit, 1.5)
        assert decoded.points_heatmap.tolist() == [[x, y]]
        assert decoded.peak.item() == pytest.approx(0.3)


def test_smallest_maps_can_be_decoded() -> None:
    points = torch.tensor([[0.4, 1.9], [1.0, 1.0], [2.2, 0.3]])
    decoded = codec.decode(codec.render(points, 3, 3, 1.5), 1.5)
    assert (decoded.points_heatmap - points).abs().max() < 0.003


@pytest.mark.parametrize(
    ("dtype", "computed", "tolerance"),
    [
        (torch.float16, torch.float32, 0.01),
        (torch.bfloat16, torch.float32, 0.02),
        (torch.float64, torch.float64, 1e-3),
    ],
)
def test_maps_of_any_dtype_are_decoded_in_float32_or_better(
    dtype: torch.dtype, computed: torch.dtype, tolerance: float
) -> None:
    points = inside(np.random.default_rng(32), 50, border=5)
    decoded = codec.decode(gaussian(points, 1.5).to(dtype), 1.5)
    assert {part.dtype for part in decoded} == {computed}
    assert (decoded.points_heatmap - points).abs().max() < tolerance


def test_leading_axes_are_kept_and_maps_are_independent() -> None:
    points = inside(np.random.default_rng(33), 2 * 3 * 5, border=-1).unflatten(0, (2, 3, 5))
    maps = rendered(points, 1.5)
    decoded = codec.decode(maps, 1.5)
    assert [tuple(part.shape) for part in decoded] == [(2, 3, 5, 2), (2, 3, 5), (2, 3, 5, 2, 2)]
    alone = codec.decode(maps[1, 2, 3], 1.5)
    for one, all_of_them in zip(alone, decoded, strict=True):
        assert torch.allclose(one, all_of_them[1, 2, 3], atol=1e-5)


@pytest.mark.parametrize("decoder", ["window", "parabola"])
def test_a_map_of_nan_does_not_spoil_its_neighbours(decoder: str) -> None:
    points = torch.tensor([[0.2, 10.1], [5.3, 6.2], [12.1, 0.3]])  # next to map 1 in memory
    maps = codec.render(points, 11, 13, 1.5)
    maps[1] = torch.nan
    decoded = codec.decode(maps, 1.5, decoder).points_heatmap
    assert torch.allclose(decoded[[0, 2]], points[[0, 2]], atol=0.01)


# decode: peak and spread


def test_peak_is_the_highest_value_of_the_map() -> None:
    maps = torch.randn(7, 11, 13, generator=torch.Generator().manual_seed(2))
    assert torch.equal(codec.decode(maps, 1.5).peak, maps.amax((-2, -1)))


@SIGMAS
def test_covariance_of_a_target_is_sigma_squared(sigma: float) -> None:
    points = inside(np.random.default_rng(34), 300, border=codec.window_radius(sigma, "window") + 1)
    covariance = codec.decode(0.4 * rendered(points, sigma), sigma).covariance
    assert torch.allclose(
        covariance, sigma**2 * torch.eye(2).expand(300, 2, 2), rtol=0.01, atol=0.01 * sigma**2
    )


def test_covariance_follows_the_shape_of_the_map() -> None:
    y, x = torch.meshgrid(torch.arange(37.0), torch.arange(53.0), indexing="ij")
    along, across = (x - 25) + (y - 18), (x - 25) - (y - 18)
    wide_x = torch.exp(-0.5 * ((x - 25) / 1.8).square() - 0.5 * (y - 18).square())
    diagonal = torch.exp(-0.25 * ((along / 1.8).square() + across.square()))
    covariance = codec.decode(torch.stack([wide_x, diagonal]), 2.5).covariance
    assert covariance[0].numpy() == pytest.approx(np.array([[3.24, 0], [0, 1]]), abs=0.05)
    # turned by 45 degrees: (1.8² ± 1) / 2
    expected = np.array([[2.12, 1.12], [1.12, 2.12]])
    assert covariance[1].numpy() == pytest.approx(expected, abs=0.05)


@SIGMAS
def test_covariance_is_rotated_and_scaled_with_the_frame(sigma: float) -> None:
    generator = np.random.default_rng(35)
    for stride in (1, 2, 4):
        image_from_crop = frame.cover((1200, 500), (96, 64)).image_from_crop.clone()
        a = torch.from_numpy(generator.normal(size=(2, 2))) * 3
        image_from_crop[:2, :2] = a
        points = inside(generator, 20, border=codec.window_radius(sigma, "window") + 1)
        covariance_heatmap = codec.decode(rendered(points, sigma), sigma).covariance
        covariance_image = Frame(image_from_crop, 96, 64).covariance_to_image(
            covariance_heatmap * stride**2
        )
        expected = (sigma * stride) ** 2 * a @ a.T
        assert torch.allclose(
            covariance_image,
            expected.expand(20, 2, 2),
            rtol=0.02,
            atol=0.02 * expected.abs().max().item(),
        )


def test_the_second_peak_is_the_highest_value_away_from_the_first() -> None:
    points = torch.tensor([[8.0, 8.0], [24.3, 20.1]])
    first, second = codec.render(points, 32, 32, 1.5)
    both = torch.stack([first + 0.6 * second, first, 0.3 * first + second])
    assert torch.allclose(codec.second_peak(both, 1.5), torch.tensor([0.6, 0.0, 0.3]), atol=0.03)
