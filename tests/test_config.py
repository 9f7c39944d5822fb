import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from heatmap import config
from heatmap.config import Experiment
from heatmap.errors import UserError

UNET = Experiment(
    name="faces",
    seed=3,
    data=config.Data(root=Path("some") / "where", split="person", workers=0),
    crop=config.Crop(height=96, width=72, rule="contain"),
    augment=config.Augment(mirror=0.5, rotate_deg=20),
    model=config.UNet(encoder="densenet121", weights="none", stride=2, width=48, sigma=2),
    optimizer=config.Optimizer(kind="sgd", clip_norm=1.5),
    schedule=config.Schedule(kind="step", gamma=0.5),
    train=config.Train(max_minutes=1.5, patience=3, precision="bf16"),
    wandb=config.Wandb(mode="off", tags=("a", "b")),
)
BOXES = dataclasses.replace(
    UNET,
    data=config.Data(
        split="random", folds=5, fold=2, exclude=Path("bad.csv"), boxes=Path("boxes.csv")
    ),
    crop=config.Crop(rule="box", box_scale=1.3, trim_border=9),
    augment=config.Augment(fill="mixed", erase=0.5, erase_area=(0.01, 0.03)),
)
DIRECT = dataclasses.replace(UNET, model=config.Direct(encoder="resnet34"))


@pytest.mark.parametrize("experiment", [UNET, DIRECT, BOXES, Experiment(name="all defaults")])
def test_experiment_survives_json(experiment: Experiment) -> None:
    values = json.loads(json.dumps(config.to_dict(experiment)))
    assert config.from_dict(Experiment, values) == experiment


def test_model_type_is_stored() -> None:
    assert config.to_dict(UNET)["model"]["type"] == "UNet"
    assert config.to_dict(DIRECT)["model"] == {
        "type": "Direct",
        "encoder": "resnet34",
        "weights": "imagenet",
        "mean": None,
        "std": None,
        "hidden": 0,
        "dropout": 0.0,
        "loss": "mse",
    }


def test_missing_fields_have_defaults() -> None:
    read = config.from_dict(Experiment, {"name": "short", "train": {"epochs": 3}})
    assert read == Experiment(name="short", train=config.Train(epochs=3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a", "sed": 1}, "^sed: Experiment has no such field; did you mean 'seed'"),
        (
            {"name": "a", "train": {"epoch": 1}},
            r"^train\.epoch: Train has no such field; did you mean 'epochs'",
        ),
        (
            {"name": "a", "model": {"type": "UNet", "strid": 2}},
            r"^model\.strid: UNet has no such field; did you mean 'stride'",
        ),
        (
            {"name": "a", "model": {"type": "Direct", "stride": 2}},
            r"^model\.stride: Direct has no such field",
        ),
        (
            {"name": "a", "model": {"type": "Unet"}},
            r"^model\.type must be UNet, DenseUNet or Direct, not 'Unet'; did you mean 'UNet'",
        ),
        ({"name": "a", "stages": [{"epochs": 2}, {"lr": 1.0}]}, r"^stages\.1\.epochs is missing"),
        ({"seed": 1}, "^name is missing"),
    ],
)
def test_misspelt_name_suggests_the_nearest(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.from_dict(Experiment, values)


def test_options_of_earlier_versions_are_renamed_or_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(config.Data, "_renamed", {"hovercraft": None, "threads": "workers"})
    monkeypatch.setattr(config.UNet, "_renamed", {"eels": None})
    values = {
        "name": "a",
        "data": {"hovercraft": "full", "threads": 1},
        "model": {"type": "UNet", "eels": 3},
    }
    expected = Experiment(name="a", data=config.Data(workers=1))
    assert config.from_dict(Experiment, values) == expected
    with pytest.raises(ValueError, match=r"^crop\.eels: Crop has no such field"):
        config.from_dict(Experiment, {"name": "a", "crop": {"eels": 3}})


def test_flatten_gives_option_names() -> None:
    staged = Experiment(name="a", stages=(config.Stage(epochs=2), config.Stage(epochs=3)))
    names = config.flatten(config.to_dict(staged))
    assert names["train.batch"] == 32
    assert (names["stages.1.epochs"], names["augment.erase_area"]) == (3, [0.01, 0.02])


WRONG = [
    (config.Data, {"validation": -0.1}, "data.validation"),
    (config.Data, {"validation": 1.0}, "data.validation"),
    (config.Data, {"split_seed": -1}, "data.split_seed"),
    (config.Data, {"folds": 1}, "data.folds must be at least 2, not 1"),
    (config.Data, {"folds": 5, "fold": 5}, "data.fold must be in .* not 5 with data.folds 5"),
    (config.Data, {"folds": 5, "fold": -1}, "data.fold must be at least 0"),
    (config.Data, {"split_file": Path("s.csv"), "folds": 2}, "data.split_file has its own folds"),
    (config.Data, {"fold": 1}, "data.fold must be in .* not 1 with data.folds None"),
    (config.Data, {"workers": -1}, "data.workers"),
    (config.Crop, {"height": 31}, "crop.height"),
    (config.Crop, {"width": 31}, "crop.width"),
    (config.Augment, {"mirror": 1.1}, "augment.mirror"),
    (config.Augment, {"rotate_deg": 181}, "augment.rotate_deg"),
    *(
        (config.Augment, {f.name: -0.1}, f.name)
        for f in dataclasses.fields(config.Augment)
        if f.name not in ("fill", "erase_area")
    ),
    (config.Augment, {"hue": 0.6}, "augment.hue"),
    (config.Augment, {"blur": 11}, "augment.blur"),
    (config.Augment, {"erase_area": (0.0, 0.1)}, "augment.erase_area"),
    (config.Augment, {"erase_area": (0.2, 0.1)}, "augment.erase_area"),
    (config.Augment, {"erase_area": (0.2, 1.1)}, "augment.erase_area"),
    (config.Data, {"multiplier": 0}, "data.multiplier"),
    (config.Crop, {"box_scale": 0.0}, "crop.box_scale"),
    (config.Crop, {"trim_border": -1}, "crop.trim_border"),
    (config.Crop, {"trim_border": 255}, "crop.trim_border"),
    *(
        (config.Augment, {name: 1.1}, f"augment.{name}")
        for name in (
            "scale",
            "shift",
            "aspect",
            "brightness",
            "contrast",
            "saturation",
            "gray",
            "sharpness",
            "noise",
            "jpeg",
            "erase",
        )
    ),
    (config.UNet, {"width": 0}, "model.width"),
    (config.UNet, {"mean": (0.5, 0.5, 127)}, "model.mean"),
    (config.Direct, {"std": (0.5, 0.0, 0.5)}, "model.std"),
    (config.UNet, {"sigma": 0.4}, "model.sigma"),
    (config.UNet, {"sigma": 11}, "model.sigma"),
    (config.UNet, {"weight_map": -1}, "model.weight_map"),
    (config.UNet, {"coordinate_weight": -1}, "model.coordinate_weight"),
    (config.UNet, {"loss": "none"}, "nothing to train on: set model.coordinate_loss"),
    (config.UNet, {"loss": "none", "coordinate_loss": "mse"}, "model.decoder softmax, not window"),
    (config.UNet, {"architecture": "fpn", "width": 100}, "multiple of 32 for fpn, not 100"),
    (config.DenseUNet, {"dropout": 1}, "model.dropout"),
    (config.Direct, {"hidden": -1}, "model.hidden"),
    (config.Direct, {"dropout": -0.1}, "model.dropout"),
    (config.Optimizer, {"lr": 0}, "optimizer.lr"),
    (config.Optimizer, {"weight_decay": -1}, "optimizer.weight_decay"),
    (config.Optimizer, {"momentum": 1}, "optimizer.momentum"),
    (config.Optimizer, {"clip_norm": 0}, "optimizer.clip_norm"),
    (config.Schedule, {"warmup": 1}, "schedule.warmup"),
    (config.Schedule, {"gamma": 0}, "schedule.gamma"),
    (config.Schedule, {"gamma": 1.1}, "schedule.gamma"),
    (config.Train, {"epochs": 0}, "train.epochs"),
    (config.Train, {"batch": 0}, "train.batch"),
    (config.Train, {"max_minutes": 0}, "train.max_minutes"),
    (config.Train, {"max_steps": 0}, "train.max_steps"),
    (config.Train, {"patience": 0}, "train.patience"),
    (config.Train, {"checkpoint_minutes": -1}, "train.checkpoint_minutes"),
    (config.Train, {"precision": "fp16"}, "train.precision must be fp32 or bf16, not 'fp16'; did"),
    (config.Data, {"split": "people"}, "data.split must be auto, .*; did you mean 'person'"),
    (config.Data, {"label_offset": "1_0,2"}, "data.label_offset must be .* not '1_0,2'"),
    (config.Data, {"root": "a\0b"}, "data.root must be a path"),
    (config.Data, {"multiplier": 100_000_000}, "data.multiplier must be at most 1000"),
    (config.Crop, {"height": 10**9}, "crop.height must be at most 4096"),
    (config.Optimizer, {"kind": "lion"}, "optimizer.kind must be adamw, adam or sgd, not 'lion'"),
    (config.Wandb, {"tags": ("a", 3)}, "wandb.tags.1 must be text, not 3"),
    (Experiment, {"name": "a", "model": config.Data()}, "model must be"),
    (Experiment, {"name": "a", "train": None}, "train must be"),
    (Experiment, {"name": ""}, "name"),
    (Experiment, {"name": "a", "seed": -1}, "seed"),
]


@pytest.mark.parametrize(("kind", "values", "field"), WRONG)
def test_invalid_value_is_refused_by_name(kind: Any, values: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        kind(**values)


PLATEAU = config.Schedule(kind="plateau")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"train": config.Train(patience=2)}, "train.patience"),
        ({"schedule": PLATEAU}, "plateau"),
        ({"stages": (config.Stage(epochs=1), config.Stage(epochs=1, schedule=PLATEAU))}, "plateau"),
        ({"stages": (config.Stage(epochs=1), config.Stage(epochs=1, start="best"))}, "start best"),
    ],
)
def test_options_that_need_scores_are_refused_if_all_rows_train(
    changes: dict[str, Any], field: str
) -> None:
    everything = config.Data(validation=0)
    Experiment(name="a", data=everything)
    Experiment(name="a", data=config.Data(validation=0, folds=3), **changes)
    with pytest.raises(ValueError, match=rf"{field} needs validation scores.*data\.validation 0"):
        Experiment(name="a", data=everything, **changes)


def test_paths_and_tuples_of_an_experiment_file_may_be_text_and_lists() -> None:
    root: Any = "there"
    tags: Any = ["b"]
    data, wandb = config.Data(root=root), config.Wandb(tags=tags)
    experiment = Experiment(name="a", data=data, wandb=wandb)
    assert experiment.data.root == Path("there") and experiment.wandb.tags == ("b",)


def test_replace_validates_too() -> None:
    with pytest.raises(ValueError, match=r"train\.epochs must be at least 1, not 0"):
        dataclasses.replace(UNET.train, epochs=0)


@pytest.mark.parametrize("module", ["heatmap.config", "heatmap.cli.train", "heatmap"])
def test_command_line_does_not_import_torch(module: str) -> None:
    program = f"import sys, {module}; print(sorted({{'torch', 'wandb', 'cv2'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


# Fields of any text, whose misspelt values cannot be told.
TEXTS = {
    "name", "root", "split_file", "exclude", "person_pattern", "boxes", "weights", "symmetry",
    "cache", "encoder", "start", "project", "entity", "group", "job_type", "tags",
}  # fmt: skip


def faults(name: str, value: Any) -> list[Any]:
    """Values that no field with this JSON value may have."""
    wrong: list[Any] = [{"": 0}, [[]]]
    is_text = not TEXTS.isdisjoint(name.split("."))
    if isinstance(value, bool):
        return [*wrong, int(value), str(value)]
    if isinstance(value, int | float):
        wrong += [str(value), True, math.nan, -math.inf, 10**30, 10**400, 1e300, -0.5]
        return wrong if isinstance(value, float) else [*wrong, float(value)]
    if isinstance(value, str):
        misspelt = [] if is_text else [value[1:], value.upper(), f" {value}", ""]
        return [*wrong, *misspelt, 3, 0.5, True, [value]]
    return wrong if value is None else [*wrong, 3, "adamw", True]


def fields(values: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields the dotted name, holder and key of each value inside."""
    for key in values if isinstance(values, dict) else range(len(values)):
        name = f"{prefix}.{key}".lstrip(".")
        yield name, values, key
        if isinstance(values[key], dict | list):
            yield from fields(values[key], name)


STAGES = config.Stage(epochs=2, lr=0.5), config.Stage(epochs=3, rates=config.FROZEN_ENCODER)


@pytest.mark.parametrize("experiment", [BOXES, DIRECT, Experiment(name="a", stages=STAGES)])
def test_a_fault_in_any_field_is_refused_by_name(experiment: Experiment) -> None:
    values = config.to_dict(experiment)
    for name, holder, key in fields(values):
        whole = holder[key]
        for wrong in faults(name, whole):
            holder[key] = wrong
            with pytest.raises(UserError, match=rf"^{name}\b") as caught:
                config.from_dict(Experiment, values)
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
        holder[key] = whole
    assert config.from_dict(Experiment, values) == experiment
