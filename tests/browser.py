"""A headless Chromium for tests of pages: what it shows, and what it complains about."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr")


def show(path: Path, *, do: str = "") -> tuple[str, list[str]]:
    """Open a page from disk; return its elements afterwards and the lines of its console.

    Args:
        path: of the page.
        do: JavaScript to run in a copy of the page without its security policy.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no chromium here: pages are not opened (apt-get install chromium)")
    if do:
        html = path.read_text(encoding="utf-8")
        html = re.sub("<meta http-equiv.*?>", "", html).replace(
            "</body>", f"<script>{do}</script></body>"
        )
        path = path.with_name("driven.html")
        path.write_text(html, encoding="utf-8")
    profile = path.parent / "profile"
    place = (f"--user-data-dir={profile}", "--window-size=400,800", "--dump-dom", path.as_uri())
    done = subprocess.run([program, *FLAGS, *place], capture_output=True, check=True, timeout=60)
    shutil.rmtree(profile, ignore_errors=True)
    errors = done.stderr.decode("utf-8", "replace").splitlines()
    return done.stdout.decode("utf-8"), [line for line in errors if "CONSOLE" in line]
