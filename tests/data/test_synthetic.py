"""Synthetic faces: landmark order, painted features at their landmarks, readable files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from heatmap.data import contest, synthetic
from heatmap.data.synthetic import (
    FaceSpec,
    Hair,
    Light,
    draw_face,
    drawing,
    landmarks,
    paint,
    sample_face,
)
from heatmap.data.synthetic.contest import make_contest
from heatmap.schemes import mirror_permutation

BLACK, WHITE = (0.01, 0.01, 0.01), (0.99, 0.99, 0.99)
LEFT_EYE, RIGHT_EYE = range(587, 650), range(714, 777)
LEFT_BROW, RIGHT_BROW = range(273, 337), range(337, 401)
UPPER_LIP, LOWER_LIP = range(841, 905), range(905, 969)


def plain_face(seed: int, index: int, width: int = 240, *, mouth_open: float = 0) -> FaceSpec:
    """A random face in even light with open eyes and nothing in front of it."""
    face = sample_face(seed, index)
    factor = width / face.camera.width
    height = round(face.camera.height * factor)
    return replace(
        face,
        expression=replace(face.expression, eye_open=1.1, mouth_open=mouth_open),
        pose=replace(
            face.pose,
            scale_px=face.pose.scale_px * factor,
            x_image=face.pose.x_image * factor,
            y_image=face.pose.y_image * factor,
        ),
        look=replace(
            face.look,
            hair=Hair(colour=BLACK, length=0.5, volume=0.1, fringe=0, parting=0, curl=0),
            glasses=None,
            hat=None,
            beard=0,
            moustache=0,
            wrinkles=0,
            spots=0,
            lashes=0.2,
        ),
        light=Light(direction=(0, 0, 1), ambient=1, gain=(1, 1, 1), gamma=1),
        camera=replace(
            face.camera,
            height=height,
            width=width,
            blur_px=0,
            noise=0,
            grey=False,
            borders=(0, 0, 0, 0),
        ),
    )


def colour_change(face: FaceSpec, *colours: str) -> np.ndarray:
    """(H, W) float64 change of each pixel with these colours, about 1 where they are painted."""

    def image(colour: synthetic.Colour) -> np.ndarray:
        repainted: dict[str, Any] = dict.fromkeys(colours, colour)
        look = replace(face.look, **repainted)
        return paint(replace(face, look=look))[0].astype(np.float64)

    difference = np.abs(image(WHITE) - image(BLACK)).max(-1)
    return difference / np.percentile(difference[difference > 10], 90)


def without_holes(mask: np.ndarray) -> np.ndarray:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(mask.shape, np.uint8), contours, -1, 1, -1).astype(bool)


def inside(shape: tuple[int, ...], polygons: list[np.ndarray]) -> np.ndarray:
    """(H, W) bool: pixels more than half covered by one of the polygons."""
    scale = 8
    fine = np.zeros((shape[0] * scale, shape[1] * scale), np.uint8)
    for polygon in polygons:
        corners = np.round(((polygon + 0.5) * scale - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(fine, [corners], 255, shift=4)
    return cv2.resize(fine, shape[1::-1], interpolation=cv2.INTER_AREA) > 127


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())


def distance_to_border(mask: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(N,) distance in pixels from each point to the mask's nearest border."""
    inner = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    outer = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    signed = np.where(mask, inner - 0.5, 0.5 - outer).astype(np.float32)
    x, y = points.astype(np.float32).T
    distance = cv2.remap(signed, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.abs(distance).ravel()


def feature_and_outline(
    feature: str, face: FaceSpec
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """The feature's painted pixels (H, W), its polygons, and the landmarks on its border."""
    points = landmarks(face)
    if feature == "lips":
        polygons = [points[UPPER_LIP], points[LOWER_LIP]]
        border = points[[*range(841, 873), *range(905, 937)]]
        is_open = face.expression.mouth_open > 0
        coloured = colour_change(face, "lips") > 0.4
        return coloured if is_open else without_holes(coloured), polygons, border
    if feature == "brows":
        colours, polygons = ["brows"], [points[LEFT_BROW], points[RIGHT_BROW]]
    elif feature == "eyes":
        colours, polygons = ["eye_white", "iris"], [points[LEFT_EYE], points[RIGHT_EYE]]
    else:
        jaw = np.concatenate([points[:64], points[127:63:-1]])
        colours, polygons = ["skin"], [jaw, points[128:273]]
    threshold = 0.25 if feature == "eyes" else 0.4  # the upper lid casts a shadow on the eye
    coloured = without_holes(colour_change(face, *colours) > threshold)
    return coloured, polygons, np.concatenate(polygons)


@pytest.mark.parametrize("width", [140, 217, 420])
@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("feature", ["lips", "open lips", "brows", "eyes", "skin"])
def test_features_are_painted_at_their_landmarks(
    feature: str, index: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mouth_open = 0.7 if feature == "open lips" else 0.0
    face = plain_face(11, index, width, mouth_open=mouth_open)
    if feature == "skin":  # the neck has the colour of the skin
        monkeypatch.setattr(drawing, "_paint_body", lambda painting: None)

    coloured, polygons, border = feature_and_outline(feature.removeprefix("open "), face)

    # the ends of lips and eyes are thinner than a pixel
    assert overlap(coloured, inside(coloured.shape, polygons)) > 0.85
    assert np.quantile(distance_to_border(coloured, border), 0.9) < 1


@pytest.mark.parametrize("index", range(4))
def test_the_iris_is_centred_on_the_pupil(index: int) -> None:
    face = plain_face(12, index, 420)
    face = replace(  # otherwise the lids hide one side
        face,
        expression=replace(face.expression, gaze_x=0, gaze_y=0, eye_open=1.3),
        pose=replace(face.pose, roll_deg=0, yaw_deg=10),
    )
    points = landmarks(face)
    coloured = without_holes(colour_change(face, "iris") > 0.25)
    for pupil, eye in ((969, LEFT_EYE), (970, RIGHT_EYE)):
        corners = points[[eye[0], eye[31]]]
        half_width = np.linalg.norm(corners[1] - corners[0]) / 2
        y, x = np.indices(coloured.shape)
        near = np.hypot(x - points[pupil, 0], y - points[pupil, 1]) < half_width
        row = np.flatnonzero((coloured & near)[round(points[pupil, 1])])
        assert (row[0] + row[-1]) / 2 == pytest.approx(points[pupil, 0], abs=1)
        assert 0.3 < (row[-1] - row[0] + 1) / (2 * half_width) < 0.75


@pytest.mark.parametrize("index", range(4))
def test_the_crease_next_to_the_nose_follows_the_landmarks(
    index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = plain_face(13, index, 420)
    face = replace(face, pose=replace(face.pose, yaw_deg=0))
    with_nose, points = paint(face)
    monkeypatch.setattr(drawing, "_paint_nose", lambda painting: None)
    without_nose, _ = paint(face)
    darker = cv2.GaussianBlur(without_nose.astype(np.float32) - with_nose, (0, 0), 1).mean(-1)
    for side in (range(401, 464), range(464, 527)):
        wing = points[side[29:40]]
        along = points[side[30:41]] - points[side[28:39]]
        across = np.stack([-along[:, 1], along[:, 0]], -1) / np.linalg.norm(along, axis=-1)[:, None]
        steps = np.arange(-6, 7)
        places = (wing[:, None] + steps[:, None] * across[:, None]).astype(np.float32)
        profile = cv2.remap(darker, places[..., 0], places[..., 1], cv2.INTER_LINEAR).mean(0)
        assert abs(steps[profile.argmax()]) <= 1


def test_landmarks_are_in_the_contests_order() -> None:
    for index in range(20):
        face = plain_face(14, index)
        face = replace(face, pose=replace(face.pose, yaw_deg=0, pitch_deg=0, roll_deg=0))
        points = landmarks(face)
        x, y = points.T
        assert points.shape == (971, 2)
        assert x[0] < x[64] and y[[0, 64]] == pytest.approx(y[:272].max(), abs=2)  # chin
        assert y[63] < y[0] and x[63] < x[587:650].min()  # up the left cheek
        assert y[127] < y[64] and x[127] > x[714:777].max()
        assert x[128] > x[200] > x[272] and y[200] == pytest.approx(y.min(), abs=1)  # hairline
        for brow, sign in ((273, -1), (337, 1)):
            assert (x[brow] - x[brow + 32]) * sign > 0  # outer end first
            assert y[brow + 16] < y[brow + 48]  # then along the upper edge
        for nose, sign in ((401, -1), (464, 1)):
            assert y[nose] < y[nose + 30] < y[nose + 62]
            assert (x[nose + 35] - x[nose + 62]) * sign > 0
        assert (np.diff(y[527:587]) > 0).all()  # ridge, straight down
        for eye, size, sign in ((587, 63, -1), (650, 64, -1), (714, 63, 1), (777, 64, 1)):
            assert (x[eye] - x[eye + size // 2]) * sign > 0  # outer corner first
            assert y[eye + size // 4] < y[eye + 3 * size // 4]  # then the upper lid
        assert x[650] < x[682] < x[809] < x[777]
        assert x[841] < x[872] and x[873] > x[904] and x[905] < x[936] and x[937] > x[968]
        assert y[857] < y[888] < y[952] + 0.01 < y[920]
        assert x[969] < x[970]


@pytest.mark.parametrize("index", range(20))
def test_features_keep_their_shape_in_any_pose_and_expression(index: int) -> None:
    points = landmarks(sample_face(15, index))
    for pupil, eye in ((969, LEFT_EYE), (970, RIGHT_EYE)):
        ring = points[eye].astype(np.float32)
        assert cv2.pointPolygonTest(ring, points[pupil].tolist(), True) > -0.5
    steps = np.linalg.norm(np.diff(points[:64], axis=0), axis=-1)
    assert steps.max() < 6 * np.median(steps)


def test_the_lips_of_a_closed_mouth_share_their_edge() -> None:
    closed = landmarks(plain_face(16, 0))
    opened = landmarks(plain_face(16, 0, mouth_open=0.7))
    assert np.abs(closed[873:905] - closed[937:969]).max() < 0.01
    assert opened[952, 1] - opened[888, 1] > 5


def test_a_mirrored_face_has_the_mirrored_landmarks() -> None:
    permutation = mirror_permutation(971)
    for index in range(20):
        face = sample_face(17, index)
        expression, pose = face.expression, face.pose
        mirrored = replace(
            face,
            shape=replace(face.shape, lean=-face.shape.lean),
            expression=replace(
                expression,
                gaze_x=-expression.gaze_x,
                brow_difference=-expression.brow_difference,
                eye_difference=-expression.eye_difference,
                smile_difference=-expression.smile_difference,
            ),
            pose=replace(
                pose,
                yaw_deg=-pose.yaw_deg,
                roll_deg=-pose.roll_deg,
                x_image=face.camera.width - 1 - pose.x_image,
            ),
        )
        expected = landmarks(face)[permutation]
        expected[:, 0] = face.camera.width - 1 - expected[:, 0]
        # the template has 5 decimals, and a unit is about 100 px
        assert np.abs(landmarks(mirrored) - expected).max() < 0.01


def test_sizes_positions_and_borders_match_the_contests() -> None:
    faces = [sample_face(18, index) for index in range(1500)]
    width = np.array([face.camera.width for face in faces])
    height = np.array([face.camera.height for face in faces])
    assert width.mean() == pytest.approx(217, abs=12)
    assert np.median(width) == pytest.approx(190, abs=12)
    assert width.std() == pytest.approx(104, abs=15)
    assert width.min() >= 70 and 800 < height.max() < 1400
    aspect = height / width
    assert np.quantile(aspect, (0.25, 0.5, 0.75)) == pytest.approx((1.31, 1.37, 1.42), abs=0.02)
    assert aspect.min() > 1.1 and aspect.max() < 1.6

    borders = np.array([face.camera.borders for face in faces])
    share = borders / np.stack([width, height, width, height], -1)
    assert 0.15 < (share.max(-1) > 0.07).mean() < 0.35
    assert share.max() < 0.26
    assert ((share > 0) & (share < 0.05)).any(-1).mean() > 0.5

    relative = np.stack(
        [landmarks(face) / (face.camera.width, face.camera.height) for face in faces[:300]]
    )
    eye_line = relative[:, [969, 970], 1].mean(-1)
    outline = relative[:, :273]
    assert 0.40 < np.median(eye_line) < 0.46
    assert 0.78 < np.median(outline[..., 1].max(-1)) < 0.84
    assert 0.57 < np.median(np.ptp(outline[..., 0], axis=-1)) < 0.67
    assert ((relative < 0) | (relative > 1)).any(-1).mean() < 0.01


def test_an_image_has_its_cameras_size_and_black_borders() -> None:
    face = plain_face(19, 0, 130)
    face = replace(face, camera=replace(face.camera, borders=(3, 20, 0, 7)))
    image, points_image = paint(face)
    assert image.shape == (face.camera.height, 130, 3) and image.dtype == np.uint8
    is_black = (image == 0).all(-1)
    assert is_black[:20].all() and is_black[-7:].all() and is_black[:, :3].all()
    assert not is_black[20:-7, 3:].any(0).all() and not is_black[30:-30, -1].all()
    assert np.array_equal(points_image, landmarks(face))


def test_a_face_depends_only_on_seed_and_index() -> None:
    first, points = draw_face(3, 5)
    draw_face(3, 6)
    again, same_points = draw_face(3, 5)
    assert np.array_equal(first, again) and np.array_equal(points, same_points)
    for seed, index in ((3, 4), (4, 5)):
        assert not np.array_equal(landmarks(sample_face(seed, index)), points)


def bytes_of_files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def small_contest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("contest") / "small"
    make_contest(out, count=5, seed=2, test_count=3)
    return out


def test_the_number_of_workers_does_not_change_the_bytes(
    small_contest: Path, tmp_path: Path
) -> None:
    make_contest(tmp_path / "again", count=5, seed=2, test_count=3, workers=2)
    assert bytes_of_files(small_contest) == bytes_of_files(tmp_path / "again")
    make_contest(tmp_path / "other", count=5, seed=1, test_count=3)
    assert not bytes_of_files(small_contest).keys() & {
        name for name in bytes_of_files(tmp_path / "other") if name.endswith(".jpg")
    }


def test_a_larger_contest_begins_with_the_smaller_one(small_contest: Path, tmp_path: Path) -> None:
    make_contest(tmp_path / "larger", count=7, seed=2, test_count=4)
    smaller, larger = bytes_of_files(small_contest), bytes_of_files(tmp_path / "larger")
    assert smaller.keys() < larger.keys()
    for name, content in smaller.items():
        assert larger[name].startswith(content), name


def test_the_contest_can_be_read(small_contest: Path) -> None:
    table = contest.read_landmarks(small_contest / "train" / "landmarks.csv")
    assert table.points_image.shape == (5, 971, 2)
    assert np.array_equal(table.points_image, np.round(table.points_image))
    for row, name in enumerate(table.names):
        assert len(name) == 36 and int(name.removesuffix(".jpg"), 16)
        image = contest.read_image(small_contest / "train" / "images" / name)
        drawn, points_image = draw_face(2, row)
        assert image.shape == drawn.shape
        assert np.abs(image.astype(int) - drawn).mean() < 12  # JPEG
        assert np.abs(table.points_image[row] - points_image).max() <= 0.5 + 1e-4

    asked = contest.read_asked_points(small_contest / "test" / "test_points.csv", 971)
    assert asked.indices.shape == (3, 30)
    assert (np.diff(asked.indices) < 0).any(-1).all()
    solution = contest.read_solution(small_contest / "withheld" / "solution.csv")
    sample = contest.read_submission(small_contest / "sampleSubmission.csv")
    assert solution.names == sample.names == asked.names
    assert solution.points_image.shape == sample.points_image.shape == (3, 30, 2)
    _, points_image = draw_face(2, 10**9 + 1)
    assert np.array_equal(solution.points_image[1], np.round(points_image[asked.indices[1]]))
    assert not (small_contest / "test" / "landmarks.csv").exists()


def test_the_command_makes_a_contest_and_does_not_overwrite_it(
    tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("make", tmp_path / "out", "--count", 2, "--seed", 2, "--workers", 1)
    assert tool("data", *command) == 0
    assert len(bytes_of_files(tmp_path / "out")) == 2 + 1 + 4
    assert tool("data", *command) == 1
    assert "not an empty folder" in capsys.readouterr().err
    assert tool("data", "make", tmp_path / "out") == 2
