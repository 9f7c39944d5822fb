"""Look at what a run does: on images, videos, a camera, or a contest's images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from heatmap.cli.running import run_command
from heatmap.errors import UsageError, UserError

if TYPE_CHECKING:
    from heatmap.inference.media import Finder
    from heatmap.inference.predictor import Predictor


def predict(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|CHECKPOINT")],
    inputs: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[INPUT ...]")
    ] = (),
    *,
    out: Path = Path("predictions"),
    data: Path | None = None,
    count: int = 8,
    test: tyro.conf.FlagCreatePairsOff[bool] = False,
    box: Annotated[str | None, tyro.conf.arg(metavar="X0,Y0,X1,Y1")] = None,
    boxes: Path | None = None,
    detector: Path | None = None,
    two_pass: tyro.conf.FlagCreatePairsOff[bool] = False,
    smooth: tyro.conf.FlagCreatePairsOff[bool] = True,
    ellipses: tyro.conf.FlagCreatePairsOff[bool] = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Look at what a run does: on images, videos, a camera, or a contest's images.

    Inputs are images, videos, folders of them, glob patterns, or the number of a camera, which
    is shown in a window. The folder --out gets a drawn copy of each, and points.csv and
    points.json: every landmark in the image's own pixels, with its confidence and covariance.
    Videos keep size, rate and length; their sound is left out.

    An image is cropped as in training, unless a box says where its face is: for a run with
    crop.rule box one like those of its training table, else the bounds of the face's landmarks.

    Args:
        run: a run folder or a checkpoint.
        inputs: what to look at.
        out: the folder to write into; with --data a folder, or the .jpg or .png to write.
        data: in place of inputs, a contest folder, of which one image of many is drawn: labelled
            ones (those that validate, if the run was trained on it) with the truth below in green.
        count: with --data, how many images, evenly spaced.
        test: with --data, the test images.
        box: of the face, in all images: opposite corners in pixels.
        boxes: table of the images' boxes: file_name, x0, y0, x1, y1.
        detector: finds the faces, any number an image: the file of OpenCV's YuNet,
            face_detection_yunet_2026may.onnx. Its boxes reach up to the forehead; where a run's
            landmarks do not, --two-pass puts the crop right.
        two_pass: look again, at a crop that the first landmarks fill as training faces fill theirs.
        smooth: points of videos and cameras lose their jitter; without it they are as found.
        ellipses: draw one standard deviation of the heatmap round the landmarks.
        device: where the network runs.
    """
    if not inputs and data is None:
        raise UsageError("name images, videos or a camera to look at, or a folder with --data")
    if inputs and data is not None:
        raise UsageError(f"--data {data} takes the place of {inputs[0]}; name one or the other")
    corners = None if box is None else _corners(box)
    if sum(way is not None for way in (box, boxes, detector)) > 1:
        raise UsageError("--box, --boxes and --detector exclude each other")
    if data is not None:
        if count < 1 or box or detector or two_pass or ellipses:
            raise UsageError("--data takes --count (at least 1), --test, --boxes and --out only")
        print(_sheet(run, data, count, test, boxes, out, device))
        return
    if test:
        raise UsageError("--test goes with --data")

    from heatmap.inference.media import Annotator, find_files
    from heatmap.inference.predictor import Predictor

    cameras = [name for name in inputs if name.isdecimal() and not Path(name).exists()]
    if cameras and len(inputs) > 1:
        raise UsageError("a camera is looked at alone, without other inputs")
    if out.is_file():
        raise UsageError(f"--out {out} is a file; name a folder")
    try:
        paths = [] if cameras else find_files(inputs)
    except UserError as error:
        raise UsageError(str(error)) from None
    predictor = Predictor(run, device)
    finder = _finder(predictor, paths, corners, boxes, detector)
    annotator = Annotator(predictor, finder, two_pass, smooth, ellipses)
    if cameras:
        annotator.camera(int(cameras[0]))
        return
    failed = annotator.files(paths, out)
    print(out)
    if failed:
        raise UserError(f"{failed} of {len(paths)} files could not be looked at")


def _finder(
    predictor: "Predictor",
    paths: Sequence[Path],
    box: tuple[float, float, float, float] | None,
    table: Path | None,
    detector: Path | None,
) -> "Finder":
    import numpy as np

    from heatmap.data.contest import read_boxes
    from heatmap.inference.media import Detector

    if detector is not None:
        detect = Detector(detector)
        return lambda _, image: detect(image)
    if table is not None:
        boxes_image = dict(zip(paths, read_boxes(table, paths), strict=True))
        return lambda path, _: boxes_image[path][None]
    if box is not None:
        return lambda _path, _image: np.array([box])
    if predictor.crop.rule == "box":
        trained = f"{predictor.path} was trained on boxes (crop.rule box)"
        raise UsageError(f"{trained}: name them with --box or --boxes, or a --detector")
    return lambda _path, _image: None


def _sheet(
    run: Path, data: Path, count: int, test: bool, boxes: Path | None, out: Path, device: str
) -> Path:
    """Draws images of a contest folder; returns where."""
    from heatmap.evaluation import sheets
    from heatmap.inference.ensemble import Ensemble
    from heatmap.runtime.files import write_image
    from heatmap.runtime.machine import chosen_device

    path = out if out.suffix in (".jpg", ".png") else out / "sheet.jpg"
    (trained,) = Ensemble.load([run], boxes=boxes).runs
    write_image(path, sheets.data_sheet(trained, data, count, test, chosen_device(device)))
    return path


def _corners(box: str) -> tuple[float, float, float, float]:
    try:
        x0, y0, x1, y1 = map(float, box.split(","))
    except UserError:
        raise UsageError(f"--box: expected four numbers x0,y0,x1,y1, found {box}") from None
    if not (x0 < x1 and y0 < y1):
        raise UsageError(f"--box {box}: x0 must be below x1, and y0 below y1")
    return x0, y0, x1, y1


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return run_command(lambda: tyro.cli(predict, prog="predict.py", args=arguments))
