"""Exporting a contest folder to COCO keypoints, and converting it back."""

import json
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

# Subfolders, an upper-case suffix, equal names in different folders, images with several faces, and
# a "#2" that does not number a face.
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
    for copy, original in ((3, 0), (4, 0), (8, 7)):
        shutil.copyfile(targets[original], targets[copy])
    write_landmarks(folder.train_table, TRAIN, points[:6])
    write_asked_points(folder.test_points, TEST, np.tile([4, 0, 2, 1, 3], (4, 1)))
    write_answers(folder.solution, TEST, points[6:][:, [4, 0, 2, 1, 3]])
    names = [target.relative_to(folder.root).as_posix() for target in targets]
    write_boxes(folder.boxes, names, boxes.astype(float))
    return folder


def convert_back(tool: Tool, exported: Path, out: Path, *options: object) -> Folder:
    """Converts exported files to a contest folder."""
    parts = exported / "annotations"
    arguments = [parts / "train.json", out, "--images", exported / "train"]
    arguments += ["--test", parts / "test.json", "--test-images", exported / "test"]
    assert tool("data", "convert", "coco", *arguments, *options) == 0
    return Folder(root=out)


def faces_of(folder: Folder) -> dict[str, tuple[np.ndarray, bytes]]:
    """Returns each face's (5, 2) landmarks and image bytes by part and name, in table order."""
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


def test_coco_round_trip_keeps_everything(
    contest: Folder, tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool("data", "export", "coco", contest.root, tmp_path / "exported") == 0
    assert "6 faces to train on and 4 to test, 5 landmarks each" in capsys.readouterr().out
    converted = convert_back(tool, tmp_path / "exported", tmp_path / "converted")
    assert "--crop.rule box" in capsys.readouterr().out

    expected, faces = faces_of(contest), faces_of(converted)
    assert sorted(faces) == sorted(expected)
    for name, (points, image) in expected.items():
        np.testing.assert_allclose(faces[name][0], points, atol=1e-4, rtol=0)
        assert faces[name][1] == image
    np.testing.assert_array_equal(boxes_of(converted), boxes_of(contest))


def test_faces_of_one_image_share_its_file(contest: Folder, tool: Tool, tmp_path: Path) -> None:
    assert tool("data", "export", "coco", contest.root, tmp_path / "exported") == 0
    images = [path for path in (tmp_path / "exported").glob("t*/**/*") if path.is_file()]
    assert len(images) == 7
    converted = convert_back(tool, tmp_path / "exported", tmp_path / "converted")
    first, second = (converted.train_images / name for name in ("ann_1.jpg", "ann_1#2.jpg"))
    assert first.samefile(second)


def test_a_different_image_with_a_number_keeps_its_name(
    contest: Folder, tool: Tool, tmp_path: Path
) -> None:
    shutil.copyfile(contest.train_images / TRAIN[2], contest.train_images / "ann_1#2.jpg")
    assert tool("data", "export", "coco", contest.root, tmp_path / "exported") == 0
    content = json.loads((tmp_path / "exported" / "annotations" / "train.json").read_text())
    names = [image["file_name"] for image in content["images"]]
    assert names == ["ann_1.jpg", "ibug/ann_1.PNG", "deep/er/cy_2.jpg", "ann_1#2.jpg", TRAIN[5]]
    assert [entry["image_id"] for entry in content["annotations"]] == [1, 2, 3, 4, 1, 5]


def test_links_share_the_image_and_copies_do_not(
    contest: Folder, tool: Tool, tmp_path: Path
) -> None:
    assert tool("data", "export", "coco", contest.root, tmp_path / "linked", "--link") == 0
    assert tool("data", "export", "coco", contest.root, tmp_path / "copied") == 0
    image = contest.test_images / "gus_7.jpg"
    [linked] = (tmp_path / "linked").rglob("gus_7.jpg")
    [copied] = (tmp_path / "copied").rglob("gus_7.jpg")
    assert linked.samefile(image) and not copied.samefile(image)
    converted = convert_back(tool, tmp_path / "linked", tmp_path / "converted", "--link")
    assert (converted.test_images / "gus_7.jpg").samefile(image)


def test_a_single_part_becomes_training_images(
    contest: Folder, tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool("data", "export", "coco", contest.root, tmp_path / "exported") == 0
    for part, names, rows in (("train", TRAIN, slice(6)), ("test", TEST, slice(6, 10))):
        out = convert_back(tool, tmp_path / "exported", tmp_path / part, "--part", part)
        table = read_landmarks(out.train_table)
        assert sorted(table.names) == sorted(names) and not (out.root / "test").exists()
        boxes = read_boxes(out.boxes, [out.train_images / name for name in names])
        np.testing.assert_array_equal(boxes, boxes_of(contest)[rows])
    shutil.rmtree(contest.root / "test")
    capsys.readouterr()
    assert tool("data", "export", "coco", contest.root, tmp_path / "no test") == 0
    assert sorted(path.name for path in (tmp_path / "no test").iterdir()) == [
        "annotations", "train"
    ]  # fmt: skip
    arguments = [tmp_path / "no test" / "annotations" / "train.json", tmp_path / "none"]
    arguments += ["--images", tmp_path / "no test" / "train"]
    assert tool("data", "convert", "coco", *arguments, "--part", "test") == 1
    assert "the test part has no faces" in capsys.readouterr().err


def test_unlabelled_test_images_are_left_out_and_counted(
    contest: Folder, tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contest.solution.unlink()
    contest.boxes.unlink()
    assert tool("data", "export", "coco", contest.root, tmp_path / "exported") == 0
    assert "left out: 4 test images without landmarks" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "exported" / "annotations").iterdir()] == [
        "train.json"
    ]
    contest.train_table.unlink()
    assert tool("data", "export", "coco", contest.root, tmp_path / "nothing") == 1
    assert "no labelled face" in capsys.readouterr().err


def test_missing_boxes_are_computed_from_the_landmarks(
    contest: Folder, tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given.csv"
    shutil.move(contest.boxes, given)
    assert tool("data", "export", "coco", contest.root, tmp_path / "with", "--boxes", given) == 0
    converted = convert_back(tool, tmp_path / "with", tmp_path / "converted with")
    contest.boxes.symlink_to(given)
    np.testing.assert_array_equal(boxes_of(converted), boxes_of(contest))
    contest.boxes.unlink()

    assert tool("data", "export", "coco", contest.root, tmp_path / "without") == 0
    converted = convert_back(tool, tmp_path / "without", tmp_path / "converted without")
    points = np.stack([points for points, _ in faces_of(contest).values()])
    bounds = np.concatenate([np.nanmin(points, 1), np.nanmax(points, 1)], 1)
    np.testing.assert_allclose(boxes_of(converted), bounds, atol=1e-4)

    lonely = np.full((6, 5, 2), np.nan)
    lonely[:, 2] = 7
    write_landmarks(contest.train_table, TRAIN, lonely)
    assert tool("data", "export", "coco", contest.root, tmp_path / "lonely") == 1
    assert "ann_1.jpg: COCO needs a box" in capsys.readouterr().err
    assert not (tmp_path / "lonely").exists()


def test_a_solution_for_different_images_is_refused(
    contest: Folder, tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contest.solution.write_text(contest.solution.read_text().replace("gus_7", "hal_7"))
    assert tool("data", "export", "coco", contest.root, tmp_path / "exported") == 1
    assert "test_points.csv list different images, such as gus_7.jpg" in capsys.readouterr().err


def test_other_formats_cannot_be_exported(contest: Folder, tool: Tool, tmp_path: Path) -> None:
    assert tool("data", "export", "wflw", contest.root, tmp_path / "exported") == 2
    assert not (tmp_path / "exported").exists()
