"""A camera and a window: live images in, drawn ones on the screen."""

import time
from collections.abc import Iterator

import cv2
import numpy as np

from heatmap.errors import UserError


def frames(index: int) -> Iterator[tuple[np.ndarray, float]]:
    """The camera's images, (H, W, 3) uint8 RGB, and the seconds at which each came.

    Raises UserError where there is no such camera, or it stops.
    """
    camera = cv2.VideoCapture(index)
    try:
        if not camera.isOpened():
            raise UserError(f"camera {index}: there is none, or another program has it")
        while True:
            there, image = camera.read()
            if not there:
                raise UserError(f"camera {index}: it gives no more images")
            yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB), time.monotonic()
    finally:
        camera.release()


class Window:
    """A window (tkinter's: headless OpenCV has none) until it is closed, or Esc or q is pressed.

    Raises UserError where there is no display, or no tkinter.
    """

    def __init__(self, title: str) -> None:
        try:
            import tkinter

            self._root = tkinter.Tk()
        except ImportError:
            needed = "a live window needs tkinter, which this Python came without"
            raise UserError(f"{needed} (on Debian: apt install python3-tk)") from None
        except tkinter.TclError as error:
            told = f"there is no display for a live window ({error})"
            raise UserError(f"{told}; record the camera to a file and give that") from None
        self.is_open = True
        self._root.title(title)
        self._photo = tkinter.PhotoImage()
        self._label = tkinter.Label(self._root)
        self._label.pack()
        self._root.protocol("WM_DELETE_WINDOW", self.close)
        for key in ("<Escape>", "q"):
            self._root.bind(key, lambda _: self.close())

    def show(self, image: np.ndarray) -> None:
        """Shows (H, W, 3) uint8 RGB, and hears keys and clicks."""
        if self.is_open:
            header = f"P6 {image.shape[1]} {image.shape[0]} 255 ".encode()
            self._photo.configure(data=header + image.tobytes(), format="PPM")
            self._label.configure(image=self._photo)
            self._root.update()

    def close(self) -> None:
        """Closes the window; showing more does nothing."""
        if self.is_open:
            self.is_open = False
            self._root.destroy()
