"""Synthetic faces with 971 landmarks: images whose labels are exact by construction.

face       the parameters of an image, and random faces
head       a 3D head: identity, expression and pose to landmarks
canvas     a float image to paint antialiased polygons and lines on
drawing    a face painted layer by layer
contest    drawn faces written as a contest folder
"""

import numpy as np

from heatmap.data.synthetic.contest import make_contest
from heatmap.data.synthetic.drawing import paint
from heatmap.data.synthetic.face import Colour, FaceSpec, Hair, Light, sample_face
from heatmap.data.synthetic.head import Head

__all__ = [
    "Colour", "FaceSpec", "Hair", "Light", "draw_face", "landmarks", "make_contest", "paint",
    "sample_face",
]  # fmt: skip


def draw_face(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the image and landmarks of face `index` of the series `seed`; see `paint`."""
    return paint(sample_face(seed, index))


def landmarks(face: FaceSpec) -> np.ndarray:
    """Returns a face's (971, 2) float64 points_image in the contest's order."""
    return Head(face.shape, face.expression, face.pose).points_image
