"""An error of the system is said as what it is: never damage, never a reason to delete anything."""

from __future__ import annotations

import builtins
import errno
import io
import os
import pathlib
from pathlib import Path

import numpy as np
import pytest

import src.files
from src.data.csv_io import read_csv
from src.data.decode import decode_image, decode_mask
from src.data.folds import file_marks, read_folds
from src.engine.checkpoint import load_state
from src.engine.weights import load_weights
from src.ensemble.predictions import open_oof
from src.ensemble.studies import Journal
from src.ensemble.weights import read_weights
from src.files import patiently, read_json
from src.metrics.counts import load_counts
from src.models.pretrained import read_state
from src.pipelines.run_folder import read_table
from src.reader import read_yaml
from src.runs import Run, read_config

READERS = {
    "a.csv": read_csv,
    "folds.csv": read_folds,
    "a.jpg": decode_image,
    "a.npy": decode_mask,
    "b.jpg": lambda path: file_marks({"image": np.array([path.name])}, path.parent),
    "a.yaml": read_yaml,
    "a.safetensors": read_state,
    "finished.json": read_json,
    "weights.json": read_weights,
    "oof.npz": open_oof,
    "oof_counts.npz": load_counts,
    "best.safetensors": load_weights,
    "last.pt": lambda path: load_state(Run(path.parent)),
    "config.yaml": lambda path: read_config(Run(path.parent)),
    "a.journal": lambda path: Journal(path, "x"),
}


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ENOMEM])
@pytest.mark.parametrize("name", READERS)
def test_no_reader_takes_it_for_damage(tmp_path, monkeypatch, name, code):
    path = tmp_path / name
    path.write_bytes(b"something" * 20)

    def refusing(function):
        def call(place, *args, **kwargs):
            if str(place) == str(path):
                raise OSError(code, os.strerror(code), str(place))
            return function(place, *args, **kwargs)

        return call

    monkeypatch.setattr(builtins, "open", refusing(open))
    monkeypatch.setattr(io, "open", builtins.open)
    if hasattr(pathlib, "_NormalAccessor"):  # Python 3.10 keeps references of its own
        monkeypatch.setattr(pathlib._NormalAccessor, "open", staticmethod(builtins.open))
    monkeypatch.setattr(os, "open", refusing(os.open))
    monkeypatch.setattr(src.files, "_PAUSES", (0.0, 0.0))
    with pytest.raises(OSError, match="a") as caught:
        READERS[name](path)
    assert caught.value.errno == code and not isinstance(caught.value, ValueError)


def test_what_passes_is_waited_for(monkeypatch):
    monkeypatch.setattr(src.files, "_PAUSES", (0.0, 0.0))
    left = [errno.EIO, errno.ESTALE]

    def read():
        if left:
            raise OSError(left.pop(), "")
        return "read"

    assert patiently(read) == "read"


def test_a_folder_that_may_not_be_listed(tmp_path, monkeypatch):
    from src.data.files import find_entry

    def scan(_: Path):
        raise OSError(errno.EIO, "Input/output error", str(tmp_path))

    monkeypatch.setattr(os, "listdir", scan)
    with pytest.raises(OSError, match="Input/output"):
        find_entry(tmp_path, "train")


@pytest.mark.parametrize("name", sorted(set(READERS) - {"a.jpg", "b.jpg", "a.npy", "folds.csv"}))
def test_a_pipe_is_never_waited_for(tmp_path, name):
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(ValueError, match="a"):
        READERS[name](path)


def test_nor_is_one_among_tables(tmp_path):
    os.mkfifo(tmp_path / "metrics.csv")
    assert read_table(tmp_path / "metrics.csv") == []
