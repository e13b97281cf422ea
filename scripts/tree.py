"""Tree of the files with the first line of each docstring: python scripts/tree.py --write.

Prints the tree, or writes it between the markers of docs/architecture.md.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- tree begins -->\n```\n", "```\n<!-- tree ends -->"
ROOMS = {
    "src": "the import package: base modules, then packages in the order data pass them",
    "src/data": "RAW IMAGES → BATCHES",
    "src/data/sources": "layouts of mask data: data sets, folders, annotation formats",
    "src/models": "EVERYTHING WITH WEIGHTS: image → logits",
    "src/models/micro": "families of nets under 10,000 parameters",
    "src/losses": "output and target → a gradient",
    "src/metrics": "output and target → a number to read",
    "src/tasks": "WHAT IS LEARNED: how a batch becomes a loss or a prediction",
    "src/engine": "HOW: steps, devices, processes, checkpoints",
    "src/ensemble": "MANY PREDICTIONS → ONE SUBMISSION",
    "src/pipelines": "WHAT SCRIPTS JOIN",
    "src/pipelines/classification": "trains, predicts and submits photographs",
    "src/pipelines/segmentation": "trains, predicts and scores masks",
    "src/pipelines/deploy": "a finished run as one file, and on a video",
    "scripts": "helpers around the main job",
    "benchmarks": "measurements side by side; benchmarks/results.md",
}
ORDER = ("data", "models", "losses", "metrics", "tasks", "engine", "ensemble", "pipelines")
WIDTH, COLUMN = 110, 34


def main() -> None:
    """Print the tree, or write it into the document."""
    tree = draw()
    if "--write" not in sys.argv:
        print(tree, end="")
        return
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    DOCUMENT.write_text(before + BEGIN + tree + END + rest.split(END)[1], encoding="utf-8")


def draw() -> str:
    """Return the tree as text."""
    lines = [line(path, 0) for path in sorted(ROOT.glob("*.py"))]
    for folder in ("src", "scripts", "benchmarks"):
        lines += room(ROOT / folder, 0)
    return "\n".join(lines) + "\n"


def room(folder: Path, depth: int) -> list[str]:
    """Return the lines of a folder: its files, then its folders."""
    place = folder.relative_to(ROOT).as_posix()
    lines = [entry(f"{folder.name}/", ROOMS[place], depth)]
    lines += [line(path, depth + 1) for path in sorted(folder.glob("*.py"))]
    inner = [path for path in folder.iterdir() if any(path.rglob("*.py"))]
    for path in sorted(inner, key=lambda p: (_place(p.name), p.name)):
        lines += room(path, depth + 1)
    return lines


def line(path: Path, depth: int) -> str:
    """Return a file's name and the first line of its docstring."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return entry(path.name, " ".join(doc.split("\n\n")[0].split()), depth)


def entry(name: str, text: str, depth: int) -> str:
    """Return one entry, its text wrapped beside the name."""
    left = "  " * depth + name
    lines = textwrap.wrap(text, WIDTH - COLUMN) or [""]
    rows = [f"{left:<{COLUMN - 1}} {lines[0]}", *(" " * COLUMN + more for more in lines[1:])]
    return "\n".join(row.rstrip() for row in rows)


def _place(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)


if __name__ == "__main__":
    main()
