"""A virtual environment filled from a requirements file: what ``make install`` runs.

Where there is no make (Windows): ``python scripts/setup.py``, then the two commands that it prints.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"


def main() -> int:
    """Create the environment and install, or write down what is installed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("requirements", nargs="?", help="file [requirements-test.txt]")
    parser.add_argument("--venv", default=".venv", help="folder of the environment [.venv]")
    parser.add_argument("--locked", action="store_true", help="the versions in requirements.lock")
    parser.add_argument("--oldest", action="store_true", help="the floors of requirements.txt")
    parser.add_argument("--write-lock", action="store_true", help="write requirements.lock")
    args = parser.parse_args()
    if sys.version_info < (3, 10):  # noqa: UP036 (whoever runs it may have an older one)
        found = platform.python_version()
        print(f"Python 3.10 or newer is needed, this is {found}: start a newer one, for instance")
        print("    python3.12 scripts/setup.py      or  make PYTHON=python3.12 demo")
        return 2
    if args.write_lock:
        LOCK.write_text(freeze(), encoding="utf-8")
        return 0
    os.chdir(ROOT)
    folder = Path(args.venv)
    python = make_environment(folder)
    constraints = LOCK if args.locked else None
    if args.oldest:
        constraints = folder / "oldest.txt"
        pins = pin_floors(Path("requirements.txt").read_text(encoding="utf-8"))
        constraints.write_text(pins, encoding="utf-8")
    install(python, args.requirements or "requirements-test.txt", constraints)
    if not args.requirements:  # nobody's make goes on from here
        print(f"installed; next: {python} {Path('scripts/demo.py')}")
        print(f"             or: {python} -m pytest")
    return 0


def make_environment(folder: Path) -> Path:
    """Create the environment if it is missing; return its interpreter."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    uv = shutil.which("uv")
    if uv and not python.exists():
        run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
    elif not uv and not any(python.parent.glob("pip*")):
        run([sys.executable, "-m", "venv", str(folder)])
    return python


def install(python: Path, requirements: str, constraints: "Path | None") -> None:
    """Install a requirements file, by uv where there is one, else by pip."""
    print(f"installing {requirements} into {python.parents[1]} (some gigabytes the first time)")
    uv = shutil.which("uv")
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    if uv:  # compiled once here, or every start pays for it
        command = [uv, "pip", "install", "--python", str(python), "--compile-bytecode"]
    command += ["--quiet"] if not sys.stdout.isatty() else []  # else its progress is seen
    command += ["-r", requirements]
    run(command + (["-c", str(constraints)] if constraints else []))


def run(command: "list[str]") -> None:
    """Run a command that says itself what went wrong."""
    sys.stdout.flush()
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"could not set up the environment: this failed: {' '.join(command)}")


def pin_floors(requirements: str) -> str:
    """Return requirements with each floor as the only version: ``a>=1.2,<3`` as ``a==1.2``."""
    return re.sub(r">=([\w.]+).*", r"==\1", requirements)


def freeze() -> str:
    """Return this interpreter's packages as constraints, one ``name==version`` a line.

    As constraints they hold on other platforms too: what is not needed there is not installed.
    """
    from importlib import metadata  # Python 3.7 lacks it

    python, system = platform.python_version(), platform.system()
    lines = [
        f"# The versions the tests last passed with (make lock), on Python {python}, {system}.",
        "# Constraints, for Python 3.11 and newer: make install LOCKED=1",
    ]
    found = {f"{d.name}=={d.version.split('+')[0]}" for d in metadata.distributions()}
    tools = ("pip==", "setuptools==", "uv==")
    lines += sorted((line for line in found if not line.startswith(tools)), key=str.lower)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
