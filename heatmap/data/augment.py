"""Random augmentation of training crops on the device: one affine warp, then pixel changes.

The changes of a sample are a function of (seed, epoch, row), so they depend neither on the number
of workers nor on a resume.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import kornia
import numpy as np
import torch
from torch import Tensor

from heatmap import config, frame
from heatmap.errors import UserError
from heatmap.frame import Frame
from heatmap.runtime.functions import imported
from heatmap.runtime.machine import send


@dataclass(frozen=True)
class Batch:
    """The network's input and its labels, on the device."""

    images: Tensor  # (B, 3, H, W) float32 RGB in [0, 1]
    frame: Frame  # of the crops
    points_crop: Tensor  # (B, P, 2) float64 in crop pixels, NaN where unlabelled
    weights: Tensor  # (B, P) float32, 1 for labelled landmarks, else 0


@dataclass(frozen=True)
class Changes:
    """The random changes of B samples; (B,) float64 unless noted."""

    mirrored: np.ndarray  # bool
    angle: np.ndarray  # radians, clockwise on the screen
    scale: np.ndarray  # magnification of the face
    shift: np.ndarray  # (B, 2) x and y of the crop window, as fractions of the crop
    aspect: np.ndarray  # factor on the face's width-to-height ratio
    fill: np.ndarray  # str, fill outside the image: black (all samples or none), edge or noise
    erased: np.ndarray  # (B, 4) left, top, right, bottom in fractions of the crop, all 0 for none
    erased_colour: np.ndarray  # (B, 3) in [0, 1]
    brightness: np.ndarray  # added to the pixels
    contrast: np.ndarray  # factor
    saturation: np.ndarray  # factor
    hue: np.ndarray  # radians on the colour circle
    sharpness: np.ndarray  # 0 smooths, 1 changes nothing, 2 sharpens
    blur: np.ndarray  # standard deviation in crop pixels
    blur_reach: int  # radius of the blur kernel, the same for every batch
    noise: np.ndarray  # standard deviation
    jpeg_quality: np.ndarray  # 0 to 100; 100 changes nothing
    noise_seed: np.ndarray  # int64, of the pixel noise
    extra: np.ndarray  # (B, 16) in [0, 1), for `with_extra`


# The numbers drawn for a row, in order. Resumed runs rely on it: append, never reorder.
_DRAWS = np.dtype([
    ("mirror", "f8"), ("angle", "f8"), ("scale", "f8"), ("shift", "f8", 2), ("brightness", "f8"),
    ("contrast", "f8"), ("saturation", "f8"), ("aspect", "f8"), ("hue", "f8"), ("gray", "f8"),
    ("sharpness", "f8"), ("blur", "f8"), ("noise", "f8"), ("jpeg", "f8"), ("erase", "f8"),
    ("erase_area", "f8"), ("erase_ratio", "f8"), ("erase_xy", "f8", 2), ("erase_colour", "f8", 3),
    ("fill", "f8"), ("noise_seed", "f8"), ("extra", "f8", 16),
])  # fmt: skip


def sample_changes(settings: config.Augment, seed: int, epoch: int, rows: list[int]) -> Changes:
    """Draws the changes of these rows uniformly, each row from its own random stream.

    Turning a change on or off does not affect the draws of the others.

    Args:
        epoch: passes over the training rows so far.
    """
    # the 1 keeps these streams apart from the one that shuffles the rows
    streams = [np.random.Philox(np.random.SeedSequence([seed, epoch, row, 1])) for row in rows]
    num_draws = _DRAWS.itemsize // 8
    uniform = np.stack([np.random.Generator(stream).random(num_draws) for stream in streams])
    draws = uniform.view(_DRAWS)[:, 0]  # in [0, 1)
    signed = (2 * uniform - 1).view(_DRAWS)[:, 0]  # in [-1, 1)
    fill = np.full(len(rows), settings.fill)
    if settings.fill == "mixed":
        fill = np.where(draws["fill"] < 0.25, "noise", "edge")
    is_grey = draws["gray"] < settings.gray
    return Changes(
        mirrored=draws["mirror"] < settings.mirror,
        angle=np.radians(settings.rotate_deg) * signed["angle"],
        scale=(1 + settings.scale) ** signed["scale"],
        shift=settings.shift * signed["shift"],
        aspect=(1 + settings.aspect) ** signed["aspect"],
        fill=fill,
        erased=_erased_rectangles(settings, draws),
        erased_colour=draws["erase_colour"],
        brightness=settings.brightness * signed["brightness"],
        contrast=1 + settings.contrast * signed["contrast"],
        saturation=np.where(is_grey, 0, 1 + settings.saturation * signed["saturation"]),
        hue=2 * np.pi * settings.hue * signed["hue"],
        sharpness=1 + settings.sharpness * signed["sharpness"],
        blur=settings.blur * draws["blur"],
        blur_reach=math.ceil(4 * settings.blur),
        noise=settings.noise * draws["noise"],
        jpeg_quality=100 * (1 - settings.jpeg * draws["jpeg"]),
        noise_seed=(2.0**53 * draws["noise_seed"]).astype(np.int64),
        extra=draws["extra"],
    )


def _erased_rectangles(settings: config.Augment, draws: np.ndarray) -> np.ndarray:
    """(B, 4) rectangles of random erasing (Zhong et al. 2020, arXiv:1708.04896)."""
    smallest, largest = settings.erase_area
    area = smallest + (largest - smallest) * draws["erase_area"]
    ratio = 0.3 ** (2 * draws["erase_ratio"] - 1)  # height to width, as fractions of the crop
    width, height = np.minimum(np.sqrt([area / ratio, area * ratio]), 1)
    left, top = draws["erase_xy"].T * (1 - np.stack([width, height]))
    rectangles = np.stack([left, top, left + width, top + height], -1)
    return np.where(draws["erase"][:, None] < settings.erase, rectangles, 0)


def plain(crops: Tensor, image_from_crop: Tensor, points_image: Tensor) -> Batch:
    """Returns the batch without changes.

    Args:
        crops: (B, 3, H, W) uint8 without margin.
        image_from_crop: (B, 3, 3) float64.
        points_image: (B, P, 2), NaN where unlabelled.
    """
    crop_frame = Frame(image_from_crop, *crops.shape[-2:])
    return _batch(crops.float() / 255, crop_frame, points_image)


def augmented(
    crops: Tensor,
    image_from_crop: Tensor,
    points_image: Tensor,
    crop_hw: tuple[int, int],
    changes: Changes,
    permutation: np.ndarray | None,
    inner: Tensor | None = None,
) -> Batch:
    """Applies the changes to a batch: warp (which also moves the points), occlusion, light, camera.

    Args:
        crops: (B, 3, h, w) uint8 with their margin.
        image_from_crop: (B, 3, 3) float64, of the crops with their margin, on the CPU.
        points_image: (B, P, 2), NaN where unlabelled.
        crop_hw: height and width of the network's input.
        permutation: (P,) mirror permutation; required if a sample is mirrored.
        inner: (B, 4) as in `heatmap.data.samples.Sample`; required for the fill "noise".
    """
    device = crops.device
    padded_from_new = _padded_from_new(crops.shape[-2:], crop_hw, changes)
    crop_frame = Frame(send(image_from_crop @ padded_from_new, device), *crop_hw)
    new_from_padded = send(torch.linalg.inv(padded_from_new)[:, :2].float(), device)
    padding = "zeros" if (changes.fill == "black").all() else "border"
    images = kornia.geometry.transform.warp_affine(
        crops.float() / 255, new_from_padded, crop_hw, padding_mode=padding, align_corners=False
    )
    if (changes.fill == "noise").any():
        assert inner is not None
        images = _fill_noise(images, crop_frame, inner, changes)
    images = _through_camera(_recoloured(_erased(images, changes), changes), changes)
    if permutation is not None:
        mirrored = send(torch.from_numpy(changes.mirrored), device)
        swapped = points_image[:, send(torch.from_numpy(permutation), device)]
        points_image = torch.where(mirrored[:, None, None], swapped, points_image)
    return _batch(images, crop_frame, points_image)


def with_extra(batch: Batch, function: str, changes: Changes) -> Batch:
    """Applies the user's function `config.Augment.extra` to the batch.

    Raises:
        UserError: the function cannot be imported or returns something else than a batch.
    """
    changed = imported(function)(batch, _values(changes.extra, batch.images))
    if not isinstance(changed, Batch) or changed.images.shape != batch.images.shape:
        shape = tuple(batch.images.shape)
        raise UserError(f"the function {function} must return a Batch with images {shape}")
    return changed


def _batch(images: Tensor, crop_frame: Frame, points_image: Tensor) -> Batch:
    points_crop = crop_frame.to_crop(points_image)
    return Batch(images, crop_frame, points_crop, torch.isfinite(points_crop).all(-1).float())


def _padded_from_new(
    padded_hw: tuple[int, int] | torch.Size, crop_hw: tuple[int, int], changes: Changes
) -> Tensor:
    """(B, 3, 3) float64: stretch, rotation, scale, mirror and shift about the crop's centre."""
    cosine = torch.from_numpy(np.cos(changes.angle) / changes.scale)
    sine = torch.from_numpy(np.sin(changes.angle) / changes.scale)
    sign = torch.from_numpy(np.where(changes.mirrored, -1.0, 1.0))
    linear = torch.stack([cosine * sign, sine, -sine * sign, cosine], -1).unflatten(-1, (2, 2))
    stretch = torch.from_numpy(np.sqrt(changes.aspect))
    linear = torch.stack([1 / stretch, stretch], -1)[..., None] * linear
    about_centre = torch.eye(3, dtype=torch.float64).repeat(len(sign), 1, 1)
    about_centre[:, :2, :2] = linear
    about_centre[:, :2, 2] = torch.from_numpy(changes.shift * np.array([crop_hw[1], crop_hw[0]]))
    to_centre = frame.translation((padded_hw[1] - 1) / 2, (padded_hw[0] - 1) / 2)
    from_centre = frame.translation((1 - crop_hw[1]) / 2, (1 - crop_hw[0]) / 2)
    return to_centre @ about_centre @ from_centre


def _fill_noise(images: Tensor, crop_frame: Frame, inner: Tensor, changes: Changes) -> Tensor:
    """Puts uniform noise outside the image in the samples whose fill is noise."""
    height, width = images.shape[-2:]
    axes = [torch.arange(size, device=images.device) for size in (width, height)]
    x, y = torch.meshgrid(*axes, indexing="xy")
    pixels_image = crop_frame.to_image(torch.stack([x, y], -1).flatten(0, 1))
    left_top, right_bottom = send(inner[:, None].double(), images.device).split(2, -1)
    outside = ((pixels_image < left_top - 0.5) | (pixels_image > right_bottom - 0.5)).any(-1)
    outside = outside.unflatten(1, (height, width))[:, None]
    has_noise = send(torch.from_numpy(changes.fill == "noise"), images.device)
    has_noise = has_noise[:, None, None, None]
    return torch.where(outside & has_noise, _noise(torch.rand, images, changes), images)


def _noise(draw: Callable[..., Tensor], images: Tensor, changes: Changes) -> Tensor:
    """Random numbers of the images' shape, each sample from its own seed."""
    generator, shape = torch.Generator(images.device), images.shape[1:]
    return torch.stack([
        draw(shape, generator=generator.manual_seed(seed), device=images.device)
        for seed in changes.noise_seed.tolist()
    ])  # fmt: skip


def _erased(images: Tensor, changes: Changes) -> Tensor:
    if not changes.erased.any():
        return images
    left, top, right, bottom = _values(changes.erased, images)[..., None].unbind(1)
    y, x = ((torch.arange(n, device=images.device) + 0.5) / n for n in images.shape[-2:])
    rows, columns = (top <= y) & (y < bottom), (left <= x) & (x < right)
    colour = _values(changes.erased_colour, images)[..., None, None]
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
            images = change(images, _values(values, images))
    return images


def _through_camera(images: Tensor, changes: Changes) -> Tensor:
    """Applies the effects of lens, processing, sensor and file, in this order."""
    if (changes.blur != 0).any():
        sigma = torch.from_numpy(changes.blur).clamp_min(1e-3)[:, None].expand(-1, 2)
        size = 2 * changes.blur_reach + 1
        images = kornia.filters.gaussian_blur2d(images, size, sigma, border_type="replicate")
    if (changes.sharpness != 1).any():
        images = kornia.enhance.sharpness(images, torch.from_numpy(changes.sharpness))
    if (changes.noise != 0).any():
        deviation = _values(changes.noise, images)[:, None, None, None]
        images = (images + deviation * _noise(torch.randn, images, changes)).clamp(0, 1)
    if (changes.jpeg_quality != 100).any():
        quality = torch.from_numpy(changes.jpeg_quality)
        images = kornia.enhance.jpeg_codec_differentiable(images, quality).clamp(0, 1)
    return images


def _values(array: np.ndarray, images: Tensor) -> Tensor:
    """The array as a tensor of the images' dtype on their device."""
    return send(torch.from_numpy(array).to(images.dtype), images.device)
