"""Write the submission of a run, or of several as one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from heatmap.cli.running import is_first, run_command


def submit(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    others: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RUN ...]")
    ] = (),
    *,
    data: Path | None = None,
    out: Path = Path("submission.csv"),
    tta: Literal["none", "mirror", "scale", "mirror,scale"] = "none",
    weighted: tyro.conf.FlagCreatePairsOff[bool] = False,
    boxes: Path | None = None,
    rounding: Literal["auto", "round", "truncate", "none"] = "auto",
    missing: Literal["stop", "mean-shape"] = "stop",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Predict the test images and write the landmarks asked for.

    The coordinates of several runs are averaged before they are rounded. Files that were rounded
    already are averaged by --average A.csv B.csv ... --out FILE (--average --help), less exactly.

    Data converted from Kaggle's facial keypoints (with test/IdLookupTable.csv) is answered in that
    contest's form: RowId, Location, within the image.

    On several GPUs or hosts torchrun --nproc-per-node GPUS tools/submit.py RUN ... writes the same.

    Args:
        run: a run folder or a checkpoint.
        others: more of them, with the same landmarks; crops and networks may differ.
        data: contest folder; by default the one the first run was trained on.
        out: the file, written whole and read back, or not at all.
        tta: test-time augmentation: average over mirrored crops as well, over crops that show
            everything 1.1 times smaller and larger, or over both (six views).
        weighted: weigh every landmark by how sharp its heatmap is (inverse covariance).
        boxes: for runs with crop.rule box: table of the test images' boxes, in place of the one
            the run was trained with.
        rounding: round: to integers; truncate: toward zero, as the organisers did; none: decimals;
            auto: round, and none for Kaggle's facial keypoints.
        missing: what a test image that cannot be read does: stop, or get the mean shape.
        device: where the networks run.
    """
    from heatmap.inference.ensemble import Ensemble
    from heatmap.inference.submit import submit as write
    from heatmap.runtime import distributed
    from heatmap.runtime.machine import chosen_device

    ensemble = Ensemble.load([run, *others], tta=tta, weighted=weighted, boxes=boxes)
    root = data or ensemble.runs[0].experiment.data.root
    where = distributed.start(chosen_device(device))
    rows = write(ensemble, root, out, rounding=rounding, missing=missing, device=where)
    if is_first():
        print(f"{out}: {rows} images, read back and checked")


def average(
    first: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A.csv")],
    second: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="B.csv")],
    others: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[C.csv ...]")
    ] = (),
    *,
    out: Path,
    rounding: Literal["auto", "round", "truncate", "none"] = "auto",
) -> None:
    """Average submissions, joined by file name or RowId, in the order of the first.

    Averaging the runs themselves (submit.py RUN RUN ...) is more exact, since it rounds once.

    Args:
        first: a submission.
        second: another one of the same form, for the same images.
        others: more of them.
        out: the file, written whole and read back, or not at all.
        rounding: round: to integers, halves to the even one; truncate: toward zero; none: decimals;
            auto: round, and none for RowId, Location.
    """
    from heatmap.inference.submit import average_submissions

    rows = average_submissions([first, second, *others], out, rounding=rounding)
    print(f"{out}: {rows} rows, read back and checked")


def main(arguments: Sequence[str]) -> int:
    if "--average" in arguments:
        rest = [argument for argument in arguments if argument != "--average"]
        return run_command(lambda: tyro.cli(average, prog="submit.py --average", args=rest))
    return run_command(
        lambda: tyro.cli(submit, prog="submit.py", args=arguments, console_outputs=is_first())
    )
