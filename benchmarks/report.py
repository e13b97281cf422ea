"""Report of a large competition: seconds and memory to write it, seconds to open it in a browser.

python benchmarks/report.py                                  33,137 rows × 396 classes × 7 × 5
python benchmarks/report.py --rows 3000 --classes 40         a minute

Runs, OOF predictions and photographs are made up (`benchmarks/blend.py`) and blended; then
`scripts/report.py` runs in a process of its own, and headless Chromium opens its page anew each
time, in a window and at a phone's size. Needs chromium and scikit-image.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import blend
from benchmarks.timing import run_measured, spread, write_photographs

VIEWPORTS = {"window 1280 × 800": (1280, 800, 1, False), "phone 400 × 800": (400, 800, 3, True)}
EPOCHS = 15
# The longest table is sorted by its third column, and its new order is painted.
SORT = """new Promise(done => {
  const all = [...document.querySelectorAll("table")];
  const longest = all.reduce((a, b) => b.rows.length > a.rows.length ? b : a);
  longest.querySelectorAll("th button")[2].click();
  requestAnimationFrame(() => setTimeout(() => done(
    [performance.getEntriesByType("navigation")[0].loadEventEnd, performance.now()]), 0));
})"""

START = """import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 20) for end in sys.argv[1:3]]  # clear of 3 and 4
for end, place in zip(ends, (3, 4)):
    os.dup2(end, place)
os.execvp(sys.argv[3], sys.argv[3:])"""


class Browser:
    """A headless Chromium, driven over its DevTools pipe (POSIX only).

    One message of JSON each way, ended by a zero byte, on file descriptors 3 and 4.
    """

    def __init__(self, program: str, profile: Path) -> None:
        (there, self.out), (self.back, back) = os.pipe(), os.pipe()
        flags = "--headless --no-sandbox --disable-gpu --remote-debugging-pipe --no-first-run"
        command = [program, *flags.split(), f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, str(there), str(back), *command],
            pass_fds=(there, back), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(there)
        os.close(back)
        self.count, self.rest = 0, b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        self.call("Page.enable")

    session = ""

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """Call a method of the DevTools protocol and return its result."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        reply = self._wait(lambda m: m.get("id") == self.count)
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']}")
        return reply["result"]

    def open(self, address: str) -> None:
        """Open a page and wait for its load event."""
        self.call("Page.navigate", url=address)
        self._wait(lambda m: m.get("method") == "Page.loadEventFired")

    def resize(self, width: int, height: int, scale: float, mobile: bool) -> None:
        """Set the viewport: CSS pixels, device pixels to one of them, whether it is a phone."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=scale, mobile=mobile)  # fmt: skip

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression in the page, awaited where it is a promise."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True,
                         returnByValue=True)  # fmt: skip
        return done["result"].get("value")

    def close(self) -> None:
        """End the browser."""
        self.session = ""
        self.call("Browser.close")
        self.process.wait(timeout=30)

    def _wait(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            while b"\0" not in self.rest:
                data = os.read(self.back, 1 << 16)
                if not data:
                    raise RuntimeError("the browser ended")
                self.rest += data
            first, _, self.rest = self.rest.partition(b"\0")
            message = json.loads(first)
            if wanted(message):
                return message


def add_runs(root: Path, options: argparse.Namespace) -> None:
    """Write ``finished.json`` and ``metrics.csv`` of every fold beside its OOF predictions."""
    from src.files import write_json

    for model in blend.MODELS[: options.models]:
        for fold in range(options.folds):
            history = [
                {"epoch": e, "train_loss": 3 / e, "valid_calibrated_log_loss": fold / 9 + 2 / e}
                for e in range(1, EPOCHS + 1)
            ]
            lines = [",".join(history[0]), *(",".join(map(str, h.values())) for h in history)]
            run = root / model / f"fold{fold}"
            (run / "metrics.csv").write_text("\n".join(lines) + "\n")
            config = {"lr": 1e-4, "batch_size": 16, "image_size": 384, "optimizer": "adamw"}
            write_json(run / "finished.json", {
                "config_hash": "0", "config": config | {"timm_id": model}, "score": 0.6,
                "monitor": "calibrated_log_loss", "best_epoch": EPOCHS, "epochs": EPOCHS,
            })  # fmt: skip


def add_photographs(root: Path) -> None:
    """Make a photograph of 640 × 480 pixels for every row: 32 different ones, linked."""
    import pandas as pd

    made = root / "made"
    made.mkdir()
    names = write_photographs(made, 32)
    images = pd.read_csv(root / "folds.csv", comment="#", dtype=str)["image"]
    for row, image in enumerate(images):
        path = root / image
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(made / names[row % len(names)], path)


def measure_opening(page: Path, rounds: int, profile: Path) -> list[str]:
    """Return a line for each viewport: seconds to the load event, and to a sorted table."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        return ["no chromium here: the page was not opened"]
    lines = []
    for name, viewport in VIEWPORTS.items():
        loaded, sorted_ = [], []
        for number in range(rounds):
            browser = Browser(program, profile / f"{viewport[0]}-{number}")
            browser.resize(*viewport)
            browser.open(page.as_uri())
            load, sort = browser.evaluate(SORT)
            loaded.append(load / 1000)
            sorted_.append(sort / 1000)
            browser.close()
        lines.append(f"{name}: load event {spread(loaded, 2)} s, first sort painted "
                     f"{spread(sorted_, 2)} s after the start of the navigation")  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    blend.add_sizes(parser)
    parser.add_argument("--rounds", type=int, default=7, help="openings in each viewport")
    parser.add_argument("--keep", type=Path, help="folder to work in, which stays")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        blend.make_output(root, options)
        add_photographs(root)
        blend.run_script(root, options)
        add_runs(root, options)
        place = ["--output_dir", str(root), "--data_dir", str(root)]
        written = run_measured(["scripts/report.py", *place])
        page = root / "report" / "index.html"
        print(
            f"\n{blend.describe(options)}\nwritten in {written}\n"
            f"{page.stat().st_size / 1e6:.2f} MB, opened {options.rounds} times in each viewport, "
            "a browser and profile each"
        )
        profile = Path(temporary) / "profile"
        print("\n".join(measure_opening(page, options.rounds, profile)))


if __name__ == "__main__":
    main()
