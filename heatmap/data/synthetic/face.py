"""Everything that decides a drawn face's picture."""

from dataclasses import dataclass

import numpy as np

from heatmap.data.synthetic.head import Expression, Pose, Shape

Colour = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Hair:
    """length: 0 bald, 0.1 shaved, to 1 over the shoulders. volume: head-frame units beyond the
    skull. fringe: 0 none, to 1 down to the brows. parting: -1 to 1, the fringe's highest place.
    curl: 0 straight strands to 1 curly."""

    colour: Colour
    length: float
    volume: float
    fringe: float
    parting: float
    curl: float


@dataclass(frozen=True, kw_only=True)
class Glasses:
    """width, height: of a lens, head-frame units. roundness: superellipse exponent, 2 is an
    ellipse. thickness: of the rim. tint: share of the light the lens keeps back."""

    colour: Colour
    width: float
    height: float
    roundness: float
    thickness: float
    tint: float


@dataclass(frozen=True, kw_only=True)
class Look:
    """Colours are RGB from 0 to 1 in white light; the rest are strengths from 0 to 1.

    neck: half its width, head-frame units. texture_seed: decides strands, pores and background.
    """

    skin: Colour
    lips: Colour
    brows: Colour
    iris: Colour
    eye_white: Colour
    clothes: Colour
    background: tuple[Colour, Colour, Colour]
    hair: Hair
    glasses: Glasses | None
    neck: float
    blush: float
    beard: float
    moustache: float
    wrinkles: float
    spots: int
    lashes: float
    teeth: float
    hat: Colour | None
    texture_seed: int


@dataclass(frozen=True, kw_only=True)
class Light:
    """direction: unit vector towards the light, head frame of an unturned head. ambient: 0 to 1,
    the share that comes from everywhere. gain: per channel. gamma: of the whole picture."""

    direction: tuple[float, float, float]
    ambient: float
    gain: Colour
    gamma: float


@dataclass(frozen=True, kw_only=True)
class Camera:
    """blur_px, noise (standard deviation, 0 to 1), grain_px (its size): in the finished picture.
    borders: black rows and columns at the left, top, right, bottom. jpeg_quality: for whoever
    writes the picture."""

    height: int
    width: int
    blur_px: float
    noise: float
    grain_px: float
    grey: bool
    borders: tuple[int, int, int, int]
    jpeg_quality: int


@dataclass(frozen=True, kw_only=True)
class Face:
    """Everything that decides one picture and its landmarks."""

    shape: Shape
    expression: Expression
    pose: Pose
    look: Look
    light: Light
    camera: Camera


def as_colour(values: np.ndarray) -> Colour:
    red, green, blue = np.clip(values, 0.01, 0.99).tolist()
    return red, green, blue
