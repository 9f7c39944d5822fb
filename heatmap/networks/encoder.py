"""Encoders of segmentation_models_pytorch with their start weights."""

import difflib
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file
from torch import nn

from heatmap.errors import UserError


def load_encoder(name: str, weights: str) -> tuple[nn.Module, tuple[int, ...]]:
    """An encoder for RGB images and the channels of its features, from stride 1 to 32.

    Args:
        name: one of segmentation_models_pytorch's encoders, or "tu-NAME" for one of timm's.
        weights: "none" for random ones, the path of a state dict (.safetensors, .pt, .pth), or the
            name of pretrained weights, such as "imagenet".

    Raises:
        UserError: no such encoder, no such weights, weights that do not fit, or no network to
            fetch them over.
    """
    if not name.startswith("tu-") and name not in smp.encoders.encoders:
        near = difflib.get_close_matches(name, smp.encoders.encoders, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see segmentation_models_pytorch"
        raise UserError(f"there is no encoder {name!r}; {hint}")
    is_file = Path(weights).suffix in (".safetensors", ".pt", ".pth")
    by_name = None if weights == "none" or is_file else weights
    try:
        encoder = smp.encoders.get_encoder(name, weights=by_name)
    except KeyError as error:
        raise UserError(f"model.weights {weights!r}: {error.args[0]}") from None
    except OSError as error:
        raise UserError(
            f"the {weights!r} weights of {name} could not be fetched ({type(error).__name__}): "
            "check the network, name a local file, or start at random: --model.weights none"
        ) from None
    except RuntimeError as error:  # timm, for a name that it does not know
        raise UserError(f"encoder {name!r}: {error}") from None
    if is_file:
        _load_file(encoder, Path(weights))
    return encoder, tuple(encoder.out_channels)


def _load_file(encoder: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"model.weights {path}: there is no such file")
    try:
        is_safe = path.suffix == ".safetensors"
        state = load_file(path) if is_safe else torch.load(path, "cpu", weights_only=True)
        encoder.load_state_dict(state)
    except Exception as error:
        raise UserError(f"model.weights {path} does not fit the encoder: {error}") from None
