"""Draw a synthetic contest, train on it, evaluate and submit."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from heatmap.cli.running import experiment_file, load_experiment, parse_and_call, run_command

FOLDER = Path("quickstart")
CONTEST, RUN, SUBMISSION = FOLDER / "contest", FOLDER / "run", FOLDER / "submission.csv"
COUNT, TEST_COUNT, SEED = 2400, 300, 0


def quickstart() -> None:
    """Run every step that is not done yet, in the folder quickstart, and print the scores."""
    from heatmap.data import contest, synthetic
    from heatmap.evaluation import metrics
    from heatmap.inference import submit
    from heatmap.inference.ensemble import Ensemble
    from heatmap.runs import checkpoint
    from heatmap.runs.folder import RunFolder
    from heatmap.runtime import machine
    from heatmap.runtime.columns import as_lines
    from heatmap.training import loop, prepare

    start = time.monotonic()
    if not CONTEST.exists():
        print(f"drawing {COUNT} training and {TEST_COUNT} test faces with 971 landmarks")
        synthetic.make_contest(CONTEST, count=COUNT, seed=SEED, test_count=TEST_COUNT, workers=2)
    experiment = load_experiment(experiment_file("quickstart"))
    experiment = replace(experiment, data=replace(experiment.data, root=CONTEST))
    run = RunFolder(RUN)
    if not run.summary.exists():
        print(f"training for {experiment.train.max_minutes} minutes; Ctrl+C stops, rerun to resume")
        saved = checkpoint.load(run.last) if run.last.exists() else None
        loop.train(prepare.prepare(experiment, saved), RUN)
    device = machine.chosen_device("auto")
    ensemble = Ensemble.load([RUN])
    scores = metrics.evaluate_run(ensemble, None, device).scores
    submit.submit(ensemble, CONTEST, SUBMISSION, rounding="round", missing="stop", device=device)
    score = contest.score_submission(SUBMISSION, CONTEST / "withheld" / "solution.csv")
    rows = [
        ("contest MSE of the submission", f"{score.mse:.2f} px²"),
        ("contest MSE on validation", f"{scores['mse']:.2f} px²"),
        ("  of the mean shape", f"{scores['mean_shape_mse']:.2f} px²"),
        ("time", f"{(time.monotonic() - start) / 60:.1f} minutes"),
        ("run", str(RUN)),
        ("predictions", str(max(run.sheets(), default=(0, run.images))[1])),
        ("submission", str(SUBMISSION)),
        ("next", "heatmap train unet --data.root DIR --out RUN"),
    ]
    print("\n".join(as_lines(rows, left=2)))


def main(arguments: Sequence[str]) -> int:
    return run_command(lambda: parse_and_call(quickstart, "heatmap quickstart", arguments))
