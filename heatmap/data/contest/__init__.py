"""Reads and writes the contest's files; no other package depends on their formats.

    train/landmarks.csv      TAB; file_name, Point_0_X, Point_0_Y, ...: every landmark
    train/images/            the images named there
    test/test_points.csv     TAB; file_name, point_index_list: the points to submit, [742, 385, ...]
    test/images/             the images named there
    sampleSubmission.csv     comma; file_name, Point_M0_X, Point_M0_Y, ...: M0 is the image's
                             first requested point; submissions and the solution have the same form
    withheld/solution.csv    only in folders drawn or converted from labelled data
    boxes.csv                only in converted data with boxes: file_name, x0, y0, x1, y1
    test/IdLookupTable.csv   only for `kaggle15`: the coordinates its submissions contain

The 2021/22 edition has the same files in a folder `contest01_data`. Points are (x, y) in image
pixels, with (0, 0) at the centre of the top-left pixel. NaN means unlabelled.
"""

from heatmap.data.contest.folder import Folder, find_folder
from heatmap.data.contest.images import ImageFile, image_paths, is_readable, misplaced, read_image
from heatmap.data.contest.landmarks import LandmarkTable, Points
from heatmap.data.contest.score import contest_mse, squared_errors
from heatmap.data.contest.small_tables import (
    AskedPoints,
    read_asked_points,
    read_boxes,
    read_excluded,
    read_weights,
    write_asked_points,
    write_boxes,
    write_excluded,
    write_weights,
)
from heatmap.data.contest.split import (
    PERSON_PATTERN,
    Rule,
    people_of,
    read_split,
    split_rows,
    write_split,
)
from heatmap.data.contest.stored import read_landmarks
from heatmap.data.contest.submission import (
    read_solution,
    read_submission,
    score_submission,
    write_answers,
    write_submission,
)
from heatmap.data.contest.table import count_landmarks, write_landmarks

__all__ = [
    "PERSON_PATTERN", "AskedPoints", "Folder", "ImageFile", "LandmarkTable", "Points", "Rule",
    "contest_mse", "count_landmarks", "find_folder", "image_paths", "is_readable", "misplaced",
    "people_of", "read_asked_points", "read_boxes", "read_excluded", "read_image",
    "read_landmarks", "read_solution", "read_split", "read_submission", "read_weights",
    "score_submission", "split_rows", "squared_errors", "write_answers", "write_asked_points",
    "write_boxes", "write_excluded", "write_landmarks", "write_split", "write_submission",
    "write_weights",
]  # fmt: skip
