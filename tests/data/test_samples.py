import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from heatmap import config, frame
from heatmap.data import augment, samples
from heatmap.data.contest import find_folder, image_paths, images, read_image, read_landmarks
from heatmap.data.samples import Sample, Samples, batches_in_order, shuffled_batches
from heatmap.data.synthetic import draw_face
from heatmap.frame import Frame

CROP = config.Crop(height=48, width=36)
CPU = torch.device("cpu")
EYE = torch.eye(3, dtype=torch.float64)
UNLABELLED = np.full((1, 1, 2), np.nan, np.float32)


def tiny_samples(root: Path, **settings: Any) -> Samples:
    contest = find_folder(root)
    table = read_landmarks(contest.train_table)
    paths = image_paths(contest.train_images, table.names, contest.train_table)
    return Samples(paths, table.points_image, **({"crop": CROP} | settings))


# cut


def blob(height: int, width: int, x: float, y: float, sigma: float) -> np.ndarray:
    """(height, width, 3) uint8 Gaussian spot."""
    along_y = np.exp(-0.5 * ((np.arange(height) - y) / sigma) ** 2)
    along_x = np.exp(-0.5 * ((np.arange(width) - x) / sigma) ** 2)
    return np.repeat((250 * np.outer(along_y, along_x)).round().astype(np.uint8)[..., None], 3, -1)


def centroid(image: np.ndarray) -> list[float]:
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    weights = image[..., 0].astype(float)
    return [(x * weights).sum() / weights.sum(), (y * weights).sum() / weights.sum()]


@pytest.mark.parametrize("rule", [frame.cover, frame.contain], ids=["cover", "contain"])
def test_crop_shows_each_point_at_its_coordinates(rule: Any) -> None:
    generator = np.random.default_rng(1)
    shrinks = []
    while len(shrinks) < 60:
        height, width = generator.integers(60, 1401, 2).tolist()
        crop_frame = rule((height, width), tuple(generator.integers(32, 257, 2).tolist()))
        crop_frame = crop_frame.padded(int(generator.integers(0, 30)))
        shrink = crop_frame.image_from_crop[0, 0].item()
        sigma = max(3 * shrink, 2)
        x, y = generator.uniform(0, width), generator.uniform(0, height)
        x_crop, y_crop = crop_frame.to_crop(torch.tensor([[x, y]])).tolist()[0]
        room_image = min(x, width - 1 - x, y, height - 1 - y)
        room_crop = min(
            x_crop, crop_frame.width - 1 - x_crop, y_crop, crop_frame.height - 1 - y_crop
        )
        if min(room_image, room_crop * shrink) > 4 * sigma:
            crop = samples.cut(blob(height, width, x, y, sigma), crop_frame)
            assert crop.shape == (crop_frame.height, crop_frame.width, 3)
            assert centroid(crop) == pytest.approx([x_crop, y_crop], abs=0.05)
            shrinks.append(shrink)
    assert min(shrinks) < 0.8
    assert max(shrinks) > 5


@pytest.mark.parametrize("image_hw", [(60, 45), (601, 433), (1400, 1000)])
def test_crop_is_black_outside_the_image(image_hw: tuple[int, int]) -> None:
    crop_frame = frame.contain(image_hw, (96, 128)).padded(10)
    crop = samples.cut(np.full((*image_hw, 3), 255, np.uint8), crop_frame)
    y, x = np.mgrid[: crop_frame.height, : crop_frame.width]
    points_image = crop_frame.to_image(torch.from_numpy(np.stack([x, y], -1)).flatten(0, 1)).numpy()
    # distance to the image's edge, in crop pixels, positive inside
    size = np.array(image_hw[::-1])
    room = np.minimum(points_image + 0.5, size - 0.5 - points_image).min(-1)
    room = (room / crop_frame.image_from_crop[0, 0].item()).reshape(
        crop_frame.height, crop_frame.width
    )
    assert (crop[room < -2] == 0).all()
    assert (crop[room > 1] == 255).all()
    assert (room < -2).any() and (room > 1).any()


def test_fine_detail_does_not_alias() -> None:
    y, x = np.mgrid[:801, :1203]
    chequer = np.repeat(((x + y) % 2 * 255).astype(np.uint8)[..., None], 3, -1)
    for crop_hw in [(64, 96), (100, 75), (190, 331)]:
        crop = samples.cut(chequer, frame.cover((801, 1203), crop_hw)).astype(float)
        assert crop.mean() == pytest.approx(127.5, abs=2)
        assert crop.std() < 12


def test_colours_keep_their_channels_at_any_size() -> None:
    for size in (20, 300):
        image = np.empty((size, size, 3), np.uint8)
        image[:] = (10, 120, 230)
        crop = samples.cut(image, frame.cover((size, size), (40, 56)))
        assert np.abs(crop[2:-2, 2:-2].astype(int) - (10, 120, 230)).max() <= 1


def test_edge_repeats_the_images_border() -> None:
    image = np.random.default_rng(4).integers(0, 256, (50, 30, 3)).astype(np.uint8)
    crop_frame = Frame(EYE, 50, 30).padded(20)  # one crop pixel per image pixel
    black, edge = samples.cut(image, crop_frame), samples.cut(image, crop_frame, edge=True)
    assert np.array_equal(black, np.pad(image, ((20, 20), (20, 20), (0, 0))))
    assert np.array_equal(edge, np.pad(image, ((20, 20), (20, 20), (0, 0)), "edge"))


@pytest.mark.parametrize("side", [250, 577, 601, 1003, 1100])
def test_reduced_jpeg_keeps_points_in_place(tmp_path: Path, side: int) -> None:
    crop = config.Crop(height=128, width=128)
    generator = np.random.default_rng(side)
    for height, width in ((side, side), (side, side + 30), (side + 41, side)):
        points = generator.uniform(0.3, 0.7, (3, 2)) * (width, height)
        for x, y in points:
            spot = blob(height, width, x, y, side / 40)
            cv2.imwrite(str(tmp_path / "spot.jpg"), spot, [cv2.IMWRITE_JPEG_QUALITY, 97])
            sample = Samples([tmp_path / "spot.jpg"], UNLABELLED, crop, margin=9, edge=True)[0]
            crop_frame = Frame(sample.image_from_crop, 146, 146)
            seen = np.clip(sample.crop.permute(1, 2, 0).numpy().astype(int) - 12, 0, None)
            expected = crop_frame.to_crop(torch.tensor([[x, y]])).tolist()[0]
            assert centroid(seen) == pytest.approx(expected, abs=0.06)
            assert sample.image_hw.tolist() == [height, width]


def by_area(image: np.ndarray, crop_hw: tuple[int, int]) -> np.ndarray:
    """The cover crop, resampled by area."""
    height, width = image.shape[:2]
    crop_frame = frame.cover((height, width), crop_hw)
    shrink = crop_frame.image_from_crop[0, 0].item()
    small_hw = round(height / shrink), round(width / shrink)
    small = cv2.resize(image, small_hw[::-1], interpolation=cv2.INTER_AREA)
    small_from_crop = frame.resizing((height, width), small_hw) @ crop_frame.image_from_crop
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(small, small_from_crop[:2].numpy(), crop_hw[::-1], flags=flags)


@pytest.mark.parametrize("form", ["jpg", "png"])
@pytest.mark.parametrize("side", [210, 250, 400, 600])
def test_crop_is_close_to_area_resampling(tmp_path: Path, side: int, form: str) -> None:
    drawn, _ = draw_face(0, side)
    image = cv2.resize(drawn, (side + 13, side), interpolation=cv2.INTER_CUBIC)
    grain = np.random.default_rng(side).normal(0, 4, image.shape)
    image = np.clip(image + grain, 0, 255).astype(np.uint8)
    path = tmp_path / f"face.{form}"
    cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    crop = Samples([path], UNLABELLED, config.Crop(height=128, width=128))[0].crop
    reference = by_area(read_image(path), (128, 128))
    assert np.abs(crop.permute(1, 2, 0).numpy() - reference.astype(float)).mean() < 3


def test_wrong_header_size_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(1).integers(0, 256, (300, 200, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.jpg"), image)
    dataset = Samples([tmp_path / "a.jpg"], UNLABELLED, CROP)
    monkeypatch.setattr(images, "_jpeg_hw", lambda data: None)
    plain = dataset[0]
    monkeypatch.setattr(images, "_jpeg_hw", lambda data: (200, 300))
    misled = dataset[0]
    assert misled.image_hw.tolist() == [300, 200]
    assert torch.equal(misled.crop, plain.crop)
    assert torch.equal(misled.image_from_crop, plain.image_from_crop)


# border


BORDER = {"left": 7, "top": 11, "right": 3, "bottom": 5}


def bordered(grey: int, height: int = 60, width: int = 48) -> np.ndarray:
    """An image inside a border whose pixels have channel means up to `grey`."""
    generator = np.random.default_rng(5)
    image = generator.integers(grey + 1, 256, (height, width, 3)).astype(np.uint8)
    across = (BORDER["top"], BORDER["bottom"]), (BORDER["left"], BORDER["right"])
    whole = np.pad(image, (*across, (0, 0)))
    border = np.pad(np.zeros(image.shape[:2], bool), across, constant_values=True)
    whole[border] = generator.permuted(np.array([[0, grey, 2 * grey]] * border.sum()), axis=1)
    return whole


def test_border_ends_at_the_threshold() -> None:
    image = bordered(9)
    height, width = image.shape[:2]
    whole = 0, 0, width, height
    inner = BORDER["left"], BORDER["top"], width - BORDER["right"], height - BORDER["bottom"]
    assert samples.within_border(image, 9) == inner
    assert samples.within_border(image, 8) == whole
    assert samples.within_border(image, 0) == whole
    image[0, 20] = (9, 9, 10)  # one brighter pixel makes its row and column part of the image
    assert samples.within_border(image, 9) == (inner[0], 0, *inner[2:])
    assert samples.within_border(np.full((20, 30, 3), 9, np.uint8), 9) == (0, 0, 30, 20)
    dot = np.zeros((20, 30, 3), np.uint8)
    dot[4, 7, 2] = 30
    assert samples.within_border(dot, 9) == (7, 4, 8, 5)


@pytest.mark.parametrize("rule", ["cover", "contain"])
def test_trimmed_image_is_cropped_like_its_inside(tmp_path: Path, rule: Any) -> None:
    image = bordered(9)
    top, bottom = BORDER["top"], image.shape[0] - BORDER["bottom"]
    left, right = BORDER["left"], image.shape[1] - BORDER["right"]
    points = np.float32([[[20.25, 30.5], [31, 18], [left, top]]])
    crop = config.Crop(height=40, width=32, rule=rule, trim_border=9)
    cv2.imwrite(str(tmp_path / "whole.png"), image)
    cv2.imwrite(str(tmp_path / "within.png"), image[top:bottom, left:right])
    whole = Samples([tmp_path / "whole.png"], points, crop)[0]
    plain = replace(crop, trim_border=0)
    within = Samples([tmp_path / "within.png"], points - np.float32([left, top]), plain)[0]
    assert torch.equal(whole.crop, within.crop)
    assert whole.inner.tolist() == [left, top, right, bottom]
    assert whole.image_hw.tolist() == list(image.shape[:2])
    frames = [Frame(sample.image_from_crop, 40, 32) for sample in (whole, within)]
    points_crop = [
        one.to_crop(sample.points_image)
        for one, sample in zip(frames, (whole, within), strict=True)
    ]
    assert (points_crop[0] - points_crop[1]).abs().max() < 1e-6
    home = frames[0].to_image(points_crop[1])
    assert (home - whole.points_image).abs().max() < 1e-6
    edge = Samples([tmp_path / "whole.png"], points, crop, margin=20, edge=True)[0].crop
    assert edge.min() > 9, "the border is carried on, not the image's edge"


# boxes


@pytest.mark.parametrize("trim_border", [0, 9])
@pytest.mark.parametrize("crop_hw", [(64, 64), (128, 48), (48, 128)])
def test_box_is_centred_with_its_aspect_ratio(
    tmp_path: Path, crop_hw: tuple[int, int], trim_border: int
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), bordered(9, 200, 300))
    boxes = np.array([[41.5, 60, 150, 133.25]])
    crop = config.Crop(
        height=crop_hw[0], width=crop_hw[1], rule="box", box_scale=1.25, trim_border=trim_border
    )
    sample = Samples([tmp_path / "a.png"], UNLABELLED, crop, boxes)[0]
    corners = torch.from_numpy(boxes.reshape(2, 2))
    corners_crop = Frame(sample.image_from_crop, *crop_hw).to_crop(corners).numpy()
    size = np.array(crop_hw[::-1])
    assert corners_crop.mean(0) == pytest.approx((size - 1) / 2, abs=1e-6)
    factors = (corners_crop[1] - corners_crop[0]) / (boxes[0, 2:] - boxes[0, :2])
    assert factors[0] == pytest.approx(factors[1], abs=1e-6)
    assert ((corners_crop[1] - corners_crop[0]) / size).max() == pytest.approx(1 / 1.25, abs=1e-6)


def test_boxes_come_from_the_experiments_table(tiny_contest: Path, tmp_path: Path) -> None:
    plain = tiny_samples(tiny_contest)
    table = tmp_path / "boxes.csv"
    lines = [f"{path.name},{10 + k},20,60.5,70" for k, path in enumerate(plain.paths)]
    table.write_text("\n".join(["file_name,x0,y0,x1,y1", *reversed(lines)]))
    experiment = config.Experiment(
        name="boxes", data=config.Data(boxes=table), crop=replace(CROP, rule="box")
    )
    dataset = Samples.of(experiment, plain.paths, plain.points_image)
    for row in (0, 5):
        middle = Frame(dataset[row].image_from_crop, 48, 36).to_image(torch.tensor([[17.5, 23.5]]))
        assert middle.tolist()[0] == pytest.approx([(70.5 + row) / 2, 45], abs=1e-6)
    table.write_text("\n".join(["file_name,x0,y0,x1,y1", *lines[:3]]))
    with pytest.raises(ValueError, match=rf"no row for .*{plain.paths[3].name}"):
        Samples.of(experiment, plain.paths, plain.points_image)
    with pytest.raises(ValueError, match=r"--data\.boxes"):
        Samples.of(replace(experiment, data=config.Data()), plain.paths, plain.points_image)
    mean = samples.mean_shape_crop(dataset, np.array([0]))
    sample = dataset[0]
    expected = Frame(sample.image_from_crop, 48, 36).to_crop(sample.points_image)
    assert mean == pytest.approx(expected.numpy(), abs=1e-6)


# samples


def test_contain_shows_the_whole_image_with_black_bars(tmp_path: Path) -> None:
    for name, (height, width) in {"wide": (60, 131), "tall": (300, 70)}.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((height, width, 3), 200, np.uint8))
    crop = config.Crop(height=224, width=288, rule="contain")
    dataset = Samples([tmp_path / "wide.png", tmp_path / "tall.png"], UNLABELLED.repeat(2, 0), crop)
    wide, tall = dataset[0].crop[0].numpy(), dataset[1].crop[0].numpy()
    rows, columns = np.flatnonzero(wide[:, 144] > 100), np.flatnonzero(tall[112] > 100)
    assert len(rows) == pytest.approx(60 * 288 / 131, abs=1.1)
    assert len(columns) == pytest.approx(70 * 224 / 300, abs=1.1)
    assert (wide[:, [0, -1]][rows] > 100).all() and (tall[[0, -1]][:, columns] > 100).all()
    assert (wide[: rows[0] - 1] == 0).all() and (tall[:, columns[-1] + 2 :] == 0).all()


def test_sample_holds_the_crop_and_its_frame(tiny_contest: Path) -> None:
    dataset = tiny_samples(tiny_contest, margin=5)
    for row in range(len(dataset)):
        sample, image = dataset[row], read_image(dataset.paths[row])
        assert sample.row == row
        assert sample.image_hw.tolist() == list(image.shape[:2])
        assert sample.crop.shape == (3, CROP.height + 10, CROP.width + 10)
        crop_frame = frame.cover(image.shape[:2], (CROP.height, CROP.width)).padded(5)
        assert torch.equal(sample.image_from_crop, crop_frame.image_from_crop)
        assert np.array_equal(sample.points_image, dataset.points_image[row], equal_nan=True)
        shown, whole = sample.crop.permute(1, 2, 0).numpy(), samples.cut(image, crop_frame)
        assert np.abs(shown.astype(int) - whole).mean() < 1.5  # the decoder shrinks differently


# loading


def batches(dataset: Samples, workers: int) -> list[Sample]:
    return list(samples.load(dataset, [[3, 1, 4], [11, 5], [9, 2, 6]], workers, CPU))


# two passes over 12 rows with seed 1
ORDER = [
    [11, 2, 1, 6, 3, 0], [8, 4, 9, 7, 5, 10],
    [0, 8, 7, 11, 1, 4], [10, 9, 3, 5, 2, 6],
]  # fmt: skip


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 8])
def test_any_number_of_workers_and_processes_loads_the_same_samples_in_the_same_order(
    tiny_contest: Path, workers: int, world: int
) -> None:
    dataset = tiny_samples(tiny_contest, margin=3)
    for rank in range(world):
        passes = [shuffled_batches(np.arange(12), 6, 1, epoch, rank, world) for epoch in (0, 1)]
        rows = list(chain.from_iterable(passes))
        assert rows == [batch[rank::world] for batch in ORDER]
        loaded = list(samples.load(dataset, rows, workers, CPU))
        assert [batch.row.tolist() for batch in loaded] == rows
        for field in Sample._fields:
            alone = np.stack([getattr(dataset[row], field) for row in rows[0]])
            assert np.array_equal(getattr(loaded[0], field), alone, equal_nan=True), field


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_generator_alone(tiny_contest: Path, workers: int) -> None:
    before = torch.get_rng_state()
    batches(tiny_samples(tiny_contest), workers)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_named(tiny_contest: Path, tmp_path: Path, workers: int) -> None:
    dataset = tiny_samples(tiny_contest)
    broken = tmp_path / "cut_short.jpg"
    broken.write_bytes(dataset.paths[5].read_bytes()[:200])
    paths = [*dataset.paths]
    paths[5] = broken
    with pytest.raises(ValueError, match=r"cut_short\.jpg: the image") as caught:
        batches(Samples(paths, dataset.points_image, CROP), workers)
    assert str(caught.value).startswith(str(broken))
    assert "Traceback" not in str(caught.value)


# batches


def test_order_is_a_function_of_seed_and_epoch() -> None:
    rows = np.arange(100, 140)
    first = shuffled_batches(rows, 8, seed=1, epoch=2)
    np.random.seed(0)
    torch.manual_seed(0)
    assert shuffled_batches(rows, 8, seed=1, epoch=2) == first
    assert shuffled_batches(rows, 8, seed=1, epoch=3) != first
    assert shuffled_batches(rows, 8, seed=2, epoch=2) != first
    assert shuffled_batches(rows, 8, seed=2, epoch=1) != first
    assert list(chain.from_iterable(first)) != sorted(chain.from_iterable(first))


@pytest.mark.parametrize(("num_rows", "batch"), [(40, 8), (41, 8), (47, 8), (7, 12), (1, 1)])
def test_epoch_has_each_row_at_most_once(num_rows: int, batch: int) -> None:
    rows = np.arange(100, 100 + num_rows)
    dealt = shuffled_batches(rows, batch, seed=1, epoch=2)
    assert {len(one) for one in dealt} == {min(batch, num_rows)}
    assert len(dealt) == max(1, num_rows // batch)
    flat = list(chain.from_iterable(dealt))
    assert len(set(flat)) == len(flat)
    assert set(flat) <= set(rows.tolist())


def test_uneven_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="batch of 8 cannot be divided evenly between 3 processes"):
        shuffled_batches(np.arange(40), 8, 1, 2, rank=0, world=3)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("num_rows", [1, 17, 24])
def test_batches_in_order_cover_every_row_once(num_rows: int, world: int) -> None:
    rows = np.arange(100, 100 + num_rows)
    alone = batches_in_order(rows, 4)
    assert list(chain.from_iterable(alone)) == rows.tolist()
    parts = [batches_in_order(rows, 4, rank, world) for rank in range(world)]
    assert sorted(chain.from_iterable(parts)) == alone


# mean shape


def test_mean_shape_averages_the_labels_in_the_crop(tiny_contest: Path) -> None:
    dataset = tiny_samples(tiny_contest, margin=5)
    rows = np.array([2, 0, 7])  # row 2 lacks landmark 4
    shapes = []
    for row in rows:
        crop_frame = frame.cover(
            read_image(dataset.paths[row]).shape[:2], (CROP.height, CROP.width)
        )
        shapes.append(crop_frame.to_crop(torch.from_numpy(dataset.points_image[row])).numpy())
    mean = samples.mean_shape_crop(dataset, rows)
    assert mean == pytest.approx(np.nanmean(shapes, 0), abs=1e-9)
    assert mean[4] == pytest.approx((shapes[1][4] + shapes[2][4]) / 2, abs=1e-9)
    alone = samples.mean_shape_crop(dataset, rows[:1])
    assert alone[4].tolist() == [17.5, 23.5], "the crop's centre"
    few = samples.mean_shape_crop(dataset, np.arange(11), max_rows=3)
    assert np.array_equal(few, samples.mean_shape_crop(dataset, np.array([0, 5, 10])))


# margin


def test_margin_covers_the_augmentation() -> None:
    generator, reached_all = np.random.default_rng(2), 0
    while reached_all < 60:
        height, width = generator.integers(32, 97, 2).tolist()
        crop = config.Crop(height=height, width=width)
        settings = config.Augment(
            mirror=1,
            rotate_deg=generator.choice([0.0, generator.uniform(0, 180)]),
            scale=generator.choice([0.0, generator.uniform(0, 1)]),
            shift=generator.choice([0.0, generator.uniform(0, 0.5)]),
            aspect=generator.choice([0.0, generator.uniform(0, 1)]),
        )
        margin = samples.margin_for(crop, settings)
        assert 0 <= margin <= max(height, width) / 2 + 0.5
        if margin >= max(height, width) / 2:  # clipped
            continue
        reached_all += 1
        angles = np.radians(settings.rotate_deg) * generator.choice([-1, 1, 0, 0.5, -0.7], 8)
        count = len(angles)
        changes = replace(
            augment.sample_changes(settings, 0, 0, list(range(count))),
            angle=angles,
            scale=np.full(count, 1 / (1 + settings.scale)),
            shift=settings.shift * generator.choice([-1.0, 1.0], (count, 2)),
            aspect=(1 + settings.aspect) ** generator.choice([-1.0, 1.0], count),
        )
        padded = Frame(EYE, crop.height, crop.width).padded(margin)
        crops = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(
            count, 3, padded.height, padded.width
        )
        # with the padded crop as the image
        new = Frame(padded_from_new(crops, crop, changes), crop.height, crop.width)
        right, bottom = crop.width - 0.5, crop.height - 0.5
        corners = torch.tensor([[-0.5, -0.5], [right, -0.5], [-0.5, bottom], [right, bottom]])
        reached = new.to_image(corners)
        assert reached.min() >= -0.5 - 1e-9
        assert (reached <= torch.tensor([padded.width, padded.height]) - 0.5 + 1e-9).all()


def padded_from_new(
    crops: torch.Tensor, crop: config.Crop, changes: augment.Changes
) -> torch.Tensor:
    batch = augment.augmented(
        crops,
        EYE.expand(len(crops), 3, 3),
        torch.zeros(len(crops), 1, 2),
        (crop.height, crop.width),
        changes,
        None,
    )
    return batch.frame.image_from_crop


@pytest.mark.parametrize(
    ("reach", "margin"),
    [({}, 0), ({"rotate_deg": 180}, 47), ({"rotate_deg": 180, "scale": 1, "shift": 1}, 112)],
)
def test_margin_is_as_small_as_the_augmentation_allows(reach: Any, margin: int) -> None:
    square, augmentation = config.Crop(height=224, width=224), config.Augment(mirror=0.5, **reach)
    assert samples.margin_for(square, augmentation) == margin


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_keeps_its_workers(tiny_contest: Path, workers: int) -> None:
    dataset = tiny_samples(tiny_contest)
    others = set(multiprocessing.active_children())
    loader = samples.Loader(dataset, workers, CPU)
    given_up = loader.load([[0], [1], [2], [3], [4], [5], [6], [7]])
    assert next(given_up).row.tolist() == [0]
    started = set(multiprocessing.active_children()) - others
    assert len(started) == workers
    for dealt in ([[11, 2], [5]], [[8, 9, 10]]):
        rows = [batch.row.tolist() for batch in loader.load(dealt)]
        assert rows == dealt
    assert set(multiprocessing.active_children()) - others == started


def test_batch_holds_its_samples(tiny_contest: Path) -> None:
    dataset = tiny_samples(tiny_contest, margin=2)
    batch = samples.collate([dataset[4], dataset[1]])
    for name, values in batch._asdict().items():
        for value, row in zip(values, (4, 1), strict=True):
            assert value.dtype == getattr(dataset[row], name).dtype
            np.testing.assert_array_equal(value, getattr(dataset[row], name))
    assert batch.crop.is_contiguous(memory_format=torch.channels_last)


def test_loader_works_with_opencv_threads(tiny_contest: Path) -> None:
    cv2.setNumThreads(2)
    dataset = tiny_samples(tiny_contest)
    assert len(batches(dataset, 2)) == 3


class ThreadsOfOpenCV(Dataset[Sample]):
    """Samples that hold the reading process's number of OpenCV threads."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, row: int) -> Sample:
        return Sample(*[torch.full((1, 1, 1), cv2.getNumThreads())] * 6)


@pytest.fixture(params=["fork", "spawn"])
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    torch.multiprocessing.set_start_method(before, force=True)


@pytest.mark.usefixtures("start_method")
def test_worker_has_one_opencv_thread() -> None:
    cv2.setNumThreads(2)
    seen = samples.load(ThreadsOfOpenCV(), [[0], [1]], 1, CPU)
    assert [batch.row.item() for batch in seen] == [1, 1]
