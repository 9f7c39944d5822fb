"""Makes data to train on."""

import os
import sys
from pathlib import Path
from typing import Annotated

import tyro

from heatmap.command import failing_politely

app = tyro.extras.SubcommandApp()


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


if __name__ == "__main__":
    sys.exit(failing_politely(lambda: app.cli(description=__doc__)))
