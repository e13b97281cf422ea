"""The line from the start of a fine-tuning to its end, followed back while the score improves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from src.engine.runtime import Runtime, start_runtime
from src.engine.weights import load_weights, read_about, save_weights
from src.pipelines.classification import wise_ft as module
from src.pipelines.classification.wise_ft import interpolate_weights, mix_weights
from src.runs import Run

TASK = SimpleNamespace(monitor="loss", lower_is_better=True)
VALID = SimpleNamespace(batch_sampler=SimpleNamespace(num_rows=1))
RUNTIME: Any = SimpleNamespace(is_main=True, agree=int)


def walk(folder: Path, monkeypatch: Any, optimum: float, task: Any = TASK) -> tuple[float, int]:
    """Walk from weight 1 to 0 where the score has its optimum; return it and the tries."""
    run, model, tries = Run(folder), nn.Linear(1, 1, bias=False), [0]
    save_weights(run.start, {"weight": torch.zeros(1, 1)}, {})
    if not run.best.exists():
        save_weights(run.best, {"weight": torch.ones(1, 1)}, {"epoch": "3", "kind": "raw"})

    def score_of(weight: float) -> float:
        distance = abs(weight - optimum)
        return distance if task.lower_is_better else -distance

    def evaluate(net: nn.Linear, *_: Any, **__: Any) -> dict[str, float]:
        tries[0] += 1
        return {task.monitor: score_of(net.weight.item())}

    monkeypatch.setattr(module, "evaluate", evaluate)
    monkeypatch.setattr(module, "say", lambda *_: None)
    return interpolate_weights(run, model, task, VALID, RUNTIME, score_of(1.0)), tries[0]


@pytest.mark.parametrize(
    ("optimum", "share", "tries"),
    [(1.0, 1.0, 1), (0.875, 1.0, 1), (0.8, 0.75, 2), (0.5, 0.5, 3), (0.0, 0.0, 4)],
)
@pytest.mark.parametrize("lower", [True, False])
def test_it_stops_where_the_score_is_best(
    tmp_path: Path, monkeypatch: Any, optimum: float, share: float, tries: int, lower: bool
) -> None:
    task = SimpleNamespace(monitor="score", lower_is_better=lower)
    score, tried = walk(tmp_path, monkeypatch, optimum, task)
    run = Run(tmp_path)
    assert abs(score) == pytest.approx(abs(share - optimum)) and tried == tries
    assert load_weights(run.best)["weight"].item() == pytest.approx(share)
    about = read_about(run.best)
    assert (about["kind"], about["share"]) == ("mixed", str(share))  # the walk is over


def test_walked_twice_it_goes_once(tmp_path: Path, monkeypatch: Any) -> None:
    first, _ = walk(tmp_path, monkeypatch, 0.5)
    before = Run(tmp_path).best.read_bytes()
    assert walk(tmp_path, monkeypatch, 0.5) == (first, 0)
    assert Run(tmp_path).best.read_bytes() == before


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of maps")
@pytest.mark.parametrize("optimum", [1.0, 0.5])
def test_the_best_weights_are_not_mapped_when_they_are_replaced(
    tmp_path: Path, monkeypatch: Any, optimum: float
) -> None:
    """Windows refuses that, and safetensors maps what it reads."""
    mapped: list[bool] = []

    def save(path: Path, *content: Any) -> None:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
        mapped.append(str(path) in maps)
        save_weights(path, *content)

    monkeypatch.setattr(module, "save_weights", save)
    walk(tmp_path, monkeypatch, optimum)
    assert mapped == [False]


def test_counts_are_not_mixed() -> None:
    start = {"mean": torch.tensor([0.0, 2.0]), "steps": torch.tensor(10)}
    end = {"mean": torch.tensor([1.0, 4.0]), "steps": torch.tensor(30)}
    mixed = mix_weights(start, end, 0.25)
    assert mixed["mean"].tolist() == [0.25, 2.5] and mixed["steps"].item() == 30


def test_features_that_overflow_in_fp16_are_computed_in_fp32(monkeypatch: Any) -> None:
    asked: list[str] = []

    def predict(model: Any, loader: Any, task: Any, runtime: Runtime, **options: Any) -> None:
        asked.append(runtime.precision)
        value = float("inf") if runtime.precision == "fp16" else 70_000.0
        options["write"]({"index": torch.arange(2)}, [torch.full((2, 3), value)])

    monkeypatch.setattr(module, "predict", predict)
    loader: Any = SimpleNamespace(batch_sampler=SimpleNamespace(num_rows=2))
    model: Any = nn.Module()
    model.head = nn.Linear(3, 2)
    runtime = start_runtime("cpu").with_choice("fp16", channels_last=False)
    assert module.embed_rows(model, loader, runtime).tolist() == [[[70_000.0] * 3] * 2]
    assert asked == ["fp16", "fp32"]
