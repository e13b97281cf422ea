"""What Windows and macOS lack: found in the source, and taken away from the main job."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.kill_resume import MODEL
from src.files import hold
from src.script import UserError
from tests.scripts.conftest import Place, call, fresh, template, weights

__all__ = ["call", "fresh", "template", "weights"]  # fixtures
ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    [*ROOT.glob("*.py"), *(p for d in ("src", "scripts") for p in ROOT.glob(f"{d}/**/*.py"))]
)

MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix"}
NAMES = {  # of os and signal: what Windows, and of a few what macOS lacks
    *("fork", "forkpty", "killpg", "getpgid", "setpgid", "setsid", "getsid", "getuid", "geteuid"),
    *("getgid", "getegid", "setuid", "setgid", "uname", "mkfifo", "mknod", "chown", "fchown"),
    *("lchown", "nice", "statvfs", "fstatvfs", "getloadavg", "posix_fallocate", "posix_fadvise"),
    *("sched_getaffinity", "sched_setaffinity", "sysconf", "pread", "pwrite", "sendfile"),
    *("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECT", "O_SYNC", "WIFEXITED", "WNOHANG"),
    *("SIGHUP", "SIGKILL", "SIGALRM", "SIGCHLD", "SIGUSR1", "SIGUSR2", "SIGSTOP", "SIGCONT"),
    *("SIGQUIT", "SIGPIPE", "SIGBUS", "pthread_sigmask", "setitimer", "alarm", "pause"),
    *("sigwait", "pthread_kill", "siginterrupt", "O_BINARY", "startfile"),
}  # fmt: skip
GUARD = re.compile(
    r"hasattr\(|sys\.platform|os\.name|platform\.system|except ImportError|is_dir\(\)|\.exists\(\)"
)
DEVICE = re.compile(r"/(dev|proc|sys|tmp)(/.*)?")


def unguarded(source: str) -> list[str]:
    """Return the uses in ``source`` of what one platform has, in a block that asks for nothing.

    A block is a function, or a statement of the module.
    """
    found = []
    for block in _blocks(ast.parse(source).body):
        names = [name for node in ast.walk(block) for name in _uses(node)]
        if names and not GUARD.search(ast.get_source_segment(source, block) or ""):
            found += names
        calls = [node for node in ast.walk(block) if isinstance(node, ast.Call)]
        found += [f"line {c.lineno}: text without encoding" for c in calls if _opens_text(c)]
    return found


def _blocks(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _blocks(node.body)
        else:
            yield node


def _uses(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        if node.value.id in ("os", "signal") and node.attr in NAMES:
            yield f"{node.value.id}.{node.attr}"
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in MODULES)
    elif isinstance(node, ast.ImportFrom):
        if node.module in MODULES:
            yield str(node.module)
        elif node.module in ("os", "signal"):
            yield from (a.name for a in node.names if a.name in NAMES)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        if DEVICE.fullmatch(node.value):
            yield node.value
    elif isinstance(node, ast.keyword) and node.arg in ("preexec_fn", "start_new_session"):
        yield node.arg


def _opens_text(node: ast.Call) -> bool:
    """Tell whether a call reads or writes text in the machine's own encoding (cp949, cp1252)."""
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    if any(keyword.arg == "encoding" for keyword in node.keywords):
        return False
    if name == "read_text":
        return not node.args
    if any(keyword.arg == "text" for keyword in node.keywords):  # what a process prints
        return True
    if name == "open" and node.args and isinstance(node.args[0], ast.Constant):
        return (
            isinstance(node.args[0].value, str)
            and re.fullmatch(r"[rwax]\+?", node.args[0].value) is not None
        )
    return False


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_of_one_platform_is_used_unasked(path: Path) -> None:
    assert not unguarded(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line",
    [
        "import fcntl", "from resource import getrusage", "def f(): return os.getloadavg()",
        "class A:\n    def f(self): os.kill(1, signal.SIGKILL)", "x = Path('/dev/null')",
        "path.read_text()", "path.open('w')", "from signal import SIGHUP",
        "subprocess.run(command, start_new_session=True)", "subprocess.run(command, text=True)",
    ],
)  # fmt: skip
def test_such_a_use_is_found(line: str) -> None:
    assert len(unguarded(line)) == 1


# ---------------------------------------------------------------------------- locks of Windows

WINDOWS = """
import fcntl, os, sys, time
from pathlib import Path

class Msvcrt:
    LK_NBLCK = 2

    @staticmethod
    def locking(descriptor, mode, number):
        assert mode == Msvcrt.LK_NBLCK
        place = os.lseek(descriptor, 0, os.SEEK_CUR)
        try:
            POSIX.lockf(descriptor, POSIX.LOCK_EX | POSIX.LOCK_NB, number, place)
        except OSError:
            raise PermissionError(13, "Permission denied") from None

POSIX = fcntl
sys.modules |= {"fcntl": None, "msvcrt": Msvcrt}
from src.files import hold
with hold(Path(sys.argv[1]), "it", wait=sys.argv[2] == "wait"):
    print("mine", flush=True)
    time.sleep(float(sys.argv[3]))
"""


@pytest.fixture
def windows() -> Iterator[Callable[..., subprocess.Popen]]:
    """Return ``windows(lock, how, seconds)``: a process that has msvcrt and no fcntl."""
    pytest.importorskip("fcntl")  # what msvcrt is played by
    started = []

    def start(*arguments: object) -> subprocess.Popen:
        command = [sys.executable, "-c", WINDOWS, *map(str, arguments)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, cwd=ROOT, text=True, **streams))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_lock_of_windows_names_its_holder_and_dies_with_it(
    tmp_path: Path, windows: Callable
) -> None:
    lock = tmp_path / ".lock"
    holder = windows(lock, "now", 60)
    assert holder.stdout.readline() == "mine\n"
    _, refusal = windows(lock, "now", 0).communicate(timeout=120)
    assert f"it is in use by process {holder.pid} on" in refusal
    waiter = windows(lock, "wait", 0)
    time.sleep(1.0)
    assert waiter.poll() is None
    holder.kill()
    assert waiter.communicate(timeout=120)[0] == "mine\n"
    with hold(lock, "it"):
        pass


def test_both_locks_are_of_one_process(tmp_path: Path, windows: Callable) -> None:
    holder = windows(tmp_path / "a", "now", 60)
    assert holder.stdout.readline() == "mine\n"
    with hold(tmp_path / "b", "another"):
        pass
    with pytest.raises(UserError), hold(tmp_path, "a folder"):
        pass


# ---------------------------------------------------------------------------- the main job

GONE = {os: ("posix_fallocate", "sched_getaffinity", "getloadavg", "O_NOFOLLOW", "killpg")}
GONE[signal] = ("pthread_sigmask", "setitimer", "SIGALRM", "SIGHUP", "SIGCHLD", "SIGKILL")


@pytest.fixture
def poorer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what Windows lacks; there, nothing that is open or mapped is moved or deleted."""
    for module, names in GONE.items():
        for name in names:
            monkeypatch.delattr(module, name, raising=False)
    monkeypatch.setattr(os, "link", _no_links)
    for name in ("replace", "rename", "unlink"):
        monkeypatch.setattr(Path, name, _refusing(getattr(Path, name)))


def _no_links(*_: object) -> None:
    raise OSError(1, "Incorrect function")


def _refusing(function: Callable) -> Callable:
    def call(*paths: Path, **options: object) -> object:
        used = _in_use()
        for path in paths:
            if os.path.realpath(path) in used:
                raise PermissionError(13, "in use by this process", str(path))
        return function(*paths, **options)

    return call


def _in_use() -> set[str]:
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    used = {line.split(maxsplit=5)[5] for line in maps if line.count("/")}
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            used.add(os.readlink(entry))  # noqa: PTH115
    return used


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="plays Windows on Linux")
def test_the_main_job_without_what_windows_lacks(fresh: Place, weights: Path, poorer: None) -> None:
    flags = ("--fold", "all", "--epochs", "2", "--cache", "disk", "--checkpoint_minutes", "0")
    for answer in (fresh.train(*flags), fresh.optimize(), fresh.infer()):
        assert answer.status == 0, answer.err
    (fresh.output / "weights.json").unlink()
    probe = ("--pretrained", str(weights), "--head_start", "probe")
    again = [
        fresh.train("--name", "b", *flags, *probe),
        fresh.optimize("--trials", "3"),
        fresh.infer(),
    ]
    assert all(answer.status == 0 for answer in again), [answer.err for answer in again]
    assert (fresh.output / MODEL / "fold0" / "finished.json").exists()


def test_what_is_open_cannot_be_moved(tmp_path: Path, poorer: None) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x")
    with path.open("rb"), pytest.raises(PermissionError):
        path.unlink()
    path.unlink()


def test_what_a_shell_reads_is_checked_out_without_crlf() -> None:
    written = (ROOT / ".gitattributes").read_text(encoding="utf-8")
    kept = {line.split()[0] for line in written.splitlines() if line.endswith("text eol=lf")}
    scripts = [*ROOT.glob("scripts/*.sh"), ROOT / ".ci" / "run", ROOT / "Makefile"]
    assert all({f"*{p.suffix}", p.relative_to(ROOT).as_posix()} & kept for p in scripts)
