"""Images, videos and cameras in; drawn copies, and tables of points in their own pixels, out.

annotator      files and cameras in, drawn copies and points out
detect         faces in images, by OpenCV's YuNet
video          videos read and written, frame by frame
tracks         which face of a frame is which of the frames before
filter         the filter that takes the jitter out of a video's landmarks
points_files   points.csv and points.json
camera         live images, and a window
"""

from heatmap.inference.media.annotator import Annotator, Finder, find_files
from heatmap.inference.media.detect import Detector

__all__ = ["Annotator", "Detector", "Finder", "find_files"]
