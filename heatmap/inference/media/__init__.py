"""Images, videos and cameras in; drawn copies, and tables of points in their own pixels, out."""

from heatmap.inference.media.annotator import Annotator, Finder, find_files
from heatmap.inference.media.detect import Detector

__all__ = ["Annotator", "Detector", "Finder", "find_files"]
