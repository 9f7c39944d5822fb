"""Predict and draw landmarks on images, videos, a camera stream or a contest's images."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from heatmap.cli.running import run_command
from heatmap.errors import UsageError, UserError


def predict(
    run: Annotated[Path, Positional, arg(metavar="RUN|CHECKPOINT")],
    inputs: Annotated[tuple[str, ...], Positional, arg(metavar="[INPUT ...]")] = (),
    *,
    out: Path = Path("predictions"),
    data: Path | None = None,
    count: int = 8,
    test: bool = False,
    box: Annotated[str | None, arg(metavar="X0,Y0,X1,Y1")] = None,
    boxes: Path | None = None,
    detector: Path | None = None,
    two_pass: bool = False,
    true_pixels: bool = False,
    smooth: bool = True,
    ellipses: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    overwrite: bool = False,
) -> None:
    """Predict and draw landmarks on images, videos, a camera stream or a contest's images.

    Writes an annotated copy of each image and video, and points.csv and points.json with each
    landmark in image pixels, its confidence and covariance. Videos keep size, frame rate and
    length, but lose their sound. Images are cropped as in training unless boxes are given. A run
    with crop.rule box expects boxes like those it was trained on, other runs the bounds of the
    landmarks.

    Args:
        run: run folder or checkpoint.
        inputs: images, videos, folders of them, glob patterns, or the number of a camera, which is
            shown in a window.
        out: output folder; with --data also a .jpg or .png file.
        data: contest folder, instead of inputs: draws a sheet of labelled images (validation
            images if the run was trained on them), with the truth below in green.
        count: number of images on the sheet of --data, evenly spaced.
        test: draw the test images of --data.
        box: one box for all images: opposite corners in pixels.
        boxes: table of one box per image, in pixels: file_name, x0, y0, x1, y1.
        detector: detect any number of faces per image with this file of OpenCV's YuNet,
            face_detection_yunet_2026may.onnx. Its boxes include the forehead; add --two-pass if
            the run's landmarks do not.
        two_pass: predict again from a crop fitted to the first prediction.
        true_pixels: remove the constant offset of the training labels, if one was found, so that
            points lie on the face.
        smooth: filter jitter out of the points of videos and cameras.
        ellipses: draw one standard deviation round each landmark.
        device: where the network runs; auto is the GPU if there is one.
        overwrite: also replace files in the output folder that this command did not write.
    """
    is_run = run.suffix in (".pt", ".pth") or (run / "config.json").is_file()
    if not is_run and (run.is_file() or (run.is_dir() and not inputs and data is None)):
        raise UsageError(f"{run} is not a run; expected heatmap predict RUN {run}")
    if bool(inputs) == (data is not None):
        raise UsageError("pass images, videos or a camera, or else a contest folder with --data")
    if sum(option is not None for option in (box, boxes, detector)) > 1:
        raise UsageError("pass only one of --box, --boxes and --detector")
    corners = None if box is None else _corners(box)
    if data is not None:
        if count < 1 or box or detector or two_pass or true_pixels or ellipses:
            raise UsageError(
                "--data allows only --count (at least 1), --test, --boxes, --out and --overwrite"
            )
        path = out if out.suffix.lower() in (".jpg", ".jpeg", ".png") else out / "sheet.jpg"
        _write_sheet(path, run, data, count, test, boxes, device, overwrite)
        print(path)
        return
    if test:
        raise UsageError("--test needs --data")

    from heatmap.inference.media import Annotator, face_finder, find_files
    from heatmap.inference.predictor import Predictor

    cameras = [name for name in inputs if name.isdecimal() and not Path(name).exists()]
    if cameras and len(inputs) > 1:
        raise UsageError(f"camera {cameras[0]} must be the only input")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is not a folder")
    predictor = Predictor(run, device, true_pixels=true_pixels)
    paths = [] if cameras else find_files(inputs)
    finder = face_finder(paths, corners, boxes, detector)
    if finder is None and predictor.crop.rule == "box":
        raise UsageError(
            f"{run} was trained on boxes (crop.rule box): add --box, --boxes or --detector"
        )
    annotator = Annotator(predictor, finder, two_pass, smooth, ellipses)
    if cameras:
        annotator.camera(int(cameras[0]))
        return
    failed = annotator.files(paths, out, overwrite)
    print(out)
    if failed:
        raise UserError(f"{failed} of {len(paths)} inputs could not be processed")


def _write_sheet(
    path: Path, run: Path, data: Path, count: int, test: bool, boxes: Path | None, device: str,
    overwrite: bool,
) -> None:  # fmt: skip
    from heatmap.evaluation import sheets
    from heatmap.inference.ensemble import Ensemble
    from heatmap.inference.media import Outputs
    from heatmap.runtime.files import write_image
    from heatmap.runtime.machine import chosen_device

    with Outputs(path.parent, overwrite=overwrite) as outputs:
        outputs.claim(path.name)
        (trained,) = Ensemble.load([run], boxes=boxes).runs
        write_image(path, sheets.data_sheet(trained, data, count, test, chosen_device(device)))
        outputs.written.append(path)


def _corners(box: str) -> tuple[float, float, float, float]:
    try:
        x0, y0, x1, y1 = map(float, box.split(","))
    except ValueError:
        raise UsageError(f"--box {box}: expected four numbers x0,y0,x1,y1") from None
    if not (-math.inf < x0 < x1 < math.inf and -math.inf < y0 < y1 < math.inf):
        raise UsageError(f"--box {box}: expected x0 < x1 and y0 < y1")
    return x0, y0, x1, y1


def main(arguments: Sequence[str]) -> int:
    config = (FlagCreatePairsOff,)
    return run_command(
        lambda: tyro.cli(predict, prog="heatmap predict", args=arguments, config=config)
    )
