"""`data.py convert` and `data.py export`: other data sets' files to the contest's, and back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from heatmap.data.formats.labelled import LabelledFaces

Source = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
Out = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT", help="folder to make")]
_PART_HELP = (
    "both: faces of the test part become test images, and their landmarks withheld/solution.csv; "
    "train, test: that part alone, as training images, which evaluate.py --data can score as well"
)
Part = Annotated[Literal["both", "train", "test"], tyro.conf.arg(help=_PART_HELP)]
_LINK_HELP = "hard links to the images, not copies: no room needed, but changes are shared"
Link = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help=_LINK_HELP)]
Incomplete = Literal["keep", "drop"]

convert = tyro.extras.SubcommandApp()


@convert.command
def kaggle15(
    source: Source, out: Out, *, incomplete: Incomplete = "keep", limit: int | None = None
) -> None:
    """Convert Kaggle's "facial-keypoints-detection": 15 landmarks on grey images of 96 x 96.

    tools/submit.py answers the converted folder in that contest's own form.

    Args:
        source: facial-keypoints-detection.zip, or a folder that holds its files, or training.zip or
            training.csv; test.zip or test.csv and IdLookupTable.csv are then looked for beside it.
        incomplete: training images that lack landmarks: keep them with these unlabelled, or drop
            them.
        limit: only so many training images, the first of those that are not dropped.
    """
    from heatmap.data.formats.kaggle15 import convert

    done = convert(source, out, incomplete=incomplete, limit=limit)
    print(f"{out}: {done.num_training} training images, {done.num_complete} with all 15 landmarks")
    if done.num_test == 0:
        print(f"no test images: there is neither test.zip nor test.csv with {source}")
    elif done.num_asked is None:
        print(f"{done.num_test} test images; there is no IdLookupTable.csv with {source}")
    else:
        print(f"{done.num_test} test images, {done.num_asked} coordinates asked for")
    if done.num_complete < done.num_training:
        print(
            "Kaggle's own table begins with its complete rows, and by default the last rows "
            "validate; train with --data.split random to draw them from the whole table"
        )


@convert.command
def udacity(source: Source, out: Out, *, part: Part = "both", link: Link = False) -> None:
    """Convert Udacity's P1_Facial_Keypoints: frames of YouTube Faces with 68 landmarks.

    Args:
        source: the folder with training_frames_keypoints.csv, test_frames_keypoints.csv and the
            images in training and test.
    """
    from heatmap.data.formats import udacity

    _to_contest(udacity.read(source), out, part, link)


@convert.command
def ibug(source: Source, out: Out, *, part: Part = "both", link: Link = False) -> None:
    """Convert iBUG's .pts files beside images: 300-W, Helen, LFPW, AFW and others.

    Folders testset, ibug, 01_Indoor and 02_Outdoor hold the test part. Mirrored copies
    (NAME_mirror.pts) are left out.

    Args:
        source: a folder that holds such files, in whatever folders.
    """
    from heatmap.data.formats import ibug

    _to_contest(ibug.read(source), out, part, link)


@convert.command
def wflw(
    source: Source, out: Out, *, images: Path | None = None, part: Part = "both", link: Link = False
) -> None:
    """Convert WFLW: 98 landmarks and a box a face, several faces in an image.

    From the second face of an image on, names carry its number: photo#2.jpg.

    Args:
        source: the folder that holds list_98pt_rect_attr_train.txt and ..._test.txt, in whatever
            folders.
        images: the folder of the images, SOURCE/WFLW_images if not given.
    """
    from heatmap.data.formats import wflw

    _to_contest(wflw.read(source, images=images), out, part, link)


@convert.command
def helen194(source: Source, out: Out, *, part: Part = "both", link: Link = False) -> None:
    """Convert Helen as its authors labelled it, with 194 landmarks.

    Args:
        source: the folder that holds annotation, trainnames.txt, testnames.txt and, in whatever
            folders, the images.
    """
    from heatmap.data.formats import helen194

    _to_contest(helen194.read(source), out, part, link)


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
    """Convert COCO keypoints, or the faces of COCO-WholeBody: several people in an image.

    From the second person of an image on, names carry its number: photo#2.jpg. Crowds and people
    without a labelled landmark are left out.

    Args:
        source: the annotations to train on.
        images: the folder of their images, that of the annotations if not given.
        test: the annotations of the test part.
        test_images: the folder of their images, that of the others if not given.
        points: keypoints and bbox of every person, or face_kpts and face_box of COCO-WholeBody.
    """
    from heatmap.data.formats import coco

    _to_contest(coco.read(source, images, test, test_images, points), out, part, link)


def export(
    form: Annotated[Literal["coco"], tyro.conf.Positional, tyro.conf.arg(metavar="coco")],
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    out: Out,
    *,
    boxes: Path | None = None,
    link: Link = False,
) -> None:
    """Write a contest folder's labelled faces as COCO keypoints, which labelling tools read.

    The test images are written where their landmarks are known (withheld/solution.csv). What is
    written, convert reads.

    Args:
        form: what to write.
        root: contest folder.
        boxes: table of the images' boxes (file_name, x0, y0, x1, y1), DIR/boxes.csv if not given
            and there; without either, those of the landmarks are written.
    """
    from heatmap.data.formats import coco
    from heatmap.data.formats.layout import read_contest

    labelled = read_contest(root, boxes=boxes)
    coco.write(labelled, out, link=link)
    _report(labelled, out)


def _to_contest(labelled: "LabelledFaces", out: Path, part: Part, link: Link) -> None:
    from heatmap.data.formats.layout import write_contest

    if part != "both":
        labelled = labelled.only(part)
    write_contest(labelled, out, link=link)
    _report(labelled, out)
    if labelled.faces[0].box_image is not None:
        print(f"train on the faces alone with --crop.rule box --data.boxes {out / 'boxes.csv'}")


def _report(labelled: "LabelledFaces", out: Path) -> None:
    num_test = sum(face.is_test for face in labelled.faces)
    print(
        f"{out}: {len(labelled.faces) - num_test} faces to train on and {num_test} to test, "
        f"{len(labelled.faces[0].points_image)} landmarks each"
    )
    for what, count in labelled.left_out.items():
        print(f"left out: {count} {what}")
