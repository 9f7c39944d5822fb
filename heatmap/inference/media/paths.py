"""Finds the files to read, and claims the files to write."""

import glob
import hashlib
import logging
import os
import textwrap
import unicodedata
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path

from heatmap.data.contest import images
from heatmap.errors import UsageError, UserError
from heatmap.inference.media import video
from heatmap.runtime.columns import counted
from heatmap.runtime.files import fitting_name, open_file, read_json, write_json, written_path

logger = logging.getLogger("heatmap")

_LEDGER = ".heatmap.json"
_TAKEN = images.SUFFIXES | images.UNREADABLE | video.SUFFIXES
_KEPT = ".jpg", ".jpeg", ".png", ".mp4"  # formats of copies


def find_files(inputs: Sequence[str]) -> list[Path]:
    """Returns the files named by paths, by glob patterns, and by folders.

    Of a folder, these are the files with a suffix of images or videos, whether they can be read or
    not. The others are listed in a message, unless their names begin with a dot.

    Raises:
        UsageError: a folder has no images or videos, or a pattern matches nothing.
    """
    files: list[Path] = []
    for name in inputs:
        if Path(name).is_dir():
            files += _files_in(Path(name))
        elif glob.has_magic(name) and not Path(name).exists():
            matches = map(Path, sorted(glob.glob(name, recursive=True)))  # noqa: PTH207
            matching = [path for path in matches if not path.is_dir()]
            if not matching:
                raise UsageError(f"no file matches {name}")
            files += matching
        else:
            files.append(Path(name))
    return list(dict.fromkeys(files))


def _files_in(folder: Path) -> list[Path]:
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    taken = [p for p in entries if p.suffix.lower() in _TAKEN and not p.is_dir()]
    others = [p.name for p in entries if p.suffix.lower() not in _TAKEN and not p.is_dir()]
    if others:
        names = textwrap.shorten(", ".join(others), 400, placeholder=" ...")
        logger.info(f"{folder}: skipped {counted(len(others), 'file')} of other types: {names}")
    if len(taken) + len(others) < len(entries):
        logger.info(f"{folder}: for subfolders, pass '{folder / '**' / '*.jpg'}'")
    if not taken:
        raise UsageError(f"{folder}: no images or videos in this folder")
    return taken


class Outputs(AbstractContextManager["Outputs"]):
    """The files that a command writes to a folder, each claimed before the work begins.

    Two claims never share a file. No input is overwritten and, without `overwrite`, no file that
    the command did not write or that has changed since: `.heatmap.json` in the folder lists the
    SHA-256 of each file written.

    Args:
        folder: where the files go; need not exist.
        inputs: files that are read.
        overwrite: whether any file but the inputs may be replaced.

    Attributes:
        written: the files written so far; append each one.
    """

    def __init__(self, folder: Path, inputs: Sequence[Path] = (), overwrite: bool = False) -> None:
        self.folder, self.written = folder, list[Path]()
        self._inputs, self._overwrite, self._taken = inputs, overwrite, set[str]()
        self._ledger = folder / _LEDGER
        self._hashes = read_json(self._ledger, dict[str, str]) if self._ledger.exists() else {}
        # by inode, because some disks ignore case
        self._originals = {(s.st_dev, s.st_ino) for s in map(_status, inputs) if s}

    def claim(self, name: str | Path) -> Path:
        """Returns the path of this name in the folder; a name that is taken gets a number.

        Raises:
            UserError: the file must not be overwritten, or is not a regular file.
        """
        wanted = self.folder / name
        for number in count(1):
            end = wanted.suffix if number == 1 else f"-{number}{wanted.suffix}"
            path = wanted.with_name(fitting_name("", wanted.stem, end))
            target = written_path(path)
            # some disks ignore case and Unicode composition
            key = unicodedata.normalize("NFC", str(target)).casefold()
            if key not in self._taken:
                break
        self._taken.add(key)
        status = _status(target)
        if status is None:
            return path
        if (status.st_dev, status.st_ino) in self._originals:
            raise UserError(f"{path} is an input, not to be overwritten; choose another --out")
        known = self._hashes.get(self._name(path))
        if not self._overwrite and known != _hash(target):
            reason = "exists, and this command did not write it"
            if known:
                reason = "has changed since this command wrote it"
            raise UserError(
                f"{path} {reason}; choose another --out, or replace it with --overwrite"
            )
        return path

    def copies(self) -> dict[Path, Path]:
        """Claims and returns a copy for each input, in the same subfolder, under the same name.

        Formats that cannot be written get .png or .mp4 appended.
        """
        # without "..", which would lead out of the folder
        places = {path: Path(os.path.normpath(path.absolute())) for path in self._inputs}
        common = os.path.commonpath([place.parent for place in places.values()])
        copies: dict[Path, Path] = {}
        # files that keep their suffix come first, so that they get no number
        for path in sorted(places, key=lambda path: path.suffix.lower() not in _KEPT):
            name = places[path].relative_to(common)
            if path.suffix.lower() not in _KEPT:
                name = name.with_name(name.name + (".mp4" if video.is_video(path) else ".png"))
            copies[path] = self.claim(name)
            if copies[path] != self.folder / name:
                logger.info(f"{path}: written to {copies[path]}, because the name is taken")
        return copies

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def __exit__(self, *_: object) -> None:
        if self.written:  # also before an error
            self._hashes |= {self._name(path): _hash(path) for path in self.written}
            write_json(self._ledger, self._hashes)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _hash(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
