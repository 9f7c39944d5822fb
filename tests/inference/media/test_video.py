"""Frames keep their times, and damage to a video is reported."""

import logging
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from heatmap.inference.media.video import Video, is_video, write_video


def frame(k: int, height: int, width: int) -> np.ndarray:
    """Grey, with a white bar at x = 4 + 3 k in its upper half and red in a corner."""
    frame = np.full((height, width, 3), 60, np.uint8)
    frame[: height // 2, 4 + 3 * k : 7 + 3 * k] = 255
    frame[-8:, -8:] = (230, 20, 20)
    return frame


def clip(path: Path, count: int = 12, hw: tuple[int, int] = (48, 64), rate: float = 25) -> Path:
    """A video written by OpenCV."""
    code = cv2.VideoWriter.fourcc(*("mp4v" if path.suffix == ".mp4" else "MJPG"))
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, rate, hw[::-1])
    for k in range(count):
        writer.write(frame(k, *hw)[..., ::-1])
    writer.release()
    return path


def encoded(path: Path, count: int, **options: str) -> Path:
    """A video written by x264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for k in range(count):
            image = av.VideoFrame.from_ndarray(frame(k % 18, 48, 64), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    return path


def copied(source: Path, path: Path, hw: tuple[int, int] | None = None) -> None:
    """Writes a video with the source's times and newly drawn frames of this size."""
    original = Video(source)
    frames = list(original)
    hw = hw or frames[0].image.shape[:2]
    with write_video(path, original) as write:
        for k, one in enumerate(frames):
            write(frame(k, *hw), one.start, one.duration)


def bar(image: np.ndarray) -> float:
    """The x of the white bar."""
    row = image[image.shape[0] // 4, :, 1].astype(float) - 60
    return float((row.clip(60) - 60) @ np.arange(len(row)) / (row.clip(60) - 60).sum())


def assert_shows(images: Sequence[np.ndarray], hw: tuple[int, int]) -> None:
    for k, image in enumerate(images):
        assert image.shape == (*hw, 3)
        assert bar(image) == pytest.approx(5 + 3 * k, abs=0.3)
        red, green, _ = image[-4, -4].astype(int)
        assert red > 150 and green < 100


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi"])
def test_each_frame_has_its_time(tmp_path: Path, name: str) -> None:
    source = Video(clip(tmp_path / name))
    frames = list(source)
    assert source.expected == 12 and source.rate == 25 and source.problems(12) == ""
    assert_shows([one.image for one in frames], (48, 64))
    assert [one.seconds for one in frames] == pytest.approx([k / 25 for k in range(12)])


@pytest.mark.parametrize("hw", [(48, 64), (47, 64), (48, 63), (47, 63)])
def test_a_video_keeps_its_size_rate_and_length(tmp_path: Path, hw: tuple[int, int]) -> None:
    source = clip(tmp_path / "clip.mp4", rate=29.97)
    copied(source, tmp_path / "out.mp4", hw)
    copy = Video(tmp_path / "out.mp4")
    frames = list(copy)
    assert float(copy.rate) == pytest.approx(29.97, abs=1e-3)
    assert_shows([one.image for one in frames], hw)
    assert [one.seconds for one in frames] == pytest.approx(
        [k / 29.97 for k in range(12)], abs=1e-3
    )
    # OpenCV, which cuts odd sizes when it writes, agrees
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert capture.read()[1].shape == (*hw, 3)
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 12
    capture.release()


def test_uneven_frame_times_are_kept(tmp_path: Path) -> None:
    original = Video(clip(tmp_path / "clip.mp4"))
    ticks = [round(seconds / original.time_base) for seconds in (0, 0.04, 0.3, 0.31, 1.2)]
    with write_video(tmp_path / "uneven.mp4", original) as write:
        for k, start in enumerate(ticks):
            write(frame(k, 48, 64), start, round(Fraction(1, 25) / original.time_base))
    uneven = [one.seconds for one in Video(tmp_path / "uneven.mp4")]
    assert uneven == pytest.approx([0, 0.04, 0.3, 0.31, 1.2], abs=1e-3)
    copied(tmp_path / "uneven.mp4", tmp_path / "again.mp4")
    assert [one.seconds for one in Video(tmp_path / "again.mp4")] == pytest.approx(uneven)


@pytest.mark.parametrize("clockwise", [90, 180, 270])
def test_a_video_from_a_turned_phone_is_upright(tmp_path: Path, clockwise: int) -> None:
    content = bytearray(clip(tmp_path / "clip.mp4").read_bytes())
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[clockwise]
    matrix = (cosine, sine, 0, -sine, cosine, 0, 0, 0, 1 << 14)  # ISO 14496-12, 8.3.2
    at = content.find(b"tkhd") + 44
    content[at : at + 36] = struct.pack(">9i", *(n << 16 for n in matrix))
    (tmp_path / "turned.mp4").write_bytes(content)
    turned = [one.image for one in Video(tmp_path / "turned.mp4")]
    assert_shows([np.rot90(image, clockwise // 90) for image in turned], (48, 64))


def test_damaged_frames_are_reported_and_the_others_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = bytearray(clip(tmp_path / "clip.avi", count=20).read_bytes())
    starts = [k for k in range(len(content) - 1) if content[k : k + 2] == b"\xff\xd8"]
    content[starts[5] : starts[5] + 200] = bytes(200)
    (tmp_path / "damaged.avi").write_bytes(content)
    damaged = Video(tmp_path / "damaged.avi")
    with caplog.at_level(logging.WARNING, "heatmap"):
        frames = list(damaged)
    assert 18 <= len(frames) <= 20
    assert bar(frames[-1].image) == pytest.approx(5 + 3 * 19, abs=0.3)
    assert frames[-1].seconds == pytest.approx(19 / 25)
    assert damaged.lost + damaged.damaged == 1
    assert damaged.problems(len(frames)).startswith(f"{damaged.path}: 1 ")


def test_a_truncated_video_is_read_up_to_its_end(tmp_path: Path) -> None:
    content = clip(tmp_path / "clip.avi", count=20).read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) * 6 // 10])
    cut = Video(tmp_path / "cut.avi")
    count = len(list(cut))
    assert 3 <= count <= 14
    assert f"{count} of 20 frames could be read" in cut.problems(count)


def test_without_a_frame_count_the_duration_shows_truncation(tmp_path: Path) -> None:
    whole = Video(encoded(tmp_path / "clip.mkv", 99))
    content = whole.path.read_bytes()
    assert whole.expected is None and whole.problems(len(list(whole))) == ""
    for kept, shortest in ((0.5, 0), (0.97, 3)):
        (tmp_path / "cut.mkv").write_bytes(content[: int(kept * len(content))])
        cut = Video(tmp_path / "cut.mkv")
        end = list(cut)[-1].seconds + 0.04
        assert shortest < end < 3.96
        assert f"ends after {end:.2f} of 3.96 s" in cut.problems(0)


@pytest.mark.parametrize("length", [40, 25, 15])
def test_a_clip_cut_without_encoding_it_again_is_whole(tmp_path: Path, length: int) -> None:
    content = bytearray(encoded(tmp_path / "clip.mp4", 60, g="30", bf="2").read_bytes())
    at = content.find(b"elst") + 12  # ISO 14496-12, 8.6.6: duration, first time, in ticks
    ticks = struct.unpack_from(">i", content, at + 4)[0] + 20 * 512
    struct.pack_into(">Ii", content, at, length * 40, ticks)
    (tmp_path / "cut.mp4").write_bytes(content)
    cut = Video(tmp_path / "cut.mp4")
    assert cut.expected == len(frames := list(cut)) == length
    assert cut.problems(length) == ""
    assert bar(frames[0].image) == pytest.approx(5 + 3 * (20 % 18), abs=0.5)
    assert f"{length - 1} of {length} frames" in cut.problems(length - 1)


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_an_animation_is_a_video(tmp_path: Path, form: str) -> None:
    images = [Image.fromarray(frame(k, 48, 64)) for k in range(5)]
    times, path = [50, 50, 200, 50, 50], tmp_path / f"moving.{form.lower()}"
    images[0].save(path, save_all=True, append_images=images[1:], duration=times, lossless=True)
    images[0].save(still := tmp_path / f"still.{form.lower()}")
    (broken := tmp_path / f"broken.{form.lower()}").write_bytes(path.read_bytes()[:20])
    assert is_video(path) and not is_video(still) and not is_video(broken)
    animation = Video(path)
    frames = list(animation)
    assert_shows([one.image for one in frames], (48, 64))
    assert [one.seconds for one in frames] == pytest.approx([0, 0.05, 0.1, 0.3, 0.35])
    assert animation.problems(5) == ""
    copied(path, tmp_path / "copy.mp4")
    copy = list(Video(tmp_path / "copy.mp4"))
    assert [one.seconds for one in copy] == pytest.approx([0, 0.05, 0.1, 0.3, 0.35], abs=1e-3)


def test_non_square_pixels_are_kept(tmp_path: Path) -> None:
    original = Video(clip(tmp_path / "clip.mp4"))
    frames = list(original)
    original.pixel_aspect = Fraction(4, 3)
    with write_video(tmp_path / "wide.mp4", original) as write:
        for one in frames:
            write(one.image, one.start, one.duration)
    copied(tmp_path / "wide.mp4", tmp_path / "again.mp4")
    again = Video(tmp_path / "again.mp4")
    assert len(list(again)) == 12 and again.pixel_aspect == Fraction(4, 3)


def test_a_file_that_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video at all\n" * 99)
    content = clip(tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])  # its index is at the end
    for name in ("text.mp4", "cut.mp4", "missing.mp4"):
        with pytest.raises(ValueError, match=f"{name}: .*(cannot be read|not exist|cut short)"):
            Video(tmp_path / name)


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    original = Video(clip(tmp_path / "clip.mp4"))
    with (
        pytest.raises(RuntimeError, match="stop"),
        write_video(tmp_path / "out.mp4", original) as write,
    ):
        write(frame(0, 48, 64), 0, 512)
        raise RuntimeError("stop")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4"]
