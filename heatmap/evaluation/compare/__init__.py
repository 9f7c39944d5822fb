"""Runs side by side, from their folders alone: what differs, how they learned, which is better.

runs      what a run folder tells of its run
paired    runs held against the first one, image by image
telling   the comparison as text for a terminal, and as a page
"""

from heatmap.evaluation.compare.paired import compare, differences
from heatmap.evaluation.compare.runs import read_runs
from heatmap.evaluation.compare.telling import page, sentence, text

__all__ = ["compare", "differences", "page", "read_runs", "sentence", "text"]
