"""Compares runs from their folders: settings, learning curves, and errors image by image.

runs        reads a run folder
paired      compares runs with the first one, image by image
formatting  formats a comparison for a terminal, or as a page
"""

from heatmap.evaluation.compare.formatting import comparison_page, format_comparison, sentence
from heatmap.evaluation.compare.paired import compare_runs, differences
from heatmap.evaluation.compare.runs import read_runs

__all__ = [
    "compare_runs", "comparison_page", "differences", "format_comparison", "read_runs", "sentence",
]  # fmt: skip
