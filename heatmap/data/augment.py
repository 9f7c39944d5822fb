"""Random training crops, on the device: one matrix and one resampling a sample.

The parameters of a sample are a function of (seed, epoch, row), so neither workers nor a resume can
change them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import kornia
import numpy as np
import torch
from torch import Tensor

from heatmap import config, frame
from heatmap.frame import Frame


@dataclass(frozen=True)
class Batch:
    """The network's input and its truth, on the device."""

    images: Tensor  # (B, 3, H, W) float32 RGB in [0, 1]
    frame: Frame  # of the crops
    points_crop: Tensor  # (B, P, 2) float64 in crop pixels, NaN where unlabelled
    weights: Tensor  # (B, P) float32, 1 for labelled landmarks else 0


@dataclass(frozen=True)
class Changes:
    """One draw of every random change for B samples: (B,) float64, unless another form is named."""

    mirrored: np.ndarray  # bool
    angle: np.ndarray  # radians, clockwise on the screen
    scale: np.ndarray  # factor of the face's size
    shift: np.ndarray  # (B, 2) of the window, in fractions of the crop
    aspect: np.ndarray  # factor of the face's width against its height
    fill: np.ndarray  # outside the image: black (for all samples or none), edge or noise
    erased: np.ndarray  # (B, 4) left, top, right, bottom in fractions of the crop, all 0 for none
    erased_colour: np.ndarray  # (B, 3) in [0, 1]
    brightness: np.ndarray  # added
    contrast: np.ndarray  # factor
    saturation: np.ndarray  # factor
    hue: np.ndarray  # radians on the colour circle
    sharpness: np.ndarray  # 0 is smoothed, 1 as it is, 2 sharpened
    blur: np.ndarray  # standard deviation in crop pixels
    blur_reach: int  # of the kernel to each side, so that a sample's blur depends on no other's
    noise: np.ndarray  # standard deviation
    jpeg_quality: np.ndarray  # 0 to 100, which leaves the pixels alone
    noise_seed: np.ndarray  # int64, of the pixels' noise


def sample_changes(settings: config.Augment, seed: int, epoch: int, rows: list[int]) -> Changes:
    """The changes of these rows in this epoch: uniform, each row from its own stream.

    epoch: counts passes over the rows. A change's draw does not depend on which others are on.
    """
    uniform = np.stack([_stream(seed, epoch, row).random(25) for row in rows])
    sides, is_grey = 2 * uniform[:, 1:] - 1, uniform[:, 10] < settings.gray
    fill = np.full(len(rows), settings.fill)
    if settings.fill == "mixed":
        fill = np.where(uniform[:, 23] < 0.25, "noise", "edge")
    return Changes(
        mirrored=uniform[:, 0] < settings.mirror,
        angle=np.radians(settings.rotate_deg) * sides[:, 0],
        scale=(1 + settings.scale) ** sides[:, 1],
        shift=settings.shift * sides[:, 2:4],
        aspect=(1 + settings.aspect) ** sides[:, 7],
        fill=fill,
        erased=_rectangles(settings, uniform[:, 15:20]),
        erased_colour=uniform[:, 20:23],
        brightness=settings.brightness * sides[:, 4],
        contrast=1 + settings.contrast * sides[:, 5],
        saturation=np.where(is_grey, 0, 1 + settings.saturation * sides[:, 6]),
        hue=2 * np.pi * settings.hue * sides[:, 8],
        sharpness=1 + settings.sharpness * sides[:, 10],
        blur=settings.blur * uniform[:, 12],
        blur_reach=math.ceil(4 * settings.blur),
        noise=settings.noise * uniform[:, 13],
        jpeg_quality=100 * (1 - settings.jpeg * uniform[:, 14]),
        noise_seed=(2.0**53 * uniform[:, 24]).astype(np.int64),
    )


def _rectangles(settings: config.Augment, uniform: np.ndarray) -> np.ndarray:
    """(B, 4) from (B, 5) uniform numbers: random erasing (Zhong et al. 2020, arXiv:1708.04896)."""
    happens, area, ratio, x, y = uniform.T
    smallest, largest = settings.erase_area
    area = smallest + (largest - smallest) * area
    ratio = 0.3 ** (2 * ratio - 1)  # of height to width, in the crop's own proportions
    width, height = np.minimum(np.sqrt([area / ratio, area * ratio]), 1)
    left, top = x * (1 - width), y * (1 - height)
    rectangles = np.stack([left, top, left + width, top + height], -1)
    return np.where(happens[:, None] < settings.erase, rectangles, 0)


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
    inner: Tensor | None = None,
) -> Batch:
    """The batch with every change made: one warp for the pixels, the same matrix for the points.

    After the warp comes what covers the face, then how it is lit, then how it was imageed.

    Args:
        crops: (B, 3, h, w) uint8 with their margin; image_from_crop: (B, 3, 3) float64 of these.
        points_image: (B, P, 2), NaN where unlabelled.
        crop_hw: of the network's input.
        permutation: (P,) where mirrored landmarks come from; needed if any sample is mirrored.
        inner: (B, 4) as `heatmap.data.samples.Sample` has it; needed for the fill "noise".
    """
    device = crops.device
    padded_from_new = _padded_from_new(crops.shape[-2:], crop_hw, changes).to(device)
    here = Frame(image_from_crop @ padded_from_new, *crop_hw)
    new_from_padded = torch.linalg.inv(padded_from_new)[:, :2].float()
    images = kornia.geometry.transform.warp_affine(
        crops.float() / 255,
        new_from_padded,
        crop_hw,
        padding_mode="zeros" if (changes.fill == "black").all() else "border",
        align_corners=False,
    )
    if (changes.fill == "noise").any():
        assert inner is not None
        images = _with_noise_outside(images, here, inner, changes)
    images = _with_camera_noise(_recoloured(_erased(images, changes), changes), changes)
    mirrored = torch.from_numpy(changes.mirrored).to(device)
    if permutation is not None:
        swapped = points_image[:, torch.from_numpy(permutation).to(device)]
        points_image = torch.where(mirrored[:, None, None], swapped, points_image)
    points_crop = here.to_crop(points_image)
    return Batch(images, here, points_crop, _labelled(points_crop))


def _padded_from_new(
    padded_hw: tuple[int, int] | torch.Size, crop_hw: tuple[int, int], changes: Changes
) -> Tensor:
    """(B, 3, 3) float64: stretch, rotation, scale, mirror and shift about the crop's middle."""
    cosine = torch.from_numpy(np.cos(changes.angle) / changes.scale)
    sine = torch.from_numpy(np.sin(changes.angle) / changes.scale)
    side = torch.from_numpy(np.where(changes.mirrored, -1.0, 1.0))
    linear = torch.stack([cosine * side, sine, -sine * side, cosine], -1).unflatten(-1, (2, 2))
    wider = torch.from_numpy(np.sqrt(changes.aspect))
    linear = torch.stack([1 / wider, wider], -1)[..., None] * linear
    turned = torch.eye(3, dtype=torch.float64).repeat(len(side), 1, 1)
    turned[:, :2, :2] = linear
    turned[:, :2, 2] = torch.from_numpy(changes.shift * np.array([crop_hw[1], crop_hw[0]]))
    to_middle = frame.translation((padded_hw[1] - 1) / 2, (padded_hw[0] - 1) / 2)
    from_middle = frame.translation((1 - crop_hw[1]) / 2, (1 - crop_hw[0]) / 2)
    return to_middle @ turned @ from_middle


def _with_noise_outside(images: Tensor, here: Frame, inner: Tensor, changes: Changes) -> Tensor:
    """Uniform noise where a crop that asks for it shows what is outside its image."""
    axes = [torch.arange(size, device=images.device) for size in (here.width, here.height)]
    x, y = torch.meshgrid(*axes, indexing="xy")
    pixels_image = here.to_image(torch.stack([x, y], -1).flatten(0, 1))
    left_top, right_bottom = inner.to(images.device)[:, None].double().split(2, -1)
    outside = ((pixels_image < left_top - 0.5) | (pixels_image > right_bottom - 0.5)).any(-1)
    outside = outside.unflatten(1, (here.height, here.width))[:, None]
    asked = torch.from_numpy(changes.fill == "noise").to(images.device)[:, None, None, None]
    return torch.where(outside & asked, _noise(torch.rand, images, changes), images)


def _noise(draw: Callable[..., Tensor], images: Tensor, changes: Changes) -> Tensor:
    """As many random numbers as the images have, each sample's from its own seed."""
    generator, shape = torch.Generator(images.device), images.shape[1:]
    return torch.stack([
        draw(shape, generator=generator.manual_seed(seed), device=images.device)
        for seed in changes.noise_seed.tolist()
    ])  # fmt: skip


def _erased(images: Tensor, changes: Changes) -> Tensor:
    if not changes.erased.any():
        return images
    left, top, right, bottom = torch.from_numpy(changes.erased).to(images)[..., None].unbind(1)
    y, x = ((torch.arange(n, device=images.device) + 0.5) / n for n in images.shape[-2:])
    rows, columns = (top <= y) & (y < bottom), (left <= x) & (x < right)
    colour = torch.from_numpy(changes.erased_colour).to(images)[..., None, None]
    return torch.where((rows[:, :, None] & columns[:, None])[:, None], colour, images)


def _recoloured(images: Tensor, changes: Changes) -> Tensor:
    enhance = kornia.enhance
    for values, unchanged, change in (
        (changes.hue, 0, enhance.adjust_hue),
        (changes.saturation, 1, enhance.adjust_saturation_with_gray_subtraction),
        (changes.contrast, 1, enhance.adjust_contrast_with_mean_subtraction),
        (changes.brightness, 0, enhance.adjust_brightness),
    ):
        if (values != unchanged).any():
            images = change(images, torch.from_numpy(values).to(images))
    return images


def _with_camera_noise(images: Tensor, changes: Changes) -> Tensor:
    """What lens, processing, sensor and file do to the pixels, in this order."""
    if (changes.blur != 0).any():
        sigma = torch.from_numpy(changes.blur).clamp_min(1e-3)[:, None].expand(-1, 2)
        size = 2 * changes.blur_reach + 1
        images = kornia.filters.gaussian_blur2d(images, size, sigma, border_type="replicate")
    if (changes.sharpness != 1).any():
        images = kornia.enhance.sharpness(images, torch.from_numpy(changes.sharpness))
    if (changes.noise != 0).any():
        deviation = torch.from_numpy(changes.noise).to(images)[:, None, None, None]
        images = (images + deviation * _noise(torch.randn, images, changes)).clamp(0, 1)
    if (changes.jpeg_quality != 100).any():
        quality = torch.from_numpy(changes.jpeg_quality)
        images = kornia.enhance.jpeg_codec_differentiable(images, quality).clamp(0, 1)
    return images


def _labelled(points: Tensor) -> Tensor:
    return torch.isfinite(points).all(-1).float()
