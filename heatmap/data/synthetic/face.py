"""The parameters of a drawn face's image, and random faces.

Head frame: x to the image's right, y down, z towards the viewer, in units of the template's
distance between the pupils. Lengths are in this unit unless stated otherwise.
"""
# ruff: noqa: RUF009 (the functions called in the dataclasses return dataclasses.field)

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np

Colour = tuple[float, float, float]  # RGB from 0 to 1
Rng = np.random.Generator
T = TypeVar("T")


def as_colour(values: np.ndarray) -> Colour:
    red, green, blue = np.clip(values, 0.01, 0.99).tolist()
    return red, green, blue


# From light to dark; a person's skin lies between two neighbours.
_SKINS = np.array([
    (0.96, 0.83, 0.76), (0.93, 0.76, 0.67), (0.87, 0.67, 0.55), (0.77, 0.55, 0.41),
    (0.62, 0.42, 0.30), (0.46, 0.29, 0.20), (0.30, 0.19, 0.14),
])  # fmt: skip
_HAIRS = np.array([
    (0.06, 0.05, 0.05), (0.13, 0.09, 0.07), (0.26, 0.17, 0.11), (0.38, 0.26, 0.16),
    (0.62, 0.48, 0.29), (0.82, 0.70, 0.48), (0.50, 0.22, 0.10), (0.60, 0.59, 0.58),
    (0.86, 0.85, 0.83),
])  # fmt: skip
_IRISES = np.array([
    (0.18, 0.10, 0.06), (0.33, 0.20, 0.10), (0.36, 0.38, 0.22), (0.35, 0.48, 0.58),
    (0.42, 0.45, 0.46),
])  # fmt: skip


def _clipped_normal(rng: Rng, mean: float, deviation: float) -> float:
    """A normal number, clipped at two standard deviations."""
    return mean + deviation * float(np.clip(rng.normal(), -2, 2))


def _mixed_colour(rng: Rng, palette: np.ndarray, deviation: float) -> Colour:
    """A noisy mixture of two neighbours of the palette."""
    place = rng.uniform(0, len(palette) - 1)
    low = int(place)
    colour = palette[low] + (place - low) * (palette[low + 1] - palette[low])
    return as_colour(colour * np.exp(rng.normal(0, deviation, 3)))


def _any_colour(rng: Rng) -> np.ndarray:
    """(3,) mostly muted, sometimes saturated."""
    saturation = rng.choice((0.12, 0.8), p=(0.75, 0.25))
    return rng.uniform(0.04, 0.9) * np.exp(rng.normal(0, saturation, 3))


# Dataclass fields that `_sample` draws. They are typed Any to fit the field's annotation.


def _drawn(draw: Callable[[Rng], Any]) -> Any:
    return field(metadata={"draw": draw})


def _normal(mean: float, deviation: float) -> Any:
    return _drawn(lambda rng: _clipped_normal(rng, mean, deviation))


def _factor(deviation: float) -> Any:
    return _drawn(lambda rng: float(np.exp(_clipped_normal(rng, 0, deviation))))


def _uniform(low: float, high: float) -> Any:
    return _drawn(lambda rng: rng.uniform(low, high))


def _sample(kind: type[T], rng: Rng, **values: Any) -> T:
    """Draws a dataclass field by field, except those in `values`: constants or functions of rng."""
    drawn = {}
    for parameter in fields(kind):  # type: ignore[arg-type]
        name = parameter.name
        value = values[name] if name in values else parameter.metadata["draw"]
        drawn[name] = value(rng) if callable(value) else value
    return kind(**drawn)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Identity. In the template, factors are 1 and all other values 0.

    `lean` bends the face sideways and is the only asymmetric value.
    """

    face_width: float = _factor(0.05)
    temple_width: float = _factor(0.04)
    jaw_width: float = _factor(0.07)
    forehead: float = _normal(0, 0.06)
    nose_length: float = _normal(0, 0.05)
    philtrum: float = _normal(0, 0.025)
    chin: float = _normal(0, 0.06)
    chin_point: float = _normal(0.03, 0.03)
    eye_width: float = _factor(0.06)
    eye_height: float = _factor(0.12)
    eye_tilt_deg: float = _normal(1, 3)
    eye_spacing: float = _normal(0, 0.025)
    brow_lift: float = _normal(0.01, 0.02)
    brow_tilt_deg: float = _normal(-3, 4)
    brow_thickness: float = _factor(0.22)
    brow_spacing: float = _normal(0.01, 0.02)
    nose_width: float = _factor(0.11)
    nose_height: float = _factor(0.15)
    mouth_width: float = _factor(0.08)
    upper_lip: float = _factor(0.2)
    lower_lip: float = _factor(0.18)
    lean: float = _normal(0, 0.012)


@dataclass(frozen=True, kw_only=True)
class Expression:
    """Muscle activations up to 1, and 0 at rest except `eye_open`.

    Differences are added on the image's right and subtracted on its left.
    """

    mouth_open: float = _drawn(lambda rng: rng.beta(1.3, 3) if rng.random() < 0.45 else 0.0)
    smile: float = _normal(0.25, 0.37)
    brow_raise: float = _normal(0.1, 0.28)
    frown: float = _normal(-0.05, 0.3)
    eye_open: float  # 0 closed, 1 at rest, above 1 wide open
    gaze_x: float = _normal(0, 0.4)  # -1 to 1, the edges of the opening
    gaze_y: float = _normal(0, 0.3)
    brow_difference: float = _normal(0, 0.08)
    eye_difference: float = _normal(0, 0.03)
    smile_difference: float = _normal(0, 0.15)


def _sample_expression(rng: Rng) -> Expression:
    low, high = ((0.75, 1.15), (0, 0.3), (1.1, 1.35))[rng.choice(3, p=(0.86, 0.07, 0.07))]
    return _sample(Expression, rng, eye_open=lambda rng: rng.uniform(low, high))


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Size and defects of the final image, in its pixels."""

    height: int
    width: int
    blur_px: float
    # standard deviation; white is 1
    noise: float = _drawn(lambda rng: float(min(rng.exponential(0.009), 0.045)))
    grain_px: float = _uniform(0.3, 1.0)  # size of the noise
    grey: bool = _drawn(lambda rng: bool(rng.random() < 0.04))
    borders: tuple[int, int, int, int]  # black: left, top, right, bottom
    jpeg_quality: int = _drawn(lambda rng: int(rng.integers(70, 96)))


def _sample_camera(rng: Rng) -> Camera:
    width = int(np.clip(190 * np.exp(rng.normal(0, 0.48)), 70, 950))
    height = round(width * float(np.clip(rng.normal(1.365, 0.08), 1.11, 1.59)))
    strips = rng.uniform(0.01, 0.03, 4) * (rng.random(4) < 0.35)
    if rng.random() < 0.25:  # the detector's box reaches beyond the image
        sides = ((1, 3), (3,), (0,), (2,))[rng.choice(4, p=(0.4, 0.3, 0.15, 0.15))]
        strips[list(sides)] = rng.uniform(0.10, 0.25, len(sides))
    borders = np.round(strips * (width, height, width, height)).astype(int).tolist()
    blur_px = float(rng.exponential(0.35) * (1 + width / 300))
    return _sample(Camera, rng, height=height, width=width, blur_px=blur_px, borders=tuple(borders))


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Transform from the head frame to the image, a weak perspective."""

    yaw_deg: float = _normal(0, 22.5)  # positive turns the nose to the right
    pitch_deg: float = _normal(0, 10)  # positive lifts the nose
    roll_deg: float = _normal(0, 12.5)  # positive turns the head clockwise
    perspective: float = _uniform(0, 0.08)  # relative growth per unit of z
    scale_px: float  # image pixels per unit of the head frame
    x_image: float  # centre of the bounding box of the face's outline
    y_image: float


def _sample_pose(rng: Rng, camera: Camera) -> Pose:
    outline_width = 2.26
    relative_width = 0.625 * float(np.exp(rng.normal(0, 0.07)))  # of the image's width
    return _sample(
        Pose,
        rng,
        scale_px=relative_width * camera.width / outline_width,
        x_image=lambda rng: camera.width * _clipped_normal(rng, 0.5, 0.03),
        y_image=lambda rng: camera.height * _clipped_normal(rng, 0.4975, 0.025),
    )


@dataclass(frozen=True, kw_only=True)
class Hair:
    colour: Colour
    length: float  # 0 bald, 0.1 shaved, 1 over the shoulders
    volume: float  # thickness beyond the skull
    fringe: float  # 0 none, 1 down to the brows
    parting: float  # -1 to 1, x of the fringe's highest point
    curl: float  # 0 straight, 1 curly


def _sample_hair(rng: Rng, colour: np.ndarray) -> Hair:
    style = rng.choice(6, p=(0.07, 0.08, 0.37, 0.18, 0.22, 0.08))  # the last one is an afro
    lengths = ((0, 0), (0.1, 0.1), (0.15, 0.35), (0.4, 0.65), (0.75, 1), (0.2, 0.4))
    volumes = ((-0.06, -0.06), (0, 0.02), (0.04, 0.22), (0.1, 0.3), (0.1, 0.3), (0.3, 0.6))
    curl = rng.uniform(0.3, 1) if rng.random() < 0.2 else 0.0
    return Hair(
        colour=as_colour(colour),
        length=rng.uniform(*lengths[style]),
        volume=rng.uniform(*volumes[style]),
        fringe=rng.uniform(0.15, 0.95) if style >= 2 and rng.random() < 0.5 else 0.0,
        parting=rng.uniform(-1, 1),
        curl=1.0 if style == 5 else curl,
    )


@dataclass(frozen=True, kw_only=True)
class Glasses:
    colour: Colour = _drawn(
        lambda rng: as_colour(rng.uniform(0.02, 0.3) * np.exp(rng.normal(0, 0.4, 3)))
    )
    width: float = _uniform(0.68, 0.84)  # of a lens
    height: float = _uniform(0.42, 0.68)
    roundness: float = _uniform(2, 4.5)  # exponent of a superellipse; 2: ellipse
    thickness: float = _uniform(0.02, 0.06)  # of the rim
    tint: float = _drawn(  # opacity of the lenses
        lambda rng: rng.uniform(0.3, 0.75) if rng.random() < 0.15 else rng.uniform(0, 0.15)
    )


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """Colours in white light, and strengths from 0 to 1."""

    skin: Colour
    lips: Colour
    brows: Colour
    iris: Colour
    eye_white: Colour = _drawn(
        lambda rng: as_colour(rng.uniform(0.8, 0.95) * np.array((1, 0.97, 0.95)))
    )
    clothes: Colour = _drawn(lambda rng: as_colour(_any_colour(rng)))
    background: tuple[Colour, Colour, Colour]
    hair: Hair
    glasses: Glasses | None = _drawn(
        lambda rng: _sample(Glasses, rng) if rng.random() < 0.16 else None
    )
    neck: float = _uniform(0.5, 0.68)  # half its width
    blush: float = _uniform(0, 0.8)
    beard: float
    moustache: float
    wrinkles: float = _drawn(lambda rng: rng.beta(1, 2.2))
    spots: int = _drawn(lambda rng: int(rng.integers(5, 60)) if rng.random() < 0.2 else 0)
    lashes: float = _uniform(0.25, 1)
    teeth: float = _uniform(0.75, 0.97)
    hat: Colour | None = _drawn(
        lambda rng: as_colour(_any_colour(rng)) if rng.random() < 0.06 else None
    )
    texture_seed: int = _drawn(lambda rng: int(rng.integers(2**31)))  # strands, pores, background


def _sample_appearance(rng: Rng) -> Appearance:
    skin = np.array(_mixed_colour(rng, _SKINS, 0.03))
    is_fair = skin.mean() > 0.5
    natural = _HAIRS[rng.integers(0, len(_HAIRS) if is_fair else 4)]
    hair_colour = _any_colour(rng) if rng.random() < 0.03 else natural * rng.uniform(0.8, 1.2)
    hair = _sample_hair(rng, hair_colour)
    has_beard = hair.length < 0.4 and rng.random() < 0.45
    lips = skin * (0.93, 0.66, 0.68) + rng.normal(0, 0.02, 3)
    if not has_beard and rng.random() < 0.25:  # lipstick
        lips = 0.35 * lips + 0.65 * rng.uniform((0.5, 0.05, 0.15), (0.85, 0.3, 0.35))
    backdrop = _any_colour(rng)
    background = tuple(
        as_colour(0.6 * backdrop * np.exp(rng.normal(0, 0.4)) + 0.4 * _any_colour(rng))
        for _ in range(3)
    )

    def beard(rng: Rng) -> float:
        return rng.uniform(0.2, 0.95) if has_beard and rng.random() < 0.75 else 0.0

    return _sample(
        Appearance,
        rng,
        skin=as_colour(skin),
        lips=as_colour(lips),
        brows=as_colour(hair_colour * rng.uniform(0.4, 0.8) + rng.uniform(0.05, 0.25) * skin),
        iris=_mixed_colour(rng, _IRISES if is_fair else _IRISES[:2], 0.08),
        background=background,
        hair=hair,
        beard=beard,
        moustache=beard,
    )


@dataclass(frozen=True, kw_only=True)
class Light:
    direction: tuple[float, float, float]  # unit vector to the light, in an unturned head's frame
    ambient: float = _uniform(0.35, 0.8)  # share of light from all directions
    gain: Colour  # of each channel
    gamma: float = _drawn(lambda rng: float(np.exp(rng.normal(0.02, 0.15))))  # of the image


def _sample_light(rng: Rng) -> Light:
    direction = np.array((rng.normal(0, 0.7), rng.normal(-0.5, 0.4), 1.0))
    direction /= np.linalg.norm(direction)
    warmth = rng.normal(0, 0.07)
    gain = np.exp(rng.normal(-0.08, 0.2) + np.array((warmth, rng.normal(0, 0.02), -warmth)))
    return _sample(Light, rng, direction=tuple(direction.tolist()), gain=tuple(gain.tolist()))


@dataclass(frozen=True, kw_only=True)
class FaceSpec:
    """All parameters of one image and its landmarks."""

    shape: Shape
    expression: Expression
    pose: Pose
    look: Appearance
    light: Light
    camera: Camera


def sample_face(seed: int, index: int) -> FaceSpec:
    """Returns a random face that depends only on `seed` and `index`."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index])))
    camera = _sample_camera(rng)
    return FaceSpec(
        shape=_sample(Shape, rng),
        expression=_sample_expression(rng),
        pose=_sample_pose(rng, camera),
        look=_sample_appearance(rng),
        light=_sample_light(rng),
        camera=camera,
    )
