"""The images of an experiment, as training and validation see them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import default_collate

from heatmap.config import Augment, Crop, Data, Experiment, Train
from heatmap.data.contest import find_folder, read_landmarks
from heatmap.data.samples import Sample
from heatmap.training.data import TrainingData, read_data

CPU = torch.device("cpu")
EVERYTHING = Augment(
    rotate_deg=180, scale=0.3, shift=0.2, aspect=0.3, fill="mixed", brightness=0.3, contrast=0.3,
    saturation=0.3, hue=0.2, gray=0.2, sharpness=0.5, blur=1, noise=0.1, jpeg=0.5, erase=1,
)  # fmt: skip


@pytest.fixture
def plain(tiny_contest: Path) -> Experiment:
    return Experiment(
        name="plain",
        data=Data(root=tiny_contest, split="order", validation=0.25, workers=0),
        crop=Crop(height=40, width=32),
        train=Train(batch=2),
    )


def batch_of(data: TrainingData, rows: list[int]) -> Sample:
    return default_collate([data.training[row] for row in rows])


def test_validation_crops_are_not_augmented(plain: Experiment) -> None:
    still, moved = read_data(plain), read_data(replace(plain, augment=EVERYTHING))
    assert moved.training.margin > 0 and moved.training.edge
    for row in still.validation_rows.tolist():
        for one, other in zip(still.validation[row], moved.validation[row], strict=True):
            assert torch.equal(one, other)


def test_every_pass_is_augmented_differently(plain: Experiment) -> None:
    data = read_data(replace(plain, augment=EVERYTHING))
    sample = batch_of(data, [0, 3, 4])
    first, again, next_pass = (data.augmented(sample, index, CPU) for index in (4, 4, 5))
    assert torch.equal(first.images, again.images)
    assert (first.points_crop[:, 0] != next_pass.points_crop[:, 0]).all()
    points_image = first.frame.to_image(first.points_crop)
    assert torch.isnan(points_image).equal(torch.isnan(sample.points_image))
    error = (points_image - sample.points_image).nan_to_num().abs().max()
    assert error < 1e-4  # labels are float32


def test_without_augmentation_the_crop_is_unchanged(plain: Experiment) -> None:
    data = read_data(plain)
    sample = batch_of(data, [0, 3])
    assert (data.augmented(sample, 0, CPU).images - sample.crop / 255).abs().max() < 1e-5


def test_the_multiplier_repeats_passes_in_an_epoch(plain: Experiment) -> None:
    once = read_data(plain)
    tenfold = read_data(replace(plain, data=replace(plain.data, multiplier=10)))
    assert once.batches_per_epoch == 9 // 2
    assert tenfold.batches_per_epoch == 10 * once.batches_per_epoch


def test_every_image_needs_a_box(plain: Experiment, tiny_contest: Path, tmp_path: Path) -> None:
    names = read_landmarks(find_folder(tiny_contest).train_table).names
    boxes = tmp_path / "boxes.csv"
    lines = ["file_name,x0,y0,x1,y1", *(f"{name},5,6,50,55" for name in names)]
    boxed = replace(plain, crop=Crop(rule="box"), data=replace(plain.data, boxes=boxes))
    boxes.write_text("\n".join(lines))
    data = read_data(replace(boxed, augment=EVERYTHING))
    assert data.training[3].image_from_crop.isfinite().all()
    boxes.write_text("\n".join(lines[:-1]))
    with pytest.raises(ValueError, match=f"no row for .*{names[-1]}"):
        read_data(boxed)
