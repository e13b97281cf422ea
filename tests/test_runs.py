from __future__ import annotations

import os
import shutil

import pytest

from src.runs import own_file, own_folder, refuse_file
from src.script import UserError


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


@pytest.mark.parametrize("name", [".", "", "/", "nowhere/out.csv"])
def test_places_that_are_no_file_in_a_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--output"):
        refuse_file(type(tmp_path)(name))


def test_a_folder_is_taken_if_it_is_empty_or_was_made_before(tmp_path):
    for _ in range(2):
        own_folder(tmp_path / "new" / "masks", ("masks",))
    (tmp_path / "empty").mkdir()
    own_folder(tmp_path / "empty", ("masks",))
    data = tmp_path / "data"
    (data / "masks").mkdir(parents=True)
    with pytest.raises(UserError, match="not of this program"):
        own_folder(data, ("masks",))
    own_folder(data, ("masks",), ours=True)
    (tmp_path / "link").symlink_to(data)
    with pytest.raises(UserError, match="a link"):
        own_folder(tmp_path / "link", ())
    (tmp_path / "empty" / "masks").symlink_to(data / "masks")
    with pytest.raises(UserError, match="a link"):
        own_folder(tmp_path / "empty", ("masks",))
