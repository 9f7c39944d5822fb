"""Synthetic faces with predictions of a made-up run."""

import numpy as np

from heatmap import schemes, shape
from heatmap.curation.audit.residuals import AuditData
from heatmap.data.synthetic import landmarks, sample_face

NUM = 400
ERROR = 0.015  # of a good run, in face sizes


def predictions(points: np.ndarray, error: float, seed: int = 3) -> np.ndarray:
    """Predictions that are off by `error` face sizes, as a whole and per landmark."""
    rng = np.random.default_rng(seed)
    size = shape.face_size(shape.of(points))[:, None, None]
    seen = points + error * size * rng.normal(size=(len(points), 1, 2))
    return (seen + error * size * rng.normal(size=points.shape)).astype(np.float32)


def draw() -> AuditData:
    """Returns 400 synthetic faces with about one in twelve of the 971 landmarks."""
    known = schemes.mirror_permutation(971)
    every_24th = np.append(np.arange(0, 971, 24), 970)
    chosen = np.union1d(every_24th, known[every_24th])
    place = np.full(971, -1)
    place[chosen] = np.arange(len(chosen))
    groups, start = {}, 0
    for name, members in schemes.groups(971).items():
        stop = start + np.isin(chosen, members).sum()
        groups[name] = range(start, stop)
        start = stop
    faces = [sample_face(11, index) for index in range(NUM)]
    points = np.round([landmarks(face)[chosen] for face in faces])
    size = shape.face_size(shape.of(points))[:, None]
    return AuditData(
        points_image=points,
        predicted_image=predictions(points, ERROR),
        expected_px=np.broadcast_to(2 * ERROR * size, points.shape[:2]),
        disagreement_px=np.full(NUM, np.nan),
        is_trained=np.arange(NUM) % 3 == 0,
        half=np.arange(NUM) < NUM / 2,
        groups=groups,
        permutation=place[known[chosen]],
    )
