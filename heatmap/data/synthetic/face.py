"""Everything that decides a drawn face's image.

Head frame: x to the image's right, y down, z towards the viewer, in units of the template's
distance between the pupils. Lengths are in this unit where nothing else is said.
"""

from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]  # RGB from 0 to 1


def as_colour(values: np.ndarray) -> Colour:
    red, green, blue = np.clip(values, 0.01, 0.99).tolist()
    return red, green, blue


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


@dataclass(frozen=True, kw_only=True)
class Hair:
    colour: Colour
    length: float  # 0 bald, 0.1 shaved, to 1 over the shoulders
    volume: float  # beyond the skull
    fringe: float  # 0 none, to 1 down to the brows
    parting: float  # -1 to 1, the fringe's highest place
    curl: float  # 0 straight, to 1 curly


@dataclass(frozen=True, kw_only=True)
class Glasses:
    colour: Colour
    width: float  # of a lens
    height: float
    roundness: float  # exponent of a superellipse; 2 is an ellipse
    thickness: float  # of the rim
    tint: float  # the share of the light that the lens keeps back


@dataclass(frozen=True, kw_only=True)
class Look:
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


@dataclass(frozen=True, kw_only=True)
class Light:
    direction: tuple[float, float, float]  # unit vector towards it, in the frame of a head unturned
    ambient: float  # the share that comes from everywhere
    gain: Colour  # of each channel
    gamma: float  # of the whole image


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


@dataclass(frozen=True, kw_only=True)
class Face:
    """Everything that decides one image and its landmarks."""

    shape: Shape
    expression: Expression
    pose: Pose
    look: Look
    light: Light
    camera: Camera
