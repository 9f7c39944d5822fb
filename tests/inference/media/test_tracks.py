"""Faces keep their numbers while they move, cross and return."""

import numpy as np

from heatmap.inference.media.tracks import TrackedFace, Tracks

SHAPE = np.array([[0, 0], [30, 5], [12, 40], [20, 22.0]])


def face(x: float, y: float = 50, size: float = 1) -> TrackedFace:
    return TrackedFace(0, SHAPE * size + (x, y), None, None)


def test_numbers_do_not_depend_on_the_order_of_detection() -> None:
    tracks = Tracks(smooth=False)
    for t in range(10):
        left, right = face(10 + 3 * t), face(200 - 3 * t, 20, 1.5)
        faces = [left, right] if t % 2 else [right, left]
        followed = tracks.follow(faces, t / 25)
        assert [f.number for f in followed] == ([1, 0] if t % 2 else [0, 1])
        for before, after in zip(faces, followed, strict=True):
            assert np.array_equal(before.points_image, after.points_image)


def test_a_long_absence_or_a_distant_place_gives_a_new_number() -> None:
    tracks = Tracks()
    numbers = [
        tracks.follow([face(x)] if x else [], seconds)[0].number if x else None
        for x, seconds in (
            (10, 0),
            (12, 0.1),
            (0, 0.5),
            (14, 0.9),
            (14, 2.5),
            (300, 2.6),
            (15, 2.7),
        )
    ]
    assert numbers == [0, 0, None, 0, 1, 2, 1]


def test_each_face_has_its_own_filter() -> None:
    generator = np.random.default_rng(3)
    tracks, found = Tracks(), []
    still, moving = SHAPE, SHAPE + np.array([200, 0])
    for t in range(80):
        noise = 0.5 * generator.normal(size=(2, *SHAPE.shape))
        faces = [
            TrackedFace(0, still + noise[0], None, None),
            TrackedFace(0, moving + (4 * t, 0) + noise[1], None, None),
        ]
        found.append([f.points_image for f in tracks.follow(faces, t / 30)])
    of_still, of_moving = np.array(found)[40:].swapaxes(0, 1)
    assert of_still.std(0).mean() < 0.5 / 3
    lag = (moving[:, 0] + 4 * np.arange(40, 80)[:, None] - of_moving[..., 0]).mean() / 4
    assert abs(lag) < 1
