from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from src.runs import Output, own_file, own_folder, refuse_file, safe_name
from src.script import UserError

ROOT = Path(__file__).parents[1]


def write(path, text="ID,a,b\n"):
    with own_file(path):
        path.write_text(text)


def test_what_was_written_before_is_replaced(tmp_path):
    path = tmp_path / "mine.csv"
    write(path)
    write(path, "ID,a,b\n1,0,1\n")
    assert path.read_text() == "ID,a,b\n1,0,1\n"


def test_a_kill_while_writing_locks_nobody_out(tmp_path):
    path = tmp_path / "mine.csv"
    with pytest.raises(KeyboardInterrupt), own_file(path):
        path.write_text("new")
        raise KeyboardInterrupt
    half = tmp_path / ".mine.csv.4242.tmp"  # of a process that was killed in the middle of it
    half.write_text("ne")
    write(path)
    assert not half.exists()


@pytest.mark.parametrize("text", ["ID,a,b\n", "ID,a,b\n1,0.5,0.5\n", ""])
def test_a_file_of_somebody_else_stays(tmp_path, text):
    path = tmp_path / "sample_submission.csv"
    path.write_text(text)
    with pytest.raises(UserError, match="not what was written there before"):
        write(path, "lost")
    assert path.read_text() == text


def test_what_was_changed_since_stays(tmp_path):
    path = tmp_path / "mine.csv"
    write(path)
    path.write_text("edited for days")
    with pytest.raises(UserError, match="not what was written"):
        refuse_file(path)
    other = tmp_path / "other.csv"  # the mark is of another file
    shutil.copy(tmp_path / ".mine.csv.written", tmp_path / ".other.csv.written")
    other.write_text("days of work")
    with pytest.raises(UserError, match="not what was written"):
        refuse_file(other)


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder", "link to folder"])
def test_nothing_but_a_regular_file_is_replaced(tmp_path, kind, ours):
    path, precious = tmp_path / "out.csv", tmp_path / "precious"
    precious.write_text("mine")
    {
        "link": lambda: path.symlink_to(precious),
        "dangling": lambda: path.symlink_to(tmp_path / "nowhere"),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "link to folder": lambda: path.symlink_to(tmp_path),
    }[kind]()
    before = path.lstat()
    said = "a folder stands where" if ours and "folder" in kind else "--output"
    with pytest.raises(UserError, match=said), own_file(path, ours=ours):
        raise AssertionError
    assert path.lstat() == before and precious.read_text() == "mine"


@pytest.mark.parametrize("name", ["../../mine", "/etc/mine", "a/b", "..", "net"])
def test_a_name_leads_nowhere_out_of_the_output(tmp_path, name):
    output = Output(tmp_path)
    for path in (output.micro_report(name), output.trials(name).parent, output.scenes(name)):
        assert path.resolve().parent in (tmp_path, tmp_path / "data")
    assert output.micro_report("net").name == "net-report.md"


@pytest.mark.parametrize("name", [".", "", "/", "nowhere/out.csv"])
def test_places_that_are_no_file_in_a_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--output"):
        refuse_file(type(tmp_path)(name))


def take(path, inner, *, ours=False):
    with own_folder(path, inner, ours=ours):
        pass


def test_a_folder_is_taken_if_it_is_empty_or_was_made_before(tmp_path):
    for _ in range(2):
        take(tmp_path / "new" / "masks", ("masks",))
    (tmp_path / "empty").mkdir()
    take(tmp_path / "empty", ("masks",))
    data = tmp_path / "data"
    (data / "masks").mkdir(parents=True)
    with pytest.raises(UserError, match="not of this program"):
        take(data, ("masks",))
    take(data, ("masks",), ours=True)
    (seen := tmp_path / "seen").mkdir()
    for name in (".DS_Store", "desktop.ini", "Thumbs.db"):
        (seen / name).touch()
    take(seen, ("masks",))
    (tmp_path / "link").symlink_to(data)
    with pytest.raises(UserError, match="a link"):
        take(tmp_path / "link", ())
    (tmp_path / "empty" / "masks").symlink_to(data / "masks")
    with pytest.raises(UserError, match="a link"):
        take(tmp_path / "empty", ("masks",))


def test_what_the_dead_left_beside_a_file_goes(tmp_path):
    left = [tmp_path / ".mine.csv.12.tmp", tmp_path / "..mine.csv.written.12.tmp"]
    for path in left:
        path.touch()
    write(tmp_path / "mine.csv")
    assert not any(path.exists() for path in left)


HELD = """
import sys
from pathlib import Path
from src.runs import own_file
with own_file(Path(sys.argv[1]), ours="ours" in sys.argv): pass
"""


@pytest.mark.parametrize("ours", [False, True])
def test_a_file_has_one_writer_whose_half_written_file_stays(tmp_path, ours):
    path, dead = tmp_path / "net[1].onnx", tmp_path / ".net[1].onnx.12.tmp.fp32.onnx"
    other = tmp_path / ".net1.onnx.12.tmp"  # of another file, that a process writes right now
    for left in (dead, other):
        left.touch()
    with own_file(path, ours=ours):
        half = tmp_path / f".{path.name}.{os.getpid()}.tmp"
        half.write_text("half")
        assert other.exists() and not dead.exists()
        command = [sys.executable, "-c", HELD, str(path), *["ours"] * ours]
        second = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert f"{path} is in use by process {os.getpid()}" in second.stderr
        half.rename(path)
    assert path.read_text() == "half" and not (tmp_path / f".{path.name}.lock").exists()
    refuse_file(path, ours=ours)


def test_a_folder_has_one_writer_and_what_the_dead_left_goes(tmp_path):
    folder = tmp_path / "masks"
    (folder / "masks").mkdir(parents=True)
    left = [folder / "..written.12.tmp", folder / "masks" / ".a.png.12.tmp"]
    left[0].touch()  # killed before the mark was whole, it is no folder of somebody else
    (folder / "masks").rmdir()
    take(folder, ("masks",))
    left[1].parent.mkdir()
    left[1].touch()
    with own_folder(folder, ("masks",)):
        assert not any(path.exists() for path in left)
        code = "import sys; from pathlib import Path; from src.runs import own_folder\n"
        code += "with own_folder(Path(sys.argv[1]), ()): pass"
        second = subprocess.run(
            [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, cwd=ROOT
        )
        assert f"in use by process {os.getpid()}" in second.stderr
    take(folder, ("masks",))


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("a/b:c", "a_b_c"), ("..", "_"), (".a.", "a"), ("con", "_con"), ("Aux.v2", "_Aux.v2"),
        ("com1", "_com1"), ("console", "console"),
    ],
)  # fmt: skip
def test_a_name_is_a_folder_on_windows_too(name, folder):
    assert safe_name(name) == folder
