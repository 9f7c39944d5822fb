from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest

from heatmap import schemes
from heatmap.data.contest import read_landmarks

KNOWN = [971, 194, 68, 15, 5]


@pytest.mark.parametrize("num_landmarks", KNOWN)
def test_mirroring_twice_is_identity(num_landmarks: int) -> None:
    permutation = schemes.mirror_permutation(num_landmarks)
    assert sorted(permutation) == list(range(num_landmarks))
    assert np.array_equal(permutation[permutation], np.arange(num_landmarks))


def test_permutation_of_971_landmarks_matches_the_reference(faces68: Path) -> None:
    known = np.loadtxt(faces68.parent / "flip971.txt", dtype=np.int64)
    assert np.array_equal(schemes.mirror_permutation(971), known.ravel())


def test_mirrored_mean_face_matches_the_mean_face(faces68: Path) -> None:
    """With the right permutation the mirrored mean face resembles the mean face."""
    points = read_landmarks(faces68 / "train" / "landmarks.csv").points_image[:500].astype(float)
    points -= np.nanmean(points, 1, keepdims=True)
    points /= np.sqrt(np.nanmean(points**2, (1, 2), keepdims=True))
    mean = np.nanmean(points, 0)
    mirrored = mean[schemes.mirror_permutation(68)] * (-1, 1)
    distances = np.linalg.norm(mirrored[:, None] - mean, axis=-1)
    assert np.array_equal(distances.argmin(1), np.arange(68))


def test_left_and_right_swap_with_15_landmarks() -> None:
    # Kaggle's columns: eye centres, eye corners, brow ends, nose, mouth corners and lips
    x = np.array([1, -1, 0.7, 1.3, -0.7, -1.3, 0.5, 1.5, -0.5, -1.5, 0, 0.6, -0.6, 0, 0])
    assert np.array_equal(-x[schemes.mirror_permutation(15)], x)


def test_unknown_number_of_landmarks_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"for 7 landmarks .*--augment\.mirror 0"):
        schemes.mirror_permutation(7)


@pytest.mark.parametrize("num_landmarks", [*KNOWN, 7])
def test_every_landmark_is_in_one_group(num_landmarks: int) -> None:
    members = chain.from_iterable(schemes.groups(num_landmarks).values())
    assert sorted(members) == list(range(num_landmarks))


@pytest.mark.parametrize("num_landmarks", [971, 194, 68])
def test_left_and_right_groups_are_mirror_images(num_landmarks: int) -> None:
    groups = schemes.groups(num_landmarks)
    permutation = schemes.mirror_permutation(num_landmarks)
    for name, members in groups.items():
        side = {"left": "right", "right": "left"}.get(name.split()[0])
        other = groups[name.replace(name.split()[0], side)] if side else members
        assert set(permutation[members.start : members.stop]) == set(other), name


@pytest.mark.parametrize(
    ("num_landmarks", "name", "pair"),
    [
        (971, "pupils", (969, 970)),
        (68, "outer eye corners", (36, 45)),
        (15, "eye centres", (0, 1)),
        (5, "eye centres", (0, 1)),
    ],
)
def test_normaliser_is_the_distance_between_the_eyes(
    num_landmarks: int, name: str, pair: tuple[int, int]
) -> None:
    points = np.random.default_rng(1).uniform(0, 9, (3, num_landmarks, 2))
    points[0, pair[0]], points[0, pair[1]] = (1, 2), (4, 6)
    points[1, pair[0]] = np.nan
    points[2, pair[0]] = points[2, pair[1]]
    assert schemes.normaliser(points)[0] == name
    assert schemes.normaliser(points)[1] == pytest.approx([5, np.nan, np.nan], nan_ok=True)


def test_other_schemes_are_normalised_by_their_bounding_box() -> None:
    points = np.full((3, 7, 2), np.nan)
    points[0, :3] = [[1, 2], [5, 3], [2, 11]]
    points[1, 4] = [3, 3]
    name, length = schemes.normaliser(points)
    assert name == "box"
    assert length == pytest.approx([6, np.nan, np.nan], nan_ok=True)


@pytest.mark.parametrize("num_landmarks", [971, 194, 68, 15])
def test_curves_stay_in_a_group_and_cover_most_landmarks(num_landmarks: int) -> None:
    group_of = {k: name for name, g in schemes.groups(num_landmarks).items() for k in g}
    curves = schemes.curves(num_landmarks)
    for curve in curves:
        assert len({group_of[k] for k in curve}) == 1
        inside = curve[:-1] if curve[0] == curve[-1] else curve
        assert len(set(inside)) == len(inside) >= 2
    left_out = set(range(num_landmarks)) - set(chain.from_iterable(curves))
    assert {group_of[k] for k in left_out} <= {"pupils", "nose"} and len(left_out) <= 2


@pytest.mark.parametrize("num_landmarks", KNOWN)
def test_mirrored_curves_are_curves(num_landmarks: int) -> None:
    permutation = schemes.mirror_permutation(num_landmarks)

    def steps(curves: tuple[tuple[int, ...], ...]) -> set[frozenset[int]]:
        return {frozenset(step) for curve in curves for step in pairwise(curve)}

    curves = schemes.curves(num_landmarks)
    mirrored = tuple(tuple(permutation[list(curve)].tolist()) for curve in curves)
    assert len(steps(mirrored) - steps(curves)) <= 4  # where the two halves of the mouth meet


def test_neighbours_on_a_curve_of_971_landmarks_are_close(faces68: Path) -> None:
    table = np.loadtxt(faces68.parent / "template971.csv", delimiter=",", skiprows=1)
    points = table[:, 1:3]  # of a face's box, which is 1 wide and high
    steps = [
        np.linalg.norm(np.diff(points[list(curve)], axis=0), axis=-1)
        for curve in schemes.curves(971)
    ]
    assert max(step.max() for step in steps) < 0.025


def test_unknown_schemes_have_no_curves() -> None:
    assert schemes.curves(7) == ()
