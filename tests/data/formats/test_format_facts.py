"""Hand-written examples of every format as its data set ships it, and errors in them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from heatmap.data.contest import (
    Folder,
    read_asked_points,
    read_boxes,
    read_landmarks,
    read_solution,
)

Tool = Callable[..., int]
Files = dict[str, str | bytes]


def create(folder: Path, files: Files) -> Path:
    """Writes the files into the folder and returns it."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def images(*names: str) -> Files:
    """Images whose bytes are their names; they are only copied."""
    return {name: name.encode() for name in names}


def assert_faces(
    out: Path, train: dict[str, list[list[float]]], test: dict[str, list[list[float]]]
) -> None:
    """Checks that the contest folder holds exactly these faces, in this order."""
    folder = Folder(root=out)
    table = read_landmarks(folder.train_table)
    assert list(table.names) == list(train)
    np.testing.assert_allclose(table.points_image[:], list(train.values()), atol=1e-4)
    num_landmarks = table.num_landmarks
    if not test:
        assert not folder.test_points.exists()
        return
    asked, solution = (
        read_asked_points(folder.test_points, num_landmarks),
        read_solution(folder.solution),
    )
    assert asked.names == solution.names == list(test)
    assert asked.indices.tolist() == [list(range(num_landmarks))] * len(test)
    np.testing.assert_allclose(solution.points_image, list(test.values()), atol=1e-4)


NAN = float("nan")

# ------------------------------------------------------------------------------------ the formats

UDACITY: Files = {
    "training_frames_keypoints.csv": ",0,1,2,3\n"
    "Luis_Fonsi_21.jpg,45.0,98.0,47,106.5\n"
    "A_B_1.jpg,,,1,2\n",
    "test_frames_keypoints.csv": "Unnamed: 0,0,1,2,3\r\nValerie_Harper_30.jpg,55,62,52,72\r\n",
    **images("training/Luis_Fonsi_21.jpg", "training/A_B_1.jpg", "test/Valerie_Harper_30.jpg"),
}


@pytest.mark.parametrize("below", ["", "data/"])
def test_udacity_tables(below: str, tool: Tool, tmp_path: Path) -> None:
    source = create(tmp_path / "P1", {below + name: text for name, text in UDACITY.items()})
    assert tool("data", "convert", "udacity", source, tmp_path / "out") == 0
    assert_faces(
        tmp_path / "out",
        {"Luis_Fonsi_21.jpg": [[45, 98], [47, 106.5]], "A_B_1.jpg": [[NAN, NAN], [1, 2]]},
        {"Valerie_Harper_30.jpg": [[55, 62], [52, 72]]},
    )


def pts(*rows: str, count: int | None = None) -> str:
    count = len(rows) if count is None else count
    return "\n".join(["version: 1", f"n_points:  {count}", "{", *rows, "}", "\n"])


IBUG: Files = {
    "afw/134212_1.pts": pts("1.000000 1.000000", "300.5 1"),
    "helen/trainset/100032540_1.pts": pts("2 3", "4 5").replace("\n", " \r\n"),
    "helen/testset/30427236_1.pts": pts("6 7", "8 9"),
    "ibug/image_092 _01.pts": pts("10 11", "nan nan"),
    "300W/01_Indoor/indoor_001.pts": pts("12 13", "-0.5 15"),
    "helen/trainset/100032540_1_mirror.pts": pts("1 1", "1 1"),
    "other/odd_mirror.pts": pts("16 17", "18 19"),
    **images(
        "afw/134212_1.jpg", "helen/trainset/100032540_1.jpg", "helen/testset/30427236_1.jpg",
        "ibug/image_092 _01.jpg", "300W/01_Indoor/indoor_001.png",
        "helen/trainset/100032540_1_mirror.jpg", "other/odd_mirror.JPG", "other/no points.jpg",
    ),
}  # fmt: skip


def test_ibug_counts_from_one(
    tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = create(tmp_path / "300-W", IBUG)
    assert tool("data", "convert", "ibug", source, tmp_path / "out") == 0
    assert "left out: 1 mirrored copies" in capsys.readouterr().out
    assert_faces(
        tmp_path / "out",
        {
            "afw/134212_1.jpg": [[0, 0], [299.5, 0]],
            "helen/trainset/100032540_1.jpg": [[1, 2], [3, 4]],
            "other/odd_mirror.JPG": [[15, 16], [17, 18]],
        },
        {
            "300W/01_Indoor/indoor_001.png": [[11, 12], [-1.5, 14]],
            "helen/testset/30427236_1.jpg": [[5, 6], [7, 8]],
            "ibug/image_092 _01.jpg": [[9, 10], [NAN, NAN]],
        },
    )
    # a data set with a folder per part, as Helen and LFPW are shipped
    source = tmp_path / "300-W" / "helen"
    assert tool("data", "convert", "ibug", source, tmp_path / "helen") == 0
    assert_faces(
        tmp_path / "helen",
        {"100032540_1.jpg": [[1, 2], [3, 4]]},
        {"30427236_1.jpg": [[5, 6], [7, 8]]},
    )


PARADE, SOCCER = "0--Parade/0_Parade_Parade_0_861.jpg", "37--Soccer/37_Soccer_Ball_37_45.jpg"
LISTS = "WFLW_annotations/list_3pt_rect_attr_train_test/list_3pt_rect_attr_"
WFLW: Files = {
    f"{LISTS}train.txt": f"1.500000 2 3 4 5 6 10 20 30 40 0 0 1 0 1 0 {PARADE}\n"
    f"7 8 9 10 11 12 50 60 70 80 1 0 0 0 0 0 {SOCCER}\n"
    f"13 14 15 16 17 18 51 61 71 81 0 0 0 0 0 1 {PARADE}\n"
    f"19 20 21 22 23 24 52 62 72 82 0 0 0 0 0 1 {PARADE}\n",
    f"{LISTS}test.txt": f"25 26 27 28 29 30 53 63 73 83 0 0 0 0 0 0 {SOCCER}\n",
    "WFLW_annotations/list_98pt_test/list_98pt_test_blur.txt": "not a list",
    **images(f"WFLW_images/{PARADE}", f"WFLW_images/{SOCCER}"),
}


def test_wflw_has_several_faces_in_an_image(
    tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = create(tmp_path / "WFLW", WFLW), tmp_path / "out"
    assert tool("data", "convert", "wflw", source, out) == 0
    assert f"--crop.rule box --data.boxes {out / 'boxes.csv'}" in capsys.readouterr().out
    second, third = PARADE.replace(".jpg", "#2.jpg"), PARADE.replace(".jpg", "#3.jpg")
    assert_faces(
        out,
        {
            PARADE: [[1.5, 2], [3, 4], [5, 6]],
            SOCCER: [[7, 8], [9, 10], [11, 12]],
            second: [[13, 14], [15, 16], [17, 18]],
            third: [[19, 20], [21, 22], [23, 24]],
        },
        {SOCCER: [[25, 26], [27, 28], [29, 30]]},
    )
    folder = Folder(root=out)
    assert (folder.train_images / third).read_bytes() == f"WFLW_images/{PARADE}".encode()
    paths = [folder.train_images / PARADE, folder.train_images / SOCCER]
    paths += [folder.train_images / third, folder.test_images / SOCCER]
    expected = [[10, 20, 30, 40], [50, 60, 70, 80], [52, 62, 72, 82], [53, 63, 73, 83]]
    assert read_boxes(folder.boxes, paths).tolist() == expected


HELEN: Files = {
    "annotation/1.txt": "100032540_1\n340.475 , 1081.01\n0 , 0\n",
    "annotation/2.txt": "10_2\r\n7 , 8\r\n9.25 , 10\r\n\r\n",
    "annotation/10.txt": "3_1\n11 , 12\n13,14\n",
    "annotation/11.txt": "nobody_1\n11 , 12\n13,14\n",
    "trainnames.txt": "100032540_1\n3_1\n",
    "testnames.txt": "10_2\n",
    **images("helen_1/100032540_1.jpg", "helen_1/10_2.jpg", "helen_5/3_1.jpg"),
}


def test_helen194(tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = create(tmp_path / "Helen", HELEN)
    assert tool("data", "convert", "helen194", source, tmp_path / "out") == 0
    assert "left out: 1 annotations in neither" in capsys.readouterr().out
    train = {"100032540_1.jpg": [[340.475, 1081.01], [0, 0]], "3_1.jpg": [[11, 12], [13, 14]]}
    test = {"10_2.jpg": [[7.0, 8.0], [9.25, 10.0]]}
    assert_faces(tmp_path / "out", train, test)
    (source / "trainnames.txt").unlink()
    (source / "testnames.txt").unlink()
    (source / "annotation" / "11.txt").unlink()
    assert tool("data", "convert", "helen194", source, tmp_path / "all") == 0
    order = ["100032540_1.jpg", "10_2.jpg", "3_1.jpg"]  # by annotation number
    assert_faces(tmp_path / "all", {name: (train | test)[name] for name in order}, {})


def person(image: int, number: int, keypoints: list[float], **others: Any) -> dict[str, Any]:
    fields = {"id": number, "image_id": image, "category_id": 1, "iscrowd": 0}
    return fields | {"keypoints": keypoints, "bbox": [10, 20, 30.5, 40]} | others


def coco(*annotations: dict[str, Any], images: tuple[int, ...] = (139, 285)) -> str:
    entries = [{"id": i, "file_name": f"{i:012}.jpg", "width": 9, "height": 9} for i in images]
    return json.dumps({"info": {}, "images": entries, "annotations": annotations})


FACE = {"face_valid": True, "face_kpts": [1.5, 2, 0.7, 0, 0, 0, 5, 6, 1], "face_box": [1, 2, 3, 4]}
COCO: Files = {
    "annotations/train.json": coco(
        person(285, 1, [1, 2, 2, 3, 4, 1], **FACE),
        person(139, 2, [5, 6, 2, 0, 0, 0], **(FACE | {"face_valid": False})),
        person(285, 3, [7, 8, 2, 9, 10, 2], **FACE),
        person(285, 4, [0, 0, 0, 0, 0, 0], **(FACE | {"face_kpts": [0] * 9})),
        person(285, 5, [0, 0, 0], iscrowd=1),
    ),
    "annotations/val.json": coco(person(7, 1, [1, 1, 2, 2, 2, 2], **FACE), images=(7,)),
    **images("train/000000000139.jpg", "train/000000000285.jpg", "val/000000000007.jpg"),
}


def test_coco_keypoints_are_pixel_centres_and_boxes_are_edges(
    tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = create(tmp_path / "coco", COCO)
    options = ["--images", source / "train", "--test", source / "annotations" / "val.json"]
    options += ["--test-images", source / "val"]
    arguments = ["convert", "coco", source / "annotations" / "train.json"]
    assert tool("data", *arguments, tmp_path / "out", *options) == 0
    output = capsys.readouterr().out
    assert "1 crowds" in output and "1 annotations without a labelled landmark" in output
    train = {
        "000000000139.jpg": [[5, 6], [NAN, NAN]],
        "000000000285.jpg": [[1.0, 2.0], [3.0, 4.0]],
        "000000000285#2.jpg": [[7.0, 8.0], [9.0, 10.0]],
    }
    assert_faces(tmp_path / "out", train, {"000000000007.jpg": [[1, 1], [2, 2]]})
    folder = Folder(root=tmp_path / "out")
    paths = [folder.train_images / "000000000139.jpg", folder.test_images / "000000000007.jpg"]
    assert read_boxes(folder.boxes, paths).tolist() == [[9.5, 19.5, 40, 59.5]] * 2

    assert tool("data", *arguments, tmp_path / "faces", *options, "--points", "face") == 0
    assert "1 people whose face is not valid" in capsys.readouterr().out
    points = [[1.5, 2], [NAN, NAN], [5, 6]]
    train = {"000000000285.jpg": points, "000000000285#2.jpg": points}
    assert_faces(tmp_path / "faces", train, {"000000000007.jpg": points})
    folder = Folder(root=tmp_path / "faces")
    paths = [folder.train_images / name for name in train]
    assert read_boxes(folder.boxes, paths).tolist() == [[0.5, 1.5, 3.5, 5.5]] * 2


def test_coco_export_has_the_fields_of_labelling_tools(tool: Tool, tmp_path: Path) -> None:
    source, out = create(tmp_path / "coco", COCO), tmp_path / "out"
    for name, size in (("139", (4, 6)), ("285", (5, 3))):
        assert cv2.imwrite(
            str(source / "train" / f"{name:0>12}.jpg"), np.zeros((*size, 3), np.uint8)
        )
    train = source / "annotations" / "train.json"
    assert tool("data", "convert", "coco", train, out, "--images", source / "train") == 0
    assert tool("data", "export", "coco", out, tmp_path / "again") == 0
    written = json.loads((tmp_path / "again" / "annotations" / "train.json").read_text())
    assert written["images"] == [
        {"id": 1, "file_name": "000000000139.jpg", "width": 6, "height": 4},
        {"id": 2, "file_name": "000000000285.jpg", "width": 3, "height": 5},
    ]
    assert written["categories"][0]["keypoints"] == ["0", "1"]
    assert isinstance(written["info"], dict) and written["licenses"] == []
    fields = ("image_id", "keypoints", "num_keypoints", "bbox", "area", "iscrowd", "category_id")
    assert [[entry[field] for field in fields] for entry in written["annotations"]] == [
        [1, [5, 6, 2, 0, 0, 0], 1, [10, 20, 30.5, 40], 1220, 0, 1],
        [2, [1, 2, 2, 3, 4, 2], 2, [10, 20, 30.5, 40], 1220, 0, 1],
        [2, [7, 8, 2, 9, 10, 2], 2, [10, 20, 30.5, 40], 1220, 0, 1],
    ]
    assert not (tmp_path / "again" / "annotations" / "test.json").exists()


# -------------------------------------------------------------------- files as people have them


def test_coco_landmarks_with_v_0_are_unlabelled_whatever_their_coordinates(
    tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = [
        person(139, 1, [NAN, NAN, 0, 5, 6, 2, 7, 8, 1], num_keypoints=2),
        person(139, 2, [None, None, 0, 1, 2, 2, 3, 4, 2.0]),
        person(139, 3, [0, 0, 0] * 3),
        person(139, 4, [], category_id=3),
        {"id": 5, "image_id": 139, "category_id": 3, "bbox": [1, 2, 3, 4]},
    ]
    content = json.loads(coco(*people, images=(139,)))
    content["images"][0]["file_name"] = "a\\b.jpg"
    content["categories"] = [{"id": 1, "keypoints": ["a", "b", "c"]}, {"id": 3, "name": "car"}]
    source = create(tmp_path / "coco", {"a.json": json.dumps(content), **images("a/b.jpg")})
    assert tool("data", "convert", "coco", source / "a.json", tmp_path / "out") == 0
    assert "left out: 3 annotations without a labelled landmark" in capsys.readouterr().out
    unlabelled = [NAN, NAN]
    train = {"a/b.jpg": [unlabelled, [5, 6], [7, 8]], "a/b#2.jpg": [unlabelled, [1, 2], [3, 4]]}
    assert_faces(tmp_path / "out", train, {})


UNUSABLE_BOXES = (
    [10, 20, 30, 0], [10, 20, -3, 4], [NAN, 1, 2, 3], [None] * 4, [1, 2], [], None, "1 2"
)  # fmt: skip


def test_unusable_coco_boxes_are_replaced_or_left_out_and_counted(
    tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = [
        person(139, number, [1, 2, 2, 5, 9, 2], bbox=box)
        for number, box in enumerate(UNUSABLE_BOXES, start=1)
    ]
    people += [person(139, 20, [1, 2, 2, 1, 9, 2], bbox=None), person(139, 21, [1, 2, 2, 5, 9, 2])]
    content = {"a.json": coco(*people, images=(139,)), **images("000000000139.jpg")}
    source = create(tmp_path / "coco", content)
    assert tool("data", "convert", "coco", source / "a.json", tmp_path / "out") == 0
    output = capsys.readouterr().out
    assert f"boxes replaced by the landmarks' bounds: {len(UNUSABLE_BOXES)}" in output
    assert "left out: 1 faces without a box whose landmarks span none" in output
    folder = Folder(root=tmp_path / "out")
    names = read_landmarks(folder.train_table).names
    boxes = read_boxes(folder.boxes, [folder.train_images / name for name in names])
    assert boxes.tolist() == [[1, 2, 5, 9]] * len(UNUSABLE_BOXES) + [[9.5, 19.5, 40, 59.5]]


def test_an_empty_wflw_box_is_replaced_by_the_landmarks_bounds(
    tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = str(WFLW[ROWS]).replace("50 60 70 80", "50 60 50 80").replace("/", "\\")
    source = create(tmp_path / "WFLW", WFLW | {ROWS: flat})
    assert tool("data", "convert", "wflw", source, tmp_path / "out") == 0
    assert "boxes replaced by the landmarks' bounds: 1" in capsys.readouterr().out
    folder = Folder(root=tmp_path / "out")
    boxes = read_boxes(folder.boxes, [folder.train_images / SOCCER])
    assert boxes.tolist() == [[7, 8, 11, 12]]


def test_ibug_names_may_differ_in_case_and_hidden_and_unreadable_files_are_skipped(
    tool: Tool, tmp_path: Path
) -> None:
    files: Files = {
        "a/Face_1.PTS": pts("2 3", "4 5"),
        "a/._Face_1.PTS": b"\0\5\26\7Mac OS X",
        "b/face_2.pts": pts("6 7", "8 9"),
        **images("a/face_1.Jpg", "a/._face_1.Jpg", "b/face_2.jpg", "b/FACE_2.JPG", "b/face_2.heic"),
    }
    source = create(tmp_path / "300-W", files)
    assert tool("data", "convert", "ibug", source, tmp_path / "out") == 0
    train = {"a/face_1.Jpg": [[1.0, 2.0], [3.0, 4.0]], "b/face_2.jpg": [[5.0, 6.0], [7.0, 8.0]]}
    assert_faces(tmp_path / "out", train, {})


def test_ibug_images_may_be_in_another_folder(tool: Tool, tmp_path: Path) -> None:
    files = {
        "trainset/1.pts": pts("2 3", "4 5"),
        "testset/1.pts": pts("6 7", "8 9"),
        "testset/2.pts": pts("1 1", "2 2"),
    }
    source = create(tmp_path / "points", files)
    other = create(tmp_path / "images", images("trainset/1.jpg", "testset/1.jpg", "x/2.png"))
    assert tool("data", "convert", "ibug", source, tmp_path / "out", "--images", other) == 0
    test = {"1.jpg": [[5.0, 6.0], [7.0, 8.0]], "x/2.png": [[0.0, 0.0], [1.0, 1.0]]}
    assert_faces(tmp_path / "out", {"1.jpg": [[1, 2], [3, 4]]}, test)


def test_a_recurring_place_below_0_needs_a_meaning(
    tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "1.pts": pts("-1 -1", "-3.5 -9", "-4 2"),
        "2.pts": pts("5 5", "-1 -1", "-4 2"),
        **images("1.jpg", "2.jpg"),
    }
    source = create(tmp_path / "points", files)
    assert tool("data", "convert", "ibug", source, tmp_path / "out") == 1
    output = capsys.readouterr().err
    assert "2.pts, landmark 1: -1 -1, as in" in output and "1.pts, landmark 0" in output
    assert "--negative unlabelled" in output
    none, last = [NAN, NAN], [-5, 1]
    expected = {
        "keep": {"1.jpg": [[-2, -2], [-4.5, -10], last], "2.jpg": [[4, 4], [-2, -2], last]},
        "unlabelled": {"1.jpg": [none, none, last], "2.jpg": [[4, 4], none, last]},
        "occluded": {"1.jpg": [none, [2.5, 8], last], "2.jpg": [[4, 4], none, last]},
    }
    for meaning, faces in expected.items():
        out = tmp_path / meaning
        assert tool("data", "convert", "ibug", source, out, "--negative", meaning) == 0
        assert_faces(out, faces, {})


# -------------------------------------------------------------------------------- errors

TABLE, PTS, ROWS = "training_frames_keypoints.csv", "afw/134212_1.pts", f"{LISTS}train.txt"
TEST_TABLE, PEOPLE = "test_frames_keypoints.csv", "annotations/train.json"
WRONG: list[tuple[str, str, str, str, list[str]]] = [
    # format, file, old text ("" removes the file), new text, parts of the message
    ("udacity", TABLE, "47,106.5", "47,106;5", [TABLE, "row 2, column y of landmark 1", "'106;5'"]),
    ("udacity", TABLE, "47,106.5", "47", ["row 2", "4 cells, but 5 in the header"]),
    ("udacity", TABLE, ",,,1", ",3,,1", ["row 3, column y of landmark 0", "leave both empty"]),
    ("udacity", TABLE, "A_B_1", "Luis_Fonsi_21", ["row 3: 'Luis_Fonsi_21.jpg'", "already in"]),
    ("udacity", TABLE, "A_B_1", "A_B_2", ["row 3: the image ", "A_B_2.jpg"]),
    ("udacity", TABLE, ",0,1,2,3", ",0,1,3,2", ["row 1", "pairs of columns", "found ',0,1,3,2'"]),
    ("udacity", TABLE, ",0,1,2,3", ",0,1,2", ["row 1", "pairs of columns"]),
    ("udacity", TEST_TABLE, ",2,3\r\nValerie_Harper_30.jpg,55,62", "\nValerie_Harper_30.jpg",
     ["row 2: 1 landmarks, but 2 in", f"{TABLE}, row 2"]),
    ("ibug", PTS, "300.5", "3OO.5", [PTS, "row 5, column x of landmark 1", "'3OO.5'"]),
    ("ibug", PTS, "300.5 1", "300.5", [PTS, "row 5: expected 'x y', found '300.5'"]),
    ("ibug", PTS, "}", "", [PTS, "} in the last", "cut short"]),
    ("ibug", PTS, "n_points:  2", "n_points:  68", [PTS, "n_points is 68, but 2 rows follow"]),
    ("ibug", PTS, pts("1.000000 1.000000", "300.5 1"), pts("1 1"),
     [PTS, "1 landmarks, but 2 in", "indoor_001.pts"]),
    ("ibug", PTS, "version: 1", "<html>", [PTS, "expected 'version: 1'", "<html>"]),
    ("ibug", "afw/134212_1.jpg", "", "", [PTS, "134212_1.jpg or the like next to it; pass its"]),
    ("ibug", PTS, "version: 1", "\0\1\2", [PTS, "expected 'version: 1'"]),
    ("wflw", ROWS, "7 8 9", "7 8 x", [ROWS, "row 2, column x of landmark 1", "'x'"]),
    ("wflw", ROWS, "7 8 9", "7 8", [ROWS, "row 2: 16 cells, expected 17: 3 landmarks"]),
    ("wflw", ROWS, "50 60 70 80", "50 60 7O 80", [ROWS, "row 2, x_max: '7O' is not a number"]),
    ("wflw", f"WFLW_images/{SOCCER}", "", "", [f"{LISTS}", "does not exist", SOCCER]),
    ("helen194", "annotation/2.txt", "9.25 , 10", "9.25 10", ["2.txt, row 3: expected 'x,y'"]),
    ("helen194", "annotation/2.txt", "9.25 ,", "9..2 ,", ["row 3, column x of landmark 1", "9..2"]),
    ("helen194", "annotation/2.txt", "9.25 , 10", "", ["2.txt: 1 landmarks, but 2 in", "1.txt"]),
    ("helen194", "annotation/2.txt", "10_2", "7 , 8", ["2.txt, row 1: expected an image name"]),
    ("helen194", "annotation/10.txt", "3_1", "10_2", ["10.txt: '10_2.jpg'", "already in", "2.txt"]),
    ("helen194", "trainnames.txt", "3_1", "10_2", ["testnames.txt, row 1: '10_2' is listed twice"]),
    ("helen194", "trainnames.txt", "3_1", "3_1\nlost_1", ["1 name in", "such as 'lost_1'"]),
    ("helen194", "helen_5/3_1.jpg", "", "", ["10.txt, row 1: no image '3_1'"]),
    ("coco", PEOPLE, '"annotations"', '"people"', ["a list 'annotations'"]),
    ("coco", PEOPLE, "}]}", "}]", ["train.json: not JSON, or cut short"]),
    ("coco", PEOPLE, '"id": 139', '"id": 285', ["image number 1", "a unique id"]),
    ("coco", PEOPLE, '"image_id": 139', '"image_id": 1', ["annotation 2, image_id", "no image 1"]),
    ("coco", PEOPLE, "[5, 6, 2,", "[5, NaN, 2,", ["2, keypoints, y of landmark 0: ", "'nan'"]),
    ("coco", PEOPLE, "[5, 6, 2,", "[5, 2,", ["annotation 2, keypoints: 5 numbers"]),
    ("coco", PEOPLE, "[5, 6, 2,", "[9, 9, 2, 5, 6, 2,", ["annotation 1: 2 landmarks, but 3 in"]),
    ("coco", PEOPLE, '"image_id": 139', '"image_id": [1]', ["annotation 2, image_id", "no image"]),
    ("coco", PEOPLE, "[5, 6, 2,", "[5, 6, 0.7,", ["2, keypoints, v of landmark 0: expected 0, 1"]),
    ("coco", PEOPLE, '"keypoints": [5, 6, 2,', '"num_keypoints": 2, "keypoints": [5, 6, 2,',
     ["annotation 2, keypoints: v is above 0 in 1, but num_keypoints is 2"]),
    ("coco", PEOPLE, '"info": {}', '"categories": [{"id": 1, "keypoints": ["a", "b", "c"]}]',
     ["annotation 2, keypoints: 2 triples x, y, v; the category has 3"]),
    ("coco", "train/000000000285.jpg", "", "", ["annotation 1", "does not exist", "285."]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("format_name", "file", "old", "new", "words"),
    WRONG,
    ids=[f"{case[0]}: {case[4][0]}" for case in WRONG],
)
def test_errors_name_their_place_and_leave_no_folder(
    format_name: str,
    file: str,
    old: str,
    new: str,
    words: list[str],
    tool: Tool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    formats = {"udacity": UDACITY, "ibug": IBUG, "wflw": WFLW, "helen194": HELEN, "coco": COCO}
    source = create(tmp_path / "source", formats[format_name])
    if old:
        content = (source / file).read_bytes().decode()
        assert old in content
        (source / file).write_bytes(content.replace(old, new).encode())
    else:
        (source / file).unlink()
    arguments: list[object] = [source, tmp_path / "out"]
    if format_name == "coco":
        annotations = source / "annotations"
        arguments = [annotations / "train.json", tmp_path / "out", "--images", source / "train"]
        arguments += ["--test", annotations / "val.json", "--test-images", source / "val"]
    assert tool("data", "convert", format_name, *arguments) == 1
    output = capsys.readouterr().err
    for word in words:
        assert word in output
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("format_name", "words"),
    [
        ("udacity", "expected training_frames_keypoints.csv"),
        ("ibug", "found no labelled face"),
        ("wflw", "WFLW_images: no such folder"),
        ("helen194", "expected a folder named annotation"),
        ("coco", "the JSON file of the annotations is a folder"),
    ],
)
def test_empty_missing_and_archived_sources_are_refused(
    format_name: str, words: str, tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert tool("data", "convert", format_name, tmp_path / "empty", tmp_path / "out") == 1
    assert words in capsys.readouterr().err
    assert tool("data", "convert", format_name, tmp_path / "lost", tmp_path / "out") == 1
    assert "no such" in capsys.readouterr().err
    if format_name != "coco":
        (tmp_path / "data.zip").write_bytes(b"PK")
        assert tool("data", "convert", format_name, tmp_path / "data.zip", tmp_path / "out") == 1
        assert "unpack it" in capsys.readouterr().err


def test_names_that_leave_the_folder_are_refused(
    tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"")
    for name in ("../../secret.jpg", str(tmp_path / "secret.jpg")):
        text = str(COCO[PEOPLE]).replace("000000000285.jpg", name)
        source = create(tmp_path / "coco", COCO | {PEOPLE: text})
        arguments = [source / PEOPLE, tmp_path / "out"]
        assert tool("data", "convert", "coco", *arguments, "--images", source / "train") == 1
        assert "secret.jpg" in capsys.readouterr().err
        shutil.rmtree(source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.jpg"]


def test_ambiguous_lists_and_images_are_refused(
    tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = create(tmp_path / "WFLW", WFLW | {"old/list_3pt_rect_attr_test.txt": ""})
    assert tool("data", "convert", "wflw", source, tmp_path / "out") == 1
    assert "found both" in capsys.readouterr().err
    source = create(tmp_path / "Helen", HELEN | images("helen_2/3_1.jpg"))
    assert tool("data", "convert", "helen194", source, tmp_path / "out") == 1
    assert "'3_1' matches both" in capsys.readouterr().err
    source = create(tmp_path / "300-W", IBUG | images("afw/134212_1.png"))
    assert tool("data", "convert", "ibug", source, tmp_path / "out") == 1
    assert "134212_1' matches both" in capsys.readouterr().err
