"""The commands of heatmap data that weight, check, describe and correct a data set."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from heatmap.cli.running import check_ending
from heatmap.config import Count, Data, NotNegative, Size
from heatmap.errors import UsageError, UserError
from heatmap.runtime.columns import counted
from heatmap.runtime.machine import chosen_device, usable_cores

CORES = usable_cores()
NO_RUNS = (
    "audit compares labels with trained runs; pass them with --run. To train runs that cover all "
    "images: heatmap train unet --data.root {root} --data.folds 5 --data.fold 0 --out runs/fold0, "
    "and so on to fold 4"
)
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
    review: Path = Path("review.html"),
    count: Count = 200,
    exclude_to: Path | None = None,
    top: Share = 0.03,
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
        out: the table to write, a row for each image, the most suspicious first.
        review: the HTML page to write, for looking at the most suspicious labels and correcting
            them; pass the table that it saves to heatmap data apply.
        count: faces on the page.
        exclude_to: also write a table for --data.exclude: the images that are listed.
        top: share of the images to list, between 0 and 1.
        symmetry: file written by heatmap data symmetry, for schemes that are not built in.
        person_pattern: regular expression on the file name; its first group is the person.
        device: where the networks run.
    """
    if not run:
        raise UsageError(NO_RUNS.format(root=root))
    check_ending("--review", review, ".html")
    from heatmap.curation.audit.folder import read_folder
    from heatmap.curation.audit.injected import format_recalls, self_test
    from heatmap.curation.audit.residuals import score_labels
    from heatmap.curation.review import write_review
    from heatmap.data import contest

    folder = read_folder(
        root, run, symmetry=symmetry, person_pattern=person_pattern, device=chosen_device(device)
    )
    print(
        f"{folder.data.is_trained.sum()} of {len(folder.names)} images were trained on by every "
        "run; their residuals are too small, so they are compared only with each other"
    )
    print(format_recalls(self_test(folder.data, top), top), flush=True)
    scores = score_labels(folder.data)
    reasons = {folder.names[row]: scores.reasons(row) for row in scores.top(top).tolist()}
    folder.write_table(out, scores)
    print(f"{out}: all images, the most suspicious first, beginning with:")
    for rank, (name, why) in enumerate(list(reasons.items())[:10], start=1):
        print(f"{rank:4}  {name}: {'; '.join(why) or 'no single reason'}")
    write_review(review, folder, scores, count)
    print(f"{review}: open it to look at {counted(min(count, len(folder.names)), 'label')}")
    if exclude_to:
        contest.write_excluded(exclude_to, reasons)
        print(f"{exclude_to}: {counted(len(reasons), 'image')} to leave out with --data.exclude")


def apply(
    root: Root,
    corrections: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CORRECTIONS")],
    *,
    out: Path,
) -> None:
    """Apply the corrections of a review: write a new folder with links to the images.

    DIR stays as it is. A label reviewed as bad loses its landmarks, so that it neither trains nor
    validates. Prints what changed.

    Args:
        corrections: the table saved by audit's page. It only fits the table of landmarks that it
            was made for.
        out: the folder to write.
    """
    from heatmap.curation.apply import apply, format_changes

    changes = apply(root, corrections, out)
    print(format_changes(changes))
    print(f"{out}: train on it with --data.root {out} --data.split-file RUN/split.json")
