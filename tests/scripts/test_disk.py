"""A full disk, a read-only one, no permission, input that vanishes: one line, nothing lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fingerprint import fingerprint
from src.ensemble.predictions import atomic_array
from src.files import atomic_write
from tests.scripts.conftest import Place


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True, timeout=20)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return ``disk(options)``: mounts, or remounts, a small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def set_disk(options: str) -> Path:
        nonlocal mounted
        if mounted:
            mount("-o", f"remount,{options}", str(folder))
            return folder
        try:
            mount("-t", "tmpfs", "-o", options, "tmpfs", str(folder))
        except (OSError, subprocess.SubprocessError):
            pytest.skip("NOT TESTED: mounting a small disk needs root")
        mounted = True
        return folder

    yield set_disk
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False, timeout=20)


def fill(folder: Path, *, leave: int) -> Path:
    """Leave only so many bytes free; return the file that takes the rest."""
    ballast = folder / "ballast"
    free = shutil.disk_usage(folder).free
    ballast.write_bytes(bytes(max(0, free - leave)))
    return ballast


@pytest.mark.parametrize("leave", [0, 8_192, 200_000, 1_400_000, 3_500_000])
def test_training_on_a_full_disk(place: Place, disk: Any, leave: int) -> None:
    """Whatever is written when the disk fills: fold 1 stays whole and fold 0 goes on later."""
    small = disk("size=64m")
    expected = fingerprint(place.output)
    shutil.copytree(place.output, small / "output")
    shutil.rmtree(small / "output" / "test_resnet" / "fold0")
    there = Place(place.data, small / "output", place.call)
    before = there.whole_results()
    ballast = fill(small, leave=leave)
    prediction = there.train("--checkpoint_minutes", "0")
    assert prediction.status == 1 and prediction.is_one_line("No space left on device", "output")
    after = there.whole_results()
    assert {k: v for k, v in after.items() if "fold0" not in k} == before
    assert not [p.name for p in there.run.glob(".*.tmp")]
    ballast.unlink()
    assert there.train().status == 0
    assert there.infer().status == 0
    assert fingerprint(there.output) == expected


@pytest.mark.parametrize("leave", [0, 4_096])
def test_blend_and_submission_on_a_full_disk(place: Place, disk: Any, leave: int) -> None:
    small = disk("size=16m")
    shutil.copytree(place.output, small / "output")
    there = Place(place.data, small / "output", place.call)
    before = there.whole_results()
    ballast = fill(small, leave=leave)
    for prediction in (there.optimize(), there.infer()):
        assert prediction.status in (0, 1)
        assert prediction.status == 0 or prediction.is_one_line("No space left on device")
    if not leave:
        assert there.optimize().status == there.infer().status == 1
    ballast.unlink()
    assert there.whole_results() == before


def test_a_read_only_output(place: Place, disk: Any) -> None:
    small = disk("size=16m")
    shutil.copytree(place.output, small / "output")
    there = Place(place.data, small / "output", place.call)
    before = there.whole_results()
    disk("ro")
    for prediction in (there.train("--name", "x"), there.optimize(), there.infer()):
        assert prediction.status == 1 and prediction.is_one_line("Read-only file system", "output")
    assert there.train().status == 0  # finished: there is nothing to write
    assert there.whole_results() == before


@contextmanager
def nobody(tmp_path: Path) -> Iterator[None]:
    """Make this process a user who may enter ``tmp_path`` and no more.

    No fixture: between a test and the ends of fixtures pytest may write to a folder of root.
    """
    modes = {path: path.stat().st_mode for path in (tmp_path, *tmp_path.parents)}
    modes = {path: mode for path, mode in modes.items() if not mode & 0o001}
    if os.geteuid() == 0:  # root may write anywhere
        for path, mode in modes.items():
            path.chmod(mode | 0o055)
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(os.getuid())
        if os.geteuid() == 0:
            for path, mode in modes.items():
                path.chmod(mode)


def test_no_permission(place: Place, tmp_path: Path) -> None:
    """As a user who may read everything and write nothing."""
    for path in (place.output, *place.output.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = place.whole_results()
    with nobody(tmp_path):
        predictions = [place.train("--name", "x"), place.optimize(), place.infer()]
    for prediction in predictions:
        assert prediction.status == 1 and prediction.is_one_line(
            "Permission denied", str(place.output)
        )
    assert place.whole_results() == before


def test_input_that_may_not_be_read(place: Place, tmp_path: Path) -> None:
    image = place.data / "test" / "033.png"
    image.chmod(0)
    for path in place.output.rglob("test.json"):
        path.unlink()
    for path in (place.output, *place.output.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    with nobody(tmp_path):
        prediction = place.infer()
    assert prediction.status == 1 and prediction.is_one_line("033.png: Permission denied")


@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_images_that_vanish_while_training(
    fresh: Place, monkeypatch: Any, num_workers: str
) -> None:
    import src.engine.loop as loop

    close_epoch = loop.close_epoch

    def vanish(parts: Any, job: Any) -> Any:
        row = close_epoch(parts, job)
        if (fresh.data / "train").exists():
            (fresh.data / "train").rename(fresh.data / "elsewhere")
        return row

    monkeypatch.setattr(loop, "close_epoch", vanish)
    prediction = fresh.train("--num_workers", num_workers, "--checkpoint_minutes", "0")
    assert prediction.status == 2 and prediction.is_one_line(".png")
    (fresh.data / "elsewhere").rename(fresh.data / "train")
    monkeypatch.undo()
    again = fresh.train()
    assert again.status == 0 and "resuming" in again.out


@pytest.mark.parametrize("write", [atomic_write, atomic_array])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, write: Any) -> None:
    import numpy as np

    path = tmp_path / "x.npy"
    np.save(path, np.arange(3))
    before = path.read_bytes()
    options = ((4,), np.float16) if write is atomic_array else ()
    with pytest.raises(ZeroDivisionError), write(path, *options) as content:
        if write is atomic_write:
            content.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with write(path, *options):
        assert len(list(tmp_path.glob(".x.npy.*.tmp"))) == 1
    assert path.read_bytes() != before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fails", [False, True])
def test_a_map_is_closed_before_its_file_is_renamed_or_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """As Windows wants it."""
    import contextlib

    import numpy as np

    closed: list[bool] = []
    for name in ("replace", "unlink"):
        original = getattr(Path, name)
        monkeypatch.setattr(
            Path, name, lambda *a, f=original, **k: (closed.append(mapped.closed), f(*a, **k))[1]
        )
    with contextlib.suppress(ZeroDivisionError):  # noqa: SIM117  # the map is made inside
        with atomic_array(tmp_path / "x.npy", (4,), np.float16) as array:
            mapped = array._mmap
            array[:] = 3
            if fails:
                raise ZeroDivisionError
    assert closed == [True]
    if not fails:
        assert np.load(tmp_path / "x.npy").tolist() == [3] * 4
