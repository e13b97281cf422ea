from __future__ import annotations

import os

import pytest

from src.ensemble.studies import Journal
from src.script import UserError


@pytest.fixture
def path(tmp_path):
    journal = Journal(tmp_path / "a.journal", "mine")
    for number in range(4):
        journal.append({"number": number, "score": number / 3})
    Journal(journal.path, "other").append({"number": 9})
    return journal.path


def numbers(path):
    return [record["number"] for record in Journal(path, "mine").records]


def test_records_come_back_exactly_and_by_study(path):
    assert Journal(path, "mine").records[1] == {"number": 1, "score": 1 / 3}
    assert numbers(path) == [0, 1, 2, 3]
    assert Journal(path, "other").records == [{"number": 9}]


def test_a_torn_end_is_cut_without_a_word(path, capsys):
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"checksum": "crc32:0000')
    assert numbers(path) == [0, 1, 2, 3] and path.read_bytes() == whole
    path.write_bytes(whole[:-1])  # the other study's only line
    assert numbers(path) == [0, 1, 2, 3]
    assert not Journal(path, "other").records and not capsys.readouterr().out


@pytest.mark.parametrize("damage", ["digit", "zeros", "noise", "shape", "no seal", "latin"])
def test_a_damaged_line_is_set_aside_and_the_others_stay(path, capsys, damage):
    lines = path.read_bytes().splitlines()
    lines[1] = {
        "digit": lines[1].replace(b"0.333", b"0.334"),
        "zeros": bytes(len(lines[1])),
        "noise": bytes(range(11, 200)),
        "shape": b"[1, 2]",
        "no seal": b'{"study": "mine", "record": {"number": 1}}',
        "latin": lines[1].replace(b"mine", b"m\xefne"),
    }[damage]
    before = b"\n".join(lines) + b"\n"
    path.write_bytes(before)
    assert numbers(path) == [0, 2, 3]
    assert "1 of 5 lines are damaged" in capsys.readouterr().out
    assert path.with_name("a.journal.damaged").read_bytes() == before
    assert numbers(path) == [0, 2, 3] and not capsys.readouterr().out


def test_only_a_regular_file_is_written_to(tmp_path):
    target = tmp_path / "precious"
    target.write_text("")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(UserError, match="no regular file"):
        Journal(tmp_path / "link", "x").append({})
    assert target.read_bytes() == b""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="no regular file"):
        Journal(tmp_path / "pipe", "x")
