"""Makes data to train on, converts what others made, and shows what training sees of it."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from heatmap.cli.convert import convert, export
from heatmap.cli.curation import audit, check, pose, stats, symmetry
from heatmap.cli.running import run_command, with_experiment
from heatmap.config import Data, Experiment
from heatmap.errors import UsageError
from heatmap.runtime.machine import usable_cores

USAGE = """\
usage: data.py make OUT --count N [--seed N] [--test-count N] [--workers N]
       data.py convert kaggle15 SOURCE OUT [--incomplete keep|drop] [--limit N]
       data.py convert udacity|ibug|wflw|helen194 SOURCE OUT [--part both|train|test] [--link]
       data.py convert coco TRAIN.json OUT [--images DIR] [--test FILE] [--points keypoints|face]
       data.py export coco DIR OUT [--boxes FILE] [--link]
       data.py show EXPERIMENT.py --data.root DIR [--out FILE] [--count N] [--field value ...]
       data.py pose DIR [--out FILE] [--above 0.15] [--weight 2]
       data.py check DIR [--json FILE] [--exclude-to FILE] [--workers N]
       data.py stats DIR [--trim-border N] [--crop H W] [--out stats.png] [--json FILE]
       data.py split DIR [--out split.csv] [--rule RULE] [--share 0.2] [--folds N] [--seed N]
       data.py symmetry DIR [--out symmetry.json]
       data.py audit DIR --run RUN [RUN ...] [--out audit.csv] [--sheet audit.jpg] [--top 0.03]
                     [--exclude-to FILE] [--looked audit.csv]
       data.py COMMAND --help             every option with its default
"""


def make(
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    *,
    count: int,
    seed: int = 0,
    test_count: int | None = None,
    workers: int = usable_cores(),
) -> None:
    """Draw a synthetic contest: faces with 971 landmarks, in the contest's own files.

    Args:
        out: folder to make.
        count: images to train on.
        seed: the same seed gives the same bytes.
        test_count: test images; a tenth of count if not given.
        workers: processes that draw.
    """
    from heatmap.data.synthetic.contest import make_contest

    make_contest(out, count=count, seed=seed, test_count=test_count, workers=workers)
    print(f"{out}: images and tables; the test images' landmarks are in withheld/solution.csv")


def showing(experiment: Experiment) -> Callable[..., int]:
    """The command that shows what training on this experiment sees."""

    def show(
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = experiment,
        *,
        out: Path = Path("sheet.jpg"),
        count: int = 16,
        epoch: int = 1,
    ) -> int:
        """Draw training crops, changed at random as in training, with their landmarks.

        Args:
            out: the image to write, .jpg or .png.
            count: how many training images, evenly spaced through the table.
            epoch: the epoch whose changes are shown; each has changes of its own.
        """
        return run_command(lambda: write_sheet(experiment, out, count, epoch))

    return show


def write_sheet(experiment: Experiment, out: Path, count: int, epoch: int) -> None:
    if min(count, epoch) < 1 or out.suffix not in (".jpg", ".png"):
        raise UsageError("--count and --epoch must be at least 1, --out must end in .jpg or .png")
    from heatmap.evaluation.sheets import batch_sheet
    from heatmap.runtime.files import write_image
    from heatmap.training.data import read_data

    data = read_data(experiment)
    write_image(out, batch_sheet(data.example(count, epoch), data.scheme))
    print(out)


def split(
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    *,
    out: Path = Path("split.csv"),
    rule: Literal["auto", "person", "order", "hash", "random"] = "auto",
    share: float = 0.2,
    folds: int | None = None,
    person_pattern: str = Data.person_pattern,
    seed: int = 42,
    workers: int = usable_cores(),
) -> None:
    """Divide the training rows, store it, and prove that the parts have nothing in common.

    The table (file_name, and part or fold) is what --data.split-file takes. All images are
    compared. Where persons were to be kept apart and are not, the exit code is 1.

    Args:
        root: contest folder.
        out: the table to write.
        rule: whole persons, the table's last rows, those whose names have a low hash (rows keep
            their side when others are added), or random rows; auto: by person if names allow, else
            the last.
        share: of the rows, that validates.
        folds: so many parts, each of which validates once (--data.fold), in place of the share.
        person_pattern: regular expression on the file name; its first group is the person.
        seed: of the random rows.
        workers: processes that read the images.
    """
    from heatmap.curation.split import store_split

    if workers < 1:
        raise UsageError(f"--workers must be at least 1, not {workers}")
    if not 0 < share < 1:
        raise UsageError(f"--share must be between 0 and 1, not {share}")
    told = store_split(
        root, out, rule=rule, share=share, folds=folds, person_pattern=person_pattern, seed=seed,
        workers=workers,
    )  # fmt: skip
    print(f"{told}\n\n{out}: train on it with --data.split-file {out}")


COMMANDS: dict[str, Callable[..., None]] = {
    "make": make, "export": export, "pose": pose, "check": check, "stats": stats, "split": split,
    "symmetry": symmetry, "audit": audit,
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    match arguments:
        case [name, *options] if name in COMMANDS:
            command, program = COMMANDS[name], f"data.py {name}"
            return run_command(lambda: tyro.cli(command, prog=program, args=options))
        case ["convert", *options]:
            return run_command(lambda: convert.cli(prog="data.py convert", args=options))
        case ["show", *options]:
            return with_experiment("data.py show", options, showing, USAGE)
        case ["-h" | "--help", *_]:
            print(USAGE, end="")
            return 0
        case _:
            print(USAGE, end="", file=sys.stderr)
            return 2
