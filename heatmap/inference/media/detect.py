"""Faces in images -> boxes, by OpenCV's YuNet."""

from pathlib import Path

import cv2
import numpy as np

from heatmap.errors import UserError

_SIDE = 640  # px of the square that images are put into; YuNet finds faces from 10 to 300 px


class Detector:
    """YuNet (Wu et al. 2023, https://doi.org/10.1007/s11633-023-1423-y), its network in a file.

    The file is face_detection_yunet_*.onnx of OpenCV's model zoo. Its boxes reach from forehead to
    chin; where those of a run do not, a second look (`two_pass`) puts the crop right.

    Raises:
        UserError: no such file, or not such a network.
    """

    def __init__(self, model: Path) -> None:
        if not model.is_file():
            raise UserError(f"{model}: there is no such file; a detector is YuNet's .onnx file")
        try:
            # always of the one size that all files of the model zoo take
            self._network = cv2.FaceDetectorYN.create(str(model), "", (_SIDE, _SIDE), 0.7)
            self(np.zeros((64, 64, 3), np.uint8))  # other networks are found out only by running
        except cv2.error as error:
            known = "YuNet, the face detector of OpenCV's model zoo"
            raise UserError(f"{model}: not {known} ({error.err})") from None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(F, 4) float64 boxes x0, y0, x1, y1 of the faces, from forehead to chin, largest first.

        Args:
            image: (H, W, 3) uint8 RGB.
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
        # the detector counts from the corner of the first pixel
        boxes = corners / np.tile(np.divide(size, (width, height)), 2) - 0.5
        boxes = boxes[(boxes[:, :2] < boxes[:, 2:]).all(1)]
        return boxes[np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable")]
