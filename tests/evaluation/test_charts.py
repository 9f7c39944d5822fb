import base64
import re
from itertools import product
from typing import Any

import cv2
import numpy as np
import pytest

from heatmap.evaluation import charts, page
from heatmap.evaluation.charts import LineChart, Series


def chart_of(series: Series, **options: Any) -> LineChart:
    chart = charts.line_chart([series], "x", "y", **options)
    assert chart is not None
    return chart


def curve_of(chart: LineChart) -> np.ndarray:
    """(N, 2) the chart's first curve on the screen."""
    pairs = re.split("[ML]", chart.curves[0].path)[1:]
    return np.array([list(map(float, pair.split())) for pair in pairs])


def y_texts(chart: LineChart) -> list[str]:
    return [text for _, text in chart.y_ticks]


def test_an_image_in_a_page_is_the_image() -> None:
    image = np.full((20, 30, 3), (200, 100, 50), np.uint8)
    data = np.frombuffer(base64.b64decode(page.jpeg(image).partition(",")[2]), np.uint8)
    decoded = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert decoded.shape == image.shape
    assert np.abs(decoded.astype(int) - image).max() < 8


def test_columns_of_numbers_align_right() -> None:
    rows = [["a1", "1,234.5 px²", "3"], ["b2", "−7", "x"]]
    assert page.table(["name", "px", "mixed"], rows)["is_number"] == [False, True, False]


def test_bars_are_proportional_to_their_values() -> None:
    bars = charts.bars({"a": 1.0, "b": 4.0, "none": None, "nan": float("nan")}, " px")
    assert [bar.percent for bar in bars] == [25, 100, None, None]
    assert [bar.text for bar in bars] == ["1.00 px", "4.00 px", "–", "–"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (5, "5.00"), (9.7, "9.70"), (21, "21.0"), (1113.2, "1,110"), (0.01234, "0.0123"),
        (9.996, "10.0"), (999.6, "1,000"), (2.4e6, "2,400,000"), (-3.14159, "-3.14"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert charts.three_digits(value) == text
    assert charts.bars({"a": value}, " px²")[0].text == f"{text} px²"


def test_dots_show_position_and_value() -> None:
    points = np.array([[0.0, 0], [10, 0], [np.nan, 3], [10, 30], [0, 30]])
    values = np.array([0.0, 1, 1, 2, np.nan])
    arrows = np.array([[1.0, 0], [0, -3], [9, 9], [0, 0], [np.nan, np.nan]])
    chart = charts.dot_chart(points, values, list("abxcd"), highest=2, arrows=arrows)
    a, b, c, d = chart.dots
    assert (b.x - a.x) * 3 == pytest.approx(c.y - b.y), "both axes have the same scale"
    assert c.y > b.y and a.x == d.x
    assert d.colour == charts.GREY and len({dot.colour for dot in chart.dots}) == 4
    red, green, blue = (int(c.colour[k : k + 2], 16) for k in (1, 3, 5))
    assert red > 200 and green > 200 and blue < 100, "the worst is bright yellow"
    assert (b.text, d.text) == ("b: 1.00 px", "d: –")
    assert a.arrow and b.arrow and b.arrow[1] == pytest.approx(-charts.WIDTH / 8)
    assert a.arrow[0] == pytest.approx(charts.WIDTH / 24) and a.arrow[1] == 0
    assert d.arrow == (0, 0)


def test_lines_join_true_and_predicted_points() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    truth = np.array([[1.0, 2], [30, 20], [np.nan, np.nan]])
    predicted = np.array([[3.0, 4], [np.nan, 5], [50, 30]])
    marked = page.marked_image(image, "a face", truth, predicted)
    assert marked["errors"] == "M1.0 2.0L3.0 4.0"
    assert marked["truth"] == "M1.0 2.0h0M30.0 20.0h0"
    assert marked["predicted"] == "M3.0 4.0h0M50.0 30.0h0"
    assert (marked["width"], marked["height"]) == (60, 40)


def test_a_curve_goes_through_its_values() -> None:
    points = curve_of(chart_of(Series("", [0, 5, 10], [0, 20, 100])))
    left, bottom = points[0]
    right, top = points[-1]
    assert left < right and top < bottom
    assert points[1, 0] == pytest.approx((left + right) / 2, abs=0.1)
    assert points[1, 1] == pytest.approx(bottom + 0.2 * (top - bottom), abs=0.1)


def test_equal_factors_have_equal_distances_on_a_logarithmic_axis() -> None:
    points = curve_of(chart_of(Series("", range(4), [3, 12, 48, 0]), log_y=True))
    assert len(points) == 3, "zero has no logarithm"
    steps = np.diff(points[:, 1])
    assert steps[0] < 0 and steps[0] == pytest.approx(steps[1], abs=0.2)


def test_a_curve_is_broken_where_values_are_missing() -> None:
    path = chart_of(Series("", range(6), [1, 2, np.nan, 3, np.inf, 4])).curves[0].path
    assert (path.count("M"), path.count("L")) == (3, 1)


@pytest.mark.parametrize(
    ("value", "log_y"),
    [(0.0, False), (-3.0, False), *product([3e-4, 1.0, 7.0, 1234.5], [False, True])],
)
def test_a_constant_curve_lies_inside_its_axis(value: float, log_y: bool) -> None:
    chart = chart_of(Series("", [1, 2, 3], [value, value * (1 + 1e-12), value]), log_y=log_y)
    texts = y_texts(chart)
    assert len(texts) >= 3 and len(set(texts)) == len(texts), "no two labels are equal"
    heights = curve_of(chart)[:, 1]
    bottom, top = charts.HEIGHT - charts.BOTTOM, charts.TOP
    if value:
        assert top + 20 < heights.min() and heights.max() < bottom - 20
    else:
        assert (heights == bottom).all() and texts[0] == "0" and texts[-1] == "1"


@pytest.mark.parametrize("y", [[0, 0], [10, 40], [0, 100]])
def test_given_ends_of_an_axis_are_always_shown(y: list[int]) -> None:
    chart = chart_of(Series("", [0, 1], y), y_ends=(0, 100))
    assert y_texts(chart) == ["0", "20", "40", "60", "80", "100"]


@pytest.mark.parametrize("values", [[], [np.nan], [7.0], [0.0, 0.0], [1e-9, 1e9], [-3.0, -3.0]])
@pytest.mark.parametrize("log_y", [False, True])
def test_unusual_values_give_a_chart_or_none(values: list[float], log_y: bool) -> None:
    series = Series("a", range(len(values)), values, "dots")
    chart = charts.line_chart([series], "x", "y", log_y=log_y)
    least = 0 if log_y else -np.inf
    if not any(value > least for value in values):
        assert chart is None
        return
    assert chart is not None
    for x, y in [*curve_of(chart).tolist(), *(dot[:2] for dot in chart.curves[0].dots)]:
        assert 0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3.2, 1784), (-0.4, 0.31), (5, 5), (1e-9, 2e-9)])
def test_ticks_are_few_and_enclose_the_values(low: float, high: float) -> None:
    for ticks in (charts.ticks(low, high), charts.log_ticks(abs(low) or 0.1, high)):
        assert 1 <= len(ticks) <= 12
        assert ticks[-1] >= high * (1 - 1e-9)
