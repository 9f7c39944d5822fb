"""Synthetic faces with 971 landmarks: images whose labels are exact by construction.

face       everything that decides an image, and faces at random
head       a person's head, its expression and pose, and where its landmarks are
canvas     what is painted on
drawing    a face drawn, layer by layer
contest    drawn faces in the contest's own files
"""

import numpy as np

from heatmap.data.synthetic.contest import make_contest
from heatmap.data.synthetic.drawing import paint
from heatmap.data.synthetic.face import Colour, FaceSpec, Hair, Light, sample_face
from heatmap.data.synthetic.head import Head

__all__ = [
    "Colour", "FaceSpec", "Hair", "Light", "draw", "draw_face", "landmarks", "make_contest",
    "sample_face",
]  # fmt: skip


def draw_face(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """The image and landmarks of face `index` of the endless series `seed`, as `draw` returns."""
    return paint(sample_face(seed, index))


def landmarks(face: FaceSpec) -> np.ndarray:
    """(971, 2) float64 points_image of a face, in the order and directions of the contest."""
    return Head(face.shape, face.expression, face.pose).points_image
