"""Makes data to train on, converts what others made, and shows what training sees of it."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from heatmap.cli.convert import convert, export
from heatmap.cli.running import WrongUsage, failing_politely, with_experiment
from heatmap.config import Data, Experiment

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
       data.py audit DIR [--run RUN ...] [--out audit.csv] [--sheet audit.jpg] [--top 0.03]
                     [--exclude-to FILE] [--repair-to TABLE] [--looked audit.csv]
       data.py COMMAND --help             every option with its default
"""


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
        count: images to train on.
        seed: the same seed gives the same bytes.
        test_count: test images; a tenth of count if not given.
        workers: processes that draw.
    """
    from heatmap.data.synthetic.contest import make_contest

    make_contest(out, count=count, seed=seed, test_count=test_count, workers=workers, progress=True)
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
            out: the picture to write, .jpg or .png.
            count: how many training pictures, evenly spaced through the table.
            epoch: the epoch whose changes are shown; each has changes of its own.
        """
        return failing_politely(lambda: write_sheet(experiment, out, count, epoch))

    return show


def write_sheet(experiment: Experiment, out: Path, count: int, epoch: int) -> None:
    if min(count, epoch) < 1 or out.suffix not in (".jpg", ".png"):
        raise WrongUsage("--count and --epoch must be at least 1, --out must end in .jpg or .png")
    from heatmap.evaluation.sheets import batch_sheet
    from heatmap.runtime.files import write_picture
    from heatmap.training.prepare import read_pictures

    pictures = read_pictures(experiment)
    write_picture(out, batch_sheet(pictures.example(count, epoch), pictures.scheme))
    print(out)


def pose(
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    *,
    out: Path = Path("weights.csv"),
    above: float = 0.15,
    weight: float = 2.0,
) -> None:
    """Tell from the landmarks how far heads are turned, and weigh pictures by it.

    The table (file_name, angle, weight) is what --data.weights takes. The angle is the face's share
    of the strongest change of shape, which in photographs of people is the turn to the side.

    Args:
        root: contest folder.
        out: the table to write.
        above: heads whose angle is larger, to either side, get the weight; the others get 1.
        weight: of turned heads.
    """
    import numpy as np

    from heatmap.data import contest
    from heatmap.shape import turns

    if above < 0 or weight < 0:
        raise WrongUsage("--above and --weight must not be negative")
    table = contest.read_landmarks(contest.find_folder(root).train_table, progress=True)
    angles = turns(table.points_image)
    turned = np.abs(angles) > above
    contest.write_weights(out, table.names, angles, np.where(turned, weight, 1.0))
    print(f"{out}: {len(turned)} pictures, {turned.sum()} of them turned by more than {above:g}")


def check(
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    *,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    exclude_to: Path | None = None,
    workers: int = os.cpu_count() or 1,
) -> None:
    """Check every row and every picture, and tell all problems at once.

    Errors are what a training or a submission would stop at; where there are any, the exit code
    is 1. Pictures that look alike are found by a perceptual hash, in training and test pictures
    and between them.

    Args:
        root: contest folder.
        json_file: also write everything here: every problem, every group of equal or like pictures.
        exclude_to: also write the table that --data.exclude takes: training pictures that cannot
            be read or are damaged, whose landmarks lie far outside or all at one point, or that are
            there twice with other landmarks. Rows that cannot be read have to be mended.
        workers: processes that read the pictures.
    """
    from heatmap.curation.check import check, text
    from heatmap.data import contest
    from heatmap.runtime.files import write_json

    if workers < 1:
        raise WrongUsage("--workers must be at least 1")
    report = check(root, workers=workers, progress=True)
    print(text(report))
    if json_file is not None:
        write_json(json_file, report.to_json())
    if exclude_to is not None:
        excluded = report.excluded()
        contest.write_excluded(exclude_to, excluded)
        print(f"\n{exclude_to}: {len(excluded)} pictures to leave out with --data.exclude")
        if report.num_lasting_errors:
            print(f"{report.num_lasting_errors} errors stay all the same; mend the tables")
    if report.num_errors:
        raise ValueError(
            f"training or a submission would stop at {report.num_errors} of these problems"
        )


def stats(
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    *,
    trim_border: int = 0,
    crop: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="H W")] = None,
    out: Path = Path("stats.png"),
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    workers: int = os.cpu_count() or 1,
) -> None:
    """Measure the pictures' channels, and plot sizes, landmark positions and head poses.

    Means and standard deviations are over all pixels, in RGB with white at 1, and exact. The plots
    are of whole pictures.

    Args:
        root: contest folder.
        trim_border: leave a dark border out, as --crop.trim-border does; 9 is a good value.
        crop: height and width of the crop to look at, as training cuts it; else whole pictures.
        out: the picture to write, .png.
        json_file: also write the channels here, with the exact sums.
        workers: processes that read the pictures.
    """
    from heatmap.curation.stats import measure, plot, text
    from heatmap.runtime.files import write_json

    if workers < 1:
        raise WrongUsage(f"--workers must be at least 1, not {workers}")
    if out.suffix != ".png":
        raise WrongUsage(f"--out must end in .png, unlike {out}")
    if not 0 <= trim_border < 255:
        raise WrongUsage(f"--trim-border must be from 0 to 254, not {trim_border}")
    if crop is not None and min(crop) < 32:
        raise WrongUsage("--crop takes a height and a width of at least 32")
    statistics = measure(
        root, trim_border=trim_border, crop_hw=crop, workers=workers, progress=True
    )
    print(text(statistics))
    if json_file is not None:
        write_json(json_file, statistics.to_json())
    plot(statistics, out)
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
    workers: int = os.cpu_count() or 1,
) -> None:
    """Divide the training rows, store it, and prove that the parts have nothing in common.

    The table (file_name, and part or fold) is what --data.split-file takes. All pictures are read,
    to compare their files. Where persons were to be kept apart and are not, the exit code is 1.

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
        workers: processes that read the pictures.
    """
    from heatmap.curation.split import store_split

    if workers < 1:
        raise WrongUsage(f"--workers must be at least 1, not {workers}")
    if not 0 < share < 1:
        raise WrongUsage(f"--share must be between 0 and 1, not {share}")
    told = store_split(
        root, out, rule=rule, share=share, folds=folds, person_pattern=person_pattern, seed=seed,
        workers=workers, progress=True,
    )  # fmt: skip
    print(f"{told}\n\n{out}: train on it with --data.split-file {out}")


def symmetry(
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    *,
    out: Path = Path("symmetry.json"),
) -> None:
    """Tell the mirror permutation and the groups of the landmarks from their labels alone.

    The file is what --data.symmetry takes, so that any landmark scheme can be mirrored. The table
    tells how far, in sizes of the face, a mirrored landmark lies from its partner, and how much
    further from the second best. Where a permutation is known (971, 68 and 15 landmarks) the labels
    are checked against it, and the exit code is 1 if they disagree.

    Args:
        root: contest folder.
        out: the file to write.
    """
    from heatmap.curation.symmetry import check_known, infer, table, write
    from heatmap.data import contest

    labels = contest.read_landmarks(contest.find_folder(root).train_table, progress=True)
    found = infer(labels.points_image)
    write(out, found)
    print(f"{table(found)}\n{out}: told by {found.num_faces} faces")
    print(check_known(found))


def audit(
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    *,
    run: tuple[Path, ...] = (),
    out: Path = Path("audit.csv"),
    sheet: Path = Path("audit.jpg"),
    count: int = 40,
    exclude_to: Path | None = None,
    repair_to: Path | None = None,
    top: float = 0.03,
    looked: Path | None = None,
    symmetry: Path | None = None,
    person_pattern: str = Data.person_pattern,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Rank all training pictures by how likely their labels are wrong, and say why.

    Faces are held to a shape model of other people, to their picture and the person's other
    pictures, and to what trained runs see. The audit first tests itself: it injects known errors
    into copies of the labels and tells how many of each kind are in the list.

    Args:
        root: contest folder.
        run: run folders or checkpoints, all about as good as the best; a picture is held to those
            that were not trained on it, if there are any (five folds see all pictures anew). Labels
            that are shifted or of another size can hardly be seen without.
        out: the table to write, with a row for every picture, the most suspicious first; fill in
            its column verdict (good or bad) and give it to --looked.
        sheet: the picture to write, .jpg or .png: the most suspicious faces with their labels, and
            what the runs see in green.
        count: faces on the sheet.
        exclude_to: write the listed pictures as a table for --data.exclude; those with the verdict
            good stay out of it.
        repair_to: write the training table anew, with jagged contours of listed faces put where a
            model of other faces has them.
        top: share of the pictures that is listed.
        looked: an earlier table of this command with verdicts, to tell the rate of false alarms.
        symmetry: file of data.py symmetry, for other landmarks than 971, 68 or 15.
        person_pattern: regular expression on the file name; its first group is the person.
        device: where the networks run.
    """
    if not 0 < top < 1 or count < 1 or sheet.suffix not in (".jpg", ".png"):
        raise WrongUsage(
            "--top must be above 0 and below 1, --count at least 1, --sheet end in .jpg or .png"
        )
    from heatmap.curation.audit.folder import Options, audit_folder

    files = Options(
        out=out, sheet=sheet, count=count, exclude_to=exclude_to, repair_to=repair_to, top=top,
        looked=looked,
    )  # fmt: skip
    for line in audit_folder(root, run, files, symmetry, person_pattern, device):
        print(line, flush=True)


COMMANDS: dict[str, Callable[..., None]] = {
    "make": make, "export": export, "pose": pose, "check": check, "stats": stats, "split": split,
    "symmetry": symmetry, "audit": audit,
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    match arguments:
        case [name, *options] if name in COMMANDS:
            command, program = COMMANDS[name], f"data.py {name}"
            return failing_politely(lambda: tyro.cli(command, prog=program, args=options))
        case ["convert", *options]:
            return failing_politely(lambda: convert.cli(prog="data.py convert", args=options))
        case ["show", *options]:
            return with_experiment("data.py show", options, showing, USAGE)
        case ["-h" | "--help", *_]:
            print(USAGE, end="")
            return 0
        case _:
            print(USAGE, end="", file=sys.stderr)
            return 2
