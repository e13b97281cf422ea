"""Layout and precision: measured once, recorded, kept on resume and shared by the folds."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from src.config import EngineConfig
from src.engine import autotune as room
from src.engine.runtime import start_runtime
from src.files import read_json
from src.losses.classification import build_loss
from src.runs import Run
from src.tasks.classification import Classification
from tests.engine.conftest import CLASSES, TinyLoader, TinyNet


@pytest.fixture
def batch() -> dict[str, Any]:
    return next(iter(TinyLoader(8, 8, shuffle=False)))


def test_measuring_leaves_the_network_as_it_was(batch: dict[str, Any]) -> None:
    model, task = TinyNet(), Classification(CLASSES, build_loss("cross_entropy"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    runtime, seconds, rows = room.autotune(model, task, batch, start_runtime("cpu"), EngineConfig())
    assert rows == 8 and len(seconds) == 3 and all(s > 0 for s in seconds.values())
    assert runtime.precision in ("fp32", "bf16")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_flags_leave_nothing_to_measure() -> None:
    config = EngineConfig(precision="fp32", channels_last="off")
    runtime = start_runtime("cpu", "fp32", "off")
    assert [(r.precision, r.channels_last) for r in room.candidates(runtime, config)] == [
        ("fp32", False)
    ]


def test_the_record_decides_on_resume_and_for_other_folds(tmp_path: Path) -> None:
    chosen = {"device": "cpu", "precision": "bf16", "channels_last": False, "seconds": {}}
    first, second = Run(tmp_path / "m" / "fold0"), Run(tmp_path / "m" / "fold1")
    first.folder.mkdir(parents=True)
    first.tuned.write_text(json.dumps(chosen))
    for run in (first, second):
        runtime = room.settle_runtime(
            TinyNet(), None, None, start_runtime("cpu"), run, EngineConfig()
        )
        assert (runtime.precision, runtime.channels_last) == ("bf16", False)
        assert read_json(run.tuned) == chosen
    asked = EngineConfig(precision="fp32", autotune="off")
    runtime = start_runtime("cpu", "fp32")
    other = Run(tmp_path / "m" / "fold2")
    assert room.settle_runtime(TinyNet(), None, None, runtime, other, asked).precision == "fp32"


def test_an_option_or_another_device_goes_before_the_record(tmp_path: Path) -> None:
    run = Run(tmp_path / "m" / "fold0")
    run.folder.mkdir(parents=True)
    chosen = {"device": "cpu", "precision": "bf16", "channels_last": False, "seconds": {}}
    run.tuned.write_text(json.dumps(chosen))
    asked = EngineConfig(precision="fp32", autotune="off")
    runtime = room.settle_runtime(TinyNet(), None, None, start_runtime("cpu", "fp32"), run, asked)
    assert (runtime.precision, runtime.channels_last) == ("fp32", False)
    run.tuned.write_text(json.dumps(chosen | {"device": "cuda", "precision": "fp16"}))
    runtime = room.settle_runtime(
        TinyNet(), None, None, start_runtime("cpu"), run, EngineConfig(autotune="off")
    )
    assert runtime.precision == "fp32"


def test_short_memory_in_a_trial_leaves_no_trace() -> None:
    class Short(Classification):
        def loss(self, model: Any, batch: Any) -> Any:
            super().loss(model, batch)
            raise MemoryError

    model = TinyNet()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batch = next(iter(TinyLoader(2, 2, shuffle=False)))
    task = Short(CLASSES, build_loss("cross_entropy"))
    _, seconds, rows = room.autotune(model, task, batch, start_runtime("cpu"), EngineConfig())
    assert not seconds and rows == 1
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("compiled", "steps", "pays"),
    [(0.5, 1000, True), (0.5, 10, False), (0.97, 10**6, False), (None, 10**6, False)],
)
def test_compiling_must_repay_itself(
    batch: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    compiled: float | None,
    steps: int,
    pays: bool,
) -> None:
    model, clock = TinyNet(), [0.0]

    def time_steps(shown: Any, *_: Any) -> float:
        if shown is model:
            return 1.0
        if compiled is None:
            raise RuntimeError("no compiler\nand a long page of reasons")
        clock[0] += 60
        return compiled

    monkeypatch.setattr(torch, "compile", lambda _: "a compiled network")
    monkeypatch.setattr(room, "time_steps", time_steps)
    monkeypatch.setattr(room.time, "perf_counter", lambda: clock[0])
    task = Classification(CLASSES, build_loss("cross_entropy"))
    assert room.compiling_pays(model, task, batch, start_runtime("cpu"), steps, 1e3) == pays
    said = capsys.readouterr().out
    assert said.startswith("autotune: compiled" if pays else "autotune: not compiled")
    assert ("(no compiler)" in said) == (compiled is None)


def test_memory_that_is_short_at_the_full_batch_is_left_to_the_loop(
    batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def time_steps(*_: Any) -> float:
        raise MemoryError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(room, "time_steps", time_steps)
    task = Classification(CLASSES, build_loss("cross_entropy"))
    assert not room.compiling_pays(TinyNet(), task, batch, start_runtime("cpu"), 10**6, 1e3)
    assert "not compiled (DefaultCPUAllocator" in capsys.readouterr().out


class Loader(TinyLoader):
    """Hands out one batch as a DataLoader's parts do."""

    batch_sampler: Any
    collate_fn = staticmethod(lambda rows: rows)

    def __init__(self, batch: dict[str, Any]) -> None:
        super().__init__(8, 8, shuffle=False)
        self.batch, self.batch_sampler, self.dataset = batch, self, self

    def __iter__(self) -> Any:
        yield list(range(8))

    def __getitems__(self, keys: list[int]) -> dict[str, Any]:
        return {name: value[: len(keys)] for name, value in self.batch.items()}


@pytest.mark.parametrize(
    ("after", "options", "asked"),
    [
        (0.0, {"micro_batch_size": 3}, [20 * 3]),  # 20 epochs of one step in three parts
        (1e9, {"micro_batch_size": 3}, []),
        (0.0, {"compile": "off"}, []),
        (0.0, {"autotune": "off"}, []),
    ],
)
def test_compiling_is_tried_where_a_run_is_long(
    batch: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: float,
    options: dict[str, Any],
    asked: list[int],
) -> None:
    tried: list[int] = []

    def compiling_pays(*args: Any) -> bool:
        assert len(args[2]["index"]) == 3  # what the network will be shown at once
        tried.append(args[-2])
        return True

    monkeypatch.setattr(room, "COMPILE_AFTER_S", after)
    monkeypatch.setattr(room, "COMPILE_S", 0.0)
    monkeypatch.setattr(room, "TRIAL_SHARE", 1e9)
    monkeypatch.setattr(room, "compiling_pays", compiling_pays)
    run, task = Run(tmp_path / "m" / "fold0"), Classification(CLASSES, build_loss("cross_entropy"))
    run.folder.mkdir(parents=True)
    config = EngineConfig(**options)
    settle = (TinyNet(), task, Loader(batch), start_runtime("cpu"), run, config)
    runtime = room.settle_runtime(*settle)
    assert tried == asked and runtime.compiled == bool(asked)
    assert room.settle_runtime(*settle) == runtime and tried == asked  # from the record


def test_an_option_decides_about_compiling(tmp_path: Path) -> None:
    run = Run(tmp_path / "m" / "fold0")
    run.folder.mkdir(parents=True)
    for option in ("on", "off"):
        config = EngineConfig(autotune="off", compile=option)
        runtime = room.settle_runtime(TinyNet(), None, None, start_runtime("cpu"), run, config)
        assert runtime.compiled == (option == "on")


def test_a_compiler_that_takes_too_long_is_stopped(
    batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Slow(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            time.sleep(20)
            raise AssertionError("it was not stopped")

    monkeypatch.setattr(torch, "compile", lambda _: Slow())
    task = Classification(CLASSES, build_loss("cross_entropy"))
    timer, begun = signal.getitimer(signal.ITIMER_REAL), time.monotonic()
    assert not room.compiling_pays(TinyNet(), task, batch, start_runtime("cpu"), 10**6, 0.5)
    assert time.monotonic() - begun < 10
    assert "autotune: not compiled (it took more than 0 s)" in capsys.readouterr().out
    left = signal.getitimer(signal.ITIMER_REAL)
    assert (left[0] > 0) == (timer[0] > 0) and left[1] == 0  # another's timer goes on


def test_a_trial_that_would_take_too_long_is_not_begun(
    batch: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(room, "time_steps", lambda *_: 100.0)  # 5 x 100 s and the compiler's own
    monkeypatch.setattr(room, "compiling_pays", None)
    config = EngineConfig(epochs=10**5)
    task = Classification(CLASSES, build_loss("cross_entropy"))
    pays = room.measure(TinyNet(), task, Loader(batch), start_runtime("cpu"), config)[2]
    assert not pays and "not compiled (to try would take about" in capsys.readouterr().out


def test_a_busy_machine_compiles_more_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(room.os, "getloadavg", lambda: (2.0, 0, 0), raising=False)
    assert room.compile_trial_s(2.0) == room.COMPILE_S + 10
    monkeypatch.setattr(room.os, "getloadavg", lambda: (12.0, 0, 0), raising=False)
    assert room.compile_trial_s(2.0) == 3 * room.COMPILE_S + 10
