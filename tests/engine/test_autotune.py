"""Layout and precision: measured once, recorded, kept on resume and shared by the folds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from src.config import EngineConfig
from src.engine import autotune as room
from src.engine.runtime import start_runtime
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
    runtime, seconds = room.autotune(model, task, batch, start_runtime("cpu"), EngineConfig())
    assert len(seconds) == 3 and all(s > 0 for s in seconds.values())
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
        assert json.loads(run.tuned.read_text()) == chosen
    asked = EngineConfig(precision="fp32", autotune="off")
    runtime = start_runtime("cpu", "fp32")
    other = Run(tmp_path / "m" / "fold2")
    assert room.settle_runtime(TinyNet(), None, None, runtime, other, asked).precision == "fp32"


def test_a_knob_or_another_device_goes_before_the_record(tmp_path: Path) -> None:
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
    batch = next(iter(TinyLoader(8, 8, shuffle=False)))
    task = Short(CLASSES, build_loss("cross_entropy"))
    _, seconds = room.autotune(model, task, batch, start_runtime("cpu"), EngineConfig())
    assert not seconds
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
