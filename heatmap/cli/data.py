"""Makes data to train on, converts what others made, and shows what training sees of it."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from heatmap.cli.running import WrongUsage, failing_politely, with_experiment
from heatmap.config import Data, Experiment
from heatmap.runtime.machine import usable_cores

if TYPE_CHECKING:
    from heatmap.data.formats.labelled import LabelledFaces

USAGE = """\
usage: data.py make OUT --count N [--seed N] [--test-count N] [--workers N]
       data.py convert kaggle15 SOURCE OUT [--incomplete keep|drop] [--limit N]
       data.py convert udacity|ibug|wflw|helen194 SOURCE OUT [--part both|train|test] [--link]
       data.py convert coco TRAIN.json OUT [--images DIR] [--test FILE] [--points keypoints|face]
       data.py export udacity|ibug|wflw|helen194|coco DIR OUT [--boxes FILE] [--link]
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
    workers: int = usable_cores(),
) -> None:
    """Draw a synthetic contest: faces with 971 landmarks, in the contest's own files.

    Args:
        out: folder to make.
        count: pictures to train on.
        seed: the same seed gives the same bytes.
        test_count: test pictures; a tenth of count if not given.
        workers: processes that draw.
    """
    from heatmap.data.synthetic.contest import make_contest

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
    from heatmap.data.formats.kaggle15 import convert

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


Source = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
Out = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT", help="folder to make")]
Part = Annotated[
    Literal["both", "train", "test"],
    tyro.conf.arg(
        help="both: faces of the test part become test pictures, and their landmarks "
        "withheld/solution.csv; train, test: that part alone, as training pictures, which "
        "evaluate.py --data can score as well"
    ),
]
Link = Annotated[
    bool,
    tyro.conf.FlagCreatePairsOff,
    tyro.conf.arg(
        help="hard links to the pictures in place of copies: no room needed, but who changes one "
        "changes the other"
    ),
]


@convert.command
def udacity(source: Source, out: Out, *, part: Part = "both", link: Link = False) -> None:
    """Convert Udacity's P1_Facial_Keypoints: frames of YouTube Faces with 68 landmarks.

    Args:
        source: the folder with training_frames_keypoints.csv, test_frames_keypoints.csv and the
            pictures in training and test.
    """
    from heatmap.data.formats import udacity

    _to_contest(udacity.read(source, progress=True), out, part, link)


@convert.command
def ibug(source: Source, out: Out, *, part: Part = "both", link: Link = False) -> None:
    """Convert iBUG's .pts files beside pictures: 300-W, Helen, LFPW, AFW and others.

    Folders testset, ibug, 01_Indoor and 02_Outdoor hold the test part. Mirrored copies
    (NAME_mirror.pts) are left out.

    Args:
        source: a folder that holds such files, in whatever folders.
    """
    from heatmap.data.formats import ibug

    _to_contest(ibug.read(source, progress=True), out, part, link)


@convert.command
def wflw(
    source: Source,
    out: Out,
    *,
    images: Path | None = None,
    part: Part = "both",
    link: Link = False,
) -> None:
    """Convert WFLW: 98 landmarks and a box a face, several faces in a photograph.

    From the second face of a photograph on, names carry its number: photo#2.jpg.

    Args:
        source: the folder that holds list_98pt_rect_attr_train.txt and ..._test.txt, in whatever
            folders.
        images: the folder of the pictures, SOURCE/WFLW_images if not given.
    """
    from heatmap.data.formats import wflw

    _to_contest(wflw.read(source, images=images, progress=True), out, part, link)


@convert.command
def helen194(source: Source, out: Out, *, part: Part = "both", link: Link = False) -> None:
    """Convert Helen as its authors labelled it, with 194 landmarks.

    Args:
        source: the folder that holds annotation, trainnames.txt, testnames.txt and, in whatever
            folders, the pictures.
    """
    from heatmap.data.formats import helen194

    _to_contest(helen194.read(source, progress=True), out, part, link)


@convert.command
def coco(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TRAIN.json")],
    out: Out,
    *,
    images: Path | None = None,
    test: Path | None = None,
    test_images: Path | None = None,
    points: Literal["keypoints", "face"] = "keypoints",
    part: Part = "both",
    link: Link = False,
) -> None:
    """Convert COCO keypoints, or the faces of COCO-WholeBody: several people in a photograph.

    From the second person of a photograph on, names carry its number: photo#2.jpg. Crowds and
    people without a labelled landmark are left out.

    Args:
        source: the annotations to train on.
        images: the folder of their pictures, that of the annotations if not given.
        test: the annotations of the test part.
        test_images: the folder of their pictures, that of the others if not given.
        points: keypoints and bbox of every person, or face_kpts and face_box of COCO-WholeBody.
    """
    from heatmap.data.formats import coco

    faces = coco.read(
        source, images=images, test=test, test_images=test_images, points=points, progress=True
    )
    _to_contest(faces, out, part, link)


def _to_contest(
    faces: "LabelledFaces", out: Path, part: Literal["both", "train", "test"], link: bool
) -> None:
    from heatmap.data.formats.layout import write_contest

    faces = faces if part == "both" else faces.only(part)
    write_contest(faces, out, link=link, progress=True)
    _tell(faces, out)
    if faces.boxes_image is not None:
        print(f"train on the faces alone with --crop.rule box --data.boxes {out / 'boxes.csv'}")


def _tell(faces: "LabelledFaces", out: Path) -> None:
    num_test = int(faces.is_test.sum())
    print(
        f"{out}: {len(faces.names) - num_test} faces to train on and {num_test} to test, "
        f"{faces.points_image.shape[1]} landmarks each"
    )
    for what, count in faces.left_out.items():
        print(f"left out: {count} {what}")


def export(
    form: Annotated[
        Literal["udacity", "ibug", "wflw", "helen194", "coco"],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="udacity|ibug|wflw|helen194|coco"),
    ],
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    out: Out,
    *,
    boxes: Path | None = None,
    link: Link = False,
) -> None:
    """Write a contest folder's labelled faces in another data set's form.

    The test pictures are written where their landmarks are known (withheld/solution.csv). What is
    written, convert reads.

    Args:
        form: what to write.
        root: contest folder.
        boxes: table of the pictures' boxes (file_name, x0, y0, x1, y1), DIR/boxes.csv if not given
            and there; wflw and coco write those of the landmarks where there are none.
    """
    from heatmap.data.formats import coco, helen194, ibug, udacity, wflw
    from heatmap.data.formats.layout import read_contest

    forms = {"udacity": udacity, "ibug": ibug, "wflw": wflw, "helen194": helen194, "coco": coco}
    faces = read_contest(root, boxes=boxes, progress=True)
    forms[form].write(faces, out, link=link, progress=True)
    _tell(faces, out)


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
    workers: int = usable_cores(),
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
    workers: int = usable_cores(),
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
    workers: int = usable_cores(),
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
    from heatmap.curation.split import store_split, table

    if workers < 1:
        raise WrongUsage(f"--workers must be at least 1, not {workers}")
    if not 0 < share < 1:
        raise WrongUsage(f"--share must be between 0 and 1, not {share}")
    stored = store_split(
        root, out, rule=rule, share=share, folds=folds, person_pattern=person_pattern, seed=seed,
        workers=workers, progress=True,
    )  # fmt: skip
    print(f"{table(stored)}\n\n{out}: train on it with --data.split-file {out}")


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
