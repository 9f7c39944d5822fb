"""The files that are damaged, with the readers of other libraries."""

import csv
import io
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence

from heatmap import networks, schemes
from heatmap.config import Crop, Direct, Experiment, Stage, Train, to_dict
from heatmap.data import contest
from heatmap.data.formats import coco, helen194, ibug, kaggle15, udacity, wflw
from heatmap.data.formats.labelled import LabelledFaces
from heatmap.errors import UserError
from heatmap.inference.media.video import Video
from heatmap.runs import checkpoint
from heatmap.runs.folder import Machine, Predictions, Scores, Split, Summary, WandbArguments
from heatmap.runs.ledger import read_metrics
from heatmap.runs.per_image import read_per_image
from heatmap.runtime.files import read_json
from trials.inputs import Subject

NAMES = [f"{person}_{number}.png" for person in "ab" for number in range(3)]
_SIDE = 24  # of an image, in pixels
_POINTS = np.random.default_rng(2).uniform(2, 22, (6, 3, 2)).round(2)
_POINTS[1, 2] = np.nan
_FLOATS = _POINTS.astype(np.float32)


def subjects() -> list[Subject]:
    return [*_tables(), *_run_files(), *_formats(), *_images(), *_videos(), *_checkpoints()]


def _csv(rows: Sequence[Sequence[object]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _cells(points: np.ndarray) -> list[str]:
    return ["" if np.isnan(value) else f"{value:g}" for value in points.ravel()]


def _rows(path: Path, quoting: Any = csv.QUOTE_MINIMAL) -> list[dict[str, str]]:
    """The rows of a table by column, without blank ones at the end."""
    text = path.read_bytes().decode("utf-8-sig").rstrip("\r\n ")
    delimiter = "\t" if "\t" in text.split("\n")[0] else ","
    header, *rows = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True
    )
    columns = [column.strip() for column in header]
    if columns[0] == "filename":
        columns[0] = "file_name"
    assert len(set(columns)) == len(columns)
    while rows and not "".join(rows[-1]).strip():
        rows.pop()
    return [dict(zip(columns, map(str.strip, row), strict=True)) for row in rows]


def _number(cell: str) -> float:
    return float(cell) if cell.strip() else np.nan


def _points(path: Path, prefix: str, dtype: type) -> tuple[list[str], np.ndarray]:
    rows = _rows(path, csv.QUOTE_NONE)
    indices = range(len(rows[0]) // 2)
    points = [
        [[_number(row[f"{prefix}{index}_{axis}"]) for axis in "XY"] for index in indices]
        for row in rows
    ]
    return [row["file_name"] for row in rows], np.array(points, dtype)


def _tables() -> list[Subject]:
    head = [f"Point_{index}_{axis}" for index in range(3) for axis in "XY"]
    rows = [[name, *_cells(points)] for name, points in zip(NAMES, _POINTS, strict=True)]
    whole = [[name, *_cells(points.round())] for name, points in zip(NAMES, _POINTS, strict=True)]
    table = _csv([["file_name", *head], *rows], "\t")
    answers = _csv([["file_name", *(f"Point_M{c[6:]}" for c in head)], *rows[2:]])
    asked = _csv([["file_name", "point_index_list"], *([n, "[2, 0]"] for n in NAMES)])
    boxes = _csv([["file_name", "x0", "y0", "x1", "y1"], *([n, 1, 2.5, 20, "3e1"] for n in NAMES)])
    weights = _csv([["file_name", "weight"], *([name, 0.5 + k] for k, name in enumerate(NAMES))])
    excluded = _csv([["file_name", "reasons"], [NAMES[1], "blurred, dark"], [NAMES[4], ""]])
    parts = [["file_name", "part"], *([n, "train" if n[0] == "a" else "validation"] for n in NAMES)]
    split = {"validation": NAMES[:2], "excluded": [NAMES[5]], "table": None}
    landmarks = contest.LandmarkTable(Path("t"), NAMES, contest.Points(_FLOATS), "")
    images = [Path(name) for name in NAMES]

    def of_images(columns: Sequence[str]) -> Callable[[Path], Any]:
        def read(folder: Path) -> Any:
            values = {row["file_name"]: row for row in _rows(folder / "t.csv")}
            return np.array([[float(values[n][column]) for column in columns] for n in NAMES])

        return read

    def submission(folder: Path) -> Any:
        read = contest.read_submission(folder / "t.csv")
        return list(read.names), read.points_image

    def our_split(name: str, folder: Path) -> Any:
        split = contest.read_split(folder / name, landmarks)
        return split.validation.tolist(), split.excluded.tolist()

    def their_parts(folder: Path) -> Any:
        part = {row["file_name"]: row["part"] for row in _rows(folder / "t.csv")}
        return [part[name] == "validation" for name in NAMES], []

    def their_split(folder: Path) -> Any:
        values = json.loads((folder / "split.json").read_bytes())
        excluded = [NAMES.index(name) for name in values["excluded"]]
        return [name in values["validation"] for name in NAMES], excluded

    def their_asked(folder: Path) -> Any:
        rows = _rows(folder / "t.csv")
        return [[row["file_name"], json.loads(row["point_index_list"])] for row in rows]

    def our_table(folder: Path) -> Any:
        read = contest.read_landmarks(folder / "t.csv")
        return list(read.names), read.points_image[:]

    def our_asked(folder: Path) -> Any:
        asked = contest.read_asked_points(folder / "t.csv", 3)
        return list(map(list, zip(asked.names, asked.indices.tolist(), strict=True)))

    def our_excluded(folder: Path) -> Any:
        return contest.read_excluded(folder / "t.csv", landmarks).tolist()

    def their_excluded(folder: Path) -> Any:
        text = (folder / "t.csv").read_bytes().decode("utf-8-sig")
        lines = [*csv.reader(io.StringIO(text, newline=""), strict=True)]
        if text.startswith(("file_name", "filename")):
            names = [row["file_name"] for row in _rows(folder / "t.csv")]
        else:  # without a header
            names = [cells[0].strip() for cells in lines if cells]
        return sorted({NAMES.index(name) for name in names if name in NAMES})

    def one(
        name: str, data: bytes, ours: Callable[[Path], Any], theirs: Callable[[Path], Any]
    ) -> Subject:
        return Subject(name, {"t.csv": data}, ["t.csv"], ours, theirs)

    def their_table(folder: Path) -> Any:
        return _points(folder / "t.csv", "Point_", np.float32)

    return [
        one("landmarks", table, our_table, their_table),
        one("whole landmarks", _csv([["file_name", *head], *whole]), our_table, their_table),
        one("submission", answers, submission, lambda f: _points(f / "t.csv", "Point_M", float)),
        one("asked points", asked, our_asked, their_asked),
        one(
            "boxes", boxes, lambda f: contest.read_boxes(f / "t.csv", images),
            of_images(["x0", "y0", "x1", "y1"]),
        ),
        one(
            "weights", weights, lambda f: contest.read_weights(f / "t.csv", images)[:, None],
            of_images(["weight"]),
        ),
        one("exclusions", excluded, our_excluded, their_excluded),
        one("parts", _csv(parts), partial(our_split, "t.csv"), their_parts),
        Subject(
            "split.json", {"split.json": json.dumps(split).encode()}, ["split.json"],
            partial(our_split, "split.json"), their_split,
        ),
    ]  # fmt: skip


def _run_files() -> list[Subject]:
    experiment = Experiment(
        name="a", model=Direct(encoder="resnet18"), stages=(Stage(epochs=2), Stage(epochs=3)),
        train=Train(batch=4),
    )  # fmt: skip
    files: dict[str, tuple[Any, Any]] = {
        "summary": (Summary, {
            "best_mse": 2.5, "best_epoch": 2, "mean_shape_mse": None, "epochs": 3, "steps": 9,
            "minutes": 4.0,
        }),
        "machine": (Machine, {
            "date": "2026-11-28", "commit": None, "device": "cpu", "processor": "x", "cpu_cores": 2,
        }),
        "split (kind)": (Split, {"kind": "person", "rule": "by person", "table": "f00d"}),
        "evaluation": (Scores, {"mse": 3.0, "mean_shape_mse": 9.0, "table": "f00d"}),
        "wandb": (WandbArguments, {"id": "a", "mode": "offline"}),
        "table": (Predictions, {
            "step": 2, "columns": ["image", "file_name"], "rows": [["1.jpg", "a.jpg", None, 2.5]],
        }),
    }  # fmt: skip
    scheme = {"permutation": [1, 0, 2], "groups": {"eyes": [0, 2], "nose": [2, 3]}}
    row = {"step": 1, "epoch": 1, "time/seconds": 0.5, "val/mse": 5.0, "lr": None}
    metrics = "".join(json.dumps(row | {"step": step}) + "\n" for step in (1, 2, 3))
    errors = _csv([["file_name", "mse", "nme", "width", "height"], [NAMES[0], 2, "", 8, 9.5]])

    def their_lines(folder: Path) -> Any:
        lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def their_errors(folder: Path) -> Any:
        rows = _rows(folder / "per_image.csv")
        names = [row.pop("file_name") for row in rows]
        return names, {c: np.array([_number(row[c]) for row in rows]) for c in rows[0]}

    return [
        *(
            Subject(
                f"{name}.json", {f"{name}.json": json.dumps(values).encode()}, [f"{name}.json"],
                partial(_our_json, name, kind), partial(_their_json, name),
            )
            for name, (kind, values) in files.items()
        ),
        Subject(
            "config.json", {"config.json": json.dumps(to_dict(experiment)).encode()},
            ["config.json"], _our_config, _their_config,
        ),
        Subject(
            "symmetry.json", {"symmetry.json": json.dumps(scheme).encode()}, ["symmetry.json"],
            lambda f: schemes.read_scheme(f / "symmetry.json", 3).to_dict(),
            partial(_their_json, "symmetry"),
        ),
        Subject(
            "metrics.jsonl", {"metrics.jsonl": metrics.encode()}, ["metrics.jsonl"],
            read_metrics, their_lines,
        ),
        Subject(
            "per_image.csv", {"per_image.csv": errors}, ["per_image.csv"],
            lambda f: read_per_image(f / "per_image.csv"), their_errors,
        ),
    ]  # fmt: skip


def _our_json(name: str, kind: Any, folder: Path) -> Any:
    return read_json(folder / f"{name}.json", kind)


def _their_json(name: str, folder: Path) -> Any:
    return json.loads((folder / f"{name}.json").read_bytes().decode("utf-8-sig"))


def _our_config(folder: Path) -> Any:
    """The fields that the file has."""
    ours = _leaves(to_dict(read_json(folder / "config.json", Experiment)))
    given = _their_config(folder)
    return {name: ours.get(name, "missing") for name in given}


def _their_config(folder: Path) -> Any:
    return _leaves(_their_json("config", folder))


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    """The values in nested objects and lists by their path, such as stages.0.epochs."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key in value for k, v in _leaves(value[key], f"{name}.{key}").items()}


def _formats() -> list[Subject]:
    png = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    points = _POINTS[:2].tolist()
    pts = [
        "version: 1\nn_points: 3\n{\n" + "".join(f"{x} {y}\n" for x, y in face) + "}\n"
        for face in points
    ]
    numbers = ["".join(f"{x} {y} " for x, y in face) for face in points]
    wflw_list = "".join(
        f"{line}1 2 20 21 0 1 0 0 0 1 f/{k}.png\n" for k, line in enumerate(numbers)
    )
    helen = [f"{k}\n" + "".join(f"{x} , {y}\n" for x, y in face) for k, face in enumerate(points)]
    frames = _csv([["", *range(6)], *([f"{k}.png", *_cells(_POINTS[k])] for k in (0, 1))])
    keypoints = [
        [v for x, y in face for v in ((0, 0, 0) if x != x else (x, y, 2))] for face in points
    ]
    labels = {
        "images": [{"id": k + 1, "file_name": f"{k}.png"} for k in (0, 1)],
        "categories": [{"id": 1, "name": "face", "keypoints": ["a", "b", "c"]}],
        "annotations": [
            {
                "id": k, "image_id": k + 1, "category_id": 1, "iscrowd": 0,
                "keypoints": keypoints[k], "num_keypoints": 3 - k, "bbox": [1, 2, 10.5, 12],
            }
            for k in (0, 1)
        ],
    }  # fmt: skip
    columns = [f"{landmark}_{axis}" for landmark in kaggle15.LANDMARKS for axis in "xy"]
    grey = " ".join(str(k % 256) for k in range(96 * 96))
    training = _csv([[*columns, "Image"], *([*range(k, 30 + k), grey] for k in (0, 1))])
    images = {"0.png": png, "1.png": png}
    listed = "list_3pt_rect_attr_train.txt"
    return [
        Subject(
            "iBUG .pts", {"0.pts": pts[0].encode(), "1.pts": pts[1].encode()} | images,
            ["0.pts", "1.pts"], lambda f: _faces(ibug.read(f, negative="keep")), _their_ibug,
        ),
        Subject(
            "WFLW", {listed: wflw_list.encode()} | {f"WFLW_images/f/{k}": png for k in images},
            [listed], lambda f: _faces(wflw.read(f)), lambda f: _their_wflw(f / listed),
        ),
        Subject(
            "Helen",
            {f"annotation/{k}.txt": helen[k].encode() for k in (0, 1)} | images,
            ["annotation/0.txt", "annotation/1.txt"],
            lambda f: _faces(helen194.read(f)), _their_helen,
        ),
        Subject(
            "Udacity",
            {"training_frames_keypoints.csv": frames} | {f"training/{k}": png for k in images},
            ["training_frames_keypoints.csv"],
            lambda f: _faces(udacity.read(f)), _their_udacity,
        ),
        Subject(
            "COCO", {"a.json": json.dumps(labels).encode()} | images, ["a.json"],
            lambda f: _faces(coco.read(f / "a.json", None, None, None, "keypoints")), _their_coco,
        ),
        Subject(
            "Kaggle15", {"training.csv": training}, ["training.csv"], _our_kaggle, _their_kaggle
        ),
    ]  # fmt: skip


def _faces(labelled: LabelledFaces) -> Any:
    """Names, points and boxes, in the order of names."""
    faces = sorted(labelled.faces, key=lambda face: face.name)
    return [
        [face.name, face.points_image, [] if face.box_image is None else face.box_image]
        for face in faces
    ]


def _pairs(text: str) -> np.ndarray:
    return np.array(text.split(), np.float64).reshape(-1, 2)


def _their_ibug(folder: Path) -> Any:
    faces = []
    for path in sorted(folder.glob("*.pts")):
        text = path.read_text("utf-8-sig")
        (count,) = re.findall(r"n_points\s*:\s*(\d+)", text)
        (listed,) = re.findall(r"^\s*{\s*$(.*)^\s*}", text, re.MULTILINE | re.DOTALL)
        points = _pairs(listed)
        assert len(points) == int(count)
        faces.append([f"{path.stem}.png", points - 1, []])
    return faces


def _their_wflw(path: Path) -> Any:
    faces = []
    for line in path.read_text("utf-8-sig").splitlines():
        if line.strip():
            *numbers, name = line.split(None, 16)
            points, box = _pairs(" ".join(numbers[:6])), np.array(numbers[6:10], float)
            faces.append([name.strip().replace("\\", "/"), points, _box_or_bounds(box, points)])
    return _numbered(faces)


def _box_or_bounds(box: np.ndarray, points: np.ndarray) -> np.ndarray:
    if box[0] < box[2] and box[1] < box[3]:
        return box
    return np.concatenate([np.nanmin(points, 0), np.nanmax(points, 0)])


def _numbered(faces: list[list[Any]]) -> list[list[Any]]:
    """Faces in the order of names, of which each but the first of an image has a number."""
    seen = dict[str, int]()
    for face in faces:
        name = face[0]
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            face[0] = f"{Path(name).with_suffix('')}#{seen[name]}{Path(name).suffix}"
    return sorted(faces, key=lambda face: face[0])


def _their_helen(folder: Path) -> Any:
    faces = []
    for path in sorted(folder.glob("annotation/*.txt")):
        name, *lines = path.read_text("utf-8-sig").strip().splitlines()
        points = [[_number(cell) for cell in line.split(",")] for line in lines]
        faces.append([f"{name.strip()}.png", np.array(points), []])
    return sorted(faces, key=lambda face: face[0])


def _their_udacity(folder: Path) -> Any:
    faces = [
        (row.pop(next(iter(row))).replace("\\", "/"), row)
        for row in _rows(folder / "training_frames_keypoints.csv")
    ]
    faces.sort(key=lambda face: face[0])
    return [
        [name, np.array([_number(row[str(k)]) for k in range(len(row))]).reshape(-1, 2), []]
        for name, row in faces
    ]


def _their_coco(folder: Path) -> Any:
    labels = json.loads((folder / "a.json").read_bytes())
    names = {image["id"]: image["file_name"].replace("\\", "/") for image in labels["images"]}
    faces = []
    for image_id, name in names.items():
        for face in labels["annotations"]:
            if face["image_id"] != image_id or face.get("iscrowd") or not face.get("keypoints"):
                continue
            triples = zip(*(face["keypoints"][k::3] for k in range(3)), strict=True)
            points = np.array([[x, y] if v else [np.nan] * 2 for x, y, v in triples], float)
            if np.isnan(points).all():
                continue
            box = face.get("bbox")
            try:
                x, y, width, height = box
                box = np.array([x, y, x + width, y + height], float) - 0.5
                assert np.abs([x, y, width, height]).max() <= 1e6
            except (TypeError, ValueError, OverflowError, AssertionError):
                box = np.zeros(4)
            faces.append([name, points, _box_or_bounds(box, points)])
    return _numbered(faces)


def _our_kaggle(folder: Path) -> Any:
    kaggle15.convert(folder, folder / "out")
    converted = contest.Folder(root=folder / "out")
    table = contest.read_landmarks(converted.train_table)
    images = [contest.read_image(converted.train_images / name)[..., 0] for name in table.names]
    return table.points_image[:], images


def _their_kaggle(folder: Path) -> Any:
    points, images = [], []
    for row in _rows(folder / "training.csv"):
        images.append(np.array(row["Image"].split(), int).reshape(96, 96))
        names = [f"{landmark}_{axis}" for landmark in kaggle15.LANDMARKS for axis in "xy"]
        points.append([_number(row[name]) for name in names])
    return np.array(points).round(6).astype(np.float32).reshape(-1, 15, 2), images


def _images() -> list[Subject]:
    y, x = np.mgrid[:_SIDE, : _SIDE + 6]
    pixels = np.stack([x * 8, y * 10, (x + y) * 4], -1).astype(np.uint8)
    rgb = Image.fromarray(pixels)
    drawn = {
        "a.png": rgb, "palette.png": rgb.convert("P"), "alpha.png": rgb.convert("RGBA"),
        "grey.png": rgb.convert("L"), "a.bmp": rgb, "a.jpg": rgb, "grey.jpg": rgb.convert("L"),
        "a.gif": rgb, "a.webp": rgb, "a.tif": rgb, "a.ppm": rgb,
    }  # fmt: skip
    made = []
    for name, image in drawn.items():
        file = io.BytesIO()
        image.save(file, {"jpg": "jpeg", "tif": "tiff"}.get(name[-3:], Path(name).suffix[1:]))
        made.append(Subject(
            name, {name: file.getvalue()}, [name], partial(_our_image, name),
            partial(_their_image, name), is_strict=False, tolerance=4,
        ))  # fmt: skip
    return made


def _our_image(name: str, folder: Path) -> Any:
    return contest.read_image(folder / name)


def _their_image(name: str, folder: Path) -> Any:
    with Image.open(folder / name) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def _videos() -> list[Subject]:
    frames = [np.full((32, 48, 3), 30 * k + 20, np.uint8) for k in range(5)]
    made = []
    for name, codec in {"a.mp4": "libx264", "a.mkv": "libx264", "a.avi": "mjpeg"}.items():
        file = io.BytesIO()
        with av.open(file, "w", {"mkv": "matroska"}.get(name[2:], name[2:])) as container:
            stream = container.add_stream(codec, rate=25)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height = 48, 32
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
        made.append((name, file.getvalue()))
    for name in ("a.gif", "a.webp"):
        file = io.BytesIO()
        first, *others = map(Image.fromarray, frames)
        first.save(file, name[2:], save_all=True, append_images=others, duration=40)
        made.append((name, file.getvalue()))
    return [
        Subject(
            f"video {name}", {name: data}, [name], partial(_our_video, name),
            partial(_their_video, name), is_strict=False, tolerance=4,
        )
        for name, data in made
    ]  # fmt: skip


def _our_video(name: str, folder: Path) -> Any:
    video = Video(folder / name)
    frames = [frame.image for frame in video]
    if problems := video.problems(len(frames)):
        raise UserError(problems)
    return frames


def _their_video(name: str, folder: Path) -> Any:
    if name.endswith("webp"):
        with Image.open(folder / name) as animation:
            images = ImageSequence.Iterator(animation)
            return [np.asarray(image.convert("RGB")) for image in images]
    with av.open(str(folder / name)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def _checkpoints() -> list[Subject]:
    torch.manual_seed(0)
    experiment = Experiment(
        name="a",
        crop=Crop(height=32, width=32),
        model=Direct(encoder="tu-test_resnet", weights="none"),
    )
    network = networks.build(experiment.model, experiment.crop, 3)
    saved = checkpoint.Checkpoint(
        config=to_dict(experiment), num_landmarks=3, network=network.state_dict(), sigma=None,
        mean_shape_crop=torch.rand(3, 2, dtype=torch.float64), table_hash="f00d",
        training_rows=torch.arange(4), validation_rows=torch.arange(4, 6), validation_mse=2.5,
    )  # fmt: skip
    small = vars(saved) | {"network": {"weight": torch.rand(3, 2), "steps": torch.tensor(3)}}
    state = {
        "network": None, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}, "wandb_id": "a",
        "progress": {"epoch": 1, "best_mse": 2.5}, "image_weights": torch.ones(6),
    }  # fmt: skip
    made = []
    for name, values, ours in (
        ("checkpoint", small | {"state": state}, _our_checkpoint),
        ("checkpoint to load", vars(saved), _our_network),
    ):
        file = io.BytesIO()
        torch.save(values, file)
        made.append(Subject(name, {"a.pt": file.getvalue()}, ["a.pt"], ours, _their_checkpoint))
    return made


def _our_checkpoint(folder: Path) -> Any:
    return _arrays(checkpoint.load(folder / "a.pt").network)


def _our_network(folder: Path) -> Any:
    return _arrays(checkpoint.load_trained(folder / "a.pt").network.state_dict())


def _their_checkpoint(folder: Path) -> Any:
    with zipfile.ZipFile(folder / "a.pt") as archive:
        assert archive.testzip() is None
    return _arrays(torch.load(folder / "a.pt", weights_only=True)["network"])


def _arrays(state: Any) -> Any:
    if not isinstance(state, dict):  # refused once a network is built
        return state
    return {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
