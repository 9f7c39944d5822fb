"""A large table is read once; what is kept gives the same, is noticed when it is old, and is whole
or not there."""

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
from heatmap.data.contest import LandmarkTable, find_folder, read_landmarks, write_landmarks
from heatmap.data.contest import stored as module
from heatmap.data.contest import table as text_module
from heatmap.data.contest.images import _Paths
from heatmap.training.data import read_data

NAMES = ["a.jpg", "é.jpg", *(f"sub/{row}.jpg" for row in range(30))]
POINTS = np.random.default_rng(0).integers(-50, 900, (len(NAMES), 3, 2)).astype(np.float32)
POINTS[4, 1] = np.nan


@pytest.fixture(autouse=True)
def all_tables_are_worth_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORTH_KEEPING", 0)
    monkeypatch.setattr(text_module, "_BLOCK", 100)  # some rows each
    monkeypatch.setattr(module, "_AT_ONCE", 24)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "landmarks.csv"
    write_landmarks(path, NAMES, POINTS)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def kept_in(cache: Path) -> Path:
    """The file of the only table that is kept."""
    (file,) = (cache / "tables").iterdir()
    return file


def holds(table: LandmarkTable, points: np.ndarray, names: list[str] = NAMES) -> None:
    assert list(table.names) == names
    np.testing.assert_array_equal(table.points_image[:], points.astype(np.float32))


def from_text(path: Path, monkeypatch: pytest.MonkeyPatch) -> LandmarkTable:
    with monkeypatch.context() as patch:
        patch.setattr(module, "_WORTH_KEEPING", 1 << 40)
        return read_landmarks(path)


def change(path: Path, points: np.ndarray, *, same_time: bool) -> None:
    before = path.stat()
    write_landmarks(path, NAMES, points)
    nanoseconds = before.st_mtime_ns + (0 if same_time else 5)
    os.utime(path, ns=(nanoseconds, nanoseconds))


def never(*_: object) -> Any:
    raise AssertionError("this must not happen")


CENTRE = np.zeros_like(POINTS)
CENTRE[15, 1, 0] = 0.25  # a decimal after many whole rows
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
def test_what_is_kept_is_what_the_text_says(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, points: np.ndarray, dtype: type
) -> None:
    path = tmp_path / "landmarks.csv"
    write_landmarks(path, NAMES, points)
    expected = from_text(path, monkeypatch)
    assert not cache.exists()
    for _ in range(2):  # first and later starts
        table = read_landmarks(path, cache)
        holds(table, points)
        assert table.path == path
        assert table.fingerprint() == expected.fingerprint()
        assert table.points_image.stored.dtype == dtype
        assert isinstance(table.points_image.stored.base, np.memmap)
        monkeypatch.setattr(module, "read_blocks", never)
    taken = kept_in(cache).stat().st_size - points.size * np.dtype(dtype).itemsize
    assert 0 < taken < 5000  # the header and the names


def test_a_later_start_reads_no_text(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_landmarks(path, cache)
    monkeypatch.setattr(module, "read_blocks", never)
    monkeypatch.setattr(module, "_sha256", never)
    holds(read_landmarks(path, cache), POINTS)


def test_a_change_that_keeps_size_and_time_is_noticed(path: Path, cache: Path) -> None:
    read_landmarks(path, cache)
    change(path, POINTS[::-1], same_time=True)
    holds(read_landmarks(path, cache), POINTS[::-1])


def test_a_changed_text_is_read_anew(path: Path, cache: Path) -> None:
    old = read_landmarks(path, cache)
    change(path, POINTS[::-1], same_time=False)  # of the same size
    holds(read_landmarks(path, cache), POINTS[::-1])
    change(path, POINTS + 1000, same_time=True)  # of another size
    holds(read_landmarks(path, cache), POINTS + 1000)
    assert kept_in(cache).is_file()  # nothing is left of the others
    holds(old, POINTS)  # what a training has mapped stays


def test_the_same_text_of_another_time_is_compared_once(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_landmarks(path, cache)
    monkeypatch.setattr(module, "read_blocks", never)
    change(path, POINTS, same_time=False)
    holds(read_landmarks(path, cache), POINTS)
    monkeypatch.setattr(module, "_sha256", never)
    holds(read_landmarks(path, cache), POINTS)


def test_links_lead_to_one_kept_table_and_other_paths_to_others(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_landmarks(path, cache)
    other = path.with_name("other.csv")
    write_landmarks(other, NAMES, POINTS + 1)
    holds(read_landmarks(other, cache), POINTS + 1)
    monkeypatch.setattr(module, "read_blocks", never)
    link = path.with_name("link")
    link.symlink_to(path.parent)
    holds(read_landmarks(link / path.name, cache), POINTS)
    assert read_landmarks(link / path.name, cache).path == link / path.name


@pytest.mark.parametrize("kept_bytes", [0, 30, 4096, 4200, -1])
def test_what_is_damaged_is_read_anew(
    path: Path, cache: Path, kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_landmarks(path, cache)
    file = kept_in(cache)
    os.truncate(file, kept_bytes % file.stat().st_size)
    holds(read_landmarks(path, cache), POINTS)
    monkeypatch.setattr(module, "read_blocks", never)
    holds(read_landmarks(path, cache), POINTS)


def test_who_only_reads_hears_where_the_table_is_kept(
    path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "heatmap")
    for _ in range(2):
        read_landmarks(path, cache)
    (said,) = caplog.messages
    assert said == f"{path}: kept in {kept_in(cache)} for later starts"


KILLED = """
import os, signal, sys
from pathlib import Path
from heatmap.data.contest import read_landmarks, stored

stored._WORTH_KEEPING = 0
stored.digest_of = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
read_landmarks(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_first_start_leaves_nothing_that_is_taken_up(path: Path, cache: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, path, cache])
    assert done.returncode == -signal.SIGKILL
    unfinished = kept_in(cache)
    assert unfinished.name.startswith(".")
    holds(read_landmarks(path, cache), POINTS)
    assert unfinished.exists()  # its writer may be at work

    os.utime(unfinished, (0, 0))
    change(path, POINTS + 1, same_time=False)
    holds(read_landmarks(path, cache), POINTS + 1)
    assert kept_in(cache) != unfinished


def test_a_malformed_table_is_told_with_its_place_and_not_kept(path: Path, cache: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[20] = lines[20].replace("\t", "\tx", 1)
    path.write_text("".join(lines))
    with pytest.raises(ValueError, match=r"landmarks\.csv, row 21, column Point_0_X: 'x"):
        read_landmarks(path, cache)
    assert not list((cache / "tables").iterdir())


def test_a_table_that_changes_while_it_is_read_is_not_kept(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blocks(*arguments: Any, **options: Any) -> Any:
        yield from text_module.read_blocks(*arguments, **options)
        path.write_bytes(path.read_bytes() + b"b.jpg\t1\t2\t3\t4\t5\t6\n")

    monkeypatch.setattr(module, "read_blocks", blocks)
    with pytest.raises(ValueError, match=r"landmarks\.csv was changed while it was read"):
        read_landmarks(path, cache)
    assert not list((cache / "tables").iterdir())


READ = """
import sys
from pathlib import Path
from heatmap.data.contest import read_landmarks, stored

stored._WORTH_KEEPING = 0
sys.stdin.readline()
print(read_landmarks(Path(sys.argv[1]), Path(sys.argv[2])).fingerprint())
"""


def test_many_at_once_read_the_same(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", READ, path, cache]
    readers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for reader in readers:
        assert reader.stdin is not None
        reader.stdin.write("\n")
        reader.stdin.flush()
    expected = from_text(path, monkeypatch).fingerprint()
    assert [reader.communicate()[0].strip() for reader in readers] == [expected] * 4
    assert kept_in(cache).is_file()

    change(path, POINTS[::-1], same_time=True)
    with ThreadPoolExecutor(5) as pool:
        for table in pool.map(partial(read_landmarks, path), [cache] * 5):
            holds(table, POINTS[::-1])
    assert kept_in(cache).is_file()


def test_a_write_that_fails_half_way_leaves_nothing(
    path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        table = read_landmarks(path, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    holds(table, POINTS)
    assert "cannot be kept ([Errno 27] File too large" in caplog.text
    assert not list((cache / "tables").iterdir())
    holds(read_landmarks(path, cache), POINTS)
    assert kept_in(cache).is_file()


def test_a_cache_that_cannot_be_is_told(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    holds(read_landmarks(path, tmp_path / "file"), POINTS)
    assert "cannot be kept ([Errno 20] Not a directory: " in caplog.text
    assert "--data.cache" in caplog.text


def test_the_users_cache_is_where_the_user_says(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    read_landmarks(path)
    assert kept_in(tmp_path / "mine" / "heatmap").name.startswith("landmarks-")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    read_landmarks(path)
    assert kept_in(tmp_path / "home" / ".cache" / "heatmap").is_file()


def test_a_small_table_is_not_kept(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    holds(read_landmarks(path, cache), POINTS)
    assert not cache.exists()


def test_a_run_keeps_its_table_where_data_cache_says(tiny_contest: Path, cache: Path) -> None:
    experiment = config.Experiment(
        name="tiny", data=config.Data(root=tiny_contest, cache=cache), model=config.UNet()
    )
    images = read_data(experiment)
    assert kept_in(cache).is_file()
    table = read_landmarks(find_folder(tiny_contest).train_table)
    again = read_data(replace(experiment, data=config.Data(root=tiny_contest, cache=cache)))
    for read in (images, again):
        assert read.table_hash == table.fingerprint()
        np.testing.assert_array_equal(read.table.points_image, table.points_image)


WORKER = """
import os, sys
from pathlib import Path
from heatmap.data.contest import image_paths, read_landmarks, stored

stored._WORTH_KEEPING = 0
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
def test_a_worker_copies_no_pages_of_the_table(tmp_path: Path, cache: Path) -> None:
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
    # Twenty thousand paths as Python objects are 5 MB, which a worker would copy page by page.
    assert int(done.stdout) < 1000


def test_a_mapped_table_is_mapped_again_in_a_spawned_worker(tmp_path: Path, cache: Path) -> None:
    num_rows = 50_000
    path, names = tmp_path / "landmarks.csv", [f"{row:030}.jpg" for row in range(num_rows)]
    write_landmarks(path, names, np.resize(POINTS[:4], (num_rows, 3, 2)))
    table = read_landmarks(path, cache)
    images = _Paths(tmp_path, table.names)
    sent = pickle.dumps((table, images))
    assert len(sent) < 10_000
    got, got_images = pickle.loads(sent)
    for row in (0, 1, num_rows - 1):
        assert got.names[row] == names[row] and got_images[row] == tmp_path / names[row]
        np.testing.assert_array_equal(got.points_image[row], table.points_image[row])
    assert isinstance(got.points_image.stored.base, np.memmap)
