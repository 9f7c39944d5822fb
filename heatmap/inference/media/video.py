"""Reads and writes video files frame by frame with PyAV (FFmpeg's libraries), imported late."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from heatmap.data.contest import ImageFile
from heatmap.errors import UserError
from heatmap.runtime.files import open_file, write_atomically

if TYPE_CHECKING:
    import av

logger = logging.getLogger("heatmap")

SUFFIXES = {
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".ogv", ".webm", ".wmv",
}  # fmt: skip
_WEBP_TICK = Fraction(1, 1000)  # s


def is_video(path: Path) -> bool:
    """Whether a file is read as a video: by its ending, or because a GIF or WebP is animated."""
    suffix = path.suffix.lower()
    if suffix not in (".gif", ".webp"):
        return suffix in SUFFIXES
    try:
        return ImageFile(path).is_animated
    except UserError:  # it will fail as an image
        return False


class VideoFrame(NamedTuple):
    image: np.ndarray  # (H, W, 3) uint8 RGB, upright
    start: int  # ticks of the video's time base
    duration: int  # ticks
    seconds: float


class Video:
    """A video file; iterating over it yields its frames in display order.

    Attributes:
        rate: average frames per second.
        time_base: seconds per tick.
        expected: number of shown frames according to the file's header, or None.
        pixel_aspect: displayed width of a pixel over its height.
        lost: parts skipped so far because they could not be decoded.
        damaged: frames so far that the decoder marks as damaged.

    Raises UserError if the file is missing, not a video, or has no frames.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lost, self.damaged = path, 0, 0
        self._is_webp = path.suffix.lower() == ".webp"
        with self._opened() as (container, stream):
            self.rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            self.time_base: Fraction = stream.time_base or 1 / self.rate
            self.expected = stream.frames or None
            if self.expected and "mp4" in container.format.name:  # both ends may be cut off
                self.expected = sum(not entry.is_discard for entry in stream.index_entries)
            self._seconds, self._slack = _length(container, stream, self.rate)
        if self._is_webp:
            frame = next(_webp_frames(path))
            self.rate, self.time_base = Fraction(1000, frame.duration or 40), _WEBP_TICK
        self.pixel_aspect, self._end = Fraction(1), 0.0

    @contextmanager
    def _opened(self) -> Iterator["tuple[av.container.InputContainer, av.VideoStream]"]:
        try:
            import av
        except ImportError:
            raise UserError(f"{self.path}: reading videos needs PyAV: run pip install av") from None
        with open_file(self.path, "video") as file:
            try:
                # metadata in an unknown encoding must not stop the video from being read
                container = av.open(file, "r", metadata_errors="replace")
            except (av.FFmpegError, OSError) as error:
                reason = error.strerror
                raise UserError(f"{self.path}: the video cannot be read: {reason}") from None
            with container:
                if not container.streams.video:
                    raise UserError(f"{self.path}: no video stream; the file may be cut short")
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                yield container, stream

    def __iter__(self) -> Iterator[VideoFrame]:
        with self._opened() as (container, stream):
            usual_duration = round(1 / (self.rate * self.time_base))
            aspect = stream.sample_aspect_ratio or Fraction(1)
            first, earliest, following = None, 0, 0
            decoded = self._decoded(container, stream)
            for frame in _webp_frames(self.path) if self._is_webp else decoded:
                if first is None:
                    first = frame.pts or 0
                # a frame may lack a timestamp, and ours must increase even if the file's do not
                start = following if frame.pts is None else max(frame.pts - first, earliest)
                duration = frame.duration or usual_duration
                earliest, following = start + 1, start + duration
                self._end = float(following * self.time_base)
                self.pixel_aspect = 1 / aspect if frame.rotation % 180 else aspect
                self.damaged += frame.is_corrupt
                image = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                seconds = float(start * self.time_base)
                yield VideoFrame(np.ascontiguousarray(image), start, duration, seconds)

    def _decoded(
        self, container: "av.container.InputContainer", stream: "av.VideoStream"
    ) -> "Iterator[av.VideoFrame]":
        import av

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
                    at = "" if ticks is None else f" at {float(ticks * self.time_base):.2f} s"
                    logger.warning(f"{self.path}: cannot decode a part{at} ({error.strerror})")
                if ticks is None:  # the file ends here
                    return

    def problems(self, num_read: int) -> str:
        """Describes what was wrong with the file after `num_read` frames; empty if nothing was."""
        parts = [f"{self.lost} parts could not be decoded"] if self.lost else []
        parts += [f"{self.damaged} frames are damaged"] if self.damaged else []
        if self.expected and num_read < self.expected:
            parts.append(f"{num_read} of {self.expected} frames could be read")
        elif not self.expected and self._end < self._seconds - self._slack:
            parts.append(f"it ends after {self._end:.2f} of {self._seconds:.2f} s")
        return f"{self.path}: {', '.join(parts)}" if parts else ""


def _length(
    container: "av.container.InputContainer", stream: "av.VideoStream", rate: Fraction
) -> tuple[float, float]:
    """Seconds from the first frame to the end of the last, 0 if unknown, and their tolerance.

    The container's length is only roughly the video's, because its sound may be longer.
    """
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base), 0.75 / rate
    seconds, slack = (container.duration or 0) / 1e6, 1.0  # microseconds
    tags = (text for key, text in stream.metadata.items() if key.startswith("DURATION"))  # Matroska
    if match := re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", next(tags, "")):
        hours, minutes, seconds = map(float, match.groups())
        seconds += 3600 * hours + 60 * minutes
    if match or len(container.streams) == 1:
        slack = 0.75 / rate
    return seconds - float((stream.start_time or 0) * (stream.time_base or 0)), slack


def _webp_frames(path: Path) -> "Iterator[av.VideoFrame]":
    """Decodes an animated WebP with Pillow; FFmpeg decodes only still ones."""
    import av
    from PIL import Image, ImageSequence

    try:
        with open_file(path, "video") as file, Image.open(file) as animation:
            for image in ImageSequence.Iterator(animation):
                frame = av.VideoFrame.from_ndarray(np.asarray(image.convert("RGB")), format="rgb24")
                frame.pts, frame.duration = image.info["timestamp"], image.info["duration"]
                frame.time_base = _WEBP_TICK
                yield frame
    except (OSError, EOFError, ValueError, KeyError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: the animation cannot be decoded: {error}") from None


@contextmanager
def write_video(path: Path, source: Video) -> Iterator[Callable[[np.ndarray, int, int], None]]:
    """Yields `write(image, start, duration)` for an H.264 mp4 file, which appears when complete.

    Images are (H, W, 3) uint8 RGB, scaled to the size of the first one. Start and duration are in
    ticks of the source's time base. Odd sizes need yuv444p, which no browser but Chrome plays.

    Raises:
        UserError: H.264 does not allow the size, or `path` is not a regular file.
    """
    import av

    with write_atomically(path) as temporary, av.open(str(temporary), "w", "mp4") as container:

        def write(image: np.ndarray, start: int, duration: int) -> None:
            if not container.streams.video:
                _add_stream(container, source, image.shape[0], image.shape[1])
            stream = container.streams.video[0]
            if image.shape[:2] != (stream.height, stream.width):  # the source changed size
                size = stream.width, stream.height
                image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.duration, frame.time_base = start, duration, source.time_base
            try:
                container.mux(stream.encode(frame))
            except av.error.ExternalError as error:  # from the encoder, not from the disk
                reason = f"{stream.width} x {stream.height} pixels: {error.strerror}"
                raise UserError(f"{source.path}: cannot encode frames of {reason}") from None

        yield write
        for stream in container.streams.video:
            container.mux(stream.encode(None))


def _add_stream(
    container: "av.container.OutputContainer", source: Video, height: int, width: int
) -> None:
    stream = container.add_stream("libx264", rate=source.rate, options={"crf": "18"})
    stream.height, stream.width = height, width
    stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
    stream.codec_context.time_base = source.time_base
    stream.codec_context.sample_aspect_ratio = source.pixel_aspect
