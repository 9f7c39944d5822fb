"""The commands of tools/data.py that look after a data set: pose, check, stats, symmetry, audit."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from heatmap.config import Data
from heatmap.errors import UsageError, UserError
from heatmap.runtime.machine import usable_cores


def pose(
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    *,
    out: Path = Path("weights.csv"),
    above: float = 0.15,
    weight: float = 2.0,
) -> None:
    """Tell from the landmarks how far heads are turned, and weigh images by it.

    The table (file_name, angle, weight) is what --data.weights takes. The angle is the face's share
    of the strongest change of shape, which in images of people is the turn to the side.

    Args:
        root: contest folder.
        out: the table to write.
        above: heads whose angle is larger, to either side, get the weight; the others get 1.
        weight: of turned heads.
    """
    if above < 0 or weight < 0:
        raise UsageError("--above and --weight must not be negative")
    import numpy as np

    from heatmap import shape
    from heatmap.data import contest

    labels = contest.read_landmarks(contest.find_folder(root).train_table, progress=True)
    turns = shape.turns(labels.points_image)
    is_turned = np.abs(turns) > above
    contest.write_weights(out, labels.names, turns, np.where(is_turned, weight, 1.0))
    print(f"{out}: {len(turns)} images, {is_turned.sum()} of them turned by more than {above:g}")


def check(
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    *,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    exclude_to: Path | None = None,
    workers: int = usable_cores(),
) -> None:
    """Check every row and every image, and tell all problems at once.

    Errors are what a training or a submission would stop at; where there are any, the exit code
    is 1. Images that look alike are found by a perceptual hash, in training and test images
    and between them.

    Args:
        root: contest folder.
        json_file: also write everything here: every problem, every group of equal or like images.
        exclude_to: also write the table that --data.exclude takes: training images that cannot
            be read or are damaged, whose landmarks lie far outside or all at one point, or that are
            there twice with other landmarks. Rows that cannot be read have to be mended.
        workers: processes that read the images.
    """
    if workers < 1:
        raise UsageError("--workers must be at least 1")
    from heatmap.curation.check import check, format_report
    from heatmap.data import contest
    from heatmap.runtime.files import write_json

    report = check(root, workers=workers)
    print(format_report(report))
    if json_file is not None:
        write_json(json_file, report.to_json())
    if exclude_to is not None:
        excluded = report.excluded()
        contest.write_excluded(exclude_to, excluded)
        print(f"\n{exclude_to}: {len(excluded)} images to leave out with --data.exclude")
        if lasting := sum(not error.is_excluded for error in report.errors()):
            print(f"{lasting} errors stay all the same; mend the tables")
    if errors := len(report.errors()):
        raise UserError(f"training or a submission would stop at {errors} of these problems")


def stats(
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    *,
    trim_border: int = 0,
    crop: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="H W")] = None,
    out: Path = Path("stats.png"),
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    workers: int = usable_cores(),
) -> None:
    """Measure the images' channels, and plot sizes, landmark positions and head poses.

    Means and standard deviations are over all pixels, in RGB with white at 1, and exact. The plots
    are of whole images.

    Args:
        root: contest folder.
        trim_border: leave a dark border out, as --crop.trim-border does; 9 is a good value.
        crop: height and width of the crop to look at, as training cuts it; else whole images.
        out: the image to write, .png.
        json_file: also write the channels here, with the exact sums.
        workers: processes that read the images.
    """
    from heatmap.curation.stats import format_statistics, measure_contest, plot
    from heatmap.runtime.files import write_json

    if workers < 1:
        raise UsageError(f"--workers must be at least 1, not {workers}")
    if out.suffix != ".png":
        raise UsageError(f"--out must end in .png, unlike {out}")
    if not 0 <= trim_border < 255:
        raise UsageError(f"--trim-border must be from 0 to 254, not {trim_border}")
    if crop is not None and min(crop) < 32:
        raise UsageError("--crop takes a height and a width of at least 32")
    statistics = measure_contest(root, trim_border=trim_border, crop_hw=crop, workers=workers)
    print(format_statistics(statistics))
    if json_file is not None:
        write_json(json_file, statistics.to_json())
    plot(statistics, out)
    print(out)


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
    from heatmap.curation.symmetry import check_known, format_symmetry, infer, write
    from heatmap.data import contest

    labels = contest.read_landmarks(contest.find_folder(root).train_table, progress=True)
    found = infer(labels.points_image)
    write(out, found)
    print(f"{format_symmetry(found)}\n{out}: told by {found.num_faces} faces")
    print(check_known(found))


def audit(
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    *,
    run: tuple[Path, ...] = (),
    out: Path = Path("audit.csv"),
    sheet: Path = Path("audit.jpg"),
    count: int = 40,
    exclude_to: Path | None = None,
    top: float = 0.03,
    looked: Path | None = None,
    symmetry: Path | None = None,
    person_pattern: str = Data.person_pattern,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Rank all training images by how likely their labels are wrong, and say why.

    Labels are held to what trained runs see, in units of the error that is expected there, and to a
    model of the shapes of all faces. The audit first tests itself: it injects known errors into
    copies of the labels and tells how many of each kind are in the list.

    Args:
        root: contest folder.
        run: run folders or checkpoints, all about as good as the best; an image is judged by those
            that were not trained on it, if there are any (five folds see all images anew).
        out: the table to write, with a row for every image, the most suspicious first; fill in its
            column verdict (good or bad) and give it to --looked.
        sheet: the image to write, .jpg or .png: the most suspicious faces with their labels, and
            what the runs see in green.
        count: faces on the sheet.
        exclude_to: write the listed images as a table for --data.exclude; those with the verdict
            good stay out of it.
        top: share of the images that is listed.
        looked: an earlier table of this command with verdicts, to tell the rate of false alarms.
        symmetry: file of data.py symmetry, for other landmarks than 971, 68 or 15.
        person_pattern: regular expression on the file name; its first group is the person.
        device: where the networks run.
    """
    if not run:
        raise UsageError(
            "audit holds labels to what trained runs see; name these with --run. For runs that see "
            f"every image anew: python tools/train.py experiments/unet.py --data.root {root} "
            "--data.folds 5 --data.fold 0 --out runs/fold0, and so on to fold 4"
        )
    if not 0 < top < 1 or count < 1 or sheet.suffix not in (".jpg", ".png"):
        raise UsageError(
            "--top must be above 0 and below 1, --count at least 1, --sheet end in .jpg or .png"
        )
    from heatmap.curation.audit.folder import audit_folder
    from heatmap.runtime.machine import chosen_device

    for line in audit_folder(
        root, run, out=out, sheet=sheet, count=count, exclude_to=exclude_to, top=top,
        looked=looked, symmetry=symmetry, person_pattern=person_pattern,
        device=chosen_device(device),
    ):  # fmt: skip
        print(line, flush=True)
