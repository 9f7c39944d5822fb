"""Write the submission of a run."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from heatmap.command import failing_politely


def submit(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    *,
    data: Path | None = None,
    out: Path = Path("submission.csv"),
    rounding: Literal["auto", "round", "truncate", "none"] = "auto",
    missing: Literal["stop", "mean-shape"] = "stop",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Predict the test pictures and write the landmarks asked for.

    Data that was converted from Kaggle's facial keypoints (it holds test/IdLookupTable.csv) is
    answered in that contest's form: RowId, Location, within the picture.

    Args:
        run: a run folder or a checkpoint.
        data: contest folder; by default the one the run was trained on.
        out: the file, written whole and read back, or not at all.
        rounding: round: to integers; truncate: toward zero, as the organisers did; none: decimals;
            auto: round, and none for Kaggle's facial keypoints.
        missing: what a test picture that cannot be read does: stop, or get the mean shape.
        device: where the network runs.
    """
    from heatmap.checkpoint import load_trained
    from heatmap.run import chosen_device
    from heatmap.submit import submit as write

    trained = load_trained(run)
    root = data or trained.experiment.data.root
    rows = write(
        trained, root, out, rounding=rounding, missing=missing, device=chosen_device(device)
    )
    print(f"{out}: {rows} pictures, read back and checked")


if __name__ == "__main__":
    sys.exit(failing_politely(lambda: tyro.cli(submit)))
