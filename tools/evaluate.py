"""Score a run or a submission."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from heatmap.command import failing_politely


def evaluate(
    what: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|SUBMISSION.csv")],
    *,
    data: Path | None = None,
    solution: Path | None = None,
    decoder: Literal["window", "parabola", "global", "softmax"] | None = None,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Score a run on its validation pictures, or a submission against the solution.

    Args:
        what: a run folder, a checkpoint, or a submission file (with --solution).
        data: contest folder; by default the one the run was trained on. Of other data all labelled
            pictures are scored.
        solution: the withheld answers that a submission is scored against, as Kaggle would.
        decoder: how the maps become points, if not as in the run's training.
        json_file: also write the scores here.
        device: where the network runs.
    """
    if (what.suffix == ".csv") != (solution is not None):
        raise ValueError(
            "a submission (.csv) and --solution go together; a run needs no --solution"
        )
    if solution is not None:
        from heatmap import contest

        score = contest.score_submission(what, solution)
        scores = {"pictures": len(score.names), "mse": score.mse}
        print(f"pictures     {len(score.names)}\ncontest MSE  {score.mse:.5f} px²")
    else:
        from heatmap.evaluate import evaluate_run, table
        from heatmap.run import chosen_device

        scores, folder = evaluate_run(what, data, chosen_device(device), decoder)
        print(f"{table(scores)}\nper picture: {folder / 'per_image.csv'}")
    if json_file is not None:
        from heatmap.files import write_json

        write_json(json_file, scores)


if __name__ == "__main__":
    sys.exit(failing_politely(lambda: tyro.cli(evaluate)))
