from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from heatmap import augment, config, frame
from heatmap.augment import Batch, Changes
from heatmap.frame import Frame

CROP_HW = 60, 44
MARGIN = 40
PADDED_HW = CROP_HW[0] + 2 * MARGIN, CROP_HW[1] + 2 * MARGIN
EVERYTHING = config.Augment(
    mirror=0.5,
    rotate_deg=180,
    scale=0.4,
    shift=0.2,
    brightness=1,
    contrast=1,
    saturation=1,
)


def no_changes(count: int, **changes: Any) -> Changes:
    none: dict[str, Any] = {
        "mirrored": np.zeros(count, bool),
        "angle": np.zeros(count),
        "scale": np.ones(count),
        "shift": np.zeros((count, 2)),
        "brightness": np.zeros(count),
        "contrast": np.ones(count),
        "saturation": np.ones(count),
    }
    return Changes(**(none | changes))


def image_from_padded(count: int) -> Tensor:
    """(count, 3, 3): each picture with a size of its own."""
    frames = [
        frame.cover((200 + 37 * k, 150 + 91 * k), CROP_HW).padded(MARGIN) for k in range(count)
    ]
    return torch.stack([one.image_from_crop for one in frames])


def blobs(points_padded: Tensor, sigma: float = 3.0) -> Tensor:
    """(B, 3, *PADDED_HW) uint8, a spot on each of (B, 2) points."""
    y, x = torch.meshgrid(*(torch.arange(float(n)) for n in PADDED_HW), indexing="ij")
    px, py = points_padded[:, 0, None, None], points_padded[:, 1, None, None]
    spots = 250 * torch.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2))
    return spots.round().byte()[:, None].expand(-1, 3, -1, -1)


def centroids(images: Tensor) -> Tensor:
    """(B, 2) centres of what is bright."""
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
    return augment.augmented(
        crops, image_from_padded(len(crops)), points_image, CROP_HW, changes, permutation
    )


# geometry


GEOMETRY = {
    "nothing": {},
    "mirror": {"mirrored": True},
    "rotation": {"angle": 0.7},
    "scale": {"scale": 1.4},
    "shift": {"shift": 0.15},
    "all together": {"mirrored": True, "angle": 2.9, "scale": 1.3, "shift": 0.1},
}


@pytest.mark.parametrize("most", GEOMETRY.values(), ids=GEOMETRY.keys())
def test_the_points_follow_the_pixels(most: dict[str, float]) -> None:
    count = 40
    generator = np.random.default_rng(1)
    sides = generator.uniform(-1, 1, (count, 4))
    changes = no_changes(
        count,
        mirrored=(sides[:, 0] < 0.5) & bool(most.get("mirrored", False)),
        angle=most.get("angle", 0) * sides[:, 0],
        scale=most.get("scale", 1) ** sides[:, 1],
        shift=most.get("shift", 0) * sides[:, 2:],
    )
    middle = torch.tensor([(PADDED_HW[1] - 1) / 2, (PADDED_HW[0] - 1) / 2])
    points_padded = middle + torch.from_numpy(generator.uniform(-4, 4, (count, 2)))
    points_image = frame.apply(image_from_padded(count), points_padded[:, None])
    batch = augmented(blobs(points_padded, sigma=2.5), changes, points_image)
    assert batch.images.shape == (count, 3, *CROP_HW)
    assert (centroids(batch.images) - batch.points_crop[:, 0]).abs().max() < 0.05
    assert (batch.frame.to_image(batch.points_crop) - points_image).abs().max() < 1e-6


def test_without_changes_the_middle_of_the_padded_crop_is_left() -> None:
    crops = random_crops(3)
    batch = augmented(crops, no_changes(3))
    inner = crops[:, :, MARGIN : MARGIN + CROP_HW[0], MARGIN : MARGIN + CROP_HW[1]]
    assert (batch.images - inner / 255).abs().max() < 1e-4
    expected = Frame(image_from_padded(3), *PADDED_HW).padded(-MARGIN).image_from_crop
    assert (batch.frame.image_from_crop - expected).abs().max() < 1e-9


def test_a_mirrored_crop_is_the_crop_read_from_right_to_left() -> None:
    crops = random_crops(2)
    mirrored = augmented(crops, no_changes(2, mirrored=np.array([True, False])), None, np.arange(1))
    straight = augmented(crops, no_changes(2))
    assert (mirrored.images[0] - straight.images[0].flip(-1)).abs().max() < 1e-4
    assert (mirrored.images[1] - straight.images[1]).abs().max() < 1e-6


def test_mirrored_twice_is_as_before() -> None:
    permutation = np.array([1, 0, 2])
    crops = random_crops(2)[..., : CROP_HW[0], : CROP_HW[1]]
    here = torch.stack([frame.cover((300, 200), CROP_HW).image_from_crop] * 2)
    points = 200 * torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(2))
    mirror = no_changes(2, mirrored=np.ones(2, bool))
    once = augment.augmented(crops, here, points, CROP_HW, mirror, permutation)
    twice = augment.augmented(
        (255 * once.images).round().byte(),
        once.frame.image_from_crop,
        once.frame.to_image(once.points_crop),
        CROP_HW,
        mirror,
        permutation,
    )
    assert (twice.images - crops / 255).abs().max() < 1e-4
    assert (twice.frame.image_from_crop - here).abs().max() < 1e-9
    assert (twice.points_crop - Frame(here, *CROP_HW).to_crop(points)).abs().max() < 1e-4


def test_a_mirrored_face_keeps_its_left_landmarks_on_the_left() -> None:
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


def test_the_angle_turns_clockwise_on_the_screen_and_the_scale_enlarges_the_face() -> None:
    middle = torch.tensor([(PADDED_HW[1] - 1) / 2, (PADDED_HW[0] - 1) / 2])
    offsets = torch.tensor([[[0.0, 0.0], [10.0, 0.0]]] * 2, dtype=torch.float64)
    points_image = frame.apply(image_from_padded(2), middle + offsets)
    changes = no_changes(2, angle=np.array([np.pi / 2, 0]), scale=np.array([1, 1.5]))
    batch = augmented(random_crops(2), changes, points_image)
    arms = batch.points_crop[:, 1] - batch.points_crop[:, 0]
    assert arms.numpy() == pytest.approx(np.array([[0, 10], [15, 0]]), abs=1e-9)


def test_a_shift_is_a_fraction_of_the_crop() -> None:
    points_image = frame.apply(image_from_padded(1), torch.tensor([[[50.0, 60.0]]]))
    batch = augmented(random_crops(1), no_changes(1, shift=np.array([[0.25, 0.1]])), points_image)
    plain = augmented(random_crops(1), no_changes(1), points_image)
    moved = (batch.points_crop - plain.points_crop).abs()[0, 0]
    assert moved.tolist() == pytest.approx([0.25 * CROP_HW[1], 0.1 * CROP_HW[0]])


def test_unlabelled_landmarks_weigh_nothing_and_change_sides_with_the_mirror() -> None:
    points_image = torch.full((2, 3, 2), 60.0)
    points_image[:, 0, 1] = torch.nan
    changes = no_changes(2, mirrored=np.array([True, False]))
    batch = augmented(random_crops(2), changes, points_image, np.array([1, 0, 2]))
    assert batch.weights.tolist() == [[1, 0, 1], [0, 1, 1]]
    labelled = batch.weights.bool()
    assert batch.points_crop[labelled].isfinite().all()
    assert batch.points_crop[~labelled].isnan().any(-1).all()


# colours


def test_pictures_stay_between_black_and_white() -> None:
    rows = list(range(24))
    changes = augment.draw(EVERYTHING, seed=1, epoch=2, rows=rows)
    images = augmented(random_crops(24), changes, None, np.arange(1)).images
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("brightness", 0.2, [0.6, 0.8, 1.0]),
        ("brightness", -0.5, [0, 0.1, 0.3]),
        ("saturation", 0.0, [0.567, 0.567, 0.567]),
    ],
)
def test_a_colour_changes_as_it_says(name: str, value: float, expected: list[float]) -> None:
    crops = torch.tensor([102, 153, 204], dtype=torch.uint8)[:, None, None]
    crops = crops.expand(2, 3, *PADDED_HW)
    none = {"brightness": 0.0, "saturation": 1.0}[name]
    changes = no_changes(2, **{name: np.array([value, none])})
    images = augmented(crops, changes).images
    assert images[0, :, 30, 20].tolist() == pytest.approx(expected, abs=0.01)
    assert images[1, :, 30, 20].tolist() == pytest.approx([0.4, 0.6, 0.8], abs=1e-4)


def test_contrast_0_leaves_one_grey_and_each_sample_has_its_own() -> None:
    images = augmented(random_crops(2), no_changes(2, contrast=np.array([0.0, 1.0]))).images
    assert images[0].std() < 1e-3
    assert images[1].std() > 0.2


# draw


def test_a_row_is_changed_the_same_way_in_any_company() -> None:
    together = augment.draw(EVERYTHING, seed=1, epoch=2, rows=[5, 3, 8])
    np.random.seed(0)
    torch.manual_seed(0)
    alone = augment.draw(EVERYTHING, seed=1, epoch=2, rows=[8])
    for name in vars(alone):
        assert np.array_equal(getattr(alone, name), getattr(together, name)[2:])


@pytest.mark.parametrize("other", [(2, 2, 8), (1, 3, 8), (1, 2, 9), (2, 1, 8)])
def test_seed_epoch_and_row_all_matter(other: tuple[int, int, int]) -> None:
    one = augment.draw(EVERYTHING, seed=1, epoch=2, rows=[8])
    seed, epoch, row = other
    another = augment.draw(EVERYTHING, seed, epoch, rows=[row])
    for name in ("angle", "scale", "shift", "brightness", "contrast", "saturation"):
        assert not np.array_equal(getattr(one, name), getattr(another, name)), name


def test_changes_fill_their_ranges_and_stay_in_them() -> None:
    settings = config.Augment(
        mirror=0.3,
        rotate_deg=30,
        scale=0.25,
        shift=0.1,
        brightness=0.2,
        contrast=0.3,
        saturation=0.4,
    )
    changes = augment.draw(settings, seed=1, epoch=2, rows=list(range(2000)))
    ranges = {
        "angle": (-np.pi / 6, np.pi / 6),
        "scale": (0.8, 1.25),
        "shift": (-0.1, 0.1),
        "brightness": (-0.2, 0.2),
        "contrast": (0.7, 1.3),
        "saturation": (0.6, 1.4),
    }
    for name, (lowest, highest) in ranges.items():
        values = getattr(changes, name)
        assert lowest <= values.min() and values.max() <= highest, name
        assert np.ptp(values) > 0.98 * (highest - lowest), name
    assert changes.mirrored.mean() == pytest.approx(0.3, abs=0.04)
    drawn = [changes.angle, changes.scale, *changes.shift.T, changes.brightness, changes.contrast]
    correlation = np.corrcoef([*drawn, changes.saturation, changes.mirrored])
    assert np.abs(correlation - np.eye(8)).max() < 0.1


def test_what_is_switched_off_does_not_happen() -> None:
    changes = augment.draw(config.Augment(), seed=1, epoch=2, rows=[0, 1, 2])
    for name, none in vars(no_changes(3)).items():
        assert np.array_equal(getattr(changes, name), none), name


# plain


def test_a_plain_batch_is_the_crop_itself() -> None:
    crops = random_crops(2)
    here = image_from_padded(2)
    points_image = torch.tensor([[[10.0, 20.0], [torch.nan, 5.0], [3.0, 4.0]]] * 2)
    batch = augment.plain(crops, here, points_image)
    assert torch.equal(batch.images, crops.float() / 255)
    assert torch.equal(batch.frame.image_from_crop, here)
    assert (batch.frame.height, batch.frame.width) == PADDED_HW
    assert batch.weights.tolist() == [[1, 0, 1], [1, 0, 1]]
    labelled = batch.points_crop[:, [0, 2]]
    assert (frame.apply(here, labelled) - points_image[:, [0, 2]]).abs().max() < 1e-9
