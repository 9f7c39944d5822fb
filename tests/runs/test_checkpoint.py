import io
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from heatmap import config, networks
from heatmap.data.contest import Folder, read_landmarks, write_landmarks
from heatmap.runs import checkpoint
from heatmap.runs.checkpoint import Checkpoint
from heatmap.training.prepare import optimizer_for, prepare

EXPERIMENT = config.Experiment(
    name="tiny",
    crop=config.Crop(height=32, width=48),
    model=config.UNet(encoder="tu-test_resnet", weights="none", width=6),
    train=config.Train(device="cpu"),
)


def tiny_checkpoint(**changes: Any) -> Checkpoint:
    torch.manual_seed(3)
    network = networks.build(EXPERIMENT.model, EXPERIMENT.crop, 7)
    optimizer = optimizer_for(EXPERIMENT, network)
    network.embeddings.sum().backward()
    optimizer.step()
    values = {
        "config": config.to_dict(EXPERIMENT),
        "num_landmarks": 7,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": {"epoch": 2, "best_mse": 1.5, "mean_shape_mse": float("nan"), "sigma": 1.5},
        "training_rows": torch.tensor([0, 2, 3, 7, 8]),
        "validation_rows": torch.tensor([1, 4]),
        "picture_weights": torch.ones(6),
        "table_hash": "abc",
        "mean_shape_crop": torch.rand(7, 2, dtype=torch.float64),
        "wandb_id": "1a2b",
    }
    return Checkpoint(**values | changes)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("checkpoint") / "last.pt"
    checkpoint.save(path, tiny_checkpoint())
    return path.read_bytes()


def assert_refused(path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint") as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    saved = tiny_checkpoint()
    checkpoint.save(tmp_path / "last.pt", saved)
    loaded = checkpoint.load(tmp_path / "last.pt")
    assert loaded.config == saved.config
    assert config.from_dict(config.Experiment, loaded.config) == EXPERIMENT
    assert repr(loaded.progress) == repr(saved.progress)
    assert loaded.network.keys() == saved.network.keys()
    assert all(torch.equal(loaded.network[name], t) for name, t in saved.network.items())
    assert repr(loaded.optimizer) == repr(saved.optimizer)
    assert torch.equal(loaded.mean_shape_crop, saved.mean_shape_crop)
    assert loaded.mean_shape_crop.dtype == torch.float64
    assert loaded.training_rows.tolist() == [0, 2, 3, 7, 8]
    assert loaded.validation_rows.tolist() == [1, 4]
    assert (loaded.table_hash, loaded.wandb_id) == ("abc", "1a2b")


def test_torch_reads_it_without_running_code(intact: bytes) -> None:
    values = torch.load(io.BytesIO(intact), weights_only=True)
    assert set(values) == {field.name for field in fields(Checkpoint)}


def test_a_write_that_fails_leaves_the_old_one(
    tmp_path: Path, intact: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(intact)

    def full_disk(values: object, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(path, tiny_checkpoint())
    assert path.read_bytes() == intact
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_one_is_named(tmp_path: Path) -> None:
    assert_refused(tmp_path / "last.pt")
    assert_refused(tmp_path)


class Intruder:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("form", ["torch", "legacy torch", "pickle", "inside a checkpoint"])
def test_code_in_it_does_not_run(tmp_path: Path, form: str) -> None:
    path, intruder = tmp_path / "last.pt", Intruder(tmp_path / "was-here")
    match form:
        case "torch":
            torch.save(intruder, path)
        case "legacy torch":
            torch.save(intruder, path, _use_new_zipfile_serialization=False)
        case "pickle":
            path.write_bytes(pickle.dumps(intruder))
        case _:
            checkpoint.save(path, replace(tiny_checkpoint(), progress={"epoch": intruder}))
    assert_refused(path)
    assert not intruder.folder.exists()


@pytest.mark.parametrize("part", [0, 0.001, 0.3, 0.9, 0.999])
def test_one_that_is_cut_short_is_refused(tmp_path: Path, intact: bytes, part: float) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(intact[: int(part * len(intact))])
    assert_refused(path)


@pytest.mark.parametrize(
    "content",
    [b"hello\n", b"{}", b"\x80", b"\x80\x02}q\x00.", b"\x89PNG\r\n", b"a\tb\n1\t2\n", bytes(300)],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    assert_refused(path)


def test_noise_is_refused(tmp_path: Path) -> None:
    path, generator = tmp_path / "last.pt", random.Random(5)
    for first in range(256):
        path.write_bytes(bytes([first]) + generator.randbytes(40))
        assert_refused(path)


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(3, 2),
        {"weight": torch.zeros(3, 2)},
        {"format": checkpoint.FORMAT},
        [1, 2],
    ],
)
def test_a_file_of_other_tensors_is_refused(tmp_path: Path, values: Any) -> None:
    torch.save(values, tmp_path / "last.pt")
    assert_refused(tmp_path / "last.pt")


def test_another_format_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.pt", tiny_checkpoint(format=checkpoint.FORMAT + 1))
    assert_refused(tmp_path / "last.pt")


def test_another_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "last.pt", "w") as file:
        file.writestr("readme.txt", "nothing")
    assert_refused(tmp_path / "last.pt")


def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path: Path, intact: bytes) -> None:
    path = tmp_path / "last.pt"
    for place in (0.3, 0.5, 0.7):
        damaged = bytearray(intact)
        damaged[int(place * len(intact))] ^= 1
        path.write_bytes(damaged)
        assert_refused(path)


def test_a_trained_network_is_ready_to_use(tmp_path: Path) -> None:
    saved = tiny_checkpoint()
    checkpoint.save(tmp_path / "best.pt", saved)
    for path in (tmp_path, tmp_path / "best.pt"):
        trained = checkpoint.load_trained(path)
        assert trained.experiment == EXPERIMENT
        assert trained.path == tmp_path / "best.pt"
        assert not trained.network.training
        assert trained.network.num_landmarks == 7
        state = trained.network.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in saved.network.items())


def test_a_trained_network_needs_no_start_weights(tmp_path: Path) -> None:
    model = replace(EXPERIMENT.model, weights="/nowhere/start.safetensors")
    values = config.to_dict(replace(EXPERIMENT, model=model))
    checkpoint.save(tmp_path / "best.pt", tiny_checkpoint(config=values))
    assert checkpoint.load_trained(tmp_path).network.num_landmarks == 7


@pytest.mark.parametrize(
    "change",
    [
        {"num_landmarks": 8},
        {"config": config.to_dict(EXPERIMENT) | {"sede": 3}},
        {"config": config.to_dict(replace(EXPERIMENT, model=config.Direct(weights="none")))},
    ],
)
def test_one_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    checkpoint.save(tmp_path / "best.pt", tiny_checkpoint(**change))
    with pytest.raises(ValueError, match=r"best\.pt: does not fit this program"):
        checkpoint.load_trained(tmp_path)


@pytest.mark.parametrize("change", ["point", "name", "order"])
def test_data_that_changed_since_are_refused(
    tmp_path: Path, tiny_contest: Path, change: str
) -> None:
    table = read_landmarks(Folder(root=tiny_contest).train_table)
    changed = Folder(root=tmp_path)
    changed.train_table.parent.mkdir()
    changed.train_images.symlink_to(Folder(root=tiny_contest).train_images)
    names, points = list(table.names), table.points_image[:]
    experiment = replace(EXPERIMENT, data=config.Data(root=tmp_path, workers=0))
    saved = tiny_checkpoint(table_hash=table.fingerprint(), progress={})

    write_landmarks(changed.train_table, names, points)
    run = prepare(experiment, saved)
    assert run.validation_rows.tolist() == [1, 4]  # the checkpoint's, not the rule's
    assert run.training_rows.tolist() == [0, 2, 3, 7, 8]

    match change:
        case "point":
            points[5, 3, 1] += 1
        case "name":
            names[4] = "ada_0_again.jpg"
            (tmp_path / "train" / "images").unlink()
            (tmp_path / "train" / "images").mkdir()
            for name in names:
                (tmp_path / "train" / "images" / name).touch()
        case "order":
            names[:2], points[:2] = names[1::-1], points[1::-1].copy()
    write_landmarks(changed.train_table, names, points)
    with pytest.raises(ValueError, match=r"landmarks\.csv.* not the table"):
        prepare(experiment, saved)
