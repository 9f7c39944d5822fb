import numpy as np
import pytest

from heatmap import draw

GROUPS = {"one": range(0, 2), "two": range(2, 5)}


def test_every_landmark_is_a_dot_in_the_colour_of_its_group() -> None:
    image = np.zeros((450, 650, 3), np.uint8)
    points = np.array([[50, 100], [500, 150], [200, 350], [300, 300], [np.nan, 250]])
    drawn = draw.draw_landmarks(image, points, GROUPS)
    for (x, y), index in zip(points[:4].astype(int), (0, 0, 1, 1), strict=True):
        assert tuple(drawn[y, x]) == draw.COLOURS[index]
        drawn[y - 4 : y + 5, x - 4 : x + 5] = 0
    assert not drawn.any(), "something is drawn away from the landmarks"


@pytest.mark.parametrize("size", [60, 130, 300])
def test_dot_on_a_small_image_has_its_full_colour(size: int) -> None:
    image = np.full((size, size + 10, 3), 7, np.uint8)
    drawn = draw.draw_landmarks(image, np.array([[20.0, 20.0]]), {"all": range(1)}, (255, 0, 0))
    assert tuple(drawn[20, 20]) == (255, 0, 0)


def test_dot_is_placed_with_subpixel_accuracy() -> None:
    image = np.zeros((900, 1300, 3), np.uint8)
    point = np.array([[400.6, 300.3]])
    weights = draw.draw_landmarks(image, point, {"all": range(1)}, draw.TRUTH)[..., 1].astype(float)
    y, x = np.mgrid[:900, :1300]
    centre = (x * weights).sum() / weights.sum(), (y * weights).sum() / weights.sum()
    assert centre == pytest.approx((400.6, 300.3), abs=0.15)


def test_image_is_not_modified() -> None:
    image = np.full((40, 60, 3), 7, np.uint8)
    drawn = draw.draw_landmarks(image, np.array([[20.0, 20.0]]), {"all": range(1)}, (255, 0, 0))
    assert (drawn != 7).any()
    assert (image == 7).all()


def test_landmarks_far_outside_draw_nothing() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    points = np.array([[-500.0, 20.0], [20, 1e5], [np.nan, np.nan], [1e4, -1e4], [-9, -9]])
    assert not draw.draw_landmarks(image, points, GROUPS).any()


def test_sheet_holds_every_image_in_reading_order() -> None:
    tiles = [np.full((10 + k, 20 - k, 3), 50 + k, np.uint8) for k in range(5)]
    sheet = draw.sheet(iter(tiles), columns=2, gap=4)
    assert sheet.shape == (3 * 14 + 2 * 4, 2 * 20 + 4, 3)
    for k, tile in enumerate(tiles):
        top, left = k // 2 * 18, k % 2 * 24
        assert np.array_equal(sheet[top : top + tile.shape[0], left : left + tile.shape[1]], tile)
        assert (sheet == 50 + k).all(-1).sum() == tile.shape[0] * tile.shape[1]


def test_curve_joins_its_landmarks_and_breaks_at_missing_ones() -> None:
    points = np.array([[50, 50], [150, 50], [np.nan, 80], [150, 250], [50, 250.0]])
    drawn = draw.draw_landmarks(
        np.zeros((300, 200, 3), np.uint8), points, {"all": range(5)}, curves=[(0, 1, 2, 3, 4, 0)]
    )
    lit = drawn[..., 0] > 200
    assert lit[50, 50:151].all() and lit[250, 50:151].all() and lit[50:251, 50].all()
    assert not lit[60:240, 60:].any()


@pytest.mark.parametrize(("size", "separate"), [(100, False), (3840, True)])
def test_dots_that_would_touch_are_left_out(size: int, separate: bool) -> None:
    """A ring of 250 landmarks: between dots with room, the thinner line is visible."""
    angle = np.arange(250) / 250 * 2 * np.pi
    points = size / 2 + 0.4 * size * np.stack([np.cos(angle), np.sin(angle)], -1)
    image = np.zeros((size, size + 30, 3), np.uint8)
    drawn = draw.draw_landmarks(image, points, {"all": range(250)}, curves=[(*range(250), 0)])
    half_step = int(0.2 * size * 2 * np.pi / 250) + 1
    rows = drawn[size // 2 - half_step : size // 2 + half_step, : size // 4, 0]  # at the left end
    widths = (rows > 100).sum(1)
    assert widths.min() >= 1
    assert (widths.max() > 2 * widths.min()) == separate


@pytest.mark.parametrize("degrees", [0, 30, 105])
def test_ellipse_shows_one_standard_deviation_along_each_axis(degrees: int) -> None:
    turn = np.radians(degrees)
    along = np.array([np.cos(turn), np.sin(turn)])
    across = np.array([-along[1], along[0]])
    covariance = 60**2 * np.outer(along, along) + 20**2 * np.outer(across, across)
    centre = np.array([150.0, 120.0])
    drawn = draw.draw_landmarks(
        np.zeros((240, 300, 3), np.uint8), centre[None], {"all": range(1)},
        covariance_image=covariance[None],
    )  # fmt: skip
    y, x = np.nonzero(drawn[..., 0] > 100)
    offsets = np.stack([x, y], -1) - centre
    assert np.abs(offsets @ along).max() == pytest.approx(60, abs=1.5)
    assert np.abs(offsets @ across).max() == pytest.approx(20, abs=1.5)


def test_invalid_covariance_is_not_drawn() -> None:
    image = np.zeros((90, 80, 3), np.uint8)
    points = np.full((5, 2), 40.0)
    covariances = np.array(
        [np.full((2, 2), np.nan), np.zeros((2, 2)), -np.eye(2), 1e13 * np.eye(2)]
    )
    covariances = covariances[[0, 1, 2, 3, 0]]
    plain = draw.draw_landmarks(image, points, GROUPS)
    drawn = draw.draw_landmarks(image, points, GROUPS, covariance_image=covariances)
    assert np.array_equal(drawn, plain)


def test_lines_are_visible_on_skin_of_the_same_colour() -> None:
    image = np.full((200, 300, 3), draw.COLOURS[0], np.uint8)
    points = np.array([[50, 100], [250, 100.0]])
    drawn = draw.draw_landmarks(image, points, {"all": range(2)}, curves=[(0, 1)])
    assert (drawn[95:105, 150].max(-1) < 180).any()
