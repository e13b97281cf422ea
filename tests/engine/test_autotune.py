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
from src.files import read_json, write_json
from src.losses.classification import build_loss
from src.pipelines.run_folder import write_config
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
        assert read_json(run.tuned) == chosen | {"run": ""}
    asked = EngineConfig(precision="fp32", autotune="off")
    runtime = start_runtime("cpu", "fp32")
    other = Run(tmp_path / "m" / "fold2")
    assert room.settle_runtime(TinyNet(), None, None, runtime, other, asked).precision == "fp32"


def test_a_record_of_another_run_is_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is the lost one missed: config.yaml says what the run began with."""
    run, config = Run(tmp_path / "m" / "fold0"), EngineConfig(autotune="off")
    run.folder.mkdir(parents=True)
    began = start_runtime("cpu").with_choice("bf16", channels_last=False)
    write_config(run, config, {"split_hash": "x"}, began, "mine")

    def settle(config: EngineConfig = config) -> tuple[str, bool]:
        found = room.settle_runtime(
            TinyNet(), None, None, start_runtime("cpu"), run, config, "mine"
        )
        return found.precision, found.channels_last

    assert settle() == ("bf16", False), "runtime.json is lost"
    assert read_json(run.tuned)["run"] == "mine" and settle() == ("bf16", False)
    other = {"device": "cpu", "precision": "fp32", "channels_last": True, "seconds": {}}
    write_json(run.tuned, other | {"run": "other"})
    assert settle() == ("bf16", False)
    assert "runtime.json: of another run" in capsys.readouterr().out
    write_json(run.tuned, other | {"run": "before"})
    assert settle(EngineConfig(autotune="off", accept_changes=True)) == ("fp32", True)
    run.tuned.unlink()
    write_config(run, config, {"split_hash": "x"}, began, "other")
    assert settle() == ("fp32", True), "both are lost: the default"


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


def test_a_run_measures_once(
    batch: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []
    original = room.autotune

    def autotune(*args: Any) -> Any:
        shown.append(len(args[2]["index"]))
        return original(*args)

    monkeypatch.setattr(room, "autotune", autotune)
    run, task = Run(tmp_path / "m" / "fold0"), Classification(CLASSES, build_loss("cross_entropy"))
    run.folder.mkdir(parents=True)
    config = EngineConfig(micro_batch_size=3)
    settle = (TinyNet(), task, Loader(batch), start_runtime("cpu"), run, config)
    runtime = room.settle_runtime(*settle)
    assert shown == [3] and not runtime.compiled  # what the network will be shown at once
    assert room.settle_runtime(*settle) == runtime and shown == [3]  # from the record


def test_an_option_decides_about_compiling(tmp_path: Path) -> None:
    run = Run(tmp_path / "m" / "fold0")
    run.folder.mkdir(parents=True)
    for option in ("on", "off"):
        config = EngineConfig(autotune="off", compile=option)
        runtime = room.settle_runtime(TinyNet(), None, None, start_runtime("cpu"), run, config)
        assert runtime.compiled == (option == "on")


@pytest.mark.parametrize(
    ("bf16_s", "passes", "precision"), [(0.7, 3, "bf16"), (12.0, 1, "fp32"), (1.9, 2, "fp32")]
)
def test_a_slow_machine_has_seen_bf16_before_the_other_layout(
    batch: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    bf16_s: float,
    passes: int,
    precision: str,
) -> None:
    """Steps of seconds leave no time for all settings; an emulated precision takes one pass."""
    clock, shown = [0.0], []

    class Costly(Classification):
        def loss(self, model: Any, batch: Any) -> Any:
            halved = torch.is_autocast_enabled("cpu")
            shown.append(halved)
            clock[0] += bf16_s if halved else 1.3
            return super().loss(model, batch)

    monkeypatch.setattr(room.time, "perf_counter", lambda: clock[0])
    task = Costly(CLASSES, build_loss("cross_entropy"))
    best, seconds, _ = room.autotune(TinyNet(), task, batch, start_runtime("cpu"), EngineConfig())
    assert list(seconds)[:2] == ["fp32 channels_last", "bf16 channels_last"]
    assert shown.count(True) == passes and best.precision == precision
