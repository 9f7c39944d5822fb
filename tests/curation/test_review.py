"""The page of doubtful labels, used in Chromium with mouse, touch and keys."""

import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from browser import SHIFT, Browser

from heatmap.curation.audit.folder import AuditFolder
from heatmap.curation.audit.injected import KINDS, inject
from heatmap.curation.audit.residuals import AuditData, score_labels
from heatmap.curation.review import write_review
from heatmap.data import contest

pytestmark = pytest.mark.slow  # each needs a browser
Tool = Callable[..., int]
NUM = 300  # faces; the first of the page are the wrong ones


@dataclass(frozen=True)
class Page:
    """A page of 20 faces; five have an error of each kind."""

    path: Path
    root: Path  # the contest folder
    truth: dict[str, np.ndarray]  # (P, 2) by file name
    kind: dict[str, str]  # of the wrong faces


@pytest.fixture(scope="module")
def page(drawn: AuditData, tmp_path_factory: pytest.TempPathFactory) -> Page:
    root = contest.Folder(root=tmp_path_factory.mktemp("review"))
    root.train_images.mkdir(parents=True)
    data = drawn.select(np.arange(NUM))
    names = [f"person{row // 2}_{row}.png" for row in range(NUM)]
    changed, rows, kinds = inject(data, np.random.default_rng(6), 5)
    contest.write_landmarks(root.train_table, names, np.asarray(changed.points_image))
    table = contest.read_landmarks(root.train_table)
    for name in names:
        cv2.imwrite(str(root.train_images / name), np.full((300, 300, 3), 90, np.uint8))
    paths = contest.image_paths(root.train_images, names, root.train_table)
    people = contest.people_of(names)
    folder = AuditFolder(names, paths, changed, people, None, table.fingerprint)
    write_review(root.root / "review.html", folder, score_labels(changed), 20)
    wrong = [names[row] for row in rows]
    return Page(
        root.root / "review.html", root.root, dict(zip(names, data.points_image, strict=True)),
        {name: KINDS[kind] for name, kind in zip(wrong, kinds, strict=True)},
    )  # fmt: skip


@pytest.fixture
def browser(page: Page, tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path) as browser:
        browser.open(page.path)
        yield browser
        assert not browser.complaints


def shown(browser: Browser) -> np.ndarray:
    """(P, 2) landmarks in image pixels."""
    values = "[...editOf(current).shown].map((v, c) => v * f.scale + f.offset[c & 1])"
    return np.array(browser.run(f"(f => {values})(faces[current])")).reshape(-1, 2)


def place(browser: Browser, points_image: np.ndarray) -> list[tuple[float, float]]:
    """Places on the screen of (K, 2) points."""
    script = f"""{points_image.tolist()}.map(([x, y]) => {{
      const {{ scale, offset }} = faces[current], box = canvas.getBoundingClientRect();
      const [u, v] = toScreen((x - offset[0]) / scale, (y - offset[1]) / scale);
      return [u + box.left, v + box.top];
    }})"""
    return [(x, y) for x, y in browser.run(script)]


def drag(browser: Browser, landmark: int, to_image: np.ndarray, modifiers: int = 0) -> None:
    start, end = place(browser, np.stack([shown(browser)[landmark], to_image]))
    middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    browser.drag(start, middle, end, modifiers=modifiers)


def show(browser: Browser, name: str) -> None:
    browser.run(f"show(faces.findIndex((face) => face.name === '{name}'))")


def text(browser: Browser, element: str) -> Any:
    return browser.run(f"document.getElementById('{element}').textContent")


def test_ten_drags_mend_a_wrong_face(browser: Browser, page: Page) -> None:
    for name, kind in page.kind.items():
        truth = page.truth[name]
        show(browser, name)
        error = np.linalg.norm(shown(browser) - truth, axis=1)
        worst = np.argsort(-error)[:10]
        for landmark in worst.tolist():
            # landmarks of a wrong label may lie on each other
            browser.run(f"nearest = () => {landmark}")
            drag(browser, landmark, truth[landmark])
        left = np.linalg.norm(shown(browser) - truth, axis=1)
        others = np.setdiff1d(np.arange(len(truth)), worst)
        expected = browser.run("faces[current].expected.map((px) => px * faces[current].scale)")
        assert left[worst].max() < 0.5, kind
        assert left[others].mean() < 0.3 * error[others].mean(), kind
        assert left[others].mean() < np.mean(list(expected.values())), kind


@pytest.mark.parametrize("width", [1280, 400])
def test_neighbours_follow_a_landmark_until_undone(browser: Browser, width: int) -> None:
    browser.resize(width, 900)
    browser.run("new Promise((done) => setTimeout(done, 100))")
    assert browser.run("document.documentElement.scrollWidth") == width
    start, brow = shown(browser), browser.run("groups['left brow']")
    chosen = browser.run("(groups['left brow'][0] + groups['left brow'][1]) >> 1")
    browser.run(f"nearest = () => {chosen}")
    drag(browser, chosen, start[chosen] + [6, -9])
    moved = shown(browser)
    assert np.abs(moved[chosen] - start[chosen] - [6, -9]).max() < 0.1
    assert (np.linalg.norm(moved - start, axis=1)[slice(*brow)] > 1).sum() > 1
    assert text(browser, "progress") == "1 of 20 reviewed"
    browser.key("u")
    assert np.array_equal(shown(browser), start)
    assert text(browser, "progress") == "0 of 20 reviewed"
    browser.key("y")
    assert np.array_equal(shown(browser), moved)

    other = browser.run("groups.mouth[0]")
    browser.run(f"nearest = () => {other}")
    drag(browser, other, moved[other] + 5, SHIFT)
    alone = shown(browser)
    assert (alone != moved).any(1).sum() == 1
    browser.key("x")
    assert np.array_equal(browser.run("[...editOf(current).pins.keys()]"), [chosen])


def test_a_review_goes_on_after_a_reload_and_from_its_file(
    browser: Browser, page: Page, tool: Tool, tmp_path: Path
) -> None:
    names = list(page.kind)
    show(browser, names[0])
    browser.key("w")
    for key in ("ArrowUp", "ArrowUp", "ArrowLeft"):
        browser.key(key)
    corrected, face = shown(browser), browser.run("current")
    for name, key in zip(names[1:4], "gbg", strict=True):
        show(browser, name)
        browser.key(key)
    browser.key("g")  # takes it back
    browser.open(page.path)
    assert text(browser, "progress") == "3 of 20 reviewed"
    browser.run(f"show({face})")
    assert np.abs(shown(browser) - corrected).max() < 0.01
    browser.key("s")
    saved = tmp_path / "corrections.csv"
    while not saved.exists():
        time.sleep(0.05)
    with saved.open(newline="") as file:
        rows = {row["file_name"]: row for row in csv.DictReader(file)}
    assert [rows[name]["review"] for name in names[:3]] == ["corrected", "good", "bad"]

    browser.run("localStorage.clear()")
    browser.open(page.path)
    assert text(browser, "progress") == "0 of 20 reviewed"
    open_file(browser, saved)
    assert text(browser, "progress") == "3 of 20 reviewed"
    browser.run(f"show({face})")
    assert np.abs(shown(browser) - corrected).max() < 0.01
    assert browser.run("editOf(current).pins.size") == 1

    assert tool("data", "apply", page.root, saved, "--out", "new") == 0
    table = contest.read_landmarks(tmp_path / "new" / "train" / "landmarks.csv")
    points = dict(zip(table.names, table.points_image[:], strict=True))
    assert np.abs(points[names[0]] - corrected).max() < 0.02
    assert np.isnan(points[names[2]]).all()


def open_file(browser: Browser, path: Path) -> None:
    root = browser.call("DOM.getDocument")["root"]["nodeId"]
    node = browser.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    browser.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
    browser.run("new Promise((done) => setTimeout(done, 300))")


def test_corrections_of_another_table_are_not_opened(browser: Browser, tmp_path: Path) -> None:
    header = browser.run("String(columns)")
    (tmp_path / "other.csv").write_text(f"{header}\ngood,other,,person0_0.png\n")
    open_file(browser, tmp_path / "other.csv")
    assert text(browser, "notice") == "other.csv was made for another table of landmarks."
    assert text(browser, "progress") == "0 of 20 reviewed"


def test_the_prediction_of_a_group_is_taken(browser: Browser) -> None:
    start, mouth = shown(browser), browser.run("groups.mouth")
    browser.run("group = groupNames.indexOf('mouth')")
    browser.key("p")
    predicted = browser.run("[...faces[current].predicted]")
    assert (
        browser.run("[...editOf(current).shown.slice(2 * groups.mouth[0])]")[:4]
        == (predicted[2 * mouth[0] : 2 * mouth[0] + 4])
    )
    others = np.delete(np.arange(len(start)), slice(*mouth))
    assert np.array_equal(shown(browser)[others], start[others])


def test_fingers_drag_and_zoom(browser: Browser) -> None:
    browser.resize(400, 800)
    browser.call("Emulation.setTouchEmulationEnabled", enabled=True)
    browser.run("new Promise((done) => setTimeout(done, 100))")
    start = shown(browser)
    chosen = browser.run("groups.mouth[0]")
    browser.run(f"nearest = () => {chosen}")
    a, b = place(browser, np.stack([start[chosen], start[chosen] + [0, 8]]))
    browser.touch([a], [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2)], [b])
    assert np.abs(shown(browser)[chosen] - start[chosen] - [0, 8]).max() < 1.5
    scale = browser.run("view.scale")
    browser.run("nearest = () => -1")
    browser.touch([(150, 300), (250, 300)], [(100, 300), (300, 300)])
    assert browser.run("view.scale") == pytest.approx(2 * scale, rel=0.1)


def test_filters_choose_faces(browser: Browser, page: Page) -> None:
    name = next(iter(page.kind))
    show(browser, name)
    browser.key("b")
    browser.run("document.getElementById('filter-review').value = 'bad'; filter()")
    assert browser.run("visible.map((index) => faces[index].name)") == [name]
    person = name.partition("_")[0]
    script = "document.getElementById('filter-{}').value = '{}'; filter()"
    browser.run(script.format("review", ""))
    browser.run(script.format("text", f"{person}_"))
    assert name in browser.run("visible.map((index) => faces[index].name)")


def test_a_browser_that_keeps_nothing_is_reported(page: Page, tmp_path: Path) -> None:
    with Browser(tmp_path) as browser:
        denied = "Object.defineProperty(window, 'localStorage', { get() { throw Error(); } })"
        browser.call("Page.addScriptToEvaluateOnNewDocument", source=denied)
        browser.open(page.path)
        assert "save it before you close the page" in text(browser, "notice")
