"""Draw, convert, check, describe, split, audit and correct data sets."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from heatmap.cli.convert import Incomplete, convert, export, print_counts
from heatmap.cli.curation import CORES, Share, Workers, apply, audit, check, pose, stats, symmetry
from heatmap.cli.running import (
    check_ending,
    parse_and_call,
    run_command,
    unknown_command,
    with_experiment,
)
from heatmap.config import Count, Data, Experiment, Folds, Seed

SHOW_USAGE = (
    "usage: heatmap data show EXPERIMENT --data.root DIR [--out FILE] [--field value ...]\n"
)


def make(
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    *,
    count: Count,
    seed: Seed = 0,
    test_count: Count | None = None,
    workers: Workers = CORES,
) -> None:
    """Draw a synthetic contest: faces with 971 landmarks, in the contest's format.

    Args:
        out: folder to create.
        count: number of training images.
        seed: the same seed gives the same bytes.
        test_count: number of test images; by default a tenth of count.
        workers: processes that draw.
    """
    from heatmap.data.synthetic.contest import make_contest

    make_contest(out, count=count, seed=seed, test_count=test_count, workers=workers)
    print(f"{out}: images and tables; the test images' landmarks are in withheld/solution.csv")


def fetch(
    name: Annotated[Literal["faces15"], tyro.conf.Positional, tyro.conf.arg(metavar="faces15")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR", help="new folder")],
    *,
    url: str | None = None,
    incomplete: Incomplete = "keep",
) -> None:
    """Download a public data set and convert it to the contest's format.

    An interrupted download is continued by the same command.

    Args:
        name: faces15, Kaggle's "facial-keypoints-detection": 15 landmarks on grey 96 x 96 images.
        url: address of facial-keypoints-detection.zip; default: the repository of the 15-landmark
            project on GitHub.
        incomplete: keep or drop training images with unlabelled landmarks.
    """
    from heatmap.data import fetch

    print_counts(out, fetch.faces15(out, url=url or fetch.FACES15, incomplete=incomplete))


def show_command(experiment: Experiment) -> Callable[..., int]:
    def show(
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = experiment,
        *,
        out: Path = Path("sheet.jpg"),
        count: Count = 16,
        epoch: Count = 1,
    ) -> int:
        """Draw augmented training crops with their landmarks.

        Args:
            out: image file to write, .jpg or .png.
            count: number of training images, evenly spaced in the table.
            epoch: epoch whose random augmentation is shown, from 1.
        """
        return run_command(lambda: write_sheet(experiment, out, count, epoch))

    return show


def write_sheet(experiment: Experiment, out: Path, count: int, epoch: int) -> None:
    check_ending("--out", out, ".jpg", ".png")
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
    share: Share = 0.2,
    folds: Folds | None = None,
    person_pattern: str = Data.person_pattern,
    seed: Seed = 42,
    workers: Workers = CORES,
) -> None:
    """Split the training rows, and check that no image is in two parts.

    Writes a table (file_name, and part or fold) for --data.split-file. All images are compared
    byte for byte. Exits with code 1 if a split by person shares an image.

    Args:
        root: contest folder.
        out: table to write.
        rule: which rows to validate on. person: whole people; order: the last rows; hash: rows
            with a low hash of their name, which keep their side if rows are added; random: random
            rows; auto: person if file names identify people, else order.
        share: share of the rows to validate on, between 0 and 1.
        folds: number of parts, each of which validates once (--data.fold), instead of the share.
        person_pattern: regular expression on the file name; its first group is the person.
        seed: seed of the random rows.
        workers: processes that read the images.
    """
    from heatmap.curation.split import store_split

    summary = store_split(
        root, out, rule=rule, share=share, folds=folds, person_pattern=person_pattern, seed=seed,
        workers=workers,
    )  # fmt: skip
    print(f"{summary}\n\n{out}: use it with --data.split-file {out}")


COMMANDS: dict[str, Callable[..., None]] = {
    "make": make, "fetch": fetch, "export": export, "pose": pose, "check": check, "stats": stats,
    "split": split, "symmetry": symmetry, "audit": audit, "apply": apply,
}  # fmt: skip


def usage() -> str:
    summaries = {name: (command.__doc__ or "").split("\n")[0] for name, command in COMMANDS.items()}
    summaries["convert"] = "Convert another data set to the contest's format."
    summaries["show"] = "Draw training crops, as training sees them, with their landmarks."
    lines = [f"  {name:<10}{summary}" for name, summary in summaries.items()]
    return "\n".join(
        ["usage: heatmap data COMMAND ...  (COMMAND --help explains it)", "", *lines, ""]
    )


def main(arguments: Sequence[str]) -> int:
    match arguments:
        case [name, *options] if name in COMMANDS:
            command, program = COMMANDS[name], f"heatmap data {name}"
            return run_command(lambda: parse_and_call(command, program, options))
        case ["convert", *options]:
            return run_command(lambda: convert.cli(prog="heatmap data convert", args=options))
        case ["show", *options]:
            return with_experiment("heatmap data show", options, show_command, SHOW_USAGE)
        case ["-h" | "--help", *_]:
            print(usage(), end="")
            return 0
        case _:
            return unknown_command(arguments, [*COMMANDS, "convert", "show"], usage())
