"""Write the submission of a run or an ensemble, or average submissions."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from heatmap.cli.running import parse_and_call, run_command
from heatmap.config import Positive
from heatmap.errors import UsageError, UserError
from heatmap.runtime.columns import counted
from heatmap.runtime.machine import is_first


def submit(
    run: Annotated[Path, Positional, arg(metavar="RUN")],
    others: Annotated[tuple[Path, ...], Positional, arg(metavar="[RUN ...]")] = (),
    *,
    data: Path | None = None,
    out: Path = Path("submission.csv"),
    overwrite: bool = False,
    tta: Literal["none", "mirror", "scale", "mirror,scale"] = "none",
    weighted: bool = False,
    boxes: Path | None = None,
    rounding: Literal["auto", "round", "truncate", "none"] = "auto",
    missing: Literal["stop", "mean-shape"] = "stop",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Predict the test images and write the requested landmarks.

    Coordinates of several runs are averaged, then rounded once. To average finished submissions,
    which is less exact, use --average A.csv B.csv ... --out FILE (--average --help). Data converted
    from Kaggle's facial keypoints (with test/IdLookupTable.csv) gets that contest's format: RowId,
    Location, within the image. On several GPUs or hosts, torchrun --nproc-per-node GPUS -m heatmap
    submit RUN ... writes the same file.

    Args:
        run: run folder or checkpoint.
        others: more runs with the same landmarks; crops and networks may differ.
        data: contest folder; by default the training data of the first run.
        out: output file, read back and checked; it is complete or not written.
        overwrite: replace an existing output file.
        tta: test-time augmentation: add mirrored crops (mirror), crops zoomed out and in by 1.1
            (scale), or both (six views).
        weighted: weight each landmark by the inverse covariance of its heatmap.
        boxes: table of the test images' boxes, for runs with crop.rule box; by default
            the one used for training.
        rounding: round (to integers), truncate (toward zero, as the organisers did), none (keep
            decimals) or auto (none for Kaggle's facial keypoints, else round).
        missing: stop at a test image that cannot be read, or write the mean shape for it.
        device: where the networks run; auto is the GPU if there is one.
    """
    _refuse_existing(out, overwrite)
    from heatmap.inference.ensemble import Ensemble
    from heatmap.inference.submit import submit as write_submission
    from heatmap.runtime import distributed
    from heatmap.runtime.machine import chosen_device

    ensemble = Ensemble.load([run, *others], tta=tta, weighted=weighted, boxes=boxes)
    count = write_submission(
        ensemble, data or ensemble.runs[0].experiment.data.root, out, rounding=rounding,
        missing=missing, device=distributed.start(chosen_device(device)),
    )  # fmt: skip
    if is_first():
        print(f"{out}: {counted(count, 'image')}, read back and checked")


def average(
    submissions: Annotated[tuple[Path, ...], Positional, arg(metavar="A.csv|RUN B.csv|RUN ...")],
    *,
    out: Path,
    weights: Annotated[tuple[Positive, ...], arg(metavar="WEIGHT WEIGHT ...")] = (),
    data: Path | None = None,
    overwrite: bool = False,
    rounding: Literal["auto", "round", "truncate", "none"] = "auto",
) -> None:
    """Average submissions, matched by file name or RowId, in the order of the first.

    Runs among them predict the test images first. If all are runs, heatmap submit RUN RUN ...
    does the same.

    Args:
        submissions: two or more submissions in one format, for the same images, or runs.
        weights: a weight for each; by default all are equal.
        data: contest folder for the runs; by default the training data of each.
        out: output file, read back and checked; it is complete or not written.
        overwrite: replace an existing output file.
        rounding: round (to integers, halves to even), truncate (toward zero), none (keep decimals)
            or auto (none for RowId, Location, else round).
    """
    if len(submissions) < 2:
        raise UsageError("--average needs at least two submissions")
    if weights and len(weights) != len(submissions):
        raise UsageError(f"--weights has {len(weights)} numbers for {len(submissions)} submissions")
    _refuse_existing(out, overwrite)
    from heatmap.inference.submit import average_submissions

    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, path in enumerate(submissions):
            is_run = path.is_dir() or path.suffix == ".pt"
            files.append(Path(folder) / f"{number}-{path.stem}.csv" if is_run else path)
            if is_run:
                submit(path, data=data, out=files[-1], rounding="none")
        count = average_submissions(files, out, rounding=rounding, weights=weights)
    print(f"{out}: {counted(count, 'row')}, read back and checked")


def _refuse_existing(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists; choose another --out, or replace it with --overwrite")


def main(arguments: Sequence[str]) -> int:
    if "--average" in arguments:
        rest = [argument for argument in arguments if argument != "--average"]
        return run_command(lambda: parse_and_call(average, "heatmap submit --average", rest))
    return run_command(lambda: parse_and_call(submit, "heatmap submit", arguments))
