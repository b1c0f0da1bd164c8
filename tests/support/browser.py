"""Opening a page in headless Chromium, without any driver: what it draws is written into the page and dumped."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest


def chromium() -> str:
    """Return Chromium's path; skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    pytest.skip("no chromium on PATH (Debian: apt-get install chromium)")


def measure(page: Path, script: str, *, width: int, folder: Path, dark: bool = False) -> dict[str, Any]:
    """Return what `script`, the body of a function of (window, document), returns for a page in a frame of that width.

    The page is as it was written, its policy included; the frame is needed since no window is as narrow as a phone.
    """
    frame = f'<iframe id="frame" style="border: 0; width: {width}px; height: 900px" srcdoc="{{}}"></iframe>'
    call = f"""
const measured = (window, document) => {{ {script} }};
document.getElementById("frame").onload = ({{ target }}) => {{
  const out = document.createElement("pre");
  out.id = "measured";
  out.textContent = JSON.stringify(measured(target.contentWindow, target.contentDocument));
  document.body.append(out);
}};"""
    around = folder / f"frame-{width}.html"
    content = frame.format(html.escape(page.read_text("utf-8")))
    around.write_text(f"<!doctype html><meta charset=utf-8><body>{content}<script>{call}</script></body>", "utf-8")
    dumped = run(["--dump-dom", around.as_uri()], folder=folder, dark=dark)
    found = re.search(r'<pre id="measured">(.*?)</pre>', dumped, re.DOTALL)
    assert found, dumped[-2000:]
    measured: dict[str, Any] = json.loads(html.unescape(found.group(1)))
    return measured


def run(arguments: list[str], *, folder: Path, dark: bool = False) -> str:
    """Run Chromium once in a wide window and return what it printed."""
    command = [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    command += ["--disable-background-networking", f"--user-data-dir={folder / 'profile'}"]
    command += ["--window-size=1400,1000"] + (["--force-dark-mode"] if dark else [])
    environment = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    with tempfile.TemporaryDirectory() as sockets:  # the paths of sockets have to be short
        answer = subprocess.run(
            [*command, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**environment, "TMPDIR": sockets},
        )
    assert answer.returncode == 0, answer.stderr[-2000:]
    return answer.stdout
