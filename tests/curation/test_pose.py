from pathlib import Path

import numpy as np
import pytest

from heatmap import shape
from heatmap.data.contest import read_landmarks
from heatmap.schemes import mirror_permutation


def turned_heads(yaw: np.ndarray) -> np.ndarray:
    """(N, 19, 2) landmarks of one turned head, each tilted, scaled and moved at random."""
    generator = np.random.default_rng(5)
    head = generator.normal(size=(19, 3)) * (0.8, 1.1, 0.5)
    x = np.cos(yaw)[:, None] * head[:, 0] + np.sin(yaw)[:, None] * head[:, 2]
    z = np.exp(1j * generator.uniform(-1, 1, (len(yaw), 1))) * (x + 1j * head[:, 1])
    z = z * generator.uniform(30, 300, (len(yaw), 1)) + generator.uniform(0, 99, (len(yaw), 1))
    return np.stack([z.real, z.imag], -1)


def test_turns_follow_the_heads_yaw_whatever_their_size_place_and_tilt() -> None:
    yaw = np.random.default_rng(1).uniform(-0.6, 0.6, 200)
    found = shape.turns(turned_heads(yaw))
    assert abs(np.corrcoef(found, yaw)[0, 1]) > 0.99
    assert 0.1 < np.abs(found).max() < 0.6


def test_faces_that_lack_a_landmark_have_no_turn_and_change_no_others() -> None:
    points = turned_heads(np.linspace(-0.5, 0.5, 40))
    whole = shape.turns(points[:37])
    points[37:, 3] = np.nan
    found = shape.turns(points)
    assert np.isnan(found[37:]).all()
    assert np.allclose(found[:37], whole)


def test_a_mirrored_face_is_turned_the_other_way(faces68: Path) -> None:
    points = read_landmarks(faces68 / "train" / "landmarks.csv").points_image
    mirrored = points[:, mirror_permutation(68)] * np.float32([-1, 1])
    found = shape.turns(np.concatenate([points, mirrored]))
    assert np.corrcoef(found[: len(points)], -found[len(points) :])[0, 1] > 0.99


def test_the_roll_is_the_tilt_clockwise_and_nothing_without_landmarks() -> None:
    points = turned_heads(np.linspace(-0.5, 0.5, 40))
    before = shape.rolls(points)
    z = (points[..., 0] + 1j * points[..., 1]) * np.exp(1j * np.deg2rad(20))  # y points down
    some = np.arange(40) < 9
    tilted = np.where(some[:, None, None], np.stack([z.real, z.imag], -1), points)
    tilted[11, 2:] = np.nan
    change = shape.rolls(tilted) - before
    assert np.isnan(change[11])
    change -= np.nanmedian(change[~some])
    assert np.nan_to_num(change) == pytest.approx(np.where(some, 20, 0), abs=0.5)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.full((5, 4, 2), np.nan), "0 of 5 faces have all their landmarks"),
        (np.tile(np.arange(8.0).reshape(4, 2) ** 2, (5, 1, 1)), "the same shape"),
    ],
)
def test_what_has_no_poses_is_refused(points: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shape.turns(points)
