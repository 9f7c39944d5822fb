"""Aligned shapes, their mean and model, and head poses."""

from pathlib import Path

import numpy as np
import pytest

from heatmap import shape
from heatmap.data.contest import read_landmarks
from heatmap.schemes import mirror_permutation


def random_shapes(num_faces: int, num_landmarks: int = 30, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_faces, num_landmarks)) + 1j * rng.normal(
        size=(num_faces, num_landmarks)
    )


def moved(shapes: np.ndarray, seed: int = 1, turn: float = 0.6) -> np.ndarray:
    """The shapes, each rotated by at most `turn` radians, scaled and shifted at random."""
    rng = np.random.default_rng(seed)
    num = (len(shapes), 1)
    factor = rng.uniform(20, 200, num) * np.exp(1j * rng.uniform(-turn, turn, num))
    return factor * shapes + rng.uniform(0, 300, num) + 1j * rng.uniform(0, 300, num)


def planted(num_faces: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Faces of a model with two changes: shapes in the model's frame, mean, (2, 2P) changes."""
    rng = np.random.default_rng(2)
    mean = random_shapes(1)[0]
    mean -= mean.mean()
    mean /= np.linalg.norm(mean)
    # shifts, rotations and scalings of the mean are not changes of shape
    similar = [np.ones(30), 1j * np.ones(30), mean, 1j * mean]
    basis = np.concatenate([[shape.real(s) for s in similar], shape.real(random_shapes(2, seed=5))])
    changes = np.linalg.qr(basis.T)[0].T[-2:]
    amounts = rng.normal(size=(num_faces, 2)) * (0.1, 0.05)
    faces = mean + shape.from_real(amounts @ changes)
    return faces + noise * random_shapes(num_faces, seed=6), mean, changes


def test_conversions_are_inverse() -> None:
    shapes = random_shapes(4)
    assert np.array_equal(shape.of(shape.points(shapes)), shapes)
    assert np.array_equal(shape.from_real(shape.real(shapes)), shapes)
    assert shape.face_size(np.array([0, 4, 9j, np.nan])) == 6


def test_alignment_undoes_a_similarity_exactly_even_with_missing_landmarks() -> None:
    shapes = random_shapes(6)
    faces = moved(shapes, turn=3)
    faces[2, :20] = np.nan
    each = zip(faces, shapes, strict=True)
    aligned = np.concatenate([shape.onto(face[None], goal) for face, goal in each])
    assert np.isnan(aligned[2, :20]).all()
    assert np.allclose(aligned[np.isfinite(aligned)], shapes[np.isfinite(aligned)])
    assert np.allclose(shape.onto(faces, shapes), aligned, equal_nan=True)


@pytest.mark.parametrize("count", [0, 2])
def test_fewer_than_three_landmarks_have_no_placement(count: int) -> None:
    face = np.full((1, 30), np.nan, complex)
    face[0, :count] = np.arange(count) + 2j
    factor, offset = shape.placement(face, random_shapes(1)[0])
    assert np.isnan(factor).all() and np.isnan(offset).all()


def test_mean_of_moved_copies_is_the_shape_upright_and_of_unit_size() -> None:
    copies = moved(np.repeat(random_shapes(1), 200, 0))
    copies[::7, 3] = np.nan
    mean = shape.mean_shape(copies)
    assert abs(mean.mean()) < 1e-9 and np.linalg.norm(mean) == pytest.approx(1)
    original = random_shapes(1)[0]
    rotation = np.angle(np.vdot(original - original.mean(), mean))
    assert abs(rotation) < 0.1  # the mean rotation of the copies
    assert np.allclose(shape.onto(original[None], mean)[0], mean)


def test_faces_with_wrong_labels_hardly_change_the_mean() -> None:
    faces = moved(planted(100, 0.01)[0])
    before = shape.mean_shape(faces)
    faces[:3] = moved(random_shapes(3, seed=9))
    after = shape.onto(shape.mean_shape(faces)[None], before)
    assert np.linalg.norm(after - before) < 0.02


def test_mean_needs_a_face_with_three_landmarks() -> None:
    with pytest.raises(ValueError, match="no face has three labelled landmarks"):
        shape.mean_shape(np.full((4, 30), np.nan, complex))


@pytest.mark.parametrize("with_outliers", [False, True])
def test_a_fit_recovers_the_planted_model(with_outliers: bool) -> None:
    faces, mean, changes = planted(400, 0.004)
    points = shape.points(moved(faces))
    if with_outliers:
        rng = np.random.default_rng(3)
        points[rng.random(points.shape[:2]) < 0.1] = np.nan
        points[::50] = shape.points(moved(random_shapes(8, seed=9)))
        points[5::20, 4] += 300
    model = shape.fit(points, share=0.9)
    turn = np.exp(1j * np.angle(np.vdot(mean, model.mean)))
    assert np.linalg.norm(model.mean / turn - mean) < 0.02
    found = shape.real(shape.from_real(model.components) / turn)[:2]
    assert np.linalg.svd(found @ changes.T)[1].min() > 0.97
    assert model.spread[:2] == pytest.approx([0.1, 0.05], rel=0.2)
    assert np.median(model.noise) == pytest.approx(0.004, rel=0.2)
    assert np.allclose(model.components @ model.components.T, np.eye(len(model.components)))


def in_image(result: shape.Reconstruction, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The aligned and the reconstructed faces, back in the frame of the faces."""
    factor, offset = shape.placement(result.aligned, faces)
    return factor * result.aligned + offset, factor * result.reconstructed + offset


def test_reconstruction_fills_gaps_and_resists_outliers() -> None:
    faces, _, _ = planted(400, 0.004)
    model = shape.fit(shape.points(moved(faces)))
    truth = moved(faces[:50], seed=4)
    size = shape.face_size(truth)[:, None]
    with_gap, with_outlier = truth.copy(), truth.copy()
    with_gap[:, 7] = np.nan
    with_outlier[:, 12] += 0.3 * size[:, 0]
    result = model.reconstruct(with_gap)
    assert np.isnan(result.aligned[:, 7]).all()
    aligned, reconstructed = in_image(result, with_gap)
    assert np.allclose(aligned[:, 12], truth[:, 12])
    assert np.median(np.abs(reconstructed - truth)[:, 7] / size[:, 0]) < 0.01
    _, reconstructed = in_image(model.reconstruct(with_outlier), with_outlier)
    assert np.median(np.abs(reconstructed - truth) / size) < 0.02


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.full((5, 9, 2), np.nan), "0 of 5 faces have most of their landmarks"),
        (np.tile(np.arange(18.0).reshape(9, 2) ** 2, (5, 1, 1)), "the same shape"),
        (
            np.where(np.arange(9)[:, None] == 3, np.nan, shape.points(random_shapes(5, 9))),
            "no face with most of its landmarks has landmark 3",
        ),
    ],
)
def test_fit_refuses_unsuitable_faces(points: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shape.fit(points)


def turned_heads(yaw: np.ndarray) -> np.ndarray:
    """(N, 19, 2) landmarks of one turned head, each tilted, scaled and moved at random."""
    generator = np.random.default_rng(5)
    head = generator.normal(size=(19, 3)) * (0.8, 1.1, 0.5)
    x = np.cos(yaw)[:, None] * head[:, 0] + np.sin(yaw)[:, None] * head[:, 2]
    z = np.exp(1j * generator.uniform(-1, 1, (len(yaw), 1))) * (x + 1j * head[:, 1])
    z = z * generator.uniform(30, 300, (len(yaw), 1)) + generator.uniform(0, 99, (len(yaw), 1))
    return np.stack([z.real, z.imag], -1)


def test_turns_follow_yaw_at_any_size_position_and_tilt() -> None:
    yaw = np.random.default_rng(1).uniform(-0.6, 0.6, 200)
    turns = shape.turns(turned_heads(yaw))
    assert abs(np.corrcoef(turns, yaw)[0, 1]) > 0.99
    assert 0.1 < np.abs(turns).max() < 0.6


def test_incomplete_faces_have_no_turn_and_do_not_affect_others() -> None:
    points = turned_heads(np.linspace(-0.5, 0.5, 40))
    whole = shape.turns(points[:37])
    points[37:, 3] = np.nan
    turns = shape.turns(points)
    assert np.isnan(turns[37:]).all()
    assert np.allclose(turns[:37], whole)


def test_mirrored_face_has_the_opposite_turn(faces68: Path) -> None:
    points = read_landmarks(faces68 / "train" / "landmarks.csv").points_image
    mirrored = points[:, mirror_permutation(68)] * np.float32([-1, 1])
    turns = shape.turns(np.concatenate([points, mirrored]))
    assert np.corrcoef(turns[: len(points)], -turns[len(points) :])[0, 1] > 0.99


def test_roll_is_the_clockwise_tilt_and_nan_without_landmarks() -> None:
    points = turned_heads(np.linspace(-0.5, 0.5, 40))
    before = shape.rolls(points)
    z = (points[..., 0] + 1j * points[..., 1]) * np.exp(1j * np.deg2rad(20))  # y points down
    is_tilted = np.arange(40) < 9
    tilted = np.where(is_tilted[:, None, None], np.stack([z.real, z.imag], -1), points)
    tilted[11, 2:] = np.nan
    change = shape.rolls(tilted) - before
    assert np.isnan(change[11])
    change -= np.nanmedian(change[~is_tilted])
    assert np.nan_to_num(change) == pytest.approx(np.where(is_tilted, 20, 0), abs=0.5)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.full((5, 4, 2), np.nan), "0 of 5 faces have all their landmarks"),
        (np.tile(np.arange(8.0).reshape(4, 2) ** 2, (5, 1, 1)), "the same shape"),
    ],
)
def test_turns_refuse_unsuitable_faces(points: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shape.turns(points)


def test_roll_is_in_degrees() -> None:
    generator = np.random.default_rng(5)
    head = generator.normal(size=(9, 2)) * 40
    angles = np.array([-30.0, -10.0, 0.0, 15.0, 25.0])
    faces = []
    for angle, size in zip(np.radians(angles), (1, 2, 0.5, 3, 1), strict=True):
        cos, sin = np.cos(angle), np.sin(angle)
        clockwise = np.array([[cos, -sin], [sin, cos]])  # y points down
        faces.append(size * head @ clockwise.T + generator.uniform(0, 100, 2))
    np.testing.assert_allclose(shape.rolls(np.stack(faces)), angles, atol=0.3)
    assert shape.rolls(np.stack(faces[::-1]))[0] == pytest.approx(25, abs=0.3)
