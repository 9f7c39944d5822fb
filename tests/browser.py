"""A page as Chromium shows it."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

# Told from inside a frame of the wanted width, since a window has a least width of its own.
FRAME = (
    '<!doctype html><iframe src="{src}" style="border:0;width:{width}px;height:3000px"></iframe>'
)
MEASURE = """
<script>addEventListener("load", () => parent.postMessage(JSON.stringify({
  page_width: document.documentElement.scrollWidth,
  screen_width: innerWidth,
  pictures: [...document.images].map(image => image.naturalWidth),
  charts: [...document.querySelectorAll("svg")].map(svg => svg.getBoundingClientRect().width),
  text: document.body.innerText,
}), "*"))</script>
"""
RECEIVE = """
<script>addEventListener("message", event => {
  const told = document.createElement("pre");
  told.id = "told";
  told.textContent = event.data;
  document.body.append(told);
})</script>
"""


def shown(page: Path, width: int, scratch: Path) -> dict[str, Any]:
    """What a browser makes of the file on a screen of that width; skips where there is none.

    Returns:
        page_width, screen_width; pictures: natural widths, 0 where one did not load; charts: their
        widths on the screen; text: what is read; console: what the browser complains of.
    """
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if chromium is None:
        pytest.skip("no browser to look with (Debian's package chromium)")
    copy, frame = scratch / "measured.html", scratch / f"{width}.html"
    copy.write_text(page.read_text("utf-8").replace("</body>", f"{MEASURE}</body>"), "utf-8")
    frame.write_text(RECEIVE + FRAME.format(src=copy.name, width=width), "utf-8")
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         f"--user-data-dir={scratch / 'profile'}", "--enable-logging=stderr",
         "--virtual-time-budget=20000", "--window-size=1400,3000", "--dump-dom", frame.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told, f"the page did not load: {done.stdout[-500:]} {done.stderr[-2000:]}"
    found = json.loads(unescape(told[1]))
    found["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return found
