"""Video files, read and written frame by frame (PyAV: FFmpeg's own libraries)."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

from heatmap.errors import UserError
from heatmap.runtime.files import write_atomically

logger = logging.getLogger("heatmap")

SUFFIXES = {
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".ogv", ".webm", ".wmv",
}  # fmt: skip


class VideoFrame(NamedTuple):
    """A frame: (H, W, 3) uint8 RGB, turned as the file says; start and duration are in ticks."""

    image: np.ndarray
    start: int
    duration: int
    seconds: float


class Video:
    """A video file; iterating over it gives its frames in the order in which they are shown.

    Attributes:
        rate: frames a second, on average; time_base: seconds a tick; expected: frames that the file
        says it has, or None; pixel_aspect: shown width over height of a pixel; lost, damaged: parts
        left out, as they cannot be decoded, and frames that the decoder calls damaged, so far.

    Raises UserError where it is missing, not a video, or one without frames.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lost, self.damaged = path, 0, 0
        with self._opened() as (container, stream):
            self.rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            self.time_base: Fraction = stream.time_base or 1 / self.rate
            self.expected = stream.frames or None
            self._seconds = (container.duration or 0) / av.time_base
        self.pixel_aspect, self._end = Fraction(1), 0.0

    @contextmanager
    def _opened(self) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
        try:
            # tags in no known alphabet are no reason to refuse a video
            container = av.open(str(self.path), metadata_errors="replace")
        except (av.FFmpegError, OSError) as error:
            raise UserError(f"{self.path}: the video cannot be read: {error.strerror}") from None
        with container:
            if not container.streams.video:
                raise UserError(f"{self.path}: this file has no frames, or it is cut short")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream

    def __iter__(self) -> Iterator[VideoFrame]:
        with self._opened() as (container, stream):
            usual = round(1 / (self.rate * self.time_base))
            aspect = stream.sample_aspect_ratio or Fraction(1)
            first, earliest, following = None, 0, 0
            for frame in self._decoded(container, stream):
                if first is None:
                    first = frame.pts or 0
                # a frame may have no time, and time never stands still, whatever a file says
                start = following if frame.pts is None else max(frame.pts - first, earliest)
                duration = frame.duration or usual
                earliest, following = start + 1, start + duration
                self._end = float(following * self.time_base)
                self.pixel_aspect = 1 / aspect if frame.rotation % 180 else aspect
                self.damaged += frame.is_corrupt
                image = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                seconds = float(start * self.time_base)
                yield VideoFrame(np.ascontiguousarray(image), start, duration, seconds)

    def _decoded(
        self, container: av.container.InputContainer, stream: av.VideoStream
    ) -> Iterator[av.VideoFrame]:
        packets = container.demux(stream)
        while True:
            ticks = None
            try:
                packet = next(packets)
                ticks = packet.pts
                yield from packet.decode()
            except StopIteration:
                return
            except av.FFmpegError as error:
                self.lost += 1
                if self.lost <= 3:
                    where = "" if ticks is None else f" at {float(ticks * self.time_base):.2f} s"
                    told = f"{self.path}: a part{where} cannot be decoded"
                    logger.warning(f"{told} ({error.strerror}) and is left out")
                if ticks is None:  # the file itself breaks off, not one frame of it
                    return

    def report(self, read: int) -> str:
        """What was wrong with the file, of which so many frames were read; empty for nothing."""
        parts = []
        if self.lost:
            parts.append(f"{self.lost} parts could not be decoded")
        if self.damaged:
            parts.append(f"{self.damaged} frames are damaged")
        if self.expected and read < self.expected:
            parts.append(f"{read} of {self.expected} frames could be read")
        elif not self.expected and self._end < self._seconds - 1:
            parts.append(f"it breaks off after {self._end:.1f} of {self._seconds:.1f} s")
        return f"{self.path}: {', '.join(parts)}" if parts else ""


@contextmanager
def written(path: Path, video: Video) -> Iterator[Callable[[np.ndarray, int, int], None]]:
    """Gives `write(image, start, duration)`; the mp4 (H.264) takes its name when all is written.

    Images (H, W, 3) uint8 RGB are shown at these ticks of the other video's time base, in the size
    of the first. Odd sizes take yuv444p, which browsers other than Chrome do not play.
    """
    with write_atomically(path) as mp4, av.open(str(mp4), "w", format="mp4") as container:

        def write(image: np.ndarray, start: int, duration: int) -> None:
            if not container.streams.video:
                _begin(container, video, image.shape[0], image.shape[1])
            stream = container.streams.video[0]
            if image.shape[:2] != (stream.height, stream.width):  # a stream may change its size
                shown = stream.width, stream.height
                image = cv2.resize(image, shown, interpolation=cv2.INTER_AREA)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.duration, frame.time_base = start, duration, video.time_base
            container.mux(stream.encode(frame))

        yield write
        for stream in container.streams.video:
            container.mux(stream.encode(None))


def _begin(container: av.container.OutputContainer, video: Video, height: int, width: int) -> None:
    stream = container.add_stream("libx264", rate=video.rate, options={"crf": "18"})
    stream.height, stream.width = height, width
    stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
    stream.codec_context.time_base = video.time_base
    stream.codec_context.sample_aspect_ratio = video.pixel_aspect
