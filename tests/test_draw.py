import numpy as np
import pytest

from heatmap import draw

GROUPS = {"one": range(0, 2), "two": range(2, 5)}


def test_every_landmark_is_a_dot_at_its_place_in_the_colour_of_its_group() -> None:
    image = np.zeros((450, 650, 3), np.uint8)
    points = np.array([[50, 100], [500, 150], [200, 350], [300, 300], [np.nan, 250]])
    drawn = draw.draw_landmarks(image, points, GROUPS)
    for (x, y), index in zip(points[:4].astype(int), (0, 0, 1, 1), strict=True):
        assert tuple(drawn[y, x]) == draw.COLOURS[index]
        drawn[y - 3 : y + 4, x - 3 : x + 4] = 0
    assert not drawn.any(), "something is drawn where no landmark is"


@pytest.mark.parametrize("size", [60, 130, 300])
def test_a_dot_on_a_small_picture_has_its_full_colour_too(size: int) -> None:
    image = np.full((size, size + 10, 3), 7, np.uint8)
    drawn = draw.draw_landmarks(image, np.array([[20.0, 20.0]]), {"all": range(1)}, (255, 0, 0))
    assert tuple(drawn[20, 20]) == (255, 0, 0)


def test_a_dot_lies_between_pixels_where_its_landmark_does() -> None:
    image = np.zeros((900, 1300, 3), np.uint8)
    point = np.array([[400.6, 300.3]])
    weights = draw.draw_landmarks(image, point, {"all": range(1)}, draw.TRUTH)[..., 1].astype(float)
    y, x = np.mgrid[:900, :1300]
    centre = (x * weights).sum() / weights.sum(), (y * weights).sum() / weights.sum()
    assert centre == pytest.approx((400.6, 300.3), abs=0.15)


def test_the_picture_itself_stays_as_it_is() -> None:
    image = np.full((40, 60, 3), 7, np.uint8)
    drawn = draw.draw_landmarks(image, np.array([[20.0, 20.0]]), {"all": range(1)}, (255, 0, 0))
    assert (drawn != 7).any()
    assert (image == 7).all()


def test_landmarks_far_outside_draw_nothing() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    points = np.array([[-500.0, 20.0], [20, 1e5], [np.nan, np.nan], [1e4, -1e4], [-9, -9]])
    assert not draw.draw_landmarks(image, points, GROUPS).any()


def test_a_sheet_holds_every_picture_in_reading_order() -> None:
    tiles = [np.full((10 + k, 20 - k, 3), 50 + k, np.uint8) for k in range(5)]
    sheet = draw.sheet(iter(tiles), columns=2, gap=4)
    assert sheet.shape == (3 * 14 + 2 * 4, 2 * 20 + 4, 3)
    for k, tile in enumerate(tiles):
        top, left = k // 2 * 18, k % 2 * 24
        assert np.array_equal(sheet[top : top + tile.shape[0], left : left + tile.shape[1]], tile)
        assert (sheet == 50 + k).all(-1).sum() == tile.shape[0] * tile.shape[1]
