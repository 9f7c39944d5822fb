"""Images and videos are drawn, and their points written in image pixels."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image
from tiny_runs import DIRECT, trained

import heatmap
from heatmap import config
from heatmap.data import contest
from heatmap.data.contest import images as contest_images
from heatmap.inference.media import Annotator, camera
from heatmap.inference.media.video import Video

Tool = Callable[..., int]


@pytest.fixture(scope="module")
def runs(tiny_contest: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of one step: with heatmaps, without, and on boxes."""
    folder = tmp_path_factory.mktemp("runs")
    boxes = folder / "boxes.csv"
    names = [f"{person}_{k}.jpg" for person in ("ada", "bo", "cy", "dee") for k in range(3)]
    boxes.write_text("file_name,x0,y0,x1,y1\n" + "".join(f"{n},5,6,50,55\n" for n in names))
    data = config.Data(root=tiny_contest, workers=0, boxes=boxes)
    crop = config.Crop(height=32, width=32, rule="box")
    return {
        "heatmaps": trained(folder / "heatmaps", tiny_contest),
        "direct": trained(folder / "direct", tiny_contest, model=DIRECT),
        "boxes": trained(folder / "boxes", tiny_contest, data=data, crop=crop),
    }


@pytest.fixture
def folder(tmp_path: Path, tiny_contest: Path) -> Path:
    """Two small images, a large one, a broken one, a video and a text file."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for k in range(2):
        content = (tiny_contest / "test" / "images" / f"eve_{k}.jpg").read_bytes()
        (folder / f"eve_{k}.jpg").write_bytes(content)
    image = cv2.imread(str(folder / "eve_0.jpg"))
    assert cv2.imwrite(str(folder / "large.webp"), cv2.resize(image, (900, 700)))
    (folder / "broken.jpg").write_bytes((folder / "eve_1.jpg").read_bytes()[:700])
    (folder / "notes.txt").write_text("no image")
    code = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.CAP_FFMPEG, code, 25, (90, 66))
    for k in range(5):
        writer.write(np.roll(cv2.resize(image, (90, 66)), k, 1))
    writer.release()
    return folder


def table_of(out: Path) -> list[dict[str, str]]:
    with (out / "points.csv").open() as file:
        return list(csv.DictReader(file))


def points_of(out: Path, image: Path, frame: str = "") -> np.ndarray:
    rows = [r for r in table_of(out) if (r["image"], r["frame"]) == (str(image), frame)]
    assert [int(row["landmark"]) for row in rows] == list(range(len(rows)))
    return np.array([[float(row["x"]), float(row["y"])] for row in rows])


def test_a_folder_is_drawn_and_unreadable_files_are_counted(
    runs: dict[str, Path],
    folder: Path,
    tool: Tool,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert (
        tool("predict", runs["heatmaps"], folder, "--out", out, "--device", "cpu", "--no-smooth")
        == 1
    )
    captured = capfd.readouterr()
    assert f"{folder / 'broken.jpg'}: the image cannot be decoded" in captured.err
    assert "1 of 5 inputs could not be processed" in captured.err
    assert "Traceback" not in captured.err
    assert "0/4 [" in captured.err, "the bar counts images"
    written = {path.name for path in out.iterdir()}
    names = {"eve_0.jpg", "eve_1.jpg", "large.webp.png", "clip.mp4"}
    assert written == names | {"points.csv", "points.json", ".heatmap.json"}

    # the same as the library's
    paths = [folder / name for name in ("eve_0.jpg", "eve_1.jpg", "large.webp")]
    expected = heatmap.Predictor(runs["heatmaps"], device="cpu")(paths)
    for path, points in zip(paths, expected.points_image, strict=True):
        np.testing.assert_allclose(points_of(out, path), points, atol=1e-3)
    drawn = cv2.imread(str(out / "large.webp.png"))
    assert drawn.shape == (700, 900, 3)
    x, y = expected.points_image[2, 3].round().astype(int)
    assert np.abs(drawn[y, x].astype(int) - (64, 214, 255)).max() < 40  # a landmark's colour
    small = cv2.imread(str(folder / "eve_0.jpg")).shape
    enlarged = cv2.imread(str(out / "eve_0.jpg")).shape
    assert enlarged[0] % small[0] == 0 and max(enlarged) >= 400

    # points.json equals points.csv
    faces = json.loads((out / "points.json").read_text())["faces"]
    assert len(faces) == 3 + 5
    rows = table_of(out)
    for name in ("x", "y", "confidence", "cov_xx", "cov_xy", "cov_yy"):
        assert [float(row[name]) for row in rows] == [n for face in faces for n in face[name]]

    # the video keeps its size, rate and length, and has its points frame by frame
    drawn_video, original = Video(out / "clip.mp4"), Video(folder / "clip.mp4")
    images = list(drawn_video)
    assert drawn_video.rate == original.rate and images[0].image.shape == (66, 90, 3)
    assert [p.seconds for p in images] == pytest.approx([p.seconds for p in original])
    third = [one.image for one in original][2]
    (points,) = heatmap.Predictor(runs["heatmaps"], device="cpu")([third]).points_image
    np.testing.assert_allclose(points_of(out, folder / "clip.mp4", "2"), points, atol=1e-3)


def test_boxes_come_from_the_command_line_or_a_table(
    runs: dict[str, Path], folder: Path, tool: Tool, tmp_path: Path
) -> None:
    paths = [folder / "eve_0.jpg", folder / "eve_1.jpg"]
    boxes = np.array([(3.5, 4, 40, 50), (10, 12, 60, 44)])
    table = tmp_path / "boxes.csv"
    lines = [f"{p.name},{','.join(map(str, b))}\n" for p, b in zip(paths, boxes, strict=True)]
    table.write_text("file_name,x0,y0,x1,y1\n" + "".join(lines))
    for name in ("heatmaps", "boxes"):
        ours = heatmap.Predictor(runs[name], device="cpu")
        options = ["--device", "cpu", "--out", tmp_path / name]
        assert tool("predict", runs[name], *paths, "--boxes", table, *options) == 0
        expected = ours(paths, boxes).points_image
        for path, points in zip(paths, expected, strict=True):
            np.testing.assert_allclose(points_of(tmp_path / name, path), points, atol=1e-3)
        box = ",".join(map(str, boxes[0]))
        assert tool("predict", runs[name], paths[1], "--box", box, "--two-pass", *options) == 0
        (points,) = ours(paths[1:], boxes[:1], two_pass=True).points_image
        np.testing.assert_allclose(points_of(tmp_path / name, paths[1]), points, atol=1e-3)


def test_two_images_of_one_name_need_paths_in_the_box_table(
    runs: dict[str, Path], folder: Path, tool: Tool, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "deeper").mkdir()
    paths = [folder / "eve_0.jpg", folder / "deeper" / "eve_0.jpg"]
    paths[1].write_bytes(paths[0].read_bytes())
    table = folder / "boxes.csv"
    arguments = [*paths, "--boxes", table, "--out", folder / "out", "--device", "cpu"]
    table.write_text("file_name,x0,y0,x1,y1\neve_0.jpg,3,4,40,50\n")
    assert tool("predict", runs["heatmaps"], *arguments) == 1
    assert f"row 2: eve_0.jpg matches both {paths[0]} and" in capfd.readouterr().err
    table.write_text(table.read_text() + "deeper/eve_0.jpg,10,12,60,44\n")
    assert tool("predict", runs["heatmaps"], *arguments) == 0


def test_a_run_on_boxes_accepts_an_image_without_faces(
    runs: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    predictor = heatmap.Predictor(runs["boxes"], device="cpu")
    annotator = Annotator(predictor, lambda _path, _image: np.empty((0, 4)))
    assert annotator.files([folder / "eve_0.jpg"], tmp_path / "out") == 0
    assert table_of(tmp_path / "out") == []


def test_every_detected_face_is_predicted(
    runs: dict[str, Path], folder: Path, tool: Tool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A stand-in replaces YuNet, whose boxes are in pixels of its 640 x 640 input."""

    class Found:
        def detect(self, image: np.ndarray) -> tuple[int, np.ndarray | None]:
            assert image.shape == (640, 640, 3) and not image[498:].any()
            if not image[:498, 639].any():  # a small image, in the corner
                return 1, None
            faces = np.zeros((2, 15), np.float32)
            faces[:, :4] = [(64, 128, 64, 96), (320, 64, 128, 160)]
            return 1, faces

    model = tmp_path / "yunet.onnx"
    model.write_bytes(b"x")
    monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda *_: Found())
    out, large = tmp_path / "out", folder / "large.webp"
    arguments = [large, folder / "eve_0.jpg", "--detector", model, "--out", out, "--device", "cpu"]
    assert tool("predict", runs["direct"], *arguments) == 0
    assert f"{folder / 'eve_0.jpg'}: no face found" in caplog.text
    corners = np.array([(320, 64, 448, 224), (64, 128, 128, 224)])  # the larger face first
    boxes = corners * np.tile([900 / 640, 700 / 498], 2) - 0.5
    expected = heatmap.Predictor(runs["direct"], device="cpu")([large] * 2, boxes).points_image
    rows = table_of(out)
    assert [(row["image"], row["face"]) for row in rows] == [
        (str(large), f) for f in "01" for _ in range(7)
    ]
    found = np.array([[float(row["x"]), float(row["y"])] for row in rows]).reshape(2, 7, 2)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert {row["confidence"] for row in rows} == {""}  # direct networks have none


def test_nothing_is_written_if_no_input_can_be_read(
    runs: dict[str, Path], folder: Path, tool: Tool, capfd: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out"
    inputs = (folder / "broken.jpg", folder / "notes.txt")
    assert tool("predict", runs["direct"], *inputs, "--device", "cpu", "--out", out) == 1
    captured = capfd.readouterr()
    for words in ("broken.jpg: ", "notes.txt: ", "no input could be processed"):
        assert words in captured.err
    assert not captured.out.strip() and not list(out.glob("*"))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "pass images, videos or a camera"),
        (["x.jpg", "--data", "."], 2, "or else a contest folder with --data"),
        (["0", "x.jpg"], 2, "camera 0 must be the only input"),
        (["x.jpg", "--out", "text.onnx"], 2, "--out text.onnx is not a folder"),
        (["x.jpg", "--box", "60,2,70,9"], 1, "x.jpg: the box from (60, 2) to (70, 9) is outside"),
        (["nothing-*.jpg"], 2, "no file matches nothing-*.jpg"),
        (["missing.jpg"], 1, "missing.jpg: the image does not exist"),
        (["missing.mp4"], 1, "missing.mp4: the video does not exist"),
        (["empty"], 2, "empty: no images or videos in this folder"),
        (["x.jpg", "--box", "1,2,3"], 2, "--box 1,2,3: expected four numbers x0,y0,x1,y1"),
        (["x.jpg", "--box", "5,2,3,4"], 2, "--box 5,2,3,4: expected x0 < x1"),
        (["x.jpg", "--box", "1,2,3,4", "--detector", "d.onnx"], 2, "only one of --box"),
        (["x.jpg", "--detector", "d.onnx"], 1, "d.onnx: the .onnx file of YuNet does not exist"),
        (["x.jpg", "--detector", "text.onnx"], 1, "text.onnx: not YuNet"),
        (["x.jpg", "--test"], 2, "--test needs --data"),
        (["x.jpg", "--out", ".", "--overwrite"], 1, "x.jpg is an input, not to be overwritten"),
        (["--data", ".", "--count", "0"], 2, "--count (at least 1)"),
        (["987"], 1, "camera 987: not found"),
    ],
)
def test_wrong_usage_is_reported(
    runs: dict[str, Path], tool: Tool, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str,
) -> None:  # fmt: skip
    class NoWindow:
        is_open = True

        def __init__(self, title: str) -> None:
            pass

        def close(self) -> None:
            pass

    monkeypatch.setattr(camera, "Window", NoWindow)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.onnx").write_text("no network")
    assert cv2.imwrite(str(tmp_path / "x.jpg"), np.zeros((40, 50, 3), np.uint8))
    before = (tmp_path / "x.jpg").read_bytes()
    assert tool("predict", runs["heatmaps"], *arguments, "--device", "cpu") == code
    error = " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert words in error and "Traceback" not in error
    assert (tmp_path / "x.jpg").read_bytes() == before


def test_a_run_on_boxes_requires_boxes(
    runs: dict[str, Path], folder: Path, tool: Tool, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tool("predict", runs["boxes"], folder / "eve_0.jpg", "--device", "cpu") == 2
    assert "add --box, --boxes or --detector" in capfd.readouterr().err


def test_a_camera_needs_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(ValueError, match="live window"):
        camera.Window("nothing")


def test_a_camera_runs_until_its_window_is_closed(
    runs: dict[str, Path], tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[np.ndarray] = []
    image = np.full((60, 80, 3), 90, np.uint8)

    class Screen:
        is_open = True

        def __init__(self, title: str) -> None:
            assert "Esc" in title

        def show(self, drawn: np.ndarray) -> None:
            shown.append(drawn)
            self.is_open = len(shown) < 4

        def close(self) -> None:
            self.is_open = False

    monkeypatch.setattr(camera, "Window", Screen)
    monkeypatch.setattr(camera, "frames", lambda index: ((image, t / 30) for t in range(99)))
    assert tool("predict", runs["heatmaps"], "0", "--device", "cpu") == 0
    assert len(shown) == 4 and all(drawn.shape == image.shape for drawn in shown)
    assert all((drawn != 90).any() for drawn in shown)


def test_a_sheet_shows_the_truth_below_the_predictions(
    runs: dict[str, Path], tiny_contest: Path, tool: Tool, tmp_path: Path
) -> None:
    arguments = [runs["heatmaps"], "--data", tiny_contest, "--count", "2", "--device", "cpu"]
    assert tool("predict", *arguments, "--out", tmp_path / "sheet.png") == 0
    assert tool("predict", *arguments, "--test", "--out", tmp_path / "out") == 0
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * (256 + 4) - 4, 2 * (192 + 4) - 4, 3)
    green = (sheet == (0, 255, 0)).all(-1)
    assert green[260:].sum() > 2 * 6 and not green[:256].any()
    assert cv2.imread(str(tmp_path / "out" / "sheet.jpg")).shape == (256, 2 * 196 - 4, 3)
    (tmp_path / "mine.png").touch()
    assert tool("predict", *arguments, "--out", tmp_path / "mine.png") == 1
    assert (tmp_path / "mine.png").stat().st_size == 0


def test_a_missing_labelled_image_is_reported_with_its_row(
    runs: dict[str, Path], tiny_contest: Path, tool: Tool, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    mine, other = contest.Folder(root=tiny_contest), contest.Folder(root=tmp_path / "other")
    other.train_images.mkdir(parents=True)
    table = contest.read_landmarks(mine.train_table)
    contest.write_landmarks(other.train_table, table.names, table.points_image[:] + 1)
    for name in table.names[:-1]:
        (other.train_images / name).write_bytes((mine.train_images / name).read_bytes())
    arguments = ["--data", other.root, "--count", "2", "--device", "cpu"]
    assert tool("predict", runs["heatmaps"], *arguments) == 1
    assert f"{other.train_table}, row 13, column file_name: the image" in capfd.readouterr().err


def test_one_bad_file_never_loses_the_points_of_the_others(
    runs: dict[str, Path], folder: Path, tool: Tool, tmp_path: Path,
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO", "heatmap")
    mine, good = tmp_path / "bad", (folder / "eve_0.jpg").read_bytes()
    mine.mkdir()
    for name in ("a.jpg", "\udcff.jpg", "z.jpg"):
        (mine / name).write_bytes(good)
    (mine / "\udcfe.mp4").write_bytes((folder / "clip.mp4").read_bytes())
    (mine / "notes.txt").write_text("two faces on page 3")
    (mine / "page.jpg").write_text("<!doctype html><title>not found</title>")
    (mine / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(64))
    cv2.imwrite(str(mine / "tall.png"), np.zeros((65_536, 1, 3), np.uint8))
    (mine / "tall.png").rename(mine / "tall.jpg")
    os.mkfifo(mine / "pipe.jpg")
    with av.open(str(mine / "wide.avi"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 4, 20_000, "yuv420p"
        wide = av.VideoFrame.from_ndarray(np.zeros((4, 20_000, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(wide), *stream.encode(None)])
    out = tmp_path / "out"
    assert tool("predict", runs["direct"], mine, "--out", out, "--device", "cpu") == 1
    errors = capfd.readouterr().err
    for words in (
        "page.jpg: this is text", "phone.heic: this is a HEIC image", "tall.jpg: 1 x 65536 pixels",
        "pipe.jpg: the image is a pipe", "wide.avi: cannot encode frames of 20000 x 4 pixels",
        "5 of 9 inputs could not be processed",
    ):  # fmt: skip
        assert words in errors
    assert f"{mine}: skipped 1 file of other types: notes.txt" in caplog.text
    images = {row["image"].removeprefix(f"{mine}/") for row in table_of(out)}
    assert images == {"a.jpg", r"\udcff.jpg", "z.jpg", r"\udcfe.mp4"}
    faces = json.loads((out / "points.json").read_text())["faces"]
    assert str(mine / "\udcff.jpg") in {face["image"] for face in faces}


def test_files_of_others_are_replaced_only_on_request(
    runs: dict[str, Path], folder: Path, tool: Tool, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()
    (out / "eve_0.jpg").write_text("precious")
    arguments = ["predict", runs["direct"], folder / "eve_0.jpg", "--out", out, "--device", "cpu"]
    assert tool(*arguments) == 1
    assert f"{out / 'eve_0.jpg'} exists, and this command did not" in capfd.readouterr().err
    assert [path.read_text() for path in out.iterdir()] == ["precious"]
    assert tool(*arguments, "--overwrite") == 0
    assert tool(*arguments) == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_any_other_error_keeps_the_points_so_far(
    runs: dict[str, Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:  # fmt: skip
    def stopped(video: Video) -> None:
        raise error

    monkeypatch.setattr(Video, "__iter__", stopped)
    predictor, out = heatmap.Predictor(runs["direct"], device="cpu"), tmp_path / "out"
    for _ in range(2):  # what was written is still the command's own
        with pytest.raises(error):
            Annotator(predictor).files([folder / "clip.mp4", folder / "eve_1.jpg"], out)
        assert len(points_of(out, folder / "eve_1.jpg")) == 7
        assert len(json.loads((out / "points.json").read_text())["faces"]) == 1


def test_animations_are_videos_but_of_an_animated_png_the_first_frame_is_drawn(
    runs: dict[str, Path], folder: Path, tool: Tool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(contest_images, "_LOGGED", bytearray(4096))
    faces = [Image.open(folder / f"eve_{k}.jpg").resize((90, 66)) for k in (0, 1)]
    out, inputs = tmp_path / "out", [tmp_path / f"moving.{form}" for form in ("gif", "webp", "png")]
    for path in inputs:
        faces[0].save(path, save_all=True, append_images=faces[1:], duration=100)
    with caplog.at_level("WARNING", "heatmap"):
        assert tool("predict", runs["direct"], *inputs, "--out", out, "--device", "cpu") == 0
    assert caplog.messages == [
        f"{inputs[2]}: only the first frame of an animation is used (logged once)"
    ]
    frames = {(Path(row["image"]).name, row["seconds"]) for row in table_of(out)}
    animated = {(f"moving.{form}", time) for form in ("gif", "webp") for time in ("0.0", "0.1")}
    assert frames == animated | {("moving.png", "")}
    assert (out / "moving.gif.mp4").is_file() and (out / "moving.png").is_file()
