"""Downloads public data sets and converts them to contest folders."""

import errno
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from heatmap.data.formats import kaggle15
from heatmap.errors import UsageError, UserError

# Kaggle's "facial-keypoints-detection", as published with the 15-landmark project
FACES15 = (
    "https://github.com/ko-redtruck/facial-landmark-detection/raw/main/"
    "facial-keypoints-detection.zip"
)

TIMEOUT = 30.0  # seconds without a byte before a connection counts as broken
MAX_TRIES = 4  # that bring no byte
PAUSE = 0.5  # seconds, doubled with each such try
CHUNK = 1 << 18  # bytes
NOT_WRITTEN = errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG  # without the file's name


def faces15(
    out: Path, *, url: str = FACES15, incomplete: kaggle15.Incomplete = "keep"
) -> kaggle15.Converted:
    """Downloads Kaggle's "facial-keypoints-detection" and converts it with `kaggle15.convert`.

    Args:
        out: the contest folder, which appears once it is complete. An interrupted download is kept
            beside it and continued by the next call.
        url: address of facial-keypoints-detection.zip.

    Raises:
        UserError: `out` is not empty, the download fails, or the archive is damaged.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder; choose another name or remove it")
    archive = out.absolute().with_name(f".{out.name}-download.zip")
    download(url, archive)
    try:
        counts = kaggle15.convert(archive, out, incomplete=incomplete)
    except UserError as error:
        archive.unlink()
        raise UserError(f"{url} serves no usable archive: {error}") from None
    archive.unlink()
    return counts


def download(url: str, path: Path) -> None:
    """Downloads a file, or the rest of it if `path` holds its beginning.

    Raises:
        UserError: the server cannot be reached, refuses, or breaks off again and again, or the
            file cannot be written.
    """
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"--url must start with https:// or http://, not {url!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    with tqdm(
        desc=f"downloading {Path(url).name}", unit="B", unit_scale=True, leave=False, disable=None
    ) as bar:
        while True:
            before = _size(path)
            try:
                if _download_rest(url, path, bar):
                    return
                problem, is_final = "the connection broke off", False
            except urllib.request.HTTPError as error:
                problem, is_final = str(error), error.code < 500
            except (OSError, HTTPException) as error:
                if isinstance(error, OSError) and (error.filename or error.errno in NOT_WRITTEN):
                    raise UserError(f"{path}: cannot be written: {error.strerror}") from None
                problem, is_final = str(getattr(error, "reason", error)), False
            failures = 0 if _size(path) > before else failures + 1
            if is_final or failures == MAX_TRIES:
                break
            time.sleep(PAUSE * 2**failures)
    kept = f"{_size(path):,} bytes are kept: run the command again to continue, or "
    raise UserError(
        f"{url} could not be downloaded: {problem}; {kept * (_size(path) > 0)}try another --url"
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _download_rest(url: str, path: Path, bar: tqdm) -> bool:
    """Appends what the server sends; returns whether the file is complete."""
    have = _size(path)
    headers = {"User-Agent": "heatmap"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.request.HTTPError as error:
        if error.code != 416:  # nothing follows what we have
            raise
        return True
    with response:
        length = response.headers.get("Content-Length")
        if response.status != 206:
            have = 0  # the server cannot continue and sends the whole file
        total = have + int(length) if length else None
        bar.total, bar.n = total, have
        with path.open("ab") as file:
            file.truncate(have)
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    return total in (None, _size(path))
