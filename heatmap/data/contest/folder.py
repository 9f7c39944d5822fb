"""Where the contest's files lie."""

from pathlib import Path

from heatmap.errors import UserError


class Folder:
    """The contest's files under one root; each is only known to exist once it is read."""

    def __init__(self, *, root: Path) -> None:
        self.root = root
        self.train_table = root / "train" / "landmarks.csv"
        self.train_images = root / "train" / "images"
        self.test_points = root / "test" / "test_points.csv"
        self.test_images = root / "test" / "images"
        self.lookup_table = root / "test" / "IdLookupTable.csv"  # Kaggle's facial keypoints only
        self.solution = root / "withheld" / "solution.csv"  # only of drawn and converted data
        self.boxes = root / "boxes.csv"  # of all images, only of converted data with boxes


def find_folder(root: Path) -> Folder:
    """The contest's folder at `root`: the 2020 edition, or 2021/22 in its `contest01_data`.

    One of the two tables is enough: there are folders only to train on and only to predict.

    Raises:
        UserError: neither table is in `root` or `root/contest01_data`.
    """
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder")
    for candidate in (Folder(root=root), Folder(root=root / "contest01_data")):
        if candidate.train_table.is_file() or candidate.test_points.is_file():
            return candidate
    raise UserError(
        f"{root}: no contest data found; looked for train/landmarks.csv and test/test_points.csv "
        f"in {root} and in {root / 'contest01_data'}"
    )
