import base64
import re
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import shown

from heatmap.evaluation import html
from heatmap.evaluation.html import Series


class Elements(HTMLParser):
    """The elements of a page with their attributes; fails where tags are not closed in order."""

    ALONE = ("meta", "link", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.ALONE:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.found if found == tag]


def curve_of(chart: str) -> np.ndarray:
    """(N, 2) the chart's first curve on the screen."""
    path = Elements(chart).of("path")[0]["d"]
    return np.array([list(map(float, pair.split())) for pair in re.split("[ML]", path or "")[1:]])


def everything() -> str:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    points = np.array([[10, 5], [80, 50], [40, 30], [np.nan, 7], [20, 40]])
    png = cv2.imencode(".png", image)[1].tobytes()
    wide = [[f"{10**k:,}" for k in range(14)]]
    chart = html.line_chart(
        [Series("one", range(9), np.arange(9.0) ** 2), Series("two", [0, 8], [5, 9], "dashed")],
        "epoch", "px²",
    )  # fmt: skip
    return html.page(
        "A <page>",
        {
            "": [html.paragraph("Tom & Jerry")],
            "Parts": [
                html.columns(html.figure(chart, "rises"), html.bars({"left": 1.5, "right": 3.0})),
                html.tiles(html.picture(image, "noise"), html.picture(png, 'a "png"')),
                html.marked_picture(image, "marked", points, points + 3),
                html.dot_chart(points, points[:, 0], list("abcde"), most=50, arrows=points - 40),
                html.colour_scale(50, " px"),
                html.table(["a", *"bcdefghijklmn"], wide),
            ],
        },
    )


def test_a_page_is_well_formed_and_asks_for_nothing() -> None:
    text = everything()
    page = Elements(text)
    assert "A &lt;page&gt;" in text and "Tom &amp; Jerry" in text
    sources = [picture["src"] or "" for picture in page.of("img")]
    assert [source.split(";")[0] for source in sources] == [
        "data:image/jpeg", "data:image/png", "data:image/jpeg",
    ]  # fmt: skip
    assert not page.of("script")
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import|https?:", text)


def test_a_browser_shows_it_on_screens_of_all_widths(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(everything(), "utf-8")
    for width, found in zip(
        (400, 700, 1280), shown(tmp_path / "page.html", (400, 700, 1280), tmp_path), strict=True
    ):
        assert found["page_width"] <= width == found["screen_width"]
        assert found["pictures"] == [90, 90, 90]
        assert min(found["charts"]) > 300 and max(found["charts"]) <= 480, "about as large as text"


def test_a_picture_is_the_picture() -> None:
    image = np.full((20, 30, 3), (200, 100, 50), np.uint8)
    source = Elements(html.picture(image, "")).of("img")[0]["src"] or ""
    data = np.frombuffer(base64.b64decode(source.partition(",")[2]), np.uint8)
    decoded = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert decoded.shape == image.shape
    assert np.abs(decoded.astype(int) - image).max() < 8


def test_columns_of_numbers_line_up_on_the_right() -> None:
    text = html.table(["name", "px", "mixed"], [["a1", "1,234.5 px²", "3"], ["b2", "−7", "x"]])
    kinds = [attributes.get("class") for attributes in Elements(text).of("td")]
    assert kinds == [None, "number", None] * 2


def test_bars_are_as_long_as_their_values() -> None:
    text = html.bars({"a": 1.0, "b": 4.0, "none": float("nan")}, " px")
    lengths = [a["style"] for a in Elements(text).of("div") if a.get("class") == "bar"]
    assert lengths == ["width:25.0%", "width:100.0%"]
    assert "4.00 px" in text


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0, "0"), (5, "5.00"), (9.7, "9.70"), (21, "21.0"), (1113.2, "1,110"), (0.01234, "0.0123"),
        (9.996, "10.0"), (999.6, "1,000"), (2.4e6, "2,400,000"), (-3.14159, "-3.14"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits_and_no_exponent(value: float, told: str) -> None:
    assert html.three_digits(value) == told
    assert f">{told} px²<" in html.bars({"a": value}, " px²")


def test_dots_lie_and_shine_as_their_values_say() -> None:
    points = np.array([[0.0, 0], [10, 0], [10, 30], [0, 30]])
    values = np.array([0.0, 1, 2, np.nan])
    arrows = np.array([[1.0, 0], [0, -3], [0, 0], [np.nan, np.nan]])
    chart = html.dot_chart(points, values, list("abcd"), most=2, unit=" px", arrows=arrows)
    dots, lines = Elements(chart).of("circle"), Elements(chart).of("line")
    x, y = (np.array([float(dot[name] or "") for dot in dots]) for name in ("cx", "cy"))
    assert (x[1] - x[0]) * 3 == pytest.approx(y[2] - y[1], abs=0.3), "both axes have one scale"
    assert y[2] > y[1] and x[0] == x[3]
    colours = [dot["color"] for dot in dots]
    assert colours[3] == "#666666" and len(set(colours)) == 4
    red, green, blue = (int((colours[2] or "")[k : k + 2], 16) for k in (1, 3, 5))
    assert red > 200 and green > 200 and blue < 100, "the worst is bright yellow"
    assert "b: 1.00 px" in chart and "d: –" in chart
    moved = [
        (float(a["x2"] or "") - float(a["x1"] or ""), float(a["y2"] or "") - float(a["y1"] or ""))
        for a in lines
    ]
    assert moved[0][0] > 0 == moved[0][1] and moved[1][1] == pytest.approx(-html.WIDTH / 8, abs=0.2)
    assert moved[1][1] == pytest.approx(-3 * moved[0][0], abs=0.3) and moved[3] == (0, 0)


def test_marks_are_joined_where_both_points_are_known() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    truth = np.array([[1.0, 2], [30, 20], [np.nan, np.nan]])
    predicted = np.array([[3.0, 4], [np.nan, 5], [50, 30]])
    marked = html.marked_picture(image, "a <face>", truth, predicted)
    lines, true, found = (path["d"] for path in Elements(marked).of("path"))
    assert lines == "M1.0 2.0L3.0 4.0"
    assert true == "M1.0 2.0h0M30.0 20.0h0" and found == "M3.0 4.0h0M50.0 30.0h0"
    assert 'viewBox="-0.5 -0.5 60 40"' in marked, "integer coordinates are pixel centres"
    assert "a &lt;face&gt;" in marked


def test_a_curve_lies_where_its_numbers_are() -> None:
    x, y = np.array([0, 5, 10]), np.array([0, 20, 100])
    points = curve_of(html.line_chart([Series("", x, y)], "x", "y"))
    left, bottom = points[0]
    right, top = points[-1]
    assert left < right and top < bottom
    assert points[1, 0] == pytest.approx((left + right) / 2, abs=0.1)
    assert points[1, 1] == pytest.approx(bottom + 0.2 * (top - bottom), abs=0.1)


def test_equal_factors_are_equally_far_apart_on_a_logarithmic_axis() -> None:
    y = [3, 12, 48, 0]
    points = curve_of(html.line_chart([Series("", range(4), y)], "x", "y", log_y=True))
    assert len(points) == 3, "zero has no place"
    steps = np.diff(points[:, 1])
    assert steps[0] < 0 and steps[0] == pytest.approx(steps[1], abs=0.2)


def test_a_curve_is_broken_where_values_are_missing() -> None:
    series = Series("", range(6), [1, 2, np.nan, 3, np.inf, 4])
    path = Elements(html.line_chart([series], "x", "y")).of("path")[0]["d"] or ""
    assert (path.count("M"), path.count("L")) == (3, 1)


@pytest.mark.parametrize(
    ("value", "log_y"),
    [(0.0, False), (-3.0, False), *product([3e-4, 1.0, 7.0, 1234.5], [False, True])],
)
def test_what_never_changes_lies_inside_its_axis(value: float, log_y: bool) -> None:
    y = [value, value * (1 + 1e-12), value]
    chart = html.line_chart([Series("", [1, 2, 3], y)], "x", "y", log_y=log_y)
    ticks = re.findall(r'text-anchor="end">(.+?)<', chart)
    assert len(ticks) >= 3 and len(set(ticks)) == len(ticks), "no two read the same"
    heights = curve_of(chart)[:, 1]
    bottom, top = html.HEIGHT - html.BOTTOM, html.TOP
    if value:
        assert top + 20 < heights.min() and heights.max() < bottom - 20
    else:
        assert (heights == bottom).all() and ticks[0] == "0" and ticks[-1] == "1"


@pytest.mark.parametrize("y", [[0, 0], [10, 40], [0, 100]])
def test_an_axis_with_given_ends_has_them_whatever_is_drawn(y: list[int]) -> None:
    chart = html.line_chart([Series("", [0, 1], y)], "x", "y", y_ends=(0, 100))
    ticks = re.findall(r'text-anchor="end">(.+?)<', chart)
    assert ticks == ["0", "20", "40", "60", "80", "100"]


@pytest.mark.parametrize("values", [[], [np.nan], [7.0], [0.0, 0.0], [1e-9, 1e9], [-3.0, -3.0]])
@pytest.mark.parametrize("log_y", [False, True])
def test_odd_numbers_make_a_chart_too(values: list[float], log_y: bool) -> None:
    chart = html.line_chart(
        [Series("a", range(len(values)), values, "dots")], "x", "y", log_y=log_y
    )
    assert "nan" not in chart and "inf" not in chart
    for path in Elements(chart).of("path"):
        for x, y in re.findall(r"[ML](\S+) (\S+)", path["d"] or ""):
            assert 0 <= float(x) <= html.WIDTH and 0 <= float(y) <= html.HEIGHT


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3.2, 1784), (-0.4, 0.31), (5, 5), (1e-9, 2e-9)])
def test_ticks_are_few_and_enclose_the_values(low: float, high: float) -> None:
    for ticks in (html._ticks(low, high), html._log_ticks(abs(low) or 0.1, high)):
        assert 1 <= len(ticks) <= 12
        assert ticks[-1] >= high * (1 - 1e-9)
