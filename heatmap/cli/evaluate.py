"""Score a run, several as one, or a submission."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from heatmap.cli.running import is_first, run_command
from heatmap.errors import UsageError


def evaluate(
    what: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|SUBMISSION.csv")],
    others: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RUN ...]")
    ] = (),
    *,
    data: Path | None = None,
    solution: Path | None = None,
    decoder: Literal["window", "parabola", "global", "softmax"] | None = None,
    tta: Literal["none", "mirror", "scale", "mirror,scale"] = "none",
    weighted: tyro.conf.FlagCreatePairsOff[bool] = False,
    boxes: Path | None = None,
    report: Path | None = None,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Score a run on its validation images, or a submission against the solution.

    Several runs are scored as the one answer that submit.py would write of them, on the images
    that validate in all of them.

    On several GPUs or hosts: torchrun --nproc-per-node GPUS tools/evaluate.py RUN ...; the images
    are dealt out, and the files are the same.

    Args:
        what: a run folder, a checkpoint, or a submission file (with --solution).
        others: more runs, with the same landmarks; crops and networks may differ.
        data: contest folder; by default the one the first run was trained on. Of other data all
            labelled images are scored.
        solution: the withheld answers that a submission is scored against, as Kaggle would.
        decoder: how the maps become points, if not as in the run's training.
        tta: test-time augmentation: average over mirrored crops as well, over crops that show
            everything 1.1 times smaller and larger, or over both (six views).
        weighted: weigh every landmark by how sharp its heatmap is (inverse covariance), in place of
            the plain mean.
        boxes: for runs with crop.rule box: table of the images' boxes, in place of the one the
            run was trained with.
        report: also write this folder's report.html, one page that a browser shows from disk:
            scores, curves, where errors lie, how sure the network is, the worst images.
        json_file: also write the scores here.
        device: where the networks run.
    """
    if (what.suffix == ".csv") != (solution is not None):
        raise UsageError("a submission (.csv) and --solution go together; a run needs neither")
    from heatmap.runtime.files import write_json

    if solution is not None:
        from heatmap.data import contest

        if others or tta != "none" or weighted or boxes or report or decoder or data:
            raise UsageError(
                "a submission is scored alone, without --data, --decoder, --tta, --weighted, "
                "--boxes or --report"
            )
        score = contest.score_submission(what, solution)
        print(f"images     {len(score.names)}\ncontest MSE  {score.mse:.5f} px²")
        if json_file is not None:
            write_json(json_file, {"images": len(score.names), "mse": score.mse})
        return
    from heatmap.evaluation.metrics import evaluate_run, format_scores
    from heatmap.inference.ensemble import Ensemble
    from heatmap.runtime import distributed
    from heatmap.runtime.machine import chosen_device

    ensemble = Ensemble.load([what, *others], tta=tta, weighted=weighted, boxes=boxes)
    where = distributed.start(chosen_device(device))
    scores, folder = evaluate_run(ensemble, data, where, decoder)
    if not is_first():
        return
    print(f"{format_scores(scores)}\nper image: {folder / 'per_image.csv'}", flush=True)
    if json_file is not None:
        write_json(json_file, scores)
    if report is not None:
        from heatmap.evaluation.report import write_report

        print(f"report: {write_report(ensemble, data, folder, report, where)}")


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return run_command(
        lambda: tyro.cli(evaluate, prog="evaluate.py", args=arguments, console_outputs=is_first())
    )
