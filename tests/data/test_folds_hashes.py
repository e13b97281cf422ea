import hashlib
import ntpath
import os
import shutil
import time
import timeit
from functools import partial

import pandas as pd
import pytest

from src.data.folds import PIECE, file_marks
from tests.data.layout import refused


def name(*images):
    return pd.DataFrame({"image": images}, dtype="str")


@pytest.mark.parametrize("size", [1, PIECE, 3 * PIECE, 3 * PIECE + 1, 200_000])
def test_content_and_size_make_the_mark_and_times_do_not(tmp_path, size):
    table = name("a")
    data = bytearray(os.urandom(size))
    (tmp_path / "a").write_bytes(data)
    mark = file_marks(table, tmp_path)
    assert len(mark[0]) == 16
    os.utime(tmp_path / "a", (1, 1))
    shutil.copy(tmp_path / "a", tmp_path / "b")
    assert file_marks(name("a", f"{tmp_path}/b"), tmp_path) == mark * 2
    for place in {0, size // 2, size - 1}:
        changed = bytearray(data)
        changed[place] ^= 1
        (tmp_path / "a").write_bytes(changed)
        assert file_marks(table, tmp_path) != mark
    (tmp_path / "a").write_bytes(data + b"0")
    assert file_marks(table, tmp_path) != mark


def test_windows_reads_bytes_and_drives(tmp_path, monkeypatch):
    """What is not opened as binary ends there at the first 0x1a, a PNG's seventh byte."""
    opened = {}

    def open_file(path, flags):
        opened[path] = flags & os.O_BINARY
        return descriptor(tmp_path / "a.png", flags & ~os.O_BINARY)

    (tmp_path / "a.png").write_bytes(b"1")
    descriptor = os.open
    monkeypatch.setattr(os, "O_BINARY", 1 << 30, raising=False)
    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "path", ntpath)
    file_marks(name("a.png", "C:/extra/b.png"), "D:/data")
    assert {path.replace("\\", "/"): bool(flag) for path, flag in opened.items()} == {
        "D:/data/a.png": True,
        "C:/extra/b.png": True,
    }


def test_what_is_no_file_has_no_mark(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    names = ("gone", "folder", "link", "pipe")
    assert file_marks(name(*names), tmp_path, optional=range(4)) == [""] * 4
    for image in names:
        refused(f"{image} cannot be read", file_marks, name(image), tmp_path)


def test_pieces_are_read_faster_than_whole_files(tmp_path):
    for number in range(1000):
        (tmp_path / f"{number}.jpg").write_bytes(os.urandom(60_000))
    table = name(*(f"{number}.jpg" for number in range(1000)))

    def read_whole():
        for image in table["image"]:
            hashlib.blake2b((tmp_path / image).read_bytes(), digest_size=8).hexdigest()

    pieces, whole = (
        min(timeit.repeat(work, timer=time.process_time, number=1, repeat=5))
        for work in (partial(file_marks, table, tmp_path), read_whole)
    )
    assert pieces < 0.8 * whole  # 0.3 of it, measured
