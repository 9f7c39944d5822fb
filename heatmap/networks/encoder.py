"""Encoders of segmentation_models_pytorch with their start weights."""

import difflib
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file
from torch import nn

from heatmap.errors import UserError


def load_encoder(name: str, weights: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Returns an encoder of RGB images and the channels of its features, from stride 1 to 32.

    Args:
        name: an encoder of segmentation_models_pytorch, or "tu-NAME" for one of timm.
        weights: "none" for random weights, the path of a state dict (.safetensors, .pt, .pth), or
            the name of pretrained weights, such as "imagenet".

    Raises:
        UserError: the encoder or its weights are unknown, do not fit or cannot be fetched.
    """
    if not name.startswith("tu-") and name not in smp.encoders.encoders:
        similar = difflib.get_close_matches(name, smp.encoders.encoders, 3)
        hint = f"did you mean {' or '.join(similar)}?" if similar else "see the encoders of smp"
        raise UserError(f"model.encoder: unknown encoder {name!r}; {hint}")
    is_file = Path(weights).suffix in (".safetensors", ".pt", ".pth")
    pretrained = None if weights == "none" or is_file else weights
    try:
        encoder = smp.encoders.get_encoder(name, weights=pretrained)
    except KeyError as error:
        raise UserError(f"model.weights {weights!r}: {error.args[0]}") from None
    except OSError as error:
        raise UserError(
            f"could not fetch the {weights!r} weights of {name} ({type(error).__name__}): check "
            "the connection, name a local file, or start from random weights: --model.weights none"
        ) from None
    except RuntimeError as error:  # unknown to timm
        raise UserError(f"model.encoder {name!r}: {error}") from None
    if is_file:
        _load_file(encoder, Path(weights))
    return encoder, tuple(encoder.out_channels)


def _load_file(encoder: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"model.weights {path}: no such file")
    try:
        is_safe = path.suffix == ".safetensors"
        state = load_file(path) if is_safe else torch.load(path, "cpu", weights_only=True)
        encoder.load_state_dict(state)
    except Exception as error:
        raise UserError(f"model.weights {path}: does not fit the encoder: {error}") from None
