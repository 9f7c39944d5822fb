"""Downloads from a local server that serves well, breaks off, lies and redirects."""

import http.server
import io
import re
import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from heatmap.cli.data import main
from heatmap.data import fetch
from heatmap.data.formats import kaggle15

NAME = "facial-keypoints-detection.zip"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.body`; the first part of the path chooses the server's fault."""

    server: "Server"

    def do_GET(self) -> None:
        fault, body = self.path.split("/")[1], self.server.body
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        start = int(re.findall(r"\d+", asked)[0]) if asked and fault != "forgetful" else 0
        if fault == "redirected":
            self.send_response(302)
            self.send_header("Location", f"/good/{NAME}")
            self.end_headers()
            return
        if fault == "dying" and start:
            fault = "overloaded"
        if fault in ("missing", "overloaded"):
            self.send_error({"missing": 404, "overloaded": 503}[fault])
            return
        if start and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        rest = body[start:]
        self.send_response(206 if start else 200)
        if start:
            first = start + 1 if fault == "elsewhere" else start
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        if fault != "silent":  # about the length
            lie = {"short": -120, "long": 100}.get(fault, 0)
            self.send_header("Content-Length", str(len(rest) + lie))
        self.end_headers()
        breaks = fault in ("breaking", "forgetful", "elsewhere") and len(self.server.asked) < 3
        breaks |= fault == "dying"
        self.wfile.write(rest[: len(rest) // 2] if breaks else rest)

    def log_message(self, *_: object) -> None: ...


class Server(http.server.ThreadingHTTPServer):
    def __init__(self, body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = body
        self.asked: list[str | None] = []

    def url(self, fault: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{fault}/{NAME}"


@pytest.fixture
def server(kaggle15_files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(kaggle15_files.iterdir()):
            archive.write(file, file.name)
    monkeypatch.setattr(fetch, "PAUSE", 0.001)
    monkeypatch.setattr(fetch, "CHUNK", 4_000)
    with Server(packed.getvalue()) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def files_under(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    "fault", ["good", "redirected", "breaking", "forgetful", "elsewhere", "silent", "long"]
)
def test_the_converted_folder_is_that_of_the_archive(
    server: Server, kaggle15_files: Path, tmp_path: Path, fault: str
) -> None:
    kaggle15.convert(kaggle15_files, tmp_path / "expected")
    fetch.faces15(tmp_path / "new" / "faces15", url=server.url(fault))
    assert files_under(tmp_path / "new" / "faces15") == files_under(tmp_path / "expected")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["faces15"]
    if fault == "breaking":  # only what was missing was asked for again
        half = len(server.body) // 2
        assert server.asked[:2] == [None, f"bytes={half}-"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "could not be downloaded: HTTP Error 404"),
        ("overloaded", "could not be downloaded: HTTP Error 503"),
        ("dying", "HTTP Error 503.*; [0-9,]+ bytes are kept, so the same command continues"),
        ("short", "serves no usable archive"),
    ],
)
def test_what_cannot_be_downloaded_is_said_in_one_line(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str, message: str
) -> None:
    assert main(["fetch", "faces15", str(tmp_path / "out"), "--url", server.url(fault)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("body", [b"<!DOCTYPE html><title>Sign in</title>", b"PK\3\4" + bytes(99)])
def test_what_is_no_archive_is_not_kept(server: Server, tmp_path: Path, body: bytes) -> None:
    server.body = body
    with pytest.raises(ValueError, match="serves no usable archive"):
        fetch.faces15(tmp_path / "out", url=server.url("good"))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_member_is_named_and_downloaded_again(server: Server, tmp_path: Path) -> None:
    whole = server.body
    server.body = whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]
    with pytest.raises(ValueError, match=r"serves no usable archive: .*IdLookupTable"):
        fetch.faces15(tmp_path / "out", url=server.url("good"))
    server.body = whole
    assert fetch.faces15(tmp_path / "out", url=server.url("good")).num_training == 10


def test_an_interrupted_command_is_continued(server: Server, tmp_path: Path) -> None:
    kept = tmp_path / ".out-download.zip"
    kept.write_bytes(server.body[:7_000])
    fetch.faces15(tmp_path / "out", url=server.url("good"))
    assert server.asked == ["bytes=7000-"]


def test_a_complete_download_is_not_repeated(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".out-download.zip").write_bytes(server.body)
    fetch.faces15(tmp_path / "out", url=server.url("good"))
    assert server.asked == [f"bytes={len(server.body)}-"]


def test_without_a_network_the_address_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "PAUSE", 0.001)
    with socket.socket() as closed:  # a port that nobody listens to
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/{NAME}"
        with pytest.raises(ValueError, match=f"{url} could not be downloaded: .*refused"):
            fetch.faces15(tmp_path / "out", url=url)


def test_wrong_arguments_stop_before_the_download(tmp_path: Path) -> None:
    assert main(["fetch", "faces15", str(tmp_path / "out"), "--url", "file:///etc/passwd"]) == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    assert main(["fetch", "faces15", str(tmp_path / "full")]) == 1
