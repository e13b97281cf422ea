"""Seals: a changed byte of a file that carries its own checksum is found wherever it is read."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from src.engine.weights import load_weights, save_weights
from src.ensemble.studies import Journal
from src.files import (
    SEAL,
    describe_file,
    hold,
    is_sound,
    map_array,
    read_json,
    read_small,
    replacing,
    seal,
    write_json,
)
from src.runs import Run, read_config
from src.script import UserError, say_system

CONTENT = {"weight": 0.25, "names": ["a", "고양이"]}


def test_every_changed_digit_is_refused_or_harmless(tmp_path: Path) -> None:
    """Each byte in turn has its lowest bit flipped, as 0.25 becomes 0.35."""
    path = tmp_path / "weights.json"
    write_json(path, CONTENT)
    whole, refused = path.read_bytes(), 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert {k: v for k, v in read_json(path).items() if k in CONTENT} == CONTENT
        except UserError as error:
            assert "weights.json" in str(error)
            refused += 1
    assert refused > len(whole) / 2


def test_an_edit_on_purpose_is_taken_as_the_refusal_says(tmp_path: Path) -> None:
    path = tmp_path / "weights.json"
    write_json(path, CONTENT)
    edited = json.loads(path.read_text(encoding="utf-8")) | {"weight": 0.5}
    path.write_text(json.dumps(edited), encoding="utf-8")
    with pytest.raises(UserError, match='take its "checksum" out'):
        read_json(path)
    del edited["checksum"]
    path.write_text(json.dumps(edited), encoding="utf-8")
    assert read_json(path)["weight"] == 0.5


def test_a_changed_weight_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save_weights(path, {"w": torch.arange(8.0)}, {})
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
    with pytest.raises(UserError, match="checksum does not match"):
        load_weights(path)
    path.write_bytes(whole)
    assert load_weights(path)["w"].tolist() == list(range(8))


def test_a_changed_option_of_a_run_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    text = f"# {SEAL}\noptions: {{lr: 0.001}}\nresolved: {{image_size: 224}}\nruntime: {{}}\n"
    run.config.write_bytes(seal(text.encode()))
    assert read_config(run)["resolved"]["image_size"] == 224
    run.config.write_bytes(run.config.read_bytes().replace(b"224", b"225"))
    with pytest.raises(UserError, match="damaged"):
        read_config(run)


def test_what_carries_no_seal_is_taken_as_it_is() -> None:
    assert is_sound(b"written by hand") and not is_sound(b"crc32:00000000 of something else")


def test_whatever_damage_a_header_has_is_one_kind_of_error(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(600, dtype=np.uint8))
    whole = path.read_bytes()
    for place in range(128):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            with contextlib.suppress(ValueError):
                map_array(path)
    with pytest.raises(ValueError, match="regular"):
        map_array(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 21) + 7])
def test_a_file_is_known_by_all_its_bytes(tmp_path: Path, size: int) -> None:
    content = np.random.default_rng(0).bytes(size)
    (tmp_path / "f").write_bytes(content)
    known = {"bytes": size, "crc32": f"{zlib.crc32(content):08x}"}
    assert describe_file(tmp_path / "f") == known


def test_a_disk_that_fails_while_it_is_read_is_told_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlike open, read names no file in its error."""
    path = tmp_path / "f"
    path.write_bytes(b"x")
    real = os.fdopen

    def failing(descriptor: int, *rest: object, **named: object) -> object:
        real(descriptor, "rb").close()
        return Failing()

    class Failing(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def readinto(self, buffer: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdopen", failing)
    monkeypatch.setattr(Path, "open", lambda *_, **__: Failing())
    for read in (describe_file, lambda place: read_small(place, 10)):
        with pytest.raises(OSError, match="Input/output error") as error:
            read(path)
        assert error.value.filename == str(path) and str(path) in say_system(error.value)


@pytest.mark.filterwarnings("error")  # Python 3.13 shows what a file that nobody closed says then
def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    """A limit of no bytes on the size of files stands for the disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = Journal(tmp_path / "a.journal", "x")
    (tmp_path / "a.journal").touch()
    lock = hold(tmp_path / ".lock", "the run")
    for place, write in (
        (".lock", lock.__enter__), ("a.json", lambda: write_json(tmp_path / "a.json", {})),
        ("a.journal", lambda: journal.append({"a": 1})),
    ):  # fmt: skip
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large") as error:
                write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert error.value.filename == str(tmp_path / place)


@pytest.mark.parametrize(("times", "whole"), [(2, True), (3, False)])
def test_windows_replaces_a_file_when_its_reader_has_left(
    times: int, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that is written anew, a virus scanner: they have a file open for a moment."""
    path, move, refused = tmp_path / "metrics.csv", os.replace, []

    def replace(*paths: Path) -> None:
        if len(refused) < times:
            refused.append(paths)
            raise PermissionError(errno.EACCES, "Access is denied", str(paths[0]))
        move(*paths)

    with monkeypatch.context() as played, contextlib.suppress(PermissionError):
        played.setattr(os, "name", "nt")
        played.setattr(Path, "replace", lambda here, there: replace(here, there))
        with replacing(path) as temporary:
            temporary.write_bytes(b"whole")
    assert path.exists() == whole and len(list(tmp_path.iterdir())) == whole
