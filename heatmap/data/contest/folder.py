"""Where the contest's files lie."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The contest's files under one root; each is only known to exist once it is read."""

    root: Path

    @property
    def train_table(self) -> Path:
        return self.root / "train" / "landmarks.csv"

    @property
    def train_images(self) -> Path:
        return self.root / "train" / "images"

    @property
    def test_points(self) -> Path:
        return self.root / "test" / "test_points.csv"

    @property
    def test_images(self) -> Path:
        return self.root / "test" / "images"

    @property
    def lookup_table(self) -> Path:
        """Kaggle's facial keypoints only: the coordinates that a submission holds instead."""
        return self.root / "test" / "IdLookupTable.csv"

    @property
    def sample_submission(self) -> Path:
        return self.root / "sampleSubmission.csv"

    @property
    def solution(self) -> Path:
        """The landmarks asked for, where the folder was drawn or converted from labelled data."""
        return self.root / "withheld" / "solution.csv"

    @property
    def boxes(self) -> Path:
        """Only where converted data has boxes: those of all pictures, for `read_boxes`."""
        return self.root / "boxes.csv"


def find_folder(root: Path) -> Folder:
    """The contest's folder at `root`: the 2020 edition, or 2021/22 in its `contest01_data`.

    One of the two tables is enough: there are folders only to train on and only to predict.

    Raises:
        ValueError: neither table is in `root` or `root/contest01_data`.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: there is no such folder")
    for candidate in (Folder(root=root), Folder(root=root / "contest01_data")):
        if candidate.train_table.is_file() or candidate.test_points.is_file():
            return candidate
    raise ValueError(
        f"{root}: no contest data found; looked for train/landmarks.csv and test/test_points.csv "
        f"in {root} and in {root / 'contest01_data'}"
    )
