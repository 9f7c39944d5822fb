"""Score a run, an ensemble or a submission."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from heatmap.cli.running import parse_and_call, run_command
from heatmap.errors import UsageError
from heatmap.runtime.machine import is_first


def evaluate(
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|SUBMISSION.csv")],
    others: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RUN ...]")
    ] = (),
    *,
    data: Path | None = None,
    solution: Path | None = None,
    decoder: Literal["window", "parabola", "global", "softmax"] | None = None,
    tta: Literal["none", "mirror", "scale", "mirror,scale"] = "none",
    weighted: bool = False,
    boxes: Path | None = None,
    report: Path | None = None,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Score a run on its validation images, or a submission against the solution.

    Several runs are merged, as heatmap submit merges them, and scored on the images that validate
    in all of them.

    On several GPUs or hosts: torchrun --nproc-per-node GPUS -m heatmap evaluate RUN ...; the images
    are shared among them, and the files written are the same.

    Args:
        target: a run folder, a checkpoint, or a submission (with --solution).
        others: more runs to merge, with the same landmarks; crops and networks may differ.
        data: contest folder; by default the one the first run was trained on. All labelled images
            of other data are scored.
        solution: the withheld landmarks, to score a submission as Kaggle does.
        decoder: how heatmaps become landmarks; by default as in training.
        tta: test-time augmentation, averaged with the plain view: mirrored crops, crops zoomed
            out and in by 1.1, or both (six views).
        weighted: weight every landmark by the inverse covariance of its heatmap.
        boxes: table of the images' boxes, for runs with crop.rule box; by default the one used
            for training.
        report: also write report.html into this folder: scores, curves, errors by landmark and
            size, calibration, the worst images.
        json_file: also write the scores as JSON to this file.
        device: where the networks run.
    """
    if target.suffix == ".csv" and solution is None:
        raise UsageError(f"{target}: to score a submission, add --solution")
    if target.suffix != ".csv" and solution is not None:
        raise UsageError(f"{target} is not a submission (.csv), so it takes no --solution")
    if solution is not None:
        if others or tta != "none" or weighted or boxes or report or decoder or data:
            raise UsageError("a submission (.csv) takes no options but --solution and --json")
        score_submission(target, solution, json_file)
        return
    from heatmap.evaluation import metrics
    from heatmap.runtime.files import write_json

    evaluation = metrics.evaluate(
        [target, *others], data, decoder=decoder, tta=tta, weighted=weighted, boxes=boxes,
        device=device,
    )  # fmt: skip
    if not is_first():
        return
    per_image = evaluation.folder / "per_image.csv"
    print(f"{metrics.format_scores(evaluation.scores)}\nper image: {per_image}", flush=True)
    if json_file is not None:
        write_json(json_file, evaluation.scores)
    if report is not None:
        print(f"report: {evaluation.write_report(report)}")


def score_submission(submission: Path, solution: Path, json_file: Path | None) -> None:
    from heatmap.data import contest
    from heatmap.runtime.files import write_json

    score = contest.score_submission(submission, solution)
    print(f"images       {len(score.names)}\ncontest MSE  {score.mse:.5f} px²")
    if json_file is not None:
        write_json(json_file, {"images": len(score.names), "mse": score.mse})


def main(arguments: Sequence[str]) -> int:
    return run_command(lambda: parse_and_call(evaluate, "heatmap evaluate", arguments))
