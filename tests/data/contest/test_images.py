"""Images become upright RGB; damaged, missing and outside ones are refused."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from heatmap.data.contest import ImageFile, image_paths, read_image
from heatmap.data.contest import images as module
from heatmap.errors import shortened

TABLE = Path("landmarks.csv")
HEIGHT, WIDTH = 30, 22


def painted() -> np.ndarray:
    """A smooth image, which JPEG preserves, with different corners and channels."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / [[[HEIGHT]], [[WIDTH]]]
    return np.stack([200 * x + 20, 200 * y + 20, 90 + 0 * x], axis=-1).astype(np.uint8)


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def save(folder: Path, data: bytes, name: str = "a.jpg") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def assert_close(image: np.ndarray, expected: np.ndarray, tolerance: int = 6) -> None:
    assert image.dtype == np.uint8
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected.astype(int)).max() <= tolerance


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("name", ["a.jpg", "Gesicht über 1.jpg"])
def test_format_is_detected_from_the_bytes(tmp_path: Path, form: str, name: str) -> None:
    options = {"quality": 98} if form in ("JPEG", "WEBP") else {}
    path = save(tmp_path, encode(Image.fromarray(painted()), form, **options), name)
    image = read_image(path)
    assert_close(image, painted(), tolerance=8)
    assert image.flags.c_contiguous and image.flags.writeable


def test_alpha_is_dropped(tmp_path: Path) -> None:
    image = Image.fromarray(painted())
    image.putalpha(128)
    np.testing.assert_array_equal(read_image(save(tmp_path, encode(image, "PNG"))), painted())


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_grey_becomes_three_equal_channels(tmp_path: Path, form: str) -> None:
    grey = painted()[..., 0]
    image = read_image(save(tmp_path, encode(Image.fromarray(grey), form)))
    assert_close(image, np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


def test_palette_gives_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(painted()).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read_image(save(tmp_path, encode(image, "PNG"))), expected)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    image = Image.fromarray(painted()).convert("CMYK")
    assert_close(read_image(save(tmp_path, encode(image, "JPEG", quality=98))), painted())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", [".png", ".tif"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_of_16_bits_the_upper_8_that_the_file_uses_are_kept(
    tmp_path: Path, bits: int, form: str, channels: int
) -> None:
    expected = painted() if channels == 3 else np.stack([painted()[..., 0]] * 3, axis=-1)
    data = expected[..., ::-1] if channels == 3 else expected[..., 0]
    encoded = cv2.imencode(form, data.astype(np.uint16) << (bits - 8))[1].tobytes()
    image = ImageFile(save(tmp_path, encoded))
    np.testing.assert_array_equal(image.pixels(1)[0], expected)
    assert (f"the {bits}-bit values of a 16-bit file" in image.note) == (bits < 16)


def test_a_note_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_LOGGED", bytearray(4096))
    for number, bits in enumerate((8, 12, 12, 16, 12)):
        values = painted().astype(np.uint16 if bits > 8 else np.uint8) << (bits - 8)
        encoded = cv2.imencode(".png", values)[1].tobytes()
        image = ImageFile(save(tmp_path, encoded, f"{number}.png"))
        image.pixels(1)
        image.log_note()
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / '1.png'}: the 12-bit values of a 16-bit file")


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_must_be_unsigned_integers(tmp_path: Path, dtype: type, channels: int) -> None:
    pixels = painted().astype(dtype)[..., :channels]
    path = save(tmp_path, cv2.imencode(".tif", pixels)[1].tobytes(), "a.tif")
    with pytest.raises(ValueError, match=rf"a\.tif: its pixels are {np.dtype(dtype)}"):
        read_image(path)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "AVIF"])
def test_an_animation_is_known_by_its_bytes(tmp_path: Path, form: str) -> None:
    first, second = Image.fromarray(painted()), Image.fromarray(255 - painted())
    moving = encode(first, form, save_all=True, append_images=[second], duration=100)
    still = encode(first, form)
    for data, is_animated in ((moving, True), (still, False)):
        image = ImageFile(save(tmp_path, data))
        assert image.is_animated == is_animated
        assert image.pixels(1)[0].shape == (HEIGHT, WIDTH, 3)
        assert ("first frame" in image.note) == is_animated
        assert not ImageFile(save(tmp_path, data[:10])).is_animated


def claiming(height: int, width: int) -> bytes:
    """A JPEG of 100 x 100 grey pixels with other sizes in its header."""
    data = bytearray(cv2.imencode(".jpg", np.full((100, 100, 3), 90, np.uint8))[1].tobytes())
    at = data.find(b"\xff\xc0") + 5
    data[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


@pytest.mark.parametrize("reduction", [1, 8])
@pytest.mark.parametrize("side", [1000, 25_000])
def test_jpeg_that_claims_more_than_its_bytes_can_hold_is_refused(
    tmp_path: Path, side: int, reduction: int
) -> None:
    path = save(tmp_path, claiming(side, side))
    with pytest.raises(ValueError, match=f"a.jpg: .* cannot hold the {side} x {side}"):
        ImageFile(path).pixels(reduction)


def test_flat_images_are_not_refused_for_their_small_files(tmp_path: Path) -> None:
    flat = Image.fromarray(np.zeros((1600, 1600, 3), np.uint8))
    for form, options in (("JPEG", {"optimize": True, "progressive": True}), ("PNG", {})):
        path = save(tmp_path, encode(flat, form, quality=1, **options))
        assert read_image(path).shape == (1600, 1600, 3)


LIMITED = """
import sys
from pathlib import Path
from heatmap.data.contest import ImageFile
for reduction in (1, 8):
    try:
        ImageFile(Path(sys.argv[1])).pixels(reduction)
    except ValueError as error:
        print(error)
"""


def test_the_number_of_pixels_is_limited_by_a_variable(tmp_path: Path) -> None:
    path = save(tmp_path, claiming(100, 100))
    environment = {**os.environ, "OPENCV_IO_MAX_IMAGE_PIXELS": "9999"}
    command = [sys.executable, "-c", LIMITED, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.count(f"{path}: the image cannot be decoded: it has more pixels than") == 2


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, lambda image: image),
        (2, np.fliplr),
        (3, lambda image: np.rot90(image, 2)),
        (4, np.flipud),
        (5, lambda image: image.transpose(1, 0, 2)),
        (6, lambda image: np.rot90(image, -1)),
        (7, lambda image: np.rot90(image.transpose(1, 0, 2), 2)),
        (8, np.rot90),
    ],
)
def test_exif_orientation_is_applied(
    tmp_path: Path, form: str, orientation: int, shown: Callable[[np.ndarray], np.ndarray]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 98} if form == "JPEG" else {}
    path = save(tmp_path, encode(Image.fromarray(painted()), form, exif=exif, **options))
    assert_close(read_image(path), shown(painted()))


def large() -> Image.Image:
    return Image.fromarray(cv2.resize(painted(), (211, 301), interpolation=cv2.INTER_CUBIC))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{"subsampling": 2}, {"subsampling": 0, "progressive": True}])
@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_jpeg_is_decoded_at_a_reduced_size(
    tmp_path: Path, mode: str, options: dict, reduction: int
) -> None:
    path = save(tmp_path, encode(large().convert(mode), "JPEG", quality=97, **options))
    image = ImageFile(path)
    assert image.image_hw == (301, 211)
    pixels, actual_reduction = image.pixels(reduction)
    assert actual_reduction == reduction
    assert pixels.shape == (-(-301 // reduction), -(-211 // reduction), 3)
    whole = read_image(path)
    assert whole.shape == (301, 211, 3)
    bottom, right = (size // reduction * reduction for size in whole.shape[:2])
    means = whole[:bottom, :right].reshape(
        bottom // reduction, reduction, right // reduction, reduction, 3
    )
    means = means.mean((1, 3)).round().astype(np.uint8)
    assert_close(pixels[: means.shape[0], : means.shape[1]], means, tolerance=7)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP"])
def test_other_formats_are_decoded_whole(tmp_path: Path, form: str) -> None:
    image = ImageFile(save(tmp_path, encode(large(), form), "a.jpg"))
    assert image.image_hw == (301, 211)
    pixels, reduction = image.pixels(4)
    assert reduction == 1
    np.testing.assert_array_equal(pixels, read_image(image.path))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6])
def test_rotated_jpeg_is_decoded_whole(tmp_path: Path, orientation: int | None, order: str) -> None:
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F] = "a camera's maker"
    if orientation:
        exif[0x0112] = orientation
    image = ImageFile(save(tmp_path, encode(large(), "JPEG", exif=exif)))
    assert image.image_hw == ((211, 301) if orientation == 6 else (301, 211))
    assert image.pixels(4)[1] == (1 if orientation in (3, 6) else 4)


@pytest.mark.parametrize("reduction", [2, 8])
@pytest.mark.parametrize("kept", [0.03, 0.5, 0.9, 0.99, -2])
def test_truncated_jpeg_is_refused_at_any_size(tmp_path: Path, kept: float, reduction: int) -> None:
    data = encode(large(), "JPEG")
    path = save(tmp_path, data[: int(kept) if kept < 0 else int(kept * len(data))])
    with pytest.raises(ValueError, match=re.escape(f"{path}: the image cannot be decoded")):
        ImageFile(path).pixels(reduction)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9, 0.99, -2])
def test_truncated_image_is_refused(tmp_path: Path, form: str, kept: float) -> None:
    data = encode(Image.fromarray(painted()).resize((220, 300)), form)
    size = int(kept) if kept < 0 else int(kept * len(data))
    path = save(tmp_path, data[:size])
    with pytest.raises(ValueError, match=re.escape(f"{path}: the image cannot be decoded")):
        read_image(path)


@pytest.mark.parametrize(
    ("data", "fragment"),
    [
        (b"", "an empty file"),
        (b"<html><body>404 Not Found</body></html>", "text, not an image.*<html>"),
        (b"<!DOCTYPE html>\r\n<html>\r\n", "text, not an image.*<!DOCTYPE"),
        (bytes(range(256)), "256 bytes are damaged, truncated or of an unknown format"),
    ],
)
def test_file_that_is_not_an_image_is_refused(tmp_path: Path, data: bytes, fragment: str) -> None:
    path = save(tmp_path, data)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{fragment}"):
        read_image(path)


def test_image_too_large_to_decode_is_refused(tmp_path: Path) -> None:
    data = bytearray(encode(Image.fromarray(painted()), "BMP"))
    data[18:26] = (60_000).to_bytes(4, "little") * 2
    with pytest.raises(ValueError, match=r"a\.jpg: the image cannot be decoded"):
        read_image(save(tmp_path, bytes(data)))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images with a subfolder, and an image outside it."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("images/a.jpg", "images/b.jpg", "images/sub/c.jpg", "outside.jpg"):
        (tmp_path / name).touch()
    return folder


def test_named_images_are_found_in_order(images: Path) -> None:
    names = ["sub/c.jpg", "b.jpg", "a.jpg"]
    assert list(image_paths(images, names, TABLE)) == [images / name for name in names]


def test_links_inside_the_folder_and_to_the_folder_are_followed(images: Path) -> None:
    (images / "link.jpg").symlink_to("sub/c.jpg")
    (images / "folder").symlink_to("sub")
    other = images.with_name("other")
    other.symlink_to(images)
    names = ["a.jpg", "link.jpg", "folder/c.jpg"]
    assert list(image_paths(other, names, TABLE)) == [other / name for name in names]


@pytest.mark.parametrize("name", ["link.jpg", "folder/outside.jpg"])
def test_links_outside_the_folder_are_refused(images: Path, name: str) -> None:
    (images / "link.jpg").symlink_to(images.parent / "outside.jpg")
    (images / "folder").symlink_to(images.parent)
    with pytest.raises(ValueError, match="leads out of") as error:
        image_paths(images, ["a.jpg", name], TABLE)
    assert f"landmarks.csv, row 3, column file_name: '{name}'" in str(error.value)


def test_name_outside_the_folder_is_refused(images: Path) -> None:
    with pytest.raises(ValueError, match=r"row 2, .*'\.\./outside\.jpg' leads out of"):
        image_paths(images, ["../outside.jpg"], TABLE)


def test_missing_images_are_counted(images: Path) -> None:
    (images / "broken.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(ValueError, match=r"the image 'x\.jpg' in \S+ does not exist") as error:
        image_paths(images, ["a.jpg", "x.jpg", "no/y.jpg", "broken.jpg", "sub"], TABLE)
    message = str(error.value)
    assert "landmarks.csv, row 3, column file_name" in message
    assert str(images) in message
    assert "3 more missing or outside" in message
    with pytest.raises(ValueError, match=r"images does not exist$"):
        image_paths(images, ["x.jpg"], TABLE)


def test_special_files_and_names_are_refused_with_row_and_column(images: Path) -> None:
    (images / "loop.jpg").symlink_to("loop.jpg")
    (images / "zero.jpg").symlink_to("/dev/zero")
    for name, problem in (
        ("zero.jpg", "is a device, not a regular file"),
        ("loop.jpg/a.jpg", "cannot be read: Too many levels of symbolic links"),
        ("n\0l/a.jpg", "cannot be read: a NUL character is in its name"),
        ("a" * 256, "cannot be read: File name too long"),
    ):
        with pytest.raises(ValueError, match=problem) as error:
            image_paths(images, ["a.jpg", name], TABLE)
        where = f"landmarks.csv, row 3, column file_name: the image {name!r} in {images}"
        assert str(error.value) == shortened(f"{where} {problem}")


def test_images_of_other_rows_may_be_missing(images: Path) -> None:
    names = ["a.jpg", "x.jpg", "sub/c.jpg", "y.jpg"]
    paths = image_paths(images, names, TABLE, [2, 0])
    assert list(paths) == [images / name for name in names]
    with pytest.raises(ValueError, match=r"row 5, .*'y\.jpg' in \S+ does not exist$"):
        image_paths(images, names, TABLE, [0, 3])


def test_missing_folder_is_refused(images: Path) -> None:
    with pytest.raises(ValueError, match=r"absent: no such folder.*landmarks\.csv"):
        image_paths(images / "absent", ["a.jpg"], TABLE)


def test_images_are_not_looked_up_one_by_one(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"sub/{number}.jpg" for number in range(1000)]
    for name in names:
        (images / name).touch()
    calls = []
    for function in (os.stat, os.lstat, os.scandir):

        def counted(*args: object, call: Callable = function, **options: object) -> object:
            calls.append(call.__name__)
            return call(*args, **options)

        monkeypatch.setattr(os, function.__name__, counted)
    assert len(image_paths(images, names, TABLE)) == 1000
    assert calls.count("scandir") == 1
    assert len(calls) < 50


def test_a_ppm_whose_values_end_below_255_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P6\n# dark\n1 1 200\n" + bytes([200, 100, 0]))
    with pytest.raises(ValueError, match="its largest value is 200, not 255; convert it to PNG"):
        read_image(tmp_path / "a.ppm")
