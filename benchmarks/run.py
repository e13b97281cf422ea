"""Run every benchmark and write benchmarks/results.md: `make bench`.

    python benchmarks/run.py                         (a quarter of an hour on two quiet cores)
    python benchmarks/run.py --only startup blend    (the other sections stay as they are)

Absolute numbers belong to the machine; the ratios are what the project claims.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import ROOT, describe_machine
from src.files import write_text

# What each predicts, in the order of the report.
BENCHMARKS = {
    "train_step": "Training step beside the compute floor; layout and precision by measurement",
    "input_pipeline": "Input pipeline alone",
    "inference": "Inference with one view and five",
    "blend": "Blend of seven models",
    "growth": "Time and memory while the number of images grows",
    "startup": "Start-up",
    "onnx": "ONNX files beside PyTorch",
    "report": "Report of a large competition, written and opened",
    "gpu_check": "GPU",
}
RESULTS = ROOT / "benchmarks" / "results.md"
SECTION = "\n## "


def run(name: str, flags: list[str]) -> str:
    """Run one benchmark and return its section of the report.

    Raises:
        SystemExit: it failed.
    """
    command = [f"benchmarks/{name}.py", *flags]
    print(f"{' '.join(command)} …", flush=True)
    started = time.monotonic()
    done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"error: {command[0]} failed with {done.returncode}")
    print(done.stdout, flush=True)
    took = time.monotonic() - started
    title = f"{BENCHMARKS[name]}\n\n`python {' '.join(command)}`, {took:.0f} s"
    return f"{title}\n\n{done.stdout.strip()}\n"


def read_sections(path: Path) -> dict[str, str]:
    """Return the sections of an earlier report by benchmark."""
    if not path.exists():
        return {}
    sections = path.read_text(encoding="utf-8").split(SECTION)[1:]
    titles = {title: name for name, title in BENCHMARKS.items()}
    by_title = {section.split("\n", 1)[0]: section for section in sections}
    return {titles[t]: section for t, section in by_title.items() if t in titles}


def write_report(path: Path, sections: dict[str, str]) -> None:
    """Write the machine and the sections."""
    head = (
        "# Measured\n\nWritten by `make bench`. Contestants take turns in one process, so that the "
        "ratios hold where the\nmachine is shared; absolute numbers are this machine's. Median "
        f"(least … most) throughout.\n\n{describe_machine()}\n"
    )
    parts = [SECTION + sections[name] for name in BENCHMARKS if name in sections]
    write_text(path, head + "".join(parts))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    args, flags = parser.parse_known_args(argv)
    if flags and len(args.only) != 1:
        parser.error(f"{flags[0]}: flags are passed on to one benchmark, named by --only")
    sections = read_sections(args.output)
    for name in args.only:
        sections[name] = run(name, flags)
        write_report(args.output, sections)  # what was measured stays, whatever fails later


if __name__ == "__main__":
    main()
