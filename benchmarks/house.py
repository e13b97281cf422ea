"""Size of the code: files, code lines, uses of ``Any``, repeated blocks, files a command enters.

    python benchmarks/house.py            counts of every room
    python benchmarks/house.py --walks    the files that four commands enter on tiny data, besides

A code line carries code: no blank line, comment or docstring. A block is repeated where at least
eight code lines, imports apart, stand in two places but for their indentation. A command enters a
file of this project when it calls a function of it; what runs while a module is imported does not
count. Each command does its whole job: CSV and images in, checkpoints or a submission out.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import sys
import tempfile
import threading
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.kill_resume import LEARNED, make_competition
from benchmarks.timing import ROOT, print_table

BLOCK = 8  # lines
QUICK = ["--device", "cpu", "--num_workers", "0", "--autotune", "off", "--config", ""]
SCENES = ["--num_scenes", "8", "--num_frames", "2", "--size", "64", "96"]
LANE = ["--pretrained", "none", "--encoder", "tu-test_resnet", "--arch", "unet", "--epochs", "2"]
LANE += ["--resolution", "64x96", "--batch_size", "2"]
NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    tokenize.ENDMARKER,
}


def code_lines(text: str) -> list[int]:
    """Return the numbers of the lines of a module that carry code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return sorted(lines)


def count_any(text: str) -> int:
    """Return how often a module says ``Any``, its import apart."""
    nodes = ast.walk(ast.parse(text))
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)


def repeated_blocks(texts: dict[str, str], length: int = BLOCK) -> list[tuple[str, str]]:
    """Return the places (file:line) of each two blocks of at least ``length`` equal code lines."""
    seen: dict[tuple[str, ...], str] = {}
    found: list[tuple[str, str]] = []
    for name, text in texts.items():
        imports = {
            line
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for line in range(node.lineno, (node.end_lineno or 0) + 1)
        }
        lines = text.splitlines()
        numbers = [number for number in code_lines(text) if number not in imports]
        inside = False  # a longer block is one
        for start in range(len(numbers) - length + 1):
            block = tuple(lines[number - 1].strip() for number in numbers[start : start + length])
            here = f"{name}:{numbers[start]}"
            if block in seen and not inside:
                found.append((seen[block], here))
            inside = block in seen
            seen.setdefault(block, here)
    return found


def room_of(path: Path) -> str:
    """Return the room of a file: ``src/data``, ``scripts``; the ground and the root by name."""
    parts = path.relative_to(ROOT).parts
    return {1: "root scripts", 2: parts[0]}.get(len(parts), "/".join(parts[:2]))


def read_code() -> dict[Path, str]:
    """Return the text of every file of the product: ``src``, ``scripts`` and the root scripts."""
    paths = [*(ROOT / "src").rglob("*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("*.py")]
    return {path: path.read_text(encoding="utf-8") for path in sorted(paths)}


def print_counts() -> None:
    """Print the counts of every room and their sums, then the repeated blocks."""
    texts = read_code()
    rooms: dict[str, Counter[str]] = defaultdict(Counter)
    for path, text in texts.items():
        own = {"files": 1, "code": len(code_lines(text)), "Any": count_any(text)}
        for room in (room_of(path), "all"):
            rooms[room].update(own)
    rows = [
        [room, *(str(count[key]) for key in ("files", "code", "Any"))]
        for room, count in rooms.items()
    ]
    print_table(
        ("room", "files", "code lines", "`Any`"), sorted(rows, key=lambda row: row[0] == "all")
    )
    blocks = repeated_blocks(
        {path.relative_to(ROOT).as_posix(): text for path, text in texts.items()}
    )
    print(f"\nblocks of {BLOCK} lines or more that stand twice: {len(blocks)}")
    for pair in blocks:
        print(" = ".join(pair))


def entered_files(script: str, argv: list[str]) -> set[str]:
    """Run a script's ``main`` and return the files of this project whose functions it called."""
    import importlib

    main = importlib.import_module(script.replace("/", ".")).main
    found: set[str] = set()
    known: dict[CodeType, str] = {}

    def look(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or known.get(code) == "" or known.get(code) in found:
            return
        name = known[code] = own_file(code)
        if name and not importing(frame):
            found.add(name)

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        main(argv)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return found


def own_file(code: CodeType) -> str:
    """Return the file of a function of this project below its root, else nothing."""
    path = Path(code.co_filename)
    is_function = code.co_flags & 0x1  # CO_OPTIMIZED: neither a module nor the body of a class
    if not is_function or not path.is_relative_to(ROOT) or path == Path(__file__):
        return ""
    name = path.relative_to(ROOT).as_posix()
    return name if name.startswith("src/") or "/" not in name else ""


def importing(frame: FrameType) -> bool:
    """Tell whether a module of this project is being imported above ``frame``."""
    modules = {f.f_code.co_filename for f in frames(frame) if f.f_code.co_name == "<module>"}
    return any(Path(name).is_relative_to(ROOT) for name in modules - {__file__})


def frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and all that called it."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def walks(scratch: Path) -> dict[str, list[str]]:
    """Write tiny data; return the four commands in the order they must run."""
    data, lanes = scratch / "data", scratch / "lanes"
    make_competition(data)
    place = ["--data_dir", str(data), "--output_dir", str(scratch / "output")]
    train = ["train_fold", *place, *LEARNED.split(), *QUICK, "--epochs", "2"]
    run_quietly("train_fold", [*train[1:], "--fold", "1"])
    run_quietly("scripts/make_road_scenes", [*SCENES, str(lanes)])
    mask_place = ["--data_dir", str(lanes), "--output_dir", str(scratch / "output")]
    infer = ["--device", "cpu", "--num_workers", "0", "--tta_steps", "2"]
    return {
        "train": [*train, "--fold", "0"],
        "masks": ["train_lane", *mask_place, *QUICK, *LANE],
        "blend": ["optimize_weights", *place, "--trials", "0", "--presets", ""],
        "infer": ["infer_ensemble", *place, *infer],
    }


def run_quietly(script: str, argv: list[str]) -> str:
    """Run a script in a process of its own and return what it printed."""
    command = [sys.executable, f"{script}.py", *argv]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {script}.py: {done.stderr.strip()[-2000:]}")
    return done.stdout


def print_walks() -> None:
    """Run the four commands, each in a process of its own, and print the files they entered."""
    with tempfile.TemporaryDirectory() as text:
        for name, command in walks(Path(text)).items():
            out = run_quietly("benchmarks/house", ["--enter", *command])
            files = out.partition("ENTERED\n")[2].split()
            print(f"\n{name} enters {len(files)} files:\n" + "\n".join(files), flush=True)


def main(argv: list[str]) -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--walks", action="store_true", help="run the four commands, a minute")
    parser.add_argument("--enter", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.enter:
        found = entered_files(args.enter[0], args.enter[1:])
        print("ENTERED", *sorted(found), sep="\n")
        return
    print_counts()
    if args.walks:
        print_walks()


if __name__ == "__main__":
    main(sys.argv[1:])
