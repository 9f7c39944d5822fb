"""Draw what a run predicts on pictures of a contest folder."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from heatmap.command import WrongUsage, failing_politely


def predict(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    *,
    data: Path,
    out: Path = Path("predictions.jpg"),
    count: int = 8,
    boxes: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Draw predicted landmarks on test pictures, evenly spaced through the folder.

    Args:
        run: a run folder or a checkpoint.
        data: contest folder; its landmarks need not be those of the run.
        out: the picture to write, .jpg or .png.
        count: how many test pictures.
        boxes: for a run with crop.rule box: table of the test pictures' boxes, in place of the one
            the run was trained with.
        device: where the network runs.
    """
    import cv2
    import numpy as np

    from heatmap import contest, pictures
    from heatmap.ensemble import Ensemble
    from heatmap.files import write_atomically
    from heatmap.run import chosen_device

    if count < 1 or out.suffix not in (".jpg", ".png"):
        raise WrongUsage("--count must be at least 1, and --out must end in .jpg or .png")
    (trained,), where = Ensemble.load([run], boxes=boxes).runs, chosen_device(device)
    images = contest.find_folder(data).test_images
    if not images.is_dir() or not any(images.iterdir()):
        raise ValueError(f"{images}: there are no test pictures")
    paths = np.array(sorted(path for path in images.iterdir() if path.is_file()))
    sheet = pictures.prediction_sheet(
        trained.network.to(where),
        trained.experiment,
        pictures.evenly_spaced(paths, count).tolist(),
        where,
    )
    with write_atomically(out) as temporary:
        cv2.imwrite(str(temporary), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    print(out)


if __name__ == "__main__":
    sys.exit(failing_politely(lambda: tyro.cli(predict)))
