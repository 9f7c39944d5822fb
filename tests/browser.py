"""Reads HTML pages as written, and as Chromium shows them."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

# Pages are measured inside frames, since a window cannot be narrower than about 500 px.
FRAME = '<iframe src="{src}" style="border:0;width:{width}px;height:3000px"></iframe>'
MEASURE = """
<script>addEventListener("load", () => parent.postMessage({
  page_width: document.documentElement.scrollWidth,
  screen_width: innerWidth,
  images: [...document.images].map(image => image.naturalWidth),
  charts: [...document.querySelectorAll("svg.chart")].map(svg => svg.getBoundingClientRect().width),
  text: document.body.innerText,
}, "*"))</script>
"""
RECEIVE = """<!doctype html><pre id="measured"></pre>
<script>
const measured = [];
addEventListener("message", event => {
  measured.push(event.data);
  document.getElementById("measured").textContent = JSON.stringify(measured);
})
</script>
"""


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


def shown(page: Path, widths: Sequence[int], scratch: Path) -> list[dict[str, Any]]:
    """Measures a page on screens of several widths; skips the test if there is no browser.

    Fails if the browser logs anything.

    Returns:
        For each width: page_width and screen_width; images: natural widths, 0 if one did not load;
        charts: widths on the screen; text: what the page shows.
    """
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if chromium is None:
        pytest.skip("no browser (Debian's package chromium)")
    copy, frames = scratch / "measured.html", scratch / "frames.html"
    copy.write_text(page.read_text("utf-8").replace("</body>", f"{MEASURE}</body>"), "utf-8")
    inside = "".join(FRAME.format(src=copy.name, width=width) for width in widths)
    frames.write_text(RECEIVE + inside, "utf-8")
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", f"--user-data-dir={scratch / 'profile'}", "--enable-logging=stderr",
         "--virtual-time-budget=20000", "--window-size=1400,3000", "--dump-dom", frames.as_uri()],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    measured = re.search(r'<pre id="measured">(.+?)</pre>', done.stdout, re.DOTALL)
    assert measured, f"the page did not load: {done.stdout[-500:]} {done.stderr[-2000:]}"
    assert "CONSOLE" not in done.stderr, done.stderr
    pages: list[dict[str, Any]] = json.loads(unescape(measured[1]))
    return sorted(pages, key=lambda page: widths.index(page["screen_width"]))
