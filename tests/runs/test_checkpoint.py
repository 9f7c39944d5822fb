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
from heatmap.runs.checkpoint import Checkpoint, Progress, State
from heatmap.training import loop
from heatmap.training.optimizer import optimizer_for
from heatmap.training.prepare import prepare, save

EXPERIMENT = config.Experiment(
    name="tiny",
    crop=config.Crop(height=32, width=48),
    model=config.UNet(encoder="tu-test_resnet", weights="none", width=6),
    train=config.Train(device="cpu"),
)
STATE = {"optimizer": {}, "image_weights": torch.ones(6), "wandb_id": "1a2b"}


def tiny_checkpoint(**changes: Any) -> Checkpoint:
    """The content of a last.pt."""
    torch.manual_seed(3)
    network = networks.build(EXPERIMENT.model, EXPERIMENT.crop, 7)
    optimizer = optimizer_for(EXPERIMENT.optimizer, network)
    network.embeddings.sum().backward()
    optimizer.step()
    values: dict[str, Any] = {
        "config": config.to_dict(EXPERIMENT),
        "num_landmarks": 7,
        "network": network.state_dict(),
        "sigma": 1.5,
        "mean_shape_crop": torch.rand(7, 2, dtype=torch.float64),
        "table_hash": "abc",
        "training_rows": torch.tensor([0, 2, 3, 7, 8]),
        "validation_rows": torch.tensor([1, 4]),
        "validation_mse": 1.5,
        "state": State(
            optimizer=optimizer.state_dict(),
            progress=Progress(epoch=2, best_mse=1.5, losses=[float("inf")]),
            image_weights=torch.ones(6),
            wandb_id="1a2b",
        ),
    }
    return Checkpoint(**values | changes)


def write_as_0_1(path: Path, saved: Checkpoint, **changes: Any) -> None:
    """Writes the checkpoint as version 0.1.0 did, in its format 3."""
    assert saved.state
    values = {
        "config": saved.config,
        "num_landmarks": saved.num_landmarks,
        "network": saved.state.network or saved.network,
        "averaged": saved.network if saved.state.network else None,
        "optimizer": saved.state.optimizer,
        "progress": {"sigma": saved.sigma, "batch": 0, "scores": [9.0, 1.5]},
        "training_rows": saved.training_rows,
        "validation_rows": saved.validation_rows,
        "picture_weights": saved.state.image_weights,
        "table_hash": saved.table_hash,
        "mean_shape_crop": saved.mean_shape_crop,
        "wandb_id": saved.state.wandb_id,
        "scheme": saved.scheme and saved.scheme.to_dict(),
        "format": 3,
    }
    torch.save(values | changes, path)


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


def test_a_saved_checkpoint_loads_unchanged(tmp_path: Path) -> None:
    saved = tiny_checkpoint()
    checkpoint.save(tmp_path / "last.pt", saved)
    loaded = checkpoint.load(tmp_path / "last.pt")
    assert loaded.config == saved.config
    assert config.from_dict(config.Experiment, loaded.config) == EXPERIMENT
    assert loaded.state and saved.state
    assert repr(loaded.state.progress) == repr(saved.state.progress)
    assert loaded.network.keys() == saved.network.keys()
    assert all(torch.equal(loaded.network[name], t) for name, t in saved.network.items())
    assert repr(loaded.state.optimizer) == repr(saved.state.optimizer)
    assert torch.equal(loaded.mean_shape_crop, saved.mean_shape_crop)
    assert loaded.mean_shape_crop.dtype == torch.float64
    assert loaded.training_rows.tolist() == [0, 2, 3, 7, 8]
    assert loaded.validation_rows.tolist() == [1, 4]
    assert (loaded.table_hash, loaded.validation_mse) == ("abc", 1.5)
    assert loaded.state.wandb_id == "1a2b"
    checkpoint.save(tmp_path / "best.pt", replace(saved, state=None))
    assert checkpoint.load(tmp_path / "best.pt").state is None


def test_torch_loads_a_checkpoint_with_weights_only(intact: bytes) -> None:
    values = torch.load(io.BytesIO(intact), weights_only=True)
    assert set(values) == {field.name for field in fields(Checkpoint)}


def test_a_failed_save_keeps_the_old_checkpoint(
    tmp_path: Path, intact: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(intact)

    def full_disk(values: object, target: Any) -> None:
        target.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(path, tiny_checkpoint())
    assert path.read_bytes() == intact
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "last.pt")
    assert_refused(tmp_path)


class Intruder:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("form", ["torch", "legacy torch", "pickle", "inside a checkpoint"])
def test_loading_never_runs_code(tmp_path: Path, form: str) -> None:
    path, intruder = tmp_path / "last.pt", Intruder(tmp_path / "was-here")
    match form:
        case "torch":
            torch.save(intruder, path)
        case "legacy torch":
            torch.save(intruder, path, _use_new_zipfile_serialization=False)
        case "pickle":
            path.write_bytes(pickle.dumps(intruder))
        case _:
            checkpoint.save(path, tiny_checkpoint(config={"name": intruder}))
    assert_refused(path)
    assert not intruder.folder.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"scheme": {}},
        {"scheme": {"permutation": [0], "groups": 1}},
        {"num_landmarks": 8},  # not as many as in the mean shape
        {"num_landmarks": 10**9},
        {"network": {"embeddings": 3}},
        {"sigma": "wide"},
        {"label_offset": (1.0,)},
        {"shape_prior": {"mean": torch.zeros(2, 7)}},
        {"state": {"optimizer": {}}},
        {"state": STATE | {"progress": {"epoch": "2"}}},
        {"state": STATE | {"progress": {"best_mse": None}}},
        {"loss": 1.0},
    ],
)
def test_a_wrong_field_is_refused(tmp_path: Path, intact: bytes, changes: dict[str, Any]) -> None:
    path = tmp_path / "last.pt"
    values = torch.load(io.BytesIO(intact), weights_only=True)
    torch.save(values | changes, path)
    assert_refused(path)


def test_bytes_before_a_checkpoint_are_refused(tmp_path: Path, intact: bytes) -> None:
    (tmp_path / "last.pt").write_bytes(b"x" + intact)
    assert_refused(tmp_path / "last.pt")


@pytest.mark.parametrize("part", [0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, intact: bytes, part: float) -> None:
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


def test_random_bytes_are_refused(tmp_path: Path) -> None:
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
def test_other_torch_files_are_refused(tmp_path: Path, values: Any) -> None:
    torch.save(values, tmp_path / "last.pt")
    assert_refused(tmp_path / "last.pt")


def test_another_format_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.pt", tiny_checkpoint(format=checkpoint.FORMAT + 1))
    assert_refused(tmp_path / "last.pt")


def test_other_zip_files_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "last.pt", "w") as file:
        file.writestr("readme.txt", "nothing")
    assert_refused(tmp_path / "last.pt")


def test_a_flipped_bit_is_noticed(tmp_path: Path, intact: bytes) -> None:
    path, size, directory = tmp_path / "last.pt", len(intact), intact.find(b"PK\x01\x02")
    compression, name = directory + 10, directory + 46
    for place, bit in ((size // 3, 1), (size // 2, 1), (compression, 8), (name, 128)):
        damaged = bytearray(intact)
        damaged[place] ^= bit
        path.write_bytes(damaged)
        assert_refused(path)


def test_a_trained_network_loads_in_eval_mode(tmp_path: Path) -> None:
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
        {"network": {"embeddings": torch.zeros(7, 6)}},
        {"config": config.to_dict(EXPERIMENT) | {"sede": 3}},
        {"config": config.to_dict(replace(EXPERIMENT, model=config.Direct(weights="none")))},
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    checkpoint.save(tmp_path / "best.pt", tiny_checkpoint(**change))
    with pytest.raises(ValueError, match=r"best\.pt: does not fit this version: .*$") as caught:
        checkpoint.load_trained(tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    saved = tiny_checkpoint()
    next(iter(saved.network.values())).flatten()[3] = float("nan")
    checkpoint.save(tmp_path / "best.pt", saved)
    with pytest.raises(ValueError, match=r"best\.pt: its weights are not finite"):
        checkpoint.load_trained(tmp_path)


def input_of(network: networks.Network) -> tuple[list[float], list[float]]:
    return network.mean.flatten().tolist(), network.std.flatten().tolist()


def test_runs_keep_the_mean_and_std_of_their_start_weights(
    tiny_contest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "heatmap")
    path, weights = tmp_path / "last.pt", tmp_path / "start.pt"
    encoder = networks.build(EXPERIMENT.model, EXPERIMENT.crop, 7).encoder
    torch.save(encoder.state_dict(), weights)
    data = config.Data(root=tiny_contest, workers=0)
    model = replace(EXPERIMENT.model, weights=str(weights), std=(0.25, 0.5, 1.0))
    run = prepare(replace(EXPERIMENT, data=data, model=model))
    assert run.experiment.model.mean == (0.5, 0.5, 0.5)  # timm's of this encoder
    assert f"tu-test_resnet: {weights} weights; mean (0.5, 0.5, 0.5), std (0.25" in caplog.text
    save(run, path, "id")
    weights.unlink()

    expected = [0.5, 0.5, 0.5], [0.25, 0.5, 1.0]
    assert input_of(checkpoint.load_trained(path).network) == expected
    assert input_of(prepare(run.experiment, checkpoint.load(path)).network) == expected
    start = replace(EXPERIMENT, data=data, train=replace(EXPERIMENT.train, start=path))
    assert input_of(prepare(start).network) == expected
    own = replace(start, model=replace(start.model, mean=(0.0, 0.25, 1.0)))
    assert input_of(prepare(own).network) == ([0, 0.25, 1], expected[1])


def test_version_0_2_checkpoints_keep_the_mean_and_std_of_imagenet(
    tiny_contest: Path, tmp_path: Path
) -> None:
    values = config.to_dict(EXPERIMENT)
    values["model"] |= {"weights": "imagenet"}
    del values["model"]["mean"], values["model"]["std"]
    table = read_landmarks(Folder(root=tiny_contest).train_table)
    saved = tiny_checkpoint(config=values, table_hash=table.fingerprint)
    checkpoint.save(tmp_path / "best.pt", saved)
    trained = checkpoint.load_trained(tmp_path)
    expected = pytest.approx(networks.IMAGENET_MEAN), pytest.approx(networks.IMAGENET_STD)
    assert input_of(trained.network) == expected

    data = config.Data(root=tiny_contest, workers=0)
    resumed = prepare(replace(trained.experiment, data=data), checkpoint.load(trained.path))
    assert input_of(resumed.network) == expected
    start = replace(EXPERIMENT.train, start=tmp_path)
    assert input_of(prepare(replace(EXPERIMENT, data=data, train=start)).network) == expected


@pytest.mark.parametrize("change", ["point", "name", "order"])
def test_a_changed_table_is_refused(tmp_path: Path, tiny_contest: Path, change: str) -> None:
    table = read_landmarks(Folder(root=tiny_contest).train_table)
    changed = Folder(root=tmp_path)
    changed.train_table.parent.mkdir()
    changed.train_images.symlink_to(Folder(root=tiny_contest).train_images)
    names, points = list(table.names), table.points_image[:]
    experiment = replace(EXPERIMENT, data=config.Data(root=tmp_path, workers=0))
    saved = tiny_checkpoint(table_hash=table.fingerprint)

    write_landmarks(changed.train_table, names, points)
    run = prepare(experiment, saved)
    assert run.data.validation_rows.tolist() == [1, 4]  # the checkpoint's, not the rule's
    assert run.data.training_rows.tolist() == [0, 2, 3, 7, 8]

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


# checkpoints of a training run


@pytest.fixture
def run_folder(tiny_contest: Path, tmp_path: Path) -> Path:
    """A short run with a running mean of the weights."""
    data = config.Data(root=tiny_contest, split="order", validation=0.25, workers=0)
    settings = replace(EXPERIMENT.train, epochs=2, batch=4, ema=0.9, keep_every=1)
    wandb = config.Wandb(mode="off")
    experiment = replace(EXPERIMENT, data=data, train=settings, wandb=wandb)
    loop.train(prepare(experiment), tmp_path / "run")
    return tmp_path / "run"


def test_best_checkpoints_hold_little_more_than_the_scored_weights(run_folder: Path) -> None:
    state = checkpoint.load_trained(run_folder).network.state_dict()
    weights = sum(tensor.nbytes for tensor in state.values())
    for name in ("best.pt", "epoch-1.pt"):
        assert (run_folder / name).stat().st_size <= 1.05 * weights + 100_000
        assert checkpoint.load(run_folder / name).state is None
    assert checkpoint.load(run_folder / "last.pt").state


def test_loading_reads_the_file_once(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    open_file, read_bytes = open, checkpoint.read_bytes

    def counted_read(path: Path, what: str) -> bytes:
        read.append(path)
        return read_bytes(path, what)

    def counted_open(file: Any, *arguments: Any, **options: Any) -> Any:
        read.append(file)
        return open_file(file, *arguments, **options)

    monkeypatch.setattr(checkpoint, "read_bytes", counted_read)
    monkeypatch.setattr("builtins.open", counted_open)
    checkpoint.load_trained(run_folder)
    assert [Path(path).name for path in read if str(path).endswith(".pt")] == ["best.pt"]


def test_version_0_1_checkpoints_load_and_start_runs_but_do_not_resume(
    run_folder: Path, tmp_path: Path
) -> None:
    saved, now = checkpoint.load(run_folder / "last.pt"), checkpoint.load_trained(run_folder)
    assert saved.state
    window = {**saved.config["wandb"], "pictures_every": 3}
    del window["images_every"]
    values = saved.config | {"data": saved.config["data"] | {"crop_cache": None}, "wandb": window}
    old = tmp_path / "old" / "best.pt"
    old.parent.mkdir()
    write_as_0_1(old, saved, config=values)

    trained = checkpoint.load_trained(old.parent)
    window = replace(now.experiment.wandb, images_every=3)
    assert trained.experiment == replace(now.experiment, wandb=window)
    assert (trained.table_hash, trained.validation_mse) == (now.table_hash, 1.5)
    assert torch.equal(trained.validation_rows, now.validation_rows)
    for name, tensor in trained.network.state_dict().items():
        assert torch.equal(tensor, saved.network[name]), "the running mean was scored"

    started = replace(trained.experiment.train, start=old.parent)
    network = prepare(replace(trained.experiment, train=started)).network
    assert torch.equal(network.embeddings, saved.network["embeddings"])

    with pytest.raises(ValueError, match=r"0\.1\.0.*--train\.start RUN") as caught:
        prepare(trained.experiment, checkpoint.load(old))
    assert "\n" not in str(caught.value)


def test_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "best.pt")
    with pytest.raises(ValueError, match=r"best\.pt: the checkpoint is a pipe"):
        checkpoint.load(tmp_path / "best.pt")
