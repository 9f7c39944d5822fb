"""A large table is parsed once; its cache is never stale, partial or different."""

import logging
import os
import pickle
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heatmap import config
from heatmap.data.contest import (
    LandmarkTable,
    find_folder,
    image_paths,
    read_landmarks,
    write_landmarks,
)
from heatmap.data.contest import stored as module
from heatmap.data.contest import table as text_module
from heatmap.training.data import read_data

NAMES = ["a.jpg", "é.jpg", *(f"sub/{row}.jpg" for row in range(30))]
POINTS = np.random.default_rng(0).integers(-50, 900, (len(NAMES), 3, 2)).astype(np.float32)
POINTS[4, 1] = np.nan


@pytest.fixture(autouse=True)
def cache_every_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORTH_CACHING", 0)
    monkeypatch.setattr(text_module, "_BLOCK", 100)  # 2 rows each
    monkeypatch.setattr(module, "_CHUNK", 24)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "landmarks.csv"
    write_landmarks(path, NAMES, POINTS)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def cached_file(cache: Path) -> Path:
    """The only cached file."""
    (file,) = (cache / "tables").iterdir()
    return file


def assert_holds(table: LandmarkTable, points: np.ndarray, names: list[str] = NAMES) -> None:
    assert list(table.names) == names
    np.testing.assert_array_equal(table.points_image[:], points.astype(np.float32))


def from_text(path: Path, monkeypatch: pytest.MonkeyPatch) -> LandmarkTable:
    with monkeypatch.context() as patch:
        patch.setattr(module, "_WORTH_CACHING", 1 << 40)
        return read_landmarks(path)


def change(path: Path, points: np.ndarray, *, same_time: bool) -> None:
    before = path.stat()
    write_landmarks(path, NAMES, points)
    nanoseconds = before.st_mtime_ns + (0 if same_time else 5)
    os.utime(path, ns=(nanoseconds, nanoseconds))


def never(*_: object) -> Any:
    raise AssertionError("must not be called")


CENTRE = np.zeros_like(POINTS)
CENTRE[15, 1, 0] = 0.25  # a decimal after many integers
FAR = np.zeros_like(POINTS)
FAR[31, 2, 1] = 40_000


@pytest.mark.parametrize(
    ("points", "dtype"),
    [
        pytest.param(POINTS, np.int16, id="whole"),
        pytest.param(POINTS + np.float32(0.3), np.float32, id="decimals"),
        pytest.param(POINTS + CENTRE, np.float32, id="one decimal in the middle"),
        pytest.param(POINTS + FAR, np.float32, id="one large number at the end"),
        pytest.param(POINTS[:, :1], np.int16, id="one landmark"),
    ],
)
def test_cached_table_equals_the_parsed_one(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, points: np.ndarray, dtype: type
) -> None:
    path = tmp_path / "landmarks.csv"
    write_landmarks(path, NAMES, points)
    expected = from_text(path, monkeypatch)
    assert not cache.exists()
    for _ in range(2):  # first and later runs
        table = read_landmarks(path, cache)
        assert_holds(table, points)
        assert table.path == path
        assert table.fingerprint == expected.fingerprint
        assert table.points_image.stored.dtype == dtype
        assert isinstance(table.points_image.stored.base, np.memmap)
        monkeypatch.setattr(module, "read_blocks", never)
    taken = cached_file(cache).stat().st_size - points.size * np.dtype(dtype).itemsize
    assert 0 < taken < 5000  # the header and the names


def test_changed_table_is_parsed_again(path: Path, cache: Path) -> None:
    old = read_landmarks(path, cache)
    change(path, POINTS[::-1], same_time=True)  # and of the same size
    assert_holds(read_landmarks(path, cache), POINTS[::-1])
    change(path, POINTS, same_time=False)
    assert_holds(read_landmarks(path, cache), POINTS)
    change(path, POINTS + 1000, same_time=True)  # of another size
    assert_holds(read_landmarks(path, cache), POINTS + 1000)
    assert cached_file(cache).is_file()  # and no other
    assert_holds(old, POINTS)  # a mapped table stays valid


def test_links_share_a_cached_table_and_other_paths_do_not(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_landmarks(path, cache)
    other = path.with_name("other.csv")
    write_landmarks(other, NAMES, POINTS + 1)
    assert_holds(read_landmarks(other, cache), POINTS + 1)
    monkeypatch.setattr(module, "read_blocks", never)
    link = path.with_name("link")
    link.symlink_to(path.parent)
    assert_holds(read_landmarks(link / path.name, cache), POINTS)
    assert read_landmarks(link / path.name, cache).path == link / path.name


@pytest.mark.parametrize("kept_bytes", [0, 30, 4096, 4200, -1])
def test_damaged_cache_is_rewritten(
    path: Path, cache: Path, kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_landmarks(path, cache)
    file = cached_file(cache)
    os.truncate(file, kept_bytes % file.stat().st_size)
    assert_holds(read_landmarks(path, cache), POINTS)
    monkeypatch.setattr(module, "read_blocks", never)
    assert_holds(read_landmarks(path, cache), POINTS)


@pytest.mark.parametrize("byte", [20, 4095, 4096, 4400, -10, -1])
def test_cache_with_a_flipped_bit_is_rewritten(path: Path, cache: Path, byte: int) -> None:
    read_landmarks(path, cache)
    file = cached_file(cache)
    content = bytearray(file.read_bytes())
    content[byte] ^= 4
    file.write_bytes(content)
    assert_holds(read_landmarks(path, cache), POINTS)
    content[byte] ^= 4
    assert file.read_bytes() == content


def test_first_run_logs_where_the_table_is_cached(
    path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "heatmap")
    for _ in range(2):
        read_landmarks(path, cache)
    (message,) = caplog.messages
    assert message == f"{path}: cached in {cached_file(cache)} for later runs"


KILLED = """
import os, signal, sys
from pathlib import Path
from heatmap.data.contest import read_landmarks, stored

stored._WORTH_CACHING = 0
stored.fingerprint_of = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
read_landmarks(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_killed_first_run_leaves_no_usable_cache(path: Path, cache: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, path, cache])
    assert done.returncode == -signal.SIGKILL
    unfinished = cached_file(cache)
    assert unfinished.name.startswith(".")
    assert_holds(read_landmarks(path, cache), POINTS)
    assert unfinished.exists()  # its writer may be alive

    os.utime(unfinished, (0, 0))
    change(path, POINTS + 1, same_time=False)
    assert_holds(read_landmarks(path, cache), POINTS + 1)
    assert cached_file(cache) != unfinished


def test_malformed_table_is_not_cached(path: Path, cache: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[20] = lines[20].replace("\t", "\tx", 1)
    path.write_text("".join(lines))
    with pytest.raises(ValueError, match=r"landmarks\.csv, row 21, column Point_0_X: 'x"):
        read_landmarks(path, cache)
    assert not list((cache / "tables").iterdir())


def test_table_that_changes_while_parsed_is_not_cached(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blocks(*arguments: Any, **options: Any) -> Any:
        yield from text_module.read_blocks(*arguments, **options)
        path.write_bytes(path.read_bytes() + b"b.jpg\t1\t2\t3\t4\t5\t6\n")

    monkeypatch.setattr(module, "read_blocks", blocks)
    with pytest.raises(ValueError, match=r"landmarks\.csv changed while being read"):
        read_landmarks(path, cache)
    assert not list((cache / "tables").iterdir())


READ = """
import sys
from pathlib import Path
from heatmap.data.contest import read_landmarks, stored

stored._WORTH_CACHING = 0
sys.stdin.readline()
print(read_landmarks(Path(sys.argv[1]), Path(sys.argv[2])).fingerprint)
"""


def test_concurrent_readers_agree(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", READ, path, cache]
    readers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for reader in readers:
        assert reader.stdin is not None
        reader.stdin.write("\n")
        reader.stdin.flush()
    expected = from_text(path, monkeypatch).fingerprint
    assert [reader.communicate()[0].strip() for reader in readers] == [expected] * 4
    assert cached_file(cache).is_file()

    change(path, POINTS[::-1], same_time=True)
    with ThreadPoolExecutor(5) as pool:
        for table in pool.map(partial(read_landmarks, path), [cache] * 5):
            assert_holds(table, POINTS[::-1])
    assert cached_file(cache).is_file()


def test_failed_write_leaves_no_file(
    path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        table = read_landmarks(path, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_holds(table, POINTS)
    assert "cannot be cached ([Errno 27] cannot be written: File too large" in caplog.text
    assert not list((cache / "tables").iterdir())
    assert_holds(read_landmarks(path, cache), POINTS)
    assert cached_file(cache).is_file()


def test_unusable_cache_is_a_warning(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert_holds(read_landmarks(path, tmp_path / "file"), POINTS)
    assert "cannot be cached ([Errno 20] Not a directory: " in caplog.text
    assert "--data.cache" in caplog.text


def test_default_cache_follows_xdg_cache_home(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    read_landmarks(path)
    assert cached_file(tmp_path / "mine" / "heatmap").name.startswith("landmarks-")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    read_landmarks(path)
    assert cached_file(tmp_path / "home" / ".cache" / "heatmap").is_file()


def test_small_table_is_not_cached(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    assert_holds(read_landmarks(path, cache), POINTS)
    assert not cache.exists()


def test_run_uses_data_cache(tiny_contest: Path, cache: Path) -> None:
    experiment = config.Experiment(
        name="tiny", data=config.Data(root=tiny_contest, cache=cache), model=config.UNet()
    )
    images = read_data(experiment)
    assert cached_file(cache).is_file()
    table = read_landmarks(find_folder(tiny_contest).train_table)
    again = read_data(replace(experiment, data=config.Data(root=tiny_contest, cache=cache)))
    for read in (images, again):
        assert read.table_hash == table.fingerprint
        np.testing.assert_array_equal(read.table.points_image, table.points_image)


WORKER = """
import os, sys
from pathlib import Path
from heatmap.data.contest import image_paths, read_landmarks, stored

stored._WORTH_CACHING = 0
table = read_landmarks(Path(sys.argv[1]), Path(sys.argv[2]))
paths = image_paths(Path(sys.argv[3]), table.names, table.path)

def private():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))

def epoch(step):
    for row in range(0, len(paths), step):
        assert table.names[row] in str(paths[row])
        assert table.points_image[row].shape == (3, 2)

if not os.fork():
    epoch(1000)
    before = private()
    epoch(1)
    print(private() - before, flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_forked_worker_copies_no_pages(tmp_path: Path, cache: Path) -> None:
    num_rows = 20_000
    names = [f"{row:030}.jpg" for row in range(num_rows)]
    path, images = tmp_path / "landmarks.csv", tmp_path / "images"
    write_landmarks(path, names, np.resize(POINTS[:4], (num_rows, 3, 2)))
    images.mkdir()
    (images / names[0]).touch()
    for name in names[1:]:
        os.link(images / names[0], images / name)
    command = [sys.executable, "-c", WORKER, path, cache, images]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # 20,000 paths as Python objects take 5 MB, which a worker would copy page by page.
    assert int(done.stdout) < 1000


def test_spawned_worker_maps_the_table_again(tmp_path: Path, cache: Path) -> None:
    num_rows = 50_000
    path, names = tmp_path / "landmarks.csv", [f"{row:030}.jpg" for row in range(num_rows)]
    write_landmarks(path, names, np.resize(POINTS[:4], (num_rows, 3, 2)))
    table = read_landmarks(path, cache)
    images = image_paths(tmp_path, table.names, path, rows=[])
    sent = pickle.dumps((table, images))
    assert len(sent) < 10_000
    got, got_images = pickle.loads(sent)
    for row in (0, 1, num_rows - 1):
        assert got.names[row] == names[row] and got_images[row] == tmp_path / names[row]
        np.testing.assert_array_equal(got.points_image[row], table.points_image[row])
    assert isinstance(got.points_image.stored.base, np.memmap)
