"""The whole road on a synthetic contest: draw, train, evaluate, submit, look."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import tyro

from heatmap.command import failing_politely, load_experiment

HERE = Path("quickstart")
CONTEST, RUN, SUBMISSION = HERE / "contest", HERE / "run", HERE / "submission.csv"
COUNT, TEST_COUNT, SEED = 2400, 300, 0


def quickstart() -> None:
    """Do every step that has not been done yet, in the folder quickstart, and show the scores."""
    from heatmap import checkpoint, contest, evaluate, run, submit, synthetic, train
    from heatmap.ensemble import Ensemble

    begin = time.monotonic()
    if not CONTEST.exists():
        print(f"drawing {COUNT} training and {TEST_COUNT} test faces with 971 landmarks")
        synthetic.make_contest(
            CONTEST, count=COUNT, seed=SEED, test_count=TEST_COUNT, workers=2, progress=True
        )
    experiment = load_experiment(Path("experiments/quickstart.py"))
    experiment = replace(experiment, data=replace(experiment.data, root=CONTEST))
    if not (RUN / "summary.json").exists():
        print(f"training for {experiment.train.max_minutes} minutes; Ctrl+C stops, again goes on")
        last = RUN / "last.pt"
        saved = checkpoint.load(last) if last.exists() else None
        train.train(run.prepare(experiment, saved), RUN)
    device = run.chosen_device("auto")
    trained = Ensemble.load([RUN])
    scores, _ = evaluate.evaluate_run(trained, None, device)
    submit.submit(trained, CONTEST, SUBMISSION, rounding="round", missing="stop", device=device)
    score = contest.score_submission(SUBMISSION, CONTEST / "withheld" / "solution.csv")
    nearest = evaluate.nearest_picture_mse(RUN)
    minutes = (time.monotonic() - begin) / 60

    rows = [
        ("contest MSE of the submission", f"{score.mse:.2f} px²"),
        ("contest MSE on validation", f"{scores['mse']:.2f} px²"),
        ("  of the mean shape", f"{scores['mean_shape_mse']:.2f} px²"),
        ("  of the nearest training picture", f"{nearest:.2f} px²"),
        ("time", f"{minutes:.1f} minutes"),
        ("the run", f"{RUN}"),
        ("pictures of predictions", f"{max((RUN / 'pictures').glob('*.jpg'))}"),
        ("the submission", f"{SUBMISSION}"),
        ("next", "python tools/train.py experiments/unet.py --data.root DIR --out RUN"),
    ]
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


if __name__ == "__main__":
    sys.exit(failing_politely(lambda: tyro.cli(quickstart)))
