"""Everything that decides a drawn face's image, and faces at random.

Head frame: x to the image's right, y down, z towards the viewer, in units of the template's
distance between the pupils. Lengths are in this unit where nothing else is said.
"""

from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]  # RGB from 0 to 1


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


def _near(rng: np.random.Generator, middle: float, spread: float) -> float:
    """A normal number, drawn in at two standard deviations."""
    return middle + spread * float(np.clip(rng.normal(), -2, 2))


def _factor(rng: np.random.Generator, spread: float) -> float:
    return float(np.exp(_near(rng, 0, spread)))


def _between(rng: np.random.Generator, palette: np.ndarray, spread: float) -> Colour:
    """A colour between two neighbours of the palette, and a little off."""
    place = rng.uniform(0, len(palette) - 1)
    low = int(place)
    colour = palette[low] + (place - low) * (palette[low + 1] - palette[low])
    return as_colour(colour * np.exp(rng.normal(0, spread, 3)))


def _any_colour(rng: np.random.Generator) -> np.ndarray:
    """(3,) mostly muted, now and then loud."""
    loudness = rng.choice((0.12, 0.8), p=(0.75, 0.25))
    return rng.uniform(0.04, 0.9) * np.exp(rng.normal(0, loudness, 3))


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Identity: 1 is the template for a factor, 0 for anything added.

    `lean` bends the face sideways and is the only part that is not symmetric.
    """

    face_width: float
    temple_width: float
    jaw_width: float
    forehead: float
    nose_length: float
    philtrum: float
    chin: float
    chin_point: float
    eye_width: float
    eye_height: float
    eye_tilt_deg: float
    eye_spacing: float
    brow_lift: float
    brow_tilt_deg: float
    brow_thickness: float
    brow_spacing: float
    nose_width: float
    nose_height: float
    mouth_width: float
    upper_lip: float
    lower_lip: float
    lean: float


def _sample_shape(rng: np.random.Generator) -> Shape:
    return Shape(
        face_width=_factor(rng, 0.05),
        temple_width=_factor(rng, 0.04),
        jaw_width=_factor(rng, 0.07),
        forehead=_near(rng, 0, 0.06),
        nose_length=_near(rng, 0, 0.05),
        philtrum=_near(rng, 0, 0.025),
        chin=_near(rng, 0, 0.06),
        chin_point=_near(rng, 0.03, 0.03),
        eye_width=_factor(rng, 0.06),
        eye_height=_factor(rng, 0.12),
        eye_tilt_deg=_near(rng, 1, 3),
        eye_spacing=_near(rng, 0, 0.025),
        brow_lift=_near(rng, 0.01, 0.02),
        brow_tilt_deg=_near(rng, -3, 4),
        brow_thickness=_factor(rng, 0.22),
        brow_spacing=_near(rng, 0.01, 0.02),
        nose_width=_factor(rng, 0.11),
        nose_height=_factor(rng, 0.15),
        mouth_width=_factor(rng, 0.08),
        upper_lip=_factor(rng, 0.2),
        lower_lip=_factor(rng, 0.18),
        lean=_near(rng, 0, 0.012),
    )


@dataclass(frozen=True, kw_only=True)
class Expression:
    """What muscles do: 0 is at rest, except `eye_open` (0 closed, 1 at rest, above wide open).

    Differences are added on the image's right and subtracted on its left.
    """

    mouth_open: float  # 0 to 1
    smile: float  # -0.5 to 1
    brow_raise: float  # about -0.5 to 1
    frown: float  # about -0.5 to 1
    eye_open: float
    gaze_x: float  # -1 to 1: from the middle of the opening to its border
    gaze_y: float
    brow_difference: float
    eye_difference: float
    smile_difference: float


def _sample_expression(rng: np.random.Generator) -> Expression:
    openness = rng.choice(3, p=(0.86, 0.07, 0.07))
    return Expression(
        mouth_open=rng.beta(1.3, 3) if rng.random() < 0.45 else 0.0,
        smile=_near(rng, 0.25, 0.37),
        brow_raise=_near(rng, 0.1, 0.28),
        frown=_near(rng, -0.05, 0.3),
        eye_open=rng.uniform(*((0.75, 1.15), (0, 0.3), (1.1, 1.35))[openness]),
        gaze_x=_near(rng, 0, 0.4),
        gaze_y=_near(rng, 0, 0.3),
        brow_difference=_near(rng, 0, 0.08),
        eye_difference=_near(rng, 0, 0.03),
        smile_difference=_near(rng, 0, 0.15),
    )


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Faults are in pixels of the finished image."""

    height: int
    width: int
    blur_px: float
    noise: float  # standard deviation, white at 1
    grain_px: float  # size of the noise
    grey: bool
    borders: tuple[int, int, int, int]  # black: left, top, right, bottom
    jpeg_quality: int  # for whoever writes the image


def _sample_camera(rng: np.random.Generator) -> Camera:
    width = int(np.clip(190 * np.exp(rng.normal(0, 0.48)), 70, 950))
    height = round(width * float(np.clip(rng.normal(1.365, 0.08), 1.11, 1.59)))
    strips = rng.uniform(0.01, 0.03, 4) * (rng.random(4) < 0.35)
    if rng.random() < 0.25:  # the detector's box left the image
        sides = ((1, 3), (3,), (0,), (2,))[rng.choice(4, p=(0.4, 0.3, 0.15, 0.15))]
        strips[list(sides)] = rng.uniform(0.10, 0.25, len(sides))
    borders = strips * (width, height, width, height)
    left, top, right, bottom = np.round(borders).astype(int).tolist()
    return Camera(
        height=height,
        width=width,
        blur_px=float(rng.exponential(0.35) * (1 + width / 300)),
        noise=float(min(rng.exponential(0.009), 0.045)),
        grain_px=rng.uniform(0.3, 1.0),
        grey=bool(rng.random() < 0.04),
        borders=(left, top, right, bottom),
        jpeg_quality=int(rng.integers(70, 96)),
    )


@dataclass(frozen=True, kw_only=True)
class Pose:
    """The way from the head frame to the image, a weak perspective."""

    yaw_deg: float  # positive turns the nose to the image's right
    pitch_deg: float  # positive lifts the nose
    roll_deg: float  # positive turns the head clockwise
    perspective: float  # relative growth per unit of z
    scale_px: float  # image pixels per unit of the head frame
    x_image: float  # the middle of the box round the face's outline
    y_image: float


def _sample_pose(rng: np.random.Generator, camera: Camera) -> Pose:
    outline_width = 2.26
    share = 0.625 * float(np.exp(rng.normal(0, 0.07)))  # of the image's width
    return Pose(
        yaw_deg=_near(rng, 0, 22.5),
        pitch_deg=_near(rng, 0, 10),
        roll_deg=_near(rng, 0, 12.5),
        perspective=rng.uniform(0, 0.08),
        scale_px=share * camera.width / outline_width,
        x_image=camera.width * _near(rng, 0.5, 0.03),
        y_image=camera.height * _near(rng, 0.4975, 0.025),
    )


@dataclass(frozen=True, kw_only=True)
class Hair:
    colour: Colour
    length: float  # 0 bald, 0.1 shaved, to 1 over the shoulders
    volume: float  # beyond the skull
    fringe: float  # 0 none, to 1 down to the brows
    parting: float  # -1 to 1, the fringe's highest place
    curl: float  # 0 straight, to 1 curly


def _sample_hair(rng: np.random.Generator, colour: np.ndarray) -> Hair:
    style = rng.choice(6, p=(0.07, 0.08, 0.37, 0.18, 0.22, 0.08))
    lengths = ((0, 0), (0.1, 0.1), (0.15, 0.35), (0.4, 0.65), (0.75, 1), (0.2, 0.4))  # to the afro
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
    colour: Colour
    width: float  # of a lens
    height: float
    roundness: float  # exponent of a superellipse; 2 is an ellipse
    thickness: float  # of the rim
    tint: float  # the share of the light that the lens keeps back


def _sample_glasses(rng: np.random.Generator) -> Glasses:
    return Glasses(
        colour=as_colour(rng.uniform(0.02, 0.3) * np.exp(rng.normal(0, 0.4, 3))),
        width=rng.uniform(0.68, 0.84),
        height=rng.uniform(0.42, 0.68),
        roundness=rng.uniform(2, 4.5),
        thickness=rng.uniform(0.02, 0.06),
        tint=rng.uniform(0.3, 0.75) if rng.random() < 0.15 else rng.uniform(0, 0.15),
    )


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """Colours in white light, and strengths from 0 to 1."""

    skin: Colour
    lips: Colour
    brows: Colour
    iris: Colour
    eye_white: Colour
    clothes: Colour
    background: tuple[Colour, Colour, Colour]
    hair: Hair
    glasses: Glasses | None
    neck: float  # half its width
    blush: float
    beard: float
    moustache: float
    wrinkles: float
    spots: int
    lashes: float
    teeth: float
    hat: Colour | None
    texture_seed: int  # of strands, pores and background


def _sample_appearance(rng: np.random.Generator) -> Appearance:
    skin = np.array(_between(rng, _SKINS, 0.03))
    is_fair = skin.mean() > 0.5
    natural = _HAIRS[rng.integers(0, len(_HAIRS) if is_fair else 4)]
    hair_colour = _any_colour(rng) if rng.random() < 0.03 else natural * rng.uniform(0.8, 1.2)
    hair = _sample_hair(rng, hair_colour)
    has_beard = hair.length < 0.4 and rng.random() < 0.45
    lips = skin * (0.93, 0.66, 0.68) + rng.normal(0, 0.02, 3)
    if not has_beard and rng.random() < 0.25:  # lipstick
        lips = 0.35 * lips + 0.65 * rng.uniform((0.5, 0.05, 0.15), (0.85, 0.3, 0.35))
    backdrop = _any_colour(rng)
    first, second, third = (
        as_colour(0.6 * backdrop * np.exp(rng.normal(0, 0.4)) + 0.4 * _any_colour(rng))
        for _ in range(3)
    )
    return Appearance(
        skin=as_colour(skin),
        lips=as_colour(lips),
        brows=as_colour(hair_colour * rng.uniform(0.4, 0.8) + rng.uniform(0.05, 0.25) * skin),
        iris=_between(rng, _IRISES if is_fair else _IRISES[:2], 0.08),
        eye_white=as_colour(rng.uniform(0.8, 0.95) * np.array((1, 0.97, 0.95))),
        clothes=as_colour(_any_colour(rng)),
        background=(first, second, third),
        hair=hair,
        glasses=_sample_glasses(rng) if rng.random() < 0.16 else None,
        neck=rng.uniform(0.5, 0.68),
        blush=rng.uniform(0, 0.8),
        beard=rng.uniform(0.2, 0.95) if has_beard and rng.random() < 0.75 else 0.0,
        moustache=rng.uniform(0.2, 0.95) if has_beard and rng.random() < 0.75 else 0.0,
        wrinkles=rng.beta(1, 2.2),
        spots=int(rng.integers(5, 60)) if rng.random() < 0.2 else 0,
        lashes=rng.uniform(0.25, 1),
        teeth=rng.uniform(0.75, 0.97),
        hat=as_colour(_any_colour(rng)) if rng.random() < 0.06 else None,
        texture_seed=int(rng.integers(2**31)),
    )


@dataclass(frozen=True, kw_only=True)
class Light:
    direction: tuple[float, float, float]  # unit vector towards it, in the frame of a head unturned
    ambient: float  # the share that comes from everywhere
    gain: Colour  # of each channel
    gamma: float  # of the whole image


def _sample_light(rng: np.random.Generator) -> Light:
    direction = np.array((rng.normal(0, 0.7), rng.normal(-0.5, 0.4), 1.0))
    warmth = rng.normal(0, 0.07)
    gain = np.exp(rng.normal(-0.08, 0.2) + np.array((warmth, rng.normal(0, 0.02), -warmth)))
    return Light(
        direction=tuple((direction / np.linalg.norm(direction)).tolist()),
        ambient=rng.uniform(0.35, 0.8),
        gain=tuple(gain.tolist()),
        gamma=float(np.exp(rng.normal(0.02, 0.15))),
    )


@dataclass(frozen=True, kw_only=True)
class FaceSpec:
    """Everything that decides one image and its landmarks."""

    shape: Shape
    expression: Expression
    pose: Pose
    look: Appearance
    light: Light
    camera: Camera


def sample_face(seed: int, index: int) -> FaceSpec:
    """A random face that depends on `seed` and `index` only."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index])))
    camera = _sample_camera(rng)
    return FaceSpec(
        shape=_sample_shape(rng),
        expression=_sample_expression(rng),
        pose=_sample_pose(rng, camera),
        look=_sample_appearance(rng),
        light=_sample_light(rng),
        camera=camera,
    )
