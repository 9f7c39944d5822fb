"""Images, videos and camera streams in; annotated copies and tables of points out."""

from heatmap.inference.media.annotator import Annotator
from heatmap.inference.media.detect import Detector, face_finder
from heatmap.inference.media.paths import Outputs, find_files

__all__ = ["Annotator", "Detector", "Outputs", "face_finder", "find_files"]
