"""Pictures, videos and cameras looked at: drawn copies, and tables of points in their own pixels.

annotator      files and cameras in, drawn copies and points out
detect         faces in photographs, by OpenCV's YuNet
video          videos read and written, picture by picture
tracks         which face of a frame is which of the frames before
smooth         landmarks of a video without jitter
points_files   points.csv and points.json
camera         live pictures, and a window
"""

from heatmap.inference.media.annotator import Annotator, Finder, find_files
from heatmap.inference.media.detect import Detector

__all__ = ["Annotator", "Detector", "Finder", "find_files"]
