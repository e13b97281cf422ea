"""last.pt: whole or passed over by name, and never executed."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3

from src.engine.checkpoint import MAGIC, Ema, load_state, save_state
from src.engine.weights import load_weights, save_weights
from src.runs import Run
from src.script import UserError, explain
from tests.engine.conftest import Bomb, TinyNet

STATE: dict[str, Any] = {
    "state": {"step": 1}, "model": {"w": torch.arange(4.0)}, "ema": None, "optimizer": {},
    "scaler": {}, "config": {}, "config_hash": "x",
}  # fmt: skip


def sealed(content: bytes) -> bytes:
    """Return ``content`` with the trailer of a whole state, as an attacker could write it."""
    return content + MAGIC + hashlib.sha256(content).digest()


def zipped(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with two states: step 1, and before it step 0."""
    run = Run(tmp_path / "model" / "fold0")
    for step in (0, 1):
        save_state(run, STATE | {"state": {"step": step}})
    return run


def test_two_states_are_kept(run: Run) -> None:
    state, troubles = load_state(run)
    assert state is not None and state["state"]["step"] == 1 and not troubles
    assert torch.load(run.previous, weights_only=True)["state"]["step"] == 0
    assert {p.name for p in run.folder.iterdir()} == {run.last.name, run.previous.name}


def harms(bomb: Path) -> dict[str, tuple[bytes | None, str]]:
    """Return name → (new content of last.pt, what is said); None = cut to half."""
    return {
        "cut": (None, "truncated"),
        "empty": (b"", "truncated"),
        "bit": (b"bit", "checksum does not match"),
        "foreign": (zipped(STATE), "not written by this program"),
        "pickle": (pickle.dumps(Bomb(bomb)), "truncated|not written by this program"),
        "sealed pickle": (sealed(pickle.dumps(Bomb(bomb))), "refused"),
        "sealed bomb": (sealed(zipped(STATE | {"model": Bomb(bomb)})), "refused"),
        "sealed noise": (sealed(b"PK\x03\x04" + bytes(200)), "refused"),
        "sealed other": (sealed(zipped({"step": 3})), "no training state"),
        "sealed list": (sealed(zipped([1, 2])), "no training state"),
        "sealed number": (sealed(zipped(5)), "refused"),
    }


@pytest.mark.parametrize("name", list(harms(Path())))
def test_harm_is_named_and_the_state_before_it_used(run: Run, tmp_path: Path, name: str) -> None:
    bomb = tmp_path / "executed"
    content, message = harms(bomb)[name]
    good = run.last.read_bytes()
    if name == "bit":
        content = good[:300] + bytes([good[300] ^ 1]) + good[301:]
    run.last.unlink()
    run.last.write_bytes(good[: len(good) // 2] if content is None else content)
    state, troubles = load_state(run)
    assert state is not None and state["state"]["step"] == 0
    assert len(troubles) == 1 and str(run.last) in troubles[0]
    assert re.search(message, troubles[0]), troubles[0]
    assert "\n" not in troubles[0] and not bomb.exists()
    run.previous.write_bytes(run.last.read_bytes())
    with pytest.raises(UserError, match=r"no whole checkpoint.*delete the run's folder"):
        load_state(run)
    assert not bomb.exists()


@pytest.mark.parametrize("room", [0, 100, 3000])
def test_a_full_disk_is_an_oserror_that_names_the_file(
    run: Run, monkeypatch: Any, room: int
) -> None:
    """torch turns the disk's error into its own RuntimeError; it must come out as it was."""
    import src.engine.checkpoint as checkpoint

    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    write = checkpoint.HashingWriter.write

    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.left = file, room

        def write(self, data: Any) -> int:
            self.left -= len(data)
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

    def on_full_disk(self: Any, data: Any) -> int:
        if not isinstance(self.file, Full):
            self.file = Full(self.file)
        return write(self, data)

    monkeypatch.setattr(checkpoint.HashingWriter, "write", on_full_disk)
    with pytest.raises(OSError, match="No space left") as error:
        save_state(run, STATE | {"model": {"w": torch.zeros(5000)}})
    assert error.value.filename == str(run.last)
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == before


@pytest.mark.parametrize("harm", ["cut", "pickle", "header", "gone"])
def test_damaged_weights_are_named(tmp_path: Path, harm: str) -> None:
    path, bomb = tmp_path / "best.safetensors", tmp_path / "executed"
    save_weights(path, STATE["model"], {})
    good = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        content = {"cut": good[:-3], "pickle": pickle.dumps(Bomb(bomb)), "header": b"\xff" * 40}
        path.write_bytes(content[harm])
    with pytest.raises(UserError, match=r"best\.safetensors.*train this fold"):
        load_weights(path)
    assert not bomb.exists()


def test_a_run_goes_on_from_the_state_before_a_damaged_one(train: Any, capsys: Any) -> None:
    options = {"epochs": 2, "checkpoint_minutes": 0.0}
    whole, _ = train("whole", **options)
    best = whole.best.read_bytes()
    whole.last.write_bytes(whole.last.read_bytes()[:-50])
    again, state = train("whole", **options)
    assert state.done and again.best.read_bytes() == best
    assert "going on from the state before it" in capsys.readouterr().out


def test_a_state_of_another_network_is_one_line(train: Any) -> None:
    train("run", epochs=1)
    other = TinyNet()
    other.head = torch.nn.Linear(4, 7)
    with pytest.raises(UserError, match=r"of another network.*delete") as error:
        train("run", epochs=1, model=other)
    assert "\n" not in str(error.value)


def test_a_second_name_that_stands_already_leaves_nothing_behind(run: Run) -> None:
    """As after a kill between the two renames: both names are one file."""
    run.previous.unlink()
    os.link(run.last, run.previous)
    save_state(run, STATE | {"state": {"step": 2}})
    assert {p.name for p in run.folder.iterdir()} == {run.last.name, run.previous.name}
    assert torch.load(run.previous, weights_only=True)["state"]["step"] == 1


def test_a_full_card_does_not_make_a_state_foreign(
    train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice was to delete the folder."""

    def fill(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    train(epochs=1)
    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", fill)
    with pytest.raises(torch.OutOfMemoryError):
        train(epochs=1)


@pytest.mark.parametrize("foreign", ["fold1", "other options", "other data", "lost"])
def test_weights_of_another_run_under_the_same_name_are_refused(train: Any, foreign: str) -> None:
    """In a run that goes on: the same network, so that nothing but the identity differs."""
    run, _ = train("run/fold0", epochs=1, split_hash="a")
    other = {"other options": {"lr": 1e-4}, "other data": {"split_hash": "b"}}.get(foreign, {})
    name = "other/fold1" if foreign == "fold1" else "other/fold0"
    strange, _ = train(name, **{"epochs": 1, "split_hash": "a"} | other)
    run.best.unlink()
    if foreign != "lost":
        run.best.write_bytes(strange.best.read_bytes())
    with pytest.raises(UserError, match=r"best\.safetensors: .*delete its folder"):
        train("run/fold0", epochs=1, split_hash="a")
    run.best.write_bytes(train("same/fold0", epochs=1, split_hash="a")[0].best.read_bytes())
    train("run/fold0", epochs=1, split_hash="a")


def test_a_folder_in_place_of_the_earlier_state_is_what_is_named(train: Any) -> None:
    """Not ``last.pt``, which was to be renamed and is a whole state."""
    run, _ = train(epochs=1)
    run.previous.unlink(missing_ok=True)
    (run.previous / "inner").mkdir(parents=True)
    with pytest.raises(IsADirectoryError) as error:
        train(epochs=1)
    assert explain(error.value)[0].startswith(f"error: {run.previous}: Is a directory; ")
    shutil.rmtree(run.previous)
    train(epochs=1)


def test_older_weights_of_the_same_run_are_refused(train: Any, tmp_path: Path) -> None:
    """As a backup brings them back, or a folder that two machines share late."""
    best, seen = Run(tmp_path / "run").best, []

    def look(done: int, epochs: int) -> int:
        seen.append(best.read_bytes() if best.exists() else b"")
        return epochs

    options = {"epochs": 3, "lr": 0.1, "optimizer": "sgd", "ema_decay": 0.0}
    assert train(**options, shorten=look)[1].best_epoch == 3
    newest = best.read_bytes()
    best.write_bytes(seen[1])
    with pytest.raises(UserError, match="of epoch 1, and the best of this run is epoch 3's"):
        train(**options)
    best.write_bytes(newest)
    train(**options)


@pytest.mark.parametrize("has_table", [True, False])
def test_a_state_of_other_data_is_refused(train: Any, has_table: bool) -> None:
    run, _ = train("run/fold0", epochs=1, split_hash="a")
    if has_table:
        (run.folder.parent.parent / "folds.csv").touch()
    said = "was started on other images or folds, as last.pt says"
    with pytest.raises(UserError, match=said) as error:
        train("run/fold0", epochs=1, split_hash="b")
    assert ("folds.csv is made again" in str(error.value)) == has_table  # masks have no such table


def test_an_average_is_that_of_timm_and_goes_on_from_a_state() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    options = {"decay": 0.9, "use_warmup": True, "warmup_power": 0.75}
    averages = Ema(net, **options), ModelEmaV3(net, **options)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)

    def advance(first: int) -> None:
        for step in range(first, first + 3):
            net(torch.randn(2, 3, 8, 8)).mean().backward()
            optimizer.step()
            for average in averages:
                average.update(net, step=step)
        own, expected = (average.module.state_dict() for average in averages)
        assert all(torch.equal(own[key], expected[key]) for key in expected)
        assert int(own["1.num_batches_tracked"]) == first + 2

    advance(1)
    for average in averages:
        average.module.load_state_dict({k: 2 * v for k, v in net.state_dict().items()})
    advance(4)
