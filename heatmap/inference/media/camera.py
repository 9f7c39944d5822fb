"""Live images from a camera, and a window that shows images."""

import time
from collections.abc import Iterator

import cv2
import numpy as np

from heatmap.errors import UserError


def frames(index: int) -> Iterator[tuple[np.ndarray, float]]:
    """Yields the camera's images, (H, W, 3) uint8 RGB, and the arrival time of each in seconds.

    Raises UserError if there is no such camera, or it stops.
    """
    camera = cv2.VideoCapture(index)
    try:
        if not camera.isOpened():
            raise UserError(f"camera {index}: not found, or in use by another program")
        while True:
            has_image, image = camera.read()
            if not has_image:
                raise UserError(f"camera {index}: the stream ended")
            yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB), time.monotonic()
    finally:
        camera.release()


class Window:
    """A tkinter window, since headless OpenCV has none. Esc or q closes it.

    Raises UserError if there is no display, or no tkinter.
    """

    def __init__(self, title: str) -> None:
        try:
            import tkinter

            self._root = tkinter.Tk()
        except ImportError:
            hint = "on Debian, apt install python3-tk"
            raise UserError(f"a live window needs tkinter, which is missing ({hint})") from None
        except tkinter.TclError as error:
            hint = "record a video file and pass that instead"
            raise UserError(f"no display for a live window ({error}); {hint}") from None
        self.is_open = True
        self._root.title(title)
        self._photo = tkinter.PhotoImage()
        self._label = tkinter.Label(self._root)
        self._label.pack()
        self._root.protocol("WM_DELETE_WINDOW", self.close)
        for key in ("<Escape>", "q"):
            self._root.bind(key, lambda _: self.close())

    def show(self, image: np.ndarray) -> None:
        """Shows (H, W, 3) uint8 RGB and handles keys and clicks."""
        if self.is_open:
            header = f"P6 {image.shape[1]} {image.shape[0]} 255 ".encode()
            self._photo.configure(data=header + image.tobytes(), format="PPM")
            self._label.configure(image=self._photo)
            self._root.update()

    def close(self) -> None:
        """Closes the window; `show` then does nothing."""
        if self.is_open:
            self.is_open = False
            self._root.destroy()
