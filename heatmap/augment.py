"""Random training crops, on the device: one matrix and one resampling a sample.

The parameters of a sample are a function of (seed, epoch, row), so neither workers nor a resume can
change them.
"""

from dataclasses import dataclass

import kornia
import numpy as np
import torch
from torch import Tensor

from heatmap import config, frame
from heatmap.frame import Frame


@dataclass(frozen=True)
class Batch:
    """The network's input and its truth, on the device.

    images: (B, 3, H, W) float32 RGB in [0, 1]; frame: of the crops; points_crop: (B, P, 2) float64
    in crop pixels, NaN where unlabelled; weights: (B, P) float32, 1 for labelled landmarks else 0.
    """

    images: Tensor
    frame: Frame
    points_crop: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Changes:
    """One draw of every random change for B samples.

    mirrored: (B,) bool; angle: radians, clockwise on the screen; scale: factor of the face's size;
    shift: (B, 2) of the window, in fractions of the crop; brightness: added; contrast, saturation:
    factors.
    """

    mirrored: np.ndarray
    angle: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray


def draw(settings: config.Augment, seed: int, epoch: int, rows: list[int]) -> Changes:
    """The changes of these rows in this epoch: uniform, each row from its own stream."""
    uniform = np.stack([_stream(seed, epoch, row).random(8) for row in rows])
    mirrored, sides = uniform[:, 0] < settings.mirror, 2 * uniform[:, 1:] - 1
    return Changes(
        mirrored=mirrored,
        angle=np.radians(settings.rotate_deg) * sides[:, 0],
        scale=(1 + settings.scale) ** sides[:, 1],
        shift=settings.shift * sides[:, 2:4],
        brightness=settings.brightness * sides[:, 4],
        contrast=1 + settings.contrast * sides[:, 5],
        saturation=1 + settings.saturation * sides[:, 6],
    )


def _stream(seed: int, epoch: int, row: int) -> np.random.Generator:
    # the 1 keeps this stream apart from the one that shuffles the rows
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, row, 1])))


def plain(crops: Tensor, image_from_crop: Tensor, points_image: Tensor) -> Batch:
    """The batch as it is: crops (B, 3, H, W) uint8 without margin, (B, 3, 3), (B, P, 2)."""
    here = Frame(image_from_crop, *crops.shape[-2:])
    points_crop = here.to_crop(points_image)
    return Batch(crops.float() / 255, here, points_crop, _labelled(points_crop))


def augmented(
    crops: Tensor,
    image_from_crop: Tensor,
    points_image: Tensor,
    crop_hw: tuple[int, int],
    changes: Changes,
    permutation: np.ndarray | None,
) -> Batch:
    """The batch with every change made: one warp for the pixels, the same matrix for the points.

    Args:
        crops: (B, 3, h, w) uint8 with their margin; image_from_crop: (B, 3, 3) float64 of these.
        points_image: (B, P, 2), NaN where unlabelled.
        crop_hw: of the network's input.
        permutation: (P,) where mirrored landmarks come from; needed if any sample is mirrored.
    """
    device = crops.device
    padded_from_new = _padded_from_new(crops.shape[-2:], crop_hw, changes).to(device)
    here = Frame(image_from_crop @ padded_from_new, *crop_hw)
    new_from_padded = torch.linalg.inv(padded_from_new)[:, :2].float()
    images = kornia.geometry.transform.warp_affine(
        crops.float() / 255, new_from_padded, crop_hw, align_corners=False
    )
    mirrored = torch.from_numpy(changes.mirrored).to(device)
    if permutation is not None:
        swapped = points_image[:, torch.from_numpy(permutation).to(device)]
        points_image = torch.where(mirrored[:, None, None], swapped, points_image)
    points_crop = here.to_crop(points_image)
    return Batch(_recoloured(images, changes), here, points_crop, _labelled(points_crop))


def _padded_from_new(
    padded_hw: tuple[int, int] | torch.Size, crop_hw: tuple[int, int], changes: Changes
) -> Tensor:
    """(B, 3, 3) float64: rotation, scale, mirror and shift about the middle of the crop."""
    cosine = torch.from_numpy(np.cos(changes.angle) / changes.scale)
    sine = torch.from_numpy(np.sin(changes.angle) / changes.scale)
    side = torch.from_numpy(np.where(changes.mirrored, -1.0, 1.0))
    linear = torch.stack([cosine * side, sine, -sine * side, cosine], -1).unflatten(-1, (2, 2))
    turned = torch.eye(3, dtype=torch.float64).repeat(len(side), 1, 1)
    turned[:, :2, :2] = linear
    turned[:, :2, 2] = torch.from_numpy(changes.shift * np.array([crop_hw[1], crop_hw[0]]))
    to_middle = frame.translation((padded_hw[1] - 1) / 2, (padded_hw[0] - 1) / 2)
    from_middle = frame.translation((1 - crop_hw[1]) / 2, (1 - crop_hw[0]) / 2)
    return to_middle @ turned @ from_middle


def _recoloured(images: Tensor, changes: Changes) -> Tensor:
    def factors(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(images)

    enhance = kornia.enhance
    if (changes.saturation != 1).any():
        images = enhance.adjust_saturation_with_gray_subtraction(
            images, factors(changes.saturation)
        )
    if (changes.contrast != 1).any():
        images = enhance.adjust_contrast_with_mean_subtraction(images, factors(changes.contrast))
    if (changes.brightness != 0).any():
        images = enhance.adjust_brightness(images, factors(changes.brightness))
    return images


def _labelled(points: Tensor) -> Tensor:
    return torch.isfinite(points).all(-1).float()
