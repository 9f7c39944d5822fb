"""`heatmap data convert` and `export`: other data sets to contest folders, and back."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from heatmap.data.formats.kaggle15 import Converted
    from heatmap.data.formats.labelled import LabelledFaces

Source = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
Out = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT", help="folder to create")]
_PART_HELP = (
    "both: the test part becomes test images with withheld/solution.csv; train, test: that part "
    "alone becomes training images, which heatmap evaluate --data can also score"
)
Part = Annotated[Literal["both", "train", "test"], tyro.conf.arg(help=_PART_HELP)]
_LINK_HELP = "hard-link the images instead of copying them; changes then show in both places"
Link = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help=_LINK_HELP)]
Incomplete = Literal["keep", "drop"]

convert = tyro.extras.SubcommandApp()


@convert.command
def kaggle15(
    source: Source, out: Out, *, incomplete: Incomplete = "keep", limit: int | None = None
) -> None:
    """Convert Kaggle's "facial-keypoints-detection": 15 landmarks on grey 96 x 96 images.

    heatmap submit writes that contest's own submission format for the converted folder.

    Args:
        source: facial-keypoints-detection.zip, a folder with its files, training.zip or
            training.csv; test.zip or test.csv and IdLookupTable.csv are read from the same folder.
        incomplete: keep or drop training images with unlabelled landmarks.
        limit: maximum number of training images.
    """
    from heatmap.data.formats.kaggle15 import convert

    print_counts(out, convert(source, out, incomplete=incomplete, limit=limit))


def print_counts(out: Path, counts: "Converted") -> None:
    complete = f"{counts.num_complete} with all 15 landmarks"
    print(f"{out}: {counts.num_training} training images, {complete}")
    if counts.num_test == 0:
        print("no test images: no test.zip or test.csv beside the training images")
    elif counts.num_asked is None:
        print(f"{counts.num_test} test images; no IdLookupTable.csv beside them")
    else:
        print(f"{counts.num_test} test images, {counts.num_asked} coordinates asked for")
    if counts.num_complete < counts.num_training:
        print(
            "the first rows of Kaggle's table are complete, and by default the last rows validate; "
            "train with --data.split random to validate on a random sample"
        )


@convert.command
def udacity(source: Source, out: Out, *, part: Part = "both", link: Link = False) -> None:
    """Convert Udacity's P1_Facial_Keypoints: frames of YouTube Faces with 68 landmarks.

    Args:
        source: folder with training_frames_keypoints.csv, test_frames_keypoints.csv and the images
            in training/ and test/.
    """
    _convert("udacity", out, part, link, source)


@convert.command
def ibug(
    source: Source,
    out: Out,
    *,
    images: Path | None = None,
    negative: Literal["keep", "unlabelled", "occluded"] | None = None,
    part: Part = "both",
    link: Link = False,
) -> None:
    """Convert iBUG's .pts files: 300-W, Helen, LFPW, AFW and others.

    Folders testset, ibug, 01_Indoor and 02_Outdoor are the test part. Mirrored copies
    (NAME_mirror.pts) are left out.

    Args:
        source: folder with .pts files, at any depth.
        images: folder of the images, with the same subfolders or with one image of each name;
            default the folders of the .pts files.
        negative: what x and y below 0 mean: keep, a landmark outside the image; unlabelled; or
            occluded, as in MERL-RAV, where -1 -1 is unlabelled and another -x -y is hidden at x y.
            Default keep, but the conversion stops where the same x and y recur.
    """
    _convert("ibug", out, part, link, source, images=images, negative=negative)


@convert.command
def wflw(
    source: Source, out: Out, *, images: Path | None = None, part: Part = "both", link: Link = False
) -> None:
    """Convert WFLW: 98 landmarks and a box per face, several faces per image.

    Additional faces in an image get numbered names: photo#2.jpg.

    Args:
        source: folder with list_98pt_rect_attr_train.txt and ..._test.txt, at any depth.
        images: folder of the images; default SOURCE/WFLW_images.
    """
    _convert("wflw", out, part, link, source, images=images)


@convert.command
def helen194(source: Source, out: Out, *, part: Part = "both", link: Link = False) -> None:
    """Convert Helen with its original 194 landmarks.

    Args:
        source: folder with annotation/, trainnames.txt, testnames.txt and the images, at any depth.
    """
    _convert("helen194", out, part, link, source)


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
    """Convert COCO keypoints, or the faces of COCO-WholeBody, several people per image.

    Additional people in an image get numbered names: photo#2.jpg. Crowds and people without a
    labelled landmark are left out.

    Args:
        source: annotations of the training part.
        images: folder of their images; default the folder of the annotations.
        test: annotations of the test part.
        test_images: folder of the test images; default the folder of the training images.
        points: keypoints and bbox of each person, or face_kpts and face_box of COCO-WholeBody.
    """
    _convert("coco", out, part, link, source, images, test, test_images, points)


def export(
    form: Annotated[Literal["coco"], tyro.conf.Positional, tyro.conf.arg(metavar="coco")],
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    out: Out,
    *,
    boxes: Path | None = None,
    link: Link = False,
) -> None:
    """Write the labelled faces of a contest folder as COCO keypoints, for labelling tools.

    Test images are included if their landmarks are known (withheld/solution.csv).

    Args:
        form: the format to write.
        root: contest folder.
        boxes: table of face boxes (file_name, x0, y0, x1, y1) in image pixels; default
            DIR/boxes.csv, or the bounding boxes of the landmarks if that does not exist.
    """
    from heatmap.data.formats import coco
    from heatmap.data.formats.layout import read_contest

    labelled = read_contest(root, boxes=boxes)
    coco.write(labelled, out, link=link)
    _print_faces(labelled, out)


def _convert(name: str, out: Path, part: Part, link: Link, *sources: Any, **options: Any) -> None:
    from heatmap.data.formats.layout import write_contest

    labelled = import_module(f"heatmap.data.formats.{name}").read(*sources, **options)
    if part != "both":
        labelled = labelled.only(part)
    write_contest(labelled, out, link=link)
    _print_faces(labelled, out)
    if labelled.faces[0].box_image is not None:
        print(f"to train on face crops: --crop.rule box --data.boxes {out / 'boxes.csv'}")


def _print_faces(labelled: "LabelledFaces", out: Path) -> None:
    num_test = sum(face.is_test for face in labelled.faces)
    print(
        f"{out}: {len(labelled.faces) - num_test} faces to train on and {num_test} to test, "
        f"{len(labelled.faces[0].points_image)} landmarks each"
    )
    if labelled.num_replaced_boxes:
        print(f"boxes replaced by the landmarks' bounds: {labelled.num_replaced_boxes}")
    for description, count in labelled.left_out.items():
        print(f"left out: {count} {description}")
