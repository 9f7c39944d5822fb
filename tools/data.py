"""Makes data to train on, converts what others made, and shows what training sees of it."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro

from heatmap.command import WrongUsage, failing_politely, with_experiment
from heatmap.config import Data, Experiment

USAGE = """\
usage: data.py make OUT --count N [--seed N] [--test-count N] [--workers N]
       data.py convert kaggle15 SOURCE OUT [--incomplete keep|drop] [--limit N]
       data.py show EXPERIMENT.py --data.root DIR [--out FILE] [--count N] [--field value ...]
       data.py pose DIR [--out FILE] [--above 0.15] [--weight 2]
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
        count: pictures to train on.
        seed: the same seed gives the same bytes.
        test_count: test pictures; a tenth of count if not given.
        workers: processes that draw.
    """
    from heatmap.synthetic import make_contest

    make_contest(out, count=count, seed=seed, test_count=test_count, workers=workers, progress=True)
    print(f"{out}: pictures and tables; the test pictures' landmarks are in withheld/solution.csv")


convert = tyro.extras.SubcommandApp()


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
            "validate; train with --data.split random to draw them from the whole table"
        )


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
    import cv2

    from heatmap.files import write_atomically
    from heatmap.pictures import training_sheet
    from heatmap.run import read_pictures

    sheet = training_sheet(read_pictures(experiment), count, epoch)
    with write_atomically(out) as temporary:
        cv2.imwrite(str(temporary), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
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

    from heatmap import contest
    from heatmap.pose import turns

    if above < 0 or weight < 0:
        raise WrongUsage("--above and --weight must not be negative")
    table = contest.read_landmarks(contest.find_folder(root).train_table, progress=True)
    angles = turns(table.points_image)
    turned = np.abs(angles) > above
    contest.write_weights(out, table.names, angles, np.where(turned, weight, 1.0))
    print(f"{out}: {len(turned)} pictures, {turned.sum()} of them turned by more than {above:g}")


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
    from heatmap import contest
    from heatmap.symmetry import check_known, infer, table, write

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
    from heatmap.audit.folder import Options, audit_folder

    files = Options(
        out=out, sheet=sheet, count=count, exclude_to=exclude_to, repair_to=repair_to, top=top,
        looked=looked,
    )  # fmt: skip
    for line in audit_folder(root, run, files, symmetry, person_pattern, device):
        print(line, flush=True)


def main(arguments: list[str]) -> int:
    match arguments:
        case ["make", *options]:
            return failing_politely(lambda: tyro.cli(make, prog="data.py make", args=options))
        case ["convert", *options]:
            return failing_politely(lambda: convert.cli(prog="data.py convert", args=options))
        case ["pose", *options]:
            return failing_politely(lambda: tyro.cli(pose, prog="data.py pose", args=options))
        case ["audit", *options]:
            return failing_politely(lambda: tyro.cli(audit, prog="data.py audit", args=options))
        case ["symmetry", *options]:
            return failing_politely(
                lambda: tyro.cli(symmetry, prog="data.py symmetry", args=options)
            )
        case ["show", *options]:
            return with_experiment("data.py show", options, showing, USAGE)
        case ["-h" | "--help", *_]:
            print(USAGE, end="")
            return 0
        case _:
            print(USAGE, end="", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
