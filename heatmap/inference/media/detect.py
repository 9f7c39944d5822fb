"""Face boxes of images: from OpenCV's YuNet, from a table, or one fixed box."""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from heatmap.data.contest import read_boxes
from heatmap.errors import UserError
from heatmap.runtime.files import read_bytes

# (file, one of its images (H, W, 3) uint8 RGB) -> boxes (F, 4) of its faces: x0, y0, x1, y1
Finder = Callable[[Path, np.ndarray], np.ndarray]
Box = tuple[float, float, float, float]

_SIDE = 640  # px of the square input; YuNet detects faces from 10 to 300 px


def face_finder(
    paths: Sequence[Path], box: Box | None, table: Path | None, detector: Path | None
) -> Finder | None:
    """Returns a finder for a detector's file, a table or a box, whichever is given, or None.

    Raises UserError if the table cannot be read or lacks an image, or the file is not YuNet.
    """
    if detector is not None:
        detect = Detector(detector)
        return lambda _, image: detect(image)
    if table is not None:
        box_by_path = dict(zip(paths, read_boxes(table, paths), strict=True))
        return lambda path, _: box_by_path[path][None]
    return None if box is None else lambda *_: np.array([box])


class Detector:
    """YuNet (Wu et al. 2023, https://doi.org/10.1007/s11633-023-1423-y).

    Takes face_detection_yunet_*.onnx from OpenCV's model zoo. Raises UserError if the file is
    missing or holds another network.
    """

    def __init__(self, model: Path) -> None:
        content = np.frombuffer(read_bytes(model, ".onnx file of YuNet"), np.uint8)
        try:
            # every file in the model zoo accepts this size
            self._network = cv2.FaceDetectorYN.create(
                "onnx", content, np.empty(0, np.uint8), (_SIDE, _SIDE), 0.7
            )
            self(np.zeros((64, 64, 3), np.uint8))  # another network fails only when it runs
        except cv2.error as error:
            raise UserError(f"{model}: not YuNet from OpenCV's model zoo ({error.err})") from None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Returns boxes from forehead to chin, largest first: (F, 4) float64 x0, y0, x1, y1.

        The image is (H, W, 3) uint8 RGB.
        """
        height, width = image.shape[:2]
        shrink = min(1.0, _SIDE / max(height, width))
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        square = np.zeros((_SIDE, _SIDE, 3), np.uint8)
        square[: size[1], : size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        _, faces = self._network.detect(cv2.cvtColor(square, cv2.COLOR_RGB2BGR))
        if faces is None:
            return np.empty((0, 4))
        corners = np.concatenate([faces[:, :2], faces[:, :2] + faces[:, 2:4]], 1)
        # YuNet's origin is the corner of the first pixel, not its centre
        boxes = corners / np.tile(np.divide(size, (width, height)), 2) - 0.5
        boxes = boxes[(boxes[:, :2] < boxes[:, 2:]).all(1)]
        return boxes[np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable")]
