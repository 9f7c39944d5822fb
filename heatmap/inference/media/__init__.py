"""Images, videos and camera streams in; annotated copies and tables of points out."""

from heatmap.inference.media.annotator import Annotator, find_files
from heatmap.inference.media.detect import Detector, face_finder

__all__ = ["Annotator", "Detector", "face_finder", "find_files"]
