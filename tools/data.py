"""Makes data to train on, or converts what others made."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from heatmap.command import failing_politely

app = tyro.extras.SubcommandApp()
convert = tyro.extras.SubcommandApp()
app.command(convert, name="convert", help="Write another data set as a contest folder.")


@app.command
def make(
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    *,
    count: int,
    seed: int = 0,
    test_count: int | None = None,
    workers: int = os.cpu_count() or 1,
) -> None:
    """Draw a synthetic contest: faces with 971 landmarks, in the contest's own files.

    Args:
        out: folder to make.
        count: pictures to train on.
        seed: the same seed gives the same bytes.
        test_count: test pictures; a tenth of count if not given.
        workers: processes that draw.
    """
    from heatmap.synthetic import make_contest

    make_contest(out, count=count, seed=seed, test_count=test_count, workers=workers, progress=True)
    print(f"{out}: pictures and tables; the test pictures' landmarks are in withheld/solution.csv")


@convert.command
def kaggle15(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    *,
    incomplete: Literal["keep", "drop"] = "keep",
    limit: int | None = None,
) -> None:
    """Convert Kaggle's "facial-keypoints-detection": 15 landmarks on grey pictures of 96 x 96.

    tools/submit.py answers the converted folder in that contest's own form.

    Args:
        source: facial-keypoints-detection.zip, or a folder that holds its files, or training.zip or
            training.csv; test.zip or test.csv and IdLookupTable.csv are then looked for beside it.
        out: folder to make.
        incomplete: training pictures that lack landmarks: keep them with these unlabelled, or drop
            them.
        limit: only so many training pictures, the first of those that are not dropped.
    """
    from heatmap.contest.kaggle15 import convert

    done = convert(source, out, incomplete=incomplete, limit=limit, progress=True)
    print(
        f"{out}: {done.num_training} training pictures, {done.num_complete} with all 15 landmarks"
    )
    if done.num_test == 0:
        print(f"no test pictures: there is neither test.zip nor test.csv with {source}")
    elif done.num_asked is None:
        print(f"{done.num_test} test pictures; there is no IdLookupTable.csv with {source}")
    else:
        print(f"{done.num_test} test pictures, {done.num_asked} coordinates asked for")
    if done.num_complete < done.num_training:
        print(
            "Kaggle's own table begins with its complete rows, and by default the last rows "
            "validate; train with --data.person-pattern '(.+)' to draw them from the whole table"
        )


if __name__ == "__main__":
    sys.exit(failing_politely(lambda: app.cli(description=__doc__)))
