"""The contest's files and folders."""

import os
from pathlib import Path

from heatmap.errors import UserError


class Folder:
    """The paths of the contest's files under one root; any of them may be missing."""

    def __init__(self, *, root: Path) -> None:
        self.root = root
        self.train_table = root / "train" / "landmarks.csv"
        self.train_images = root / "train" / "images"
        self.test_points = root / "test" / "test_points.csv"
        self.test_images = root / "test" / "images"
        self.lookup_table = root / "test" / "IdLookupTable.csv"  # only for `kaggle15`
        self.solution = root / "withheld" / "solution.csv"  # only in drawn or converted data
        self.boxes = root / "boxes.csv"  # for all images, only in converted data


def find_folder(root: Path) -> Folder:
    """Finds the contest in `root` (2020 edition) or in `root`/contest01_data (2021/22).

    One of the two tables is enough, so a folder may be for training only or prediction only.

    Raises:
        UserError: `root` is not a folder, or neither place has a table.
    """
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder. heatmap data fetch faces15 DIR downloads a data set, and "
            "heatmap data make DIR --count 2000 draws one"
        )
    for candidate in (Folder(root=root), Folder(root=root / "contest01_data")):
        if os.path.lexists(candidate.train_table) or os.path.lexists(candidate.test_points):
            return candidate
    if (root / "config.json").is_file():
        raise UserError(f"{root}: a run, not a data folder; expected DIR with train/landmarks.csv")
    raise UserError(
        f"{root}: no contest data found; looked for train/landmarks.csv and test/test_points.csv "
        f"in {root} and in {root / 'contest01_data'}"
    )
