"""Weights by which turned heads, which are rare, count more in training."""

from pathlib import Path

import numpy as np

from heatmap import shape
from heatmap.data import contest


def write_turn_weights(root: Path, out: Path, *, above: float, weight: float) -> tuple[int, int]:
    """Writes a table for --data.weights from a contest's training landmarks.

    Args:
        above: heads turned by more, to either side, as `shape.turns` tells it, get the weight; the
            others get 1, as do faces that lack a landmark.

    Returns:
        The number of images, and of turned heads among them.

    Raises:
        ValueError: there is no contest at `root`, or the landmarks tell no poses.
    """
    table = contest.read_landmarks(contest.find_folder(root).train_table, progress=True)
    turns = shape.turns(table.points_image)
    is_turned = np.abs(turns) > above
    contest.write_weights(out, table.names, turns, np.where(is_turned, weight, 1.0))
    return len(is_turned), int(is_turned.sum())
