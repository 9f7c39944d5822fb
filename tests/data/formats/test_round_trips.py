"""From the contest's layout into every format by one command, and back by another."""

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from heatmap.data.contest import (
    Folder,
    read_asked_points,
    read_boxes,
    read_landmarks,
    read_solution,
    write_answers,
    write_asked_points,
    write_boxes,
    write_landmarks,
)

Tool = Callable[..., int]
FORMS = ["udacity", "ibug", "wflw", "helen194", "coco"]

# Folders that tell iBUG's part as it is and as it is not, an ending in capitals, names that are one
# but for their folder, two and three faces in a photograph, and a number that counts no face.
TRAIN = [
    "ann_1.jpg", "ibug/ann_1.PNG", "deep/er/cy_2.jpg", "ann_1#2.jpg", "ann_1#3.jpg", "dee_1#2.png"
]  # fmt: skip
TEST = ["helen/testset/eve_1.png", "two words/flo_1.jpg", "two words/flo_1#2.jpg", "gus_7.jpg"]


def draw(path: Path, generator: np.random.Generator) -> None:
    image = generator.integers(0, 256, (*generator.integers(8, 20, 2), 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix.lower(), image)[1].tobytes())


@pytest.fixture
def contest(tmp_path: Path) -> Folder:
    """6 training and 4 test faces with 5 landmarks, some unlabelled; boxes and a solution."""
    folder = Folder(root=tmp_path / "contest")
    generator = np.random.default_rng(5)
    points = generator.uniform(-20, 1900, (10, 5, 2)).round(4)
    points[1, 4] = points[3, 0] = points[7, 2] = np.nan
    corners = generator.integers(-5, 900, (10, 2))
    boxes = np.concatenate([corners, corners + generator.integers(1, 900, (10, 2))], 1)
    targets = [folder.train_images / name for name in TRAIN]
    targets += [folder.test_images / name for name in TEST]
    for target in targets:
        draw(target, generator)
    for copy, of in ((3, 0), (4, 0), (8, 7)):
        shutil.copyfile(targets[of], targets[copy])
    write_landmarks(folder.train_table, TRAIN, points[:6])
    write_asked_points(folder.test_points, TEST, np.tile([4, 0, 2, 1, 3], (4, 1)))
    write_answers(folder.solution, TEST, points[6:][:, [4, 0, 2, 1, 3]])
    names = [target.relative_to(folder.root).as_posix() for target in targets]
    write_boxes(folder.boxes, names, boxes.astype(float))
    return folder


def back(tool: Tool, form: str, exported: Path, out: Path, *options: object) -> Folder:
    """A contest folder of an exported one."""
    if form == "coco":
        parts = exported / "annotations"
        source: list[object] = [parts / "train.json", out, "--images", exported / "train"]
        source += ["--test", parts / "test.json", "--test-images", exported / "test"]
    else:
        source = [exported, out]
    assert tool("data", "convert", form, *source, *options) == 0
    return Folder(root=out)


def faces_of(folder: Folder) -> dict[str, tuple[np.ndarray, bytes]]:
    """(5, 2) landmarks and the picture of every face by its part and name, in table order."""
    table = read_landmarks(folder.train_table)
    asked, solution = read_asked_points(folder.test_points, 5), read_solution(folder.solution)
    assert solution.names == asked.names
    truth = np.full((len(asked.names), 5, 2), np.nan)
    np.put_along_axis(truth, asked.indices[..., None].repeat(2, -1), solution.points_image, 1)
    faces = {
        f"train/{name}": (points, (folder.train_images / name).read_bytes())
        for name, points in zip(table.names, table.points_image[:], strict=True)
    }
    return faces | {
        f"test/{name}": (points, (folder.test_images / name).read_bytes())
        for name, points in zip(asked.names, truth, strict=True)
    }


def boxes_of(folder: Folder) -> np.ndarray:
    paths = [folder.train_images / name for name in TRAIN]
    return read_boxes(folder.boxes, paths + [folder.test_images / name for name in TEST])


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_lost_on_the_way_into_a_format_and_back(
    form: str, contest: Folder, tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool("data", "export", form, contest.root, tmp_path / "exported") == 0
    assert "6 faces to train on and 4 to test, 5 landmarks each" in capsys.readouterr().out
    found = back(tool, form, tmp_path / "exported", tmp_path / "found")
    assert ("--crop.rule box" in capsys.readouterr().out) == (form in ("wflw", "coco"))

    expected, faces = faces_of(contest), faces_of(found)
    assert sorted(faces) == sorted(expected)
    if form not in ("ibug", "coco"):  # by path; the faces of a photograph one after the other
        assert list(faces) == list(expected)
    for name, (points, picture) in expected.items():
        np.testing.assert_allclose(faces[name][0], points, atol=1e-4, rtol=0)
        assert faces[name][1] == picture
    if form in ("wflw", "coco"):
        np.testing.assert_array_equal(boxes_of(found), boxes_of(contest))
    else:
        assert not found.boxes.exists()


@pytest.mark.parametrize(("form", "photographs"), [("wflw", 7), ("coco", 7), ("udacity", 10)])
def test_faces_of_a_photograph_share_it_again(
    form: str, photographs: int, contest: Folder, tool: Tool, tmp_path: Path
) -> None:
    assert tool("data", "export", form, contest.root, tmp_path / "exported") == 0
    pictures = [
        path
        for path in (tmp_path / "exported").rglob("*")
        if path.suffix in (".jpg", ".PNG", ".png")
    ]
    assert len(pictures) == photographs
    found = back(tool, form, tmp_path / "exported", tmp_path / "found")
    first, second = (found.train_images / name for name in ("ann_1.jpg", "ann_1#2.jpg"))
    assert first.samefile(second) == (form != "udacity")


@pytest.mark.parametrize("form", FORMS)
def test_links_take_no_room_and_copies_are_their_own(
    form: str, contest: Folder, tool: Tool, tmp_path: Path
) -> None:
    assert tool("data", "export", form, contest.root, tmp_path / "linked", "--link") == 0
    assert tool("data", "export", form, contest.root, tmp_path / "copied") == 0
    picture = contest.test_images / "gus_7.jpg"
    [linked] = (tmp_path / "linked").rglob("gus_7.jpg")
    [copied] = (tmp_path / "copied").rglob("gus_7.jpg")
    assert linked.samefile(picture) and not copied.samefile(picture)
    found = back(tool, form, tmp_path / "linked", tmp_path / "found", "--link")
    assert (found.test_images / "gus_7.jpg").samefile(picture)


def test_a_part_alone_becomes_training_pictures(
    contest: Folder, tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool("data", "export", "wflw", contest.root, tmp_path / "exported") == 0
    for part, names, rows in (("train", TRAIN, slice(6)), ("test", TEST, slice(6, 10))):
        out = Folder(root=tmp_path / part)
        assert tool("data", "convert", "wflw", tmp_path / "exported", out.root, "--part", part) == 0
        table = read_landmarks(out.train_table)
        assert list(table.names) == names and not (out.root / "test").exists()
        boxes = read_boxes(out.boxes, [out.train_images / name for name in names])
        np.testing.assert_array_equal(boxes, boxes_of(contest)[rows])
    shutil.rmtree(contest.root / "test")
    capsys.readouterr()
    assert tool("data", "export", "udacity", contest.root, tmp_path / "no test") == 0
    assert sorted(p.name for p in (tmp_path / "no test").iterdir()) == [
        "training", "training_frames_keypoints.csv"
    ]  # fmt: skip
    arguments = [tmp_path / "no test", tmp_path / "none", "--part", "test"]
    assert tool("data", "convert", "udacity", *arguments) == 1
    assert "no faces in the part test" in capsys.readouterr().err


def test_test_pictures_without_labels_stay_out_and_are_counted(
    contest: Folder, tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contest.solution.unlink()
    assert tool("data", "export", "ibug", contest.root, tmp_path / "exported") == 0
    assert "left out: 4 test pictures without landmarks" in capsys.readouterr().out
    assert len(list((tmp_path / "exported").rglob("*.pts"))) == 6
    contest.train_table.unlink()
    assert tool("data", "export", "ibug", contest.root, tmp_path / "nothing") == 1
    assert "nothing is labelled" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["wflw", "coco"])
def test_without_boxes_those_of_the_landmarks_are_written(
    form: str, contest: Folder, tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given.csv"
    shutil.move(contest.boxes, given)
    assert tool("data", "export", form, contest.root, tmp_path / "with", "--boxes", given) == 0
    found = back(tool, form, tmp_path / "with", tmp_path / "found with")
    contest.boxes.symlink_to(given)
    np.testing.assert_array_equal(boxes_of(found), boxes_of(contest))
    contest.boxes.unlink()

    assert tool("data", "export", form, contest.root, tmp_path / "without") == 0
    found = back(tool, form, tmp_path / "without", tmp_path / "found without")
    points = np.stack([points for points, _ in faces_of(contest).values()])
    low, high = np.nanmin(points, 1), np.nanmax(points, 1)
    if form == "wflw":  # whole numbers, outwards
        low, high = np.floor(low), np.ceil(high)
    np.testing.assert_allclose(boxes_of(found), np.concatenate([low, high], 1), atol=1e-4)

    lonely = np.full((6, 5, 2), np.nan)
    lonely[:, 2] = 7
    write_landmarks(contest.train_table, TRAIN, lonely)
    assert tool("data", "export", form, contest.root, tmp_path / "lonely") == 1
    assert "ann_1.jpg: this format needs a box" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("form", "names", "words"),
    [
        ("ibug", ["a.jpg", "a.png"], "a.jpg and a.png would share one .pts file"),
        ("helen194", ["a.jpg", "a.png"], "a.jpg and a.png would both be 'a' here"),
        ("ibug", ["a.jpg", "a.dat"], "a.dat: this format finds pictures by their names' endings"),
        ("helen194", ["a.jpg", "a"], "a: this format finds pictures by their names' endings"),
    ],
)
def test_names_that_a_format_cannot_keep_apart_are_refused(
    form: str,
    names: list[str],
    words: str,
    tool: Tool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Folder(root=tmp_path / "contest")
    folder.train_images.mkdir(parents=True)
    write_landmarks(folder.train_table, names, np.ones((2, 3, 2)))
    for name in names:
        (folder.train_images / name).write_bytes(b"a picture")
    assert tool("data", "export", form, folder.root, tmp_path / "exported") == 1
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["contest"]


def test_two_pictures_of_one_name_are_refused_where_the_parts_share_a_folder(
    contest: Folder, tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["ann_1.jpg", *TEST[1:]]
    shutil.copyfile(contest.test_images / TEST[0], contest.test_images / names[0])
    contest.boxes.unlink()
    for path in (contest.test_points, contest.solution):
        path.write_text(path.read_text().replace(TEST[0], names[0]))
    assert tool("data", "export", "coco", contest.root, tmp_path / "coco") == 0
    assert tool("data", "export", "wflw", contest.root, tmp_path / "wflw") == 1
    assert "differ, but this format would keep both as ann_1.jpg" in capsys.readouterr().err
    shutil.copyfile(contest.train_images / names[0], contest.test_images / names[0])
    assert tool("data", "export", "wflw", contest.root, tmp_path / "wflw") == 0


def test_real_faces_into_the_tables_they_came_from(
    faces68: Path, tool: Tool, tmp_path: Path
) -> None:
    contest = Folder(root=tmp_path / "contest")
    with (faces68 / "train" / "landmarks.csv").open() as file:
        head = [next(file) for _ in range(6)]
    contest.train_images.mkdir(parents=True)
    contest.train_table.write_text("".join(head))
    for line in head[1:]:
        name = line.partition("\t")[0]
        shutil.copyfile(faces68 / "train" / "images" / name, contest.train_images / name)

    assert tool("data", "export", "udacity", contest.root, tmp_path / "udacity") == 0
    written = (tmp_path / "udacity" / "training_frames_keypoints.csv").read_text().splitlines()
    assert written[0] == "," + ",".join(map(str, range(136)))
    assert written[1:] == [line.strip().replace("\t", ",") for line in head[1:]]
    assert tool("data", "export", "ibug", contest.root, tmp_path / "ibug") == 0
    for form in ("udacity", "ibug"):
        found = Folder(root=tmp_path / f"{form} back")
        assert tool("data", "convert", form, tmp_path / form, found.root) == 0
        rows = {line for line in found.train_table.read_text().splitlines()}
        assert rows == {line.strip() for line in head}
        for path in contest.train_images.iterdir():
            assert (found.train_images / path.name).read_bytes() == path.read_bytes()
