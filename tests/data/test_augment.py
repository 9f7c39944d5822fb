import colorsys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from heatmap import config, frame
from heatmap.data import augment
from heatmap.data.augment import Batch, Changes
from heatmap.errors import UserError
from heatmap.frame import Frame

CROP_HW = 60, 44
MARGIN = 40
PADDED_HW = CROP_HW[0] + 2 * MARGIN, CROP_HW[1] + 2 * MARGIN
EVERYTHING = config.Augment(
    mirror=0.5, rotate_deg=180, scale=0.4, shift=0.2, brightness=1, contrast=1, saturation=1,
    aspect=0.5, fill="mixed", hue=0.5, gray=0.3, sharpness=1, blur=2, noise=0.3, jpeg=0.9,
    erase=0.5, erase_area=(0.02, 0.3),
)  # fmt: skip


def no_changes(count: int, **changes: Any) -> Changes:
    """Those of the default settings, which change nothing, but for `changes`."""
    plain = augment.sample_changes(config.Augment(), seed=0, epoch=0, rows=[*range(count)])
    return replace(plain, **changes)


def image_from_padded(count: int) -> Tensor:
    """(count, 3, 3), each image of another size."""
    frames = [
        frame.cover((200 + 37 * k, 150 + 91 * k), CROP_HW).padded(MARGIN) for k in range(count)
    ]
    return torch.stack([one.image_from_crop for one in frames])


def blobs(points_padded: Tensor, sigma: float = 3.0) -> Tensor:
    """(B, 3, *PADDED_HW) uint8, a Gaussian spot at each of (B, 2) points."""
    y, x = torch.meshgrid(*(torch.arange(float(n)) for n in PADDED_HW), indexing="ij")
    px, py = points_padded[:, 0, None, None], points_padded[:, 1, None, None]
    spots = 250 * torch.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2))
    return spots.round().byte()[:, None].expand(-1, 3, -1, -1)


def centroids(images: Tensor) -> Tensor:
    """(B, 2) centroids of brightness."""
    weights = images[:, 0].double()
    total = weights.sum((1, 2))
    x = (weights.sum(1) * torch.arange(images.shape[3])).sum(1) / total
    y = (weights.sum(2) * torch.arange(images.shape[2])).sum(1) / total
    return torch.stack([x, y], -1)


def random_crops(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, *PADDED_HW), generator=generator, dtype=torch.uint8)


def augmented(
    crops: Tensor, changes: Changes, points_image: Tensor | None = None, permutation: Any = None
) -> Batch:
    if points_image is None:
        points_image = torch.zeros(len(crops), 1, 2)
    image_from_crop = image_from_padded(len(crops))
    return augment.augmented(
        crops,
        image_from_crop,
        points_image,
        CROP_HW,
        changes,
        permutation,
        inner_of(image_from_crop),
    )


def inner_of(image_from_padded: Tensor) -> Tensor:
    """(B, 4) bounds of images that end where the crop without margin ends."""
    corners = torch.tensor([[[MARGIN - 0.5] * 2, [MARGIN + n - 0.5 for n in CROP_HW[::-1]]]])
    return (frame.apply(image_from_padded, corners) + 0.5).round().long().flatten(1)


# geometry


GEOMETRY = {
    "nothing": {},
    "mirror": {"mirrored": True},
    "rotation": {"angle": 0.7},
    "scale": {"scale": 1.4},
    "shift": {"shift": 0.15},
    "any angle": {"angle": np.pi},
    "aspect": {"aspect": 1.4},
    "all together": {"mirrored": True, "angle": 2.9, "scale": 1.3, "shift": 0.1, "aspect": 1.3},
}


@pytest.mark.parametrize("most", GEOMETRY.values(), ids=GEOMETRY.keys())
def test_points_follow_the_pixels(most: dict[str, float]) -> None:
    count = 40
    generator = np.random.default_rng(1)
    sides = generator.uniform(-1, 1, (count, 5))
    changes = no_changes(
        count,
        mirrored=(sides[:, 0] < 0.5) & bool(most.get("mirrored", False)),
        angle=most.get("angle", 0) * sides[:, 0],
        scale=most.get("scale", 1) ** sides[:, 1],
        shift=most.get("shift", 0) * sides[:, 2:4],
        aspect=most.get("aspect", 1) ** sides[:, 4],
    )
    middle = torch.tensor([(PADDED_HW[1] - 1) / 2, (PADDED_HW[0] - 1) / 2])
    points_padded = middle + torch.from_numpy(generator.uniform(-4, 4, (count, 2)))
    points_image = frame.apply(image_from_padded(count), points_padded[:, None])
    batch = augmented(blobs(points_padded, sigma=2.5), changes, points_image)
    assert batch.images.shape == (count, 3, *CROP_HW)
    assert (centroids(batch.images) - batch.points_crop[:, 0]).abs().max() < 0.05
    assert (batch.frame.to_image(batch.points_crop) - points_image).abs().max() < 1e-6


def test_without_changes_the_margin_is_cut_off() -> None:
    crops = random_crops(3)
    batch = augmented(crops, no_changes(3))
    inner = crops[:, :, MARGIN : MARGIN + CROP_HW[0], MARGIN : MARGIN + CROP_HW[1]]
    assert (batch.images - inner / 255).abs().max() < 1e-4
    expected = Frame(image_from_padded(3), *PADDED_HW).padded(-MARGIN).image_from_crop
    assert (batch.frame.image_from_crop - expected).abs().max() < 1e-9


def test_mirrored_crop_is_flipped() -> None:
    crops = random_crops(2)
    mirrored = augmented(crops, no_changes(2, mirrored=np.array([True, False])), None, np.arange(1))
    straight = augmented(crops, no_changes(2))
    assert (mirrored.images[0] - straight.images[0].flip(-1)).abs().max() < 1e-4
    assert (mirrored.images[1] - straight.images[1]).abs().max() < 1e-6


def test_mirroring_permutes_landmarks() -> None:
    left, right, nose = [-10.0, 1.0], [14.0, 2.0], [1.0, 5.0]
    middle = torch.tensor([(PADDED_HW[1] - 1) / 2, (PADDED_HW[0] - 1) / 2])
    points_padded = middle + torch.tensor([[left, right, nose]] * 3, dtype=torch.float64)
    points_image = frame.apply(image_from_padded(3), points_padded)
    mirrored = np.array([True, False, True])
    batch = augmented(
        random_crops(3), no_changes(3, mirrored=mirrored), points_image, np.array([1, 0, 2])
    )
    from_middle = batch.points_crop - torch.tensor([(CROP_HW[1] - 1) / 2, (CROP_HW[0] - 1) / 2])
    for sample, is_mirrored in enumerate(mirrored):
        expected = [[-14, 2], [10, 1], [-1, 5]] if is_mirrored else [left, right, nose]
        assert from_middle[sample].numpy() == pytest.approx(np.array(expected), abs=1e-9)


@pytest.mark.parametrize("degrees", [0, 37, 90, 180, 211, 359])
@pytest.mark.parametrize("mirrored", [False, True])
def test_face_is_stretched_then_rotated_then_mirrored(degrees: float, mirrored: bool) -> None:
    middle = torch.tensor([(PADDED_HW[1] - 1) / 2, (PADDED_HW[0] - 1) / 2])
    offsets = torch.tensor([[[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]], dtype=torch.float64)
    points_image = frame.apply(image_from_padded(1), middle + offsets)
    changes = no_changes(
        1,
        angle=np.radians([degrees]),
        scale=np.array([1.5]),
        aspect=np.array([1.44]),
        mirrored=np.array([mirrored]),
    )
    batch = augmented(random_crops(1), changes, points_image)
    arms = (batch.points_crop[:, 1:] - batch.points_crop[:, :1])[0].numpy()
    cosine, sine = np.cos(changes.angle[0]), np.sin(changes.angle[0])
    expected = 1.5 * np.array([[12 * cosine, 12 * sine], [-10 / 1.2 * sine, 10 / 1.2 * cosine]])
    expected[:, 0] *= -1 if mirrored else 1
    assert arms == pytest.approx(expected, abs=1e-6)


def test_shift_is_a_fraction_of_the_crop() -> None:
    points_image = frame.apply(image_from_padded(1), torch.tensor([[[50.0, 60.0]]]))
    batch = augmented(random_crops(1), no_changes(1, shift=np.array([[0.25, 0.1]])), points_image)
    plain = augmented(random_crops(1), no_changes(1), points_image)
    moved = (batch.points_crop - plain.points_crop).abs()[0, 0]
    assert moved.tolist() == pytest.approx([0.25 * CROP_HW[1], 0.1 * CROP_HW[0]])


def test_unlabelled_landmarks_have_weight_0() -> None:
    points_image = torch.full((2, 3, 2), 60.0)
    points_image[:, 0, 1] = torch.nan
    changes = no_changes(2, mirrored=np.array([True, False]))
    batch = augmented(random_crops(2), changes, points_image, np.array([1, 0, 2]))
    assert batch.weights.tolist() == [[1, 0, 1], [0, 1, 1]]
    labelled = batch.weights.bool()
    assert batch.points_crop[labelled].isfinite().all()
    assert batch.points_crop[~labelled].isnan().any(-1).all()


# fill


def far_out(count: int, fill: str) -> Changes:
    """Changes that show much beyond the margin."""
    return no_changes(
        count,
        fill=np.full(count, fill, "U5"),
        angle=np.linspace(0, 5, count),
        scale=np.full(count, 0.3),
        shift=np.full((count, 2), 0.2),
    )


def pixels_padded(changes: Changes) -> np.ndarray:
    """(B, h, w, 2) pixels of the new crops, in padded crop pixels."""
    y, x = torch.meshgrid(*(torch.arange(float(n)) for n in CROP_HW), indexing="ij")
    count = len(changes.angle)
    batch = augment.augmented(
        random_crops(count), torch.eye(3, dtype=torch.float64).expand(count, 3, 3),
        torch.zeros(count, 1, 2), CROP_HW, changes, None,
        torch.tensor([[0, 0, PADDED_HW[1], PADDED_HW[0]]] * count),
    )  # fmt: skip
    pixels = batch.frame.to_image(torch.stack([x, y], -1).flatten(0, 1))
    return pixels.unflatten(1, CROP_HW).numpy()


def test_black_and_edge_fill_beyond_the_margin() -> None:
    crops = random_crops(6)
    black, edge = (augmented(crops, far_out(6, fill)).images for fill in ("black", "edge"))
    pixels = pixels_padded(far_out(6, "black"))
    limits = np.array(PADDED_HW[::-1]) - 1.0
    beyond = ((pixels < -1) | (pixels > limits + 1)).any(-1)
    within = ((pixels >= 0) & (pixels <= limits)).all(-1)
    assert beyond.any() and within.any()
    assert (black.permute(0, 2, 3, 1)[beyond] == 0).all()
    assert torch.equal(black.permute(0, 2, 3, 1)[within], edge.permute(0, 2, 3, 1)[within])
    for sample in range(6):
        x, y = np.clip(pixels[sample], 0, limits).transpose(2, 0, 1).astype(np.float32)
        image = crops[sample].permute(1, 2, 0).numpy().astype(np.float32) / 255
        expected = cv2.remap(image, x, y, cv2.INTER_LINEAR)
        assert np.abs(edge[sample].permute(1, 2, 0).numpy() - expected).max() < 0.04


def test_noise_fills_only_outside_the_image() -> None:
    crops = random_crops(6)
    changes = far_out(6, "edge")
    changes.fill[[1, 4]] = "noise"
    noise, edge = augmented(crops, changes), augmented(crops, far_out(6, "edge"))
    image_from_crop = image_from_padded(6)
    pixels_image = frame.apply(
        image_from_crop, torch.from_numpy(pixels_padded(changes)).flatten(1, 2)
    )
    left, top, right, bottom = inner_of(image_from_crop)[:, None].unbind(-1)
    x, y = pixels_image.unbind(-1)
    inside = (x >= left - 0.5) & (x <= right - 0.5) & (y >= top - 0.5) & (y <= bottom - 0.5)
    inside = inside.unflatten(1, CROP_HW)
    same = (noise.images == edge.images).all(1)
    for sample in range(6):
        asked = sample in (1, 4)
        assert torch.equal(same[sample], inside[sample] | torch.tensor(not asked))
    filled = noise.images.permute(0, 2, 3, 1)[~same]
    assert filled.mean() == pytest.approx(0.5, abs=0.02)
    assert filled.std() == pytest.approx(12**-0.5, abs=0.02)


def test_mixed_is_three_quarters_edge_and_one_quarter_noise() -> None:
    fill = augment.sample_changes(config.Augment(fill="mixed"), 1, 2, list(range(2000))).fill
    assert set(fill) == {"edge", "noise"}
    assert (fill == "noise").mean() == pytest.approx(0.25, abs=0.03)
    for same in ("black", "edge", "noise"):
        assert set(augment.sample_changes(config.Augment(fill=same), 1, 2, [0, 1]).fill) == {same}


# colours


def test_images_stay_in_range() -> None:
    rows = list(range(24))
    changes = augment.sample_changes(EVERYTHING, seed=1, epoch=2, rows=rows)
    images = augmented(random_crops(24), changes, None, np.arange(1)).images
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("brightness", 0.2, [0.6, 0.8, 1.0]),
        ("brightness", -0.5, [0, 0.1, 0.3]),
        ("contrast", 0.0, [0.567, 0.567, 0.567]),
    ],
)
def test_brightness_and_contrast_change_colours(
    name: str, value: float, expected: list[float]
) -> None:
    crops = torch.tensor([102, 153, 204], dtype=torch.uint8)[:, None, None]
    crops = crops.expand(2, 3, *PADDED_HW)
    none = {"brightness": 0.0, "contrast": 1.0}[name]
    changes = no_changes(2, **{name: np.array([value, none])})
    images = augmented(crops, changes).images
    assert images[0, :, 30, 20].tolist() == pytest.approx(expected, abs=0.01)
    assert images[1, :, 30, 20].tolist() == pytest.approx([0.4, 0.6, 0.8], abs=1e-4)


def changed_alone(name: str, value: float) -> tuple[np.ndarray, np.ndarray]:
    """An image (h, w, 3) before and after one change; the next image must not change."""
    count, none = 2, getattr(no_changes(2), name)
    generator = np.random.default_rng(3)
    small = generator.integers(0, 256, (count, 12, 10, 3)).astype(np.uint8)
    smooth = [cv2.resize(one, PADDED_HW[::-1], interpolation=cv2.INTER_CUBIC) for one in small]
    crops = torch.from_numpy(np.stack(smooth)).permute(0, 3, 1, 2)
    before = augmented(crops, no_changes(count)).images.permute(0, 2, 3, 1).numpy()
    changes = no_changes(count, **{"blur_reach": 10, name: np.where([True, False], value, none)})
    after = augmented(crops, changes).images.permute(0, 2, 3, 1).numpy()
    # no JPEG quality is lossless
    assert np.abs(after[1] - before[1]).max() < (0.2 if name == "jpeg_quality" else 1e-5)
    return before[0], after[0]


def test_hue_rotates_the_colour_circle() -> None:
    before, after = changed_alone("hue", 2 * np.pi * 0.2)
    for y, x in [(3, 5), (40, 20), (59, 43)]:
        hue, saturation, value = colorsys.rgb_to_hsv(*before[y, x])
        expected = colorsys.hsv_to_rgb((hue + 0.2) % 1, saturation, value)
        assert after[y, x] == pytest.approx(expected, abs=1e-4)


def test_sharpness_smooths_and_sharpens() -> None:
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    for value in (0, 0.5, 1.7):
        before, after = changed_alone("sharpness", value)
        smoothed = cv2.filter2D(before, -1, kernel)
        expected = np.clip(smoothed + value * (before - smoothed), 0, 1)
        assert np.abs(after - expected)[1:-1, 1:-1].max() < 1e-5


@pytest.mark.parametrize("sigma", [0.7, 2.5])
def test_blur_is_gaussian_with_that_standard_deviation(sigma: float) -> None:
    before, after = changed_alone("blur", sigma)
    expected = cv2.GaussianBlur(before, (41, 41), sigma, borderType=cv2.BORDER_REPLICATE)
    assert np.abs(after - expected).max() < 1e-3


def test_noise_is_gaussian_with_that_standard_deviation() -> None:
    before, after = changed_alone("noise", 0.05)
    inside = (before > 0.25) & (before < 0.75)
    difference = (after - before)[inside]
    assert difference.mean() == pytest.approx(0, abs=0.003)
    assert difference.std() == pytest.approx(0.05, abs=0.003)
    assert np.percentile(np.abs(difference), 95) == pytest.approx(1.96 * 0.05, abs=0.006)


def test_jpeg_artefacts_resemble_a_jpeg_file() -> None:
    strengths = []
    for quality in (70, 30, 8):
        before, after = changed_alone("jpeg_quality", quality)
        pixels = cv2.cvtColor((255 * before).round().astype(np.uint8), cv2.COLOR_RGB2BGR)
        encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        file = cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB) / 255
        correlation = np.corrcoef((after - before).ravel(), (file - before).ravel())[0, 1]
        assert correlation > 0.8
        strengths.append(np.abs(after - before).mean())
    assert strengths == sorted(strengths)


def test_saturation_0_is_grey() -> None:
    settings = config.Augment(gray=0.4, saturation=0.5)
    saturation = augment.sample_changes(settings, 1, 2, list(range(2000))).saturation
    assert (saturation == 0).mean() == pytest.approx(0.4, abs=0.04)
    before, after = changed_alone("saturation", 0.0)
    assert np.abs(after - cv2.cvtColor(before, cv2.COLOR_RGB2GRAY)[..., None]).max() < 1e-3


def test_erasing_paints_one_rectangle() -> None:
    rows = list(range(60))
    settings = config.Augment(erase=0.5, erase_area=(0.05, 0.2))
    changes = augment.sample_changes(settings, 1, 2, rows)
    crops = random_crops(60)
    erased, before = augmented(crops, changes).images, augmented(crops, no_changes(60)).images
    differs = (erased != before).any(1)
    happened = differs.flatten(1).any(1)
    assert 0.3 < happened.float().mean() < 0.7
    for sample in np.flatnonzero(happened):
        ys, xs = np.nonzero(differs[sample].numpy())
        inside = erased[sample, :, ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        assert (inside == inside[:, :1, :1]).all()
        assert 0.04 < inside[0].numel() / before[sample, 0].numel() < 0.22
    assert erased[happened].flatten(1).unique(dim=0).shape[0] == happened.sum()


# sample_changes


def test_draw_does_not_depend_on_other_settings() -> None:
    # runs resumed with a newer version must draw the same changes
    expected = {
        "mirrored": False,
        "angle": -2.57228376186303,
        "scale": 0.831825080227727,
        "shift": [-0.18297912569286723, -0.1628722148136582],
        "brightness": -0.53910700663426,
        "contrast": 1.9752610494118883,
        "saturation": 0.4681596308009628,
    }
    for settings in (EVERYTHING, replace(EVERYTHING, gray=0, fill="black", erase=0, noise=0)):
        changes = augment.sample_changes(settings, seed=1, epoch=2, rows=[8])
        for name, value in expected.items():
            assert getattr(changes, name)[0] == pytest.approx(value, abs=1e-12), name


def test_pixels_do_not_depend_on_the_batch() -> None:
    settings = replace(EVERYTHING, jpeg=0)
    together = augment.sample_changes(settings, seed=1, epoch=2, rows=list(range(6)))
    crops, image_from_crop = random_crops(6), image_from_padded(6)
    points = torch.zeros(6, 1, 2)
    images = augment.augmented(
        crops, image_from_crop, points, CROP_HW, together, np.arange(1), inner_of(image_from_crop)
    ).images
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for row in range(6):
        alone = augment.sample_changes(settings, seed=1, epoch=2, rows=[row])
        one = slice(row, row + 1)
        image = augment.augmented(
            crops[one],
            image_from_crop[one],
            points[one],
            CROP_HW,
            alone,
            np.arange(1),
            inner_of(image_from_crop)[one],
        ).images
        assert (image[0] - images[row]).abs().max() < 1e-5, row
    assert torch.equal(torch.get_rng_state(), before)


def test_changes_do_not_depend_on_the_batch() -> None:
    together = augment.sample_changes(EVERYTHING, seed=1, epoch=2, rows=[5, 3, 8])
    np.random.seed(0)
    torch.manual_seed(0)
    alone = augment.sample_changes(EVERYTHING, seed=1, epoch=2, rows=[8])
    for name in vars(alone):
        expected = getattr(together, name)
        # one number for all rows
        expected = expected if name == "blur_reach" else expected[2:]
        assert np.array_equal(getattr(alone, name), expected)


@pytest.mark.parametrize("other", [(2, 2, 8), (1, 3, 8), (1, 2, 9), (2, 1, 8)])
def test_seed_epoch_and_row_all_matter(other: tuple[int, int, int]) -> None:
    one = augment.sample_changes(EVERYTHING, seed=1, epoch=2, rows=[8])
    seed, epoch, row = other
    another = augment.sample_changes(EVERYTHING, seed, epoch, rows=[row])
    for name in (
        "angle", "scale", "shift", "brightness", "contrast", "aspect", "hue", "sharpness", "blur",
        "noise", "jpeg_quality", "erased_colour", "noise_seed",
        "extra",
    ):  # fmt: skip
        assert not np.array_equal(getattr(one, name), getattr(another, name)), name


def test_changes_fill_their_ranges() -> None:
    settings = config.Augment(
        mirror=0.3, rotate_deg=30, scale=0.25, shift=0.1, brightness=0.2, contrast=0.3,
        saturation=0.4, aspect=0.25, hue=0.1, sharpness=0.7, blur=1.5, noise=0.1, jpeg=0.6,
    )  # fmt: skip
    changes = augment.sample_changes(settings, seed=1, epoch=2, rows=list(range(2000)))
    ranges = {
        "angle": (-np.pi / 6, np.pi / 6),
        "scale": (0.8, 1.25),
        "shift": (-0.1, 0.1),
        "brightness": (-0.2, 0.2),
        "contrast": (0.7, 1.3),
        "saturation": (0.6, 1.4),
        "aspect": (0.8, 1.25),
        "hue": (-0.2 * np.pi, 0.2 * np.pi),
        "sharpness": (0.3, 1.7),
        "blur": (0, 1.5),
        "noise": (0, 0.1),
        "jpeg_quality": (40, 100),
    }
    for name, (lowest, highest) in ranges.items():
        values = getattr(changes, name)
        assert lowest <= values.min() and values.max() <= highest, name
        assert np.ptp(values) > 0.98 * (highest - lowest), name
    assert changes.mirrored.mean() == pytest.approx(0.3, abs=0.04)
    drawn = [getattr(changes, name) for name in ranges if name != "shift"]
    drawn += [*changes.shift.T, changes.mirrored, *changes.erased_colour.T, changes.noise_seed]
    assert np.abs(np.corrcoef(drawn) - np.eye(len(drawn))).max() < 0.1


# a user's own function


FUNCTIONS = """
from dataclasses import replace


def dimmed(batch, draws):
    return replace(batch, images=batch.images * draws[:, :1, None, None])


def of_images(batch, draws):
    return batch.images
"""


def test_a_function_changes_the_batch_with_numbers_of_its_rows(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    changes = augment.sample_changes(config.Augment(), seed=1, epoch=2, rows=[5, 6])
    batch = augmented(random_crops(2), changes)
    dimmed = augment.with_extra(batch, f"{tmp_path}/mine.py:dimmed", changes)
    factor = torch.from_numpy(changes.extra[:, 0]).float()
    assert torch.equal(dimmed.images, batch.images * factor[:, None, None, None])
    assert dimmed.points_crop is batch.points_crop
    with pytest.raises(
        UserError, match=r"mine.py:of_images must return a Batch with images \(2, 3"
    ):
        augment.with_extra(batch, f"{tmp_path}/mine.py:of_images", changes)


# plain


def test_plain_batch_is_the_crop() -> None:
    crops = random_crops(2)
    image_from_crop = image_from_padded(2)
    points_image = torch.tensor([[[10.0, 20.0], [torch.nan, 5.0], [3.0, 4.0]]] * 2)
    batch = augment.plain(crops, image_from_crop, points_image)
    assert torch.equal(batch.images, crops.float() / 255)
    assert torch.equal(batch.frame.image_from_crop, image_from_crop)
    assert (batch.frame.height, batch.frame.width) == PADDED_HW
    assert batch.weights.tolist() == [[1, 0, 1], [1, 0, 1]]
    labelled = batch.points_crop[:, [0, 2]]
    assert (frame.apply(image_from_crop, labelled) - points_image[:, [0, 2]]).abs().max() < 1e-9
