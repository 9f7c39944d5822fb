"""Reads HTML pages as written, and as Chromium shows them.

Chromium is driven by its DevTools protocol over a pipe: JSON messages that end with a zero byte
(https://chromedevtools.github.io/devtools-protocol).
"""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

MEASURE = """({
  page_width: document.documentElement.scrollWidth,
  screen_width: innerWidth,
  images: [...document.images].map(image => image.naturalWidth),
  charts: [...document.querySelectorAll("svg.chart")].map(svg => svg.getBoundingClientRect().width),
  text: document.body.innerText,
})"""
SHIFT = 8  # bit of a modifier key


class Elements(HTMLParser):
    """The elements of a page with their attributes; fails if tags are not closed in order."""

    ALONE = ("meta", "link", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.ALONE:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.found if found == tag]


class Browser:
    """A page in headless Chromium, driven by real mouse, touch and key events."""

    def __init__(self, folder: Path, width: int = 1280, height: int = 900) -> None:
        """Skips the test if there is no browser; `folder` gets its profile and downloads."""
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
        if chromium is None:
            pytest.skip("no browser (Debian's package chromium)")
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        options = (
            "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run "
            "--disable-background-networking --disable-component-update --disable-sync "
            f"--hide-scrollbars --remote-debugging-pipe --user-data-dir={folder / 'profile'}"
        )
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" 3<&{read_commands} 4>&{write_answers}',
             chromium, *options.split()],
            pass_fds=(read_commands, write_answers), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read_commands)
        os.close(write_answers)
        self._received, self._count, self._session = b"", 0, None
        self.complaints: list[Any] = []  # errors and warnings of the page, and its requests
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Browser.setDownloadBehavior",
            behavior="allow",
            downloadPath=str(folder),
            eventsEnabled=True,
        )
        self.resize(width, height)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)

    def call(self, method: str, **parameters: Any) -> Any:
        """Calls a method of the DevTools protocol and returns its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next_message()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    def _next_message(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            received = os.read(self._answers, 1 << 20)
            assert received, "the browser ended"
            self._received += received
        text, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        match message.get("method"):
            case "Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded":
                self.complaints.append(message["params"])
            case "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if not url.startswith(("file:", "data:", "blob:")):
                    self.complaints.append(url)
        return message

    def open(self, page: Path) -> None:
        self.call("Page.navigate", url=page.as_uri())
        loaded = "document.readyState === 'complete' ? done() : addEventListener('load', done)"
        self.run(f"new Promise((done) => {{ {loaded} }})")

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
            mobile=width < 600,
        )  # fmt: skip

    def run(self, script: str) -> Any:
        """Evaluates JavaScript in the page; waits for a promise; returns its value."""
        done = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def drag(self, *places: tuple[float, float], modifiers: int = 0) -> None:
        """Presses the mouse at the first place, moves it over the others and releases it there."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(places) - 1), "mouseReleased"]
        for kind, (x, y) in zip(kinds, [*places, places[-1]], strict=True):
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1,
                buttons=1, modifiers=modifiers,
            )  # fmt: skip

    def touch(self, *places: Sequence[tuple[float, float]]) -> None:
        """Puts fingers on the first places, moves them over the others and lifts them."""
        for kind, fingers in zip(
            ["touchStart", *["touchMove"] * (len(places) - 1), "touchEnd"], [*places, ()],
            strict=True,
        ):  # fmt: skip
            points = [{"x": x, "y": y, "id": index} for index, (x, y) in enumerate(fingers)]
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    def key(self, key: str, modifiers: int = 0) -> None:
        """Presses and releases a key, such as "g" or "ArrowLeft"."""
        text = {"text": key} if len(key) == 1 and modifiers in (0, SHIFT) else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, modifiers=modifiers, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, modifiers=modifiers)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


def shown(page: Path, widths: Sequence[int], scratch: Path) -> list[dict[str, Any]]:
    """Measures a page on screens of several widths; skips the test if there is no browser.

    Fails if the page logs or requests anything.

    Returns:
        For each width: page_width and screen_width; images: natural widths, 0 if one did not load;
        charts: widths on the screen; text: what the page shows.
    """
    measured = []
    with Browser(scratch) as browser:
        for width in widths:
            browser.resize(width, 3000)
            browser.open(page)
            measured.append(browser.run(MEASURE))
        assert not browser.complaints
    return measured
