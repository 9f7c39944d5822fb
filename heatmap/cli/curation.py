"""The commands of heatmap data that check a data set: pose, check, stats, symmetry, audit."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from heatmap.cli.running import check_ending
from heatmap.config import Count, Data, NotNegative, Size
from heatmap.errors import UsageError, UserError
from heatmap.runtime.columns import counted
from heatmap.runtime.machine import usable_cores

if TYPE_CHECKING:
    from heatmap.curation.audit.folder import AuditFolder

CORES = usable_cores()
Root = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR", help="contest folder")]
Workers = Annotated[int, "[1, 4096]"]
Share = Annotated[float, "(0, 1)"]
Json = Annotated[Path | None, tyro.conf.arg(name="json")]


def pose(
    root: Root,
    *,
    out: Path = Path("weights.csv"),
    above: NotNegative = 0.15,
    weight: NotNegative = 2.0,
) -> None:
    """Measure head turns from the landmarks and weight images by them.

    Writes a table (file_name, angle, weight) for --data.weights. The angle, about -0.5 to 0.5, is
    the face's component along the main variation of shape, usually the turn to the side.

    Args:
        out: the table to write.
        above: absolute angle above which a head gets the weight; all others get 1.
        weight: weight of turned heads.
    """
    import numpy as np

    from heatmap import shape
    from heatmap.data import contest

    labels = contest.read_landmarks(contest.find_folder(root).train_table, progress=True)
    turns = shape.turns(labels.points_image)
    is_turned = np.abs(turns) > above
    contest.write_weights(out, labels.names, turns, np.where(is_turned, weight, 1.0))
    count = counted(len(turns), "image")
    print(f"{out}: {count}, {is_turned.sum()} of them turned by more than {above:g}")


def check(
    root: Root, *, json_file: Json = None, exclude_to: Path | None = None, workers: Workers = CORES
) -> None:
    """Check every row and every image, and report all problems at once.

    Errors would stop training or a submission; with any error the exit code is 1. Images that
    look alike are found by a perceptual hash, within and between training and test images.

    Args:
        json_file: also write all problems and all groups of equal or similar images to this file.
        exclude_to: also write a table for --data.exclude: training images that cannot be read, are
            damaged, have landmarks far outside or all at one point, or occur twice with different
            landmarks. Unreadable table rows must be repaired instead.
        workers: processes that read the images.
    """
    from heatmap.curation.check import check
    from heatmap.curation.check_report import format_report
    from heatmap.data import contest
    from heatmap.runtime.files import write_json

    report = check(root, workers=workers)
    print(format_report(report))
    if json_file is not None:
        write_json(json_file, report.to_json())
    if exclude_to is not None:
        excluded = report.excluded()
        contest.write_excluded(exclude_to, excluded)
        print(f"\n{exclude_to}: {counted(len(excluded), 'image')} to leave out with --data.exclude")
        if remaining := sum(not error.is_excluded for error in report.errors()):
            print(f"{counted(remaining, 'error')} left; repair the tables")
    if errors := len(report.errors()):
        raise UserError(f"training or a submission would stop at {errors} of these problems")


def stats(
    root: Root,
    *,
    trim_border: Annotated[int, "[0, 255)"] = 0,
    crop: Annotated[tuple[Size, Size] | None, tyro.conf.arg(metavar="H W")] = None,
    out: Path = Path("stats.png"),
    json_file: Json = None,
    workers: Workers = CORES,
) -> None:
    """Measure the images' channels, and plot sizes, landmark positions and head poses.

    Means and standard deviations are exact, over all pixels, in RGB with white at 1.

    Args:
        trim_border: leave out borders up to this brightness (0 to 254); 9 is a good value.
        crop: measure training crops of this height and width in px, instead of whole images.
        out: the .png file of plots to write.
        json_file: also write the channels and their exact sums to this file.
        workers: processes that read the images.
    """
    check_ending("--out", out, ".png")
    from heatmap.curation.stats import format_statistics, measure_contest, plot
    from heatmap.runtime.files import write_json

    statistics = measure_contest(root, trim_border=trim_border, crop_hw=crop, workers=workers)
    print(format_statistics(statistics))
    if json_file is not None:
        write_json(json_file, statistics.to_json())
    plot(statistics, out)
    print(out)


def symmetry(root: Root, *, out: Path = Path("symmetry.json")) -> None:
    """Infer the mirror permutation and the groups of the landmarks from their labels alone.

    Writes a file for --data.symmetry, so that any landmark scheme can be mirrored. Distances
    between mirrored landmarks and their partners are printed in % of the face size. The exit code
    is 1 if landmarks have no certain partner, or if the labels disagree with a known permutation
    (971, 194, 68, 15 and 5 landmarks).

    Args:
        out: the file to write.
    """
    from heatmap.curation.symmetry import check_known, format_symmetry, infer, write
    from heatmap.data import contest

    labels = contest.read_landmarks(contest.find_folder(root).train_table, progress=True)
    inferred = infer(labels.points_image)
    write(out, inferred)
    print(f"{format_symmetry(inferred)}\n{out}: inferred from {inferred.num_faces} faces")
    print(check_known(inferred))


def audit(
    root: Root,
    *,
    run: tuple[Path, ...] = (),
    out: Path = Path("audit.csv"),
    sheet: Path = Path("audit.jpg"),
    count: Count = 40,
    exclude_to: Path | None = None,
    top: Share = 0.03,
    reviewed: Annotated[Path | None, tyro.conf.arg(aliases=("--looked",))] = None,
    symmetry: Path | None = None,
    person_pattern: str = Data.person_pattern,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Rank all training images by how suspicious their labels are, with reasons.

    Labels are compared with the predictions of trained runs, relative to the expected error, and
    with a model of all face shapes. A self-test first reports how many injected errors of each kind
    the list would hold.

    Args:
        run: run folders or checkpoints of similar accuracy. Each image is predicted by the runs
            that were not trained on it, if there are any; five folds cover all images.
        out: the table to write, a row for each image, the most suspicious first. Fill in its column
            review (good or bad) and pass it to --reviewed.
        sheet: the image to write, .jpg or .png: the most suspicious faces with their labels, and
            the predictions in green.
        count: faces on the sheet.
        exclude_to: also write a table for --data.exclude: images that are listed or reviewed as
            bad, except those reviewed as good.
        top: share of the images to list, between 0 and 1.
        reviewed: an earlier table with reviews; the rate of false alarms is reported.
        symmetry: file written by heatmap data symmetry, for schemes that are not built in.
        person_pattern: regular expression on the file name; its first group is the person.
        device: where the networks run.
    """
    if not run:
        raise UsageError(
            "audit compares labels with trained runs; pass them with --run. To train runs that "
            f"cover all images: heatmap train unet --data.root {root} "
            "--data.folds 5 --data.fold 0 --out runs/fold0, and so on to fold 4"
        )
    check_ending("--sheet", sheet, ".jpg", ".png")
    from heatmap.curation.audit.folder import read_folder, read_reviews
    from heatmap.runtime.machine import chosen_device

    if reviewed is None and out.exists() and read_reviews(out):
        raise UserError(
            f"{out} holds reviews, which would be lost; pass it as --reviewed {out}, or write "
            "another table with --out"
        )
    folder = read_folder(
        root, run, reviewed=reviewed, symmetry=symmetry, person_pattern=person_pattern,
        device=chosen_device(device),
    )  # fmt: skip
    print(
        f"{folder.data.is_trained.sum()} of {len(folder.names)} images were trained on by every "
        "run; their residuals are too small, so they are compared only with each other"
    )
    _write_audit(folder, out, sheet, count, top, exclude_to)


def _write_audit(
    folder: "AuditFolder", out: Path, sheet: Path, count: int, top: float, exclude_to: Path | None
) -> None:
    from heatmap.curation.audit.injected import format_recalls, self_test
    from heatmap.curation.audit.residuals import score_labels

    print(format_recalls(self_test(folder.data, top), top), flush=True)
    scores = score_labels(folder.data)
    listed = scores.top(top)
    folder.write_table(out, scores)
    print(f"{out}: all images, the most suspicious first")
    folder.write_sheet(sheet, listed[:count])
    print(f"{sheet}: the first {min(count, len(listed))}, beginning with:")
    for rank, row in enumerate(listed[: min(10, count)].tolist(), start=1):
        reasons = "; ".join(scores.reasons(row)) or "no single reason"
        print(f"{rank:4}  {folder.names[row]}: {reasons}")
    if folder.reviews:
        print(folder.format_false_alarms(listed))
    if exclude_to:
        num_excluded = folder.write_excluded(exclude_to, scores, listed)
        print(f"{exclude_to}: {counted(num_excluded, 'image')} to leave out with --data.exclude")
