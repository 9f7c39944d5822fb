"""Runs side by side, from their folders alone: what differs, how they learned, which is better.

runs      what a run folder tells of its run
paired    runs held against the first one, picture by picture
telling   the comparison as text for a terminal, and as a page
"""

from heatmap.compare.paired import bootstrap_means, compare, differences, interval
from heatmap.compare.runs import RunFolder, read_runs
from heatmap.compare.telling import page, sentence, text

__all__ = [
    "RunFolder",
    "bootstrap_means",
    "compare",
    "differences",
    "interval",
    "page",
    "read_runs",
    "sentence",
    "text",
]
