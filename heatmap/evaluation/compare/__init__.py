"""Runs side by side, from their folders alone: what differs, how they learned, which is better.

runs        what a run folder tells of its run
paired      runs held against the first one, image by image
formatting  the comparison as text for a terminal, and as a page
"""

from heatmap.evaluation.compare.formatting import comparison_page, format_comparison, sentence
from heatmap.evaluation.compare.paired import compare_runs, differences
from heatmap.evaluation.compare.runs import read_runs

__all__ = [
    "compare_runs", "comparison_page", "differences", "format_comparison", "read_runs", "sentence",
]  # fmt: skip
