"""What is decided by the kind of card, on cards that are made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from src.config import EngineConfig
from src.engine import autotune, checkpoint, cpu, loop, predict, runtime
from src.engine.checkpoint import first_micro_batch, prepare_parts
from src.engine.optim import build_optimizer
from src.engine.runtime import Runtime, default_precision, is_out_of_memory, start_runtime
from src.engine.step import clip_gradient, gradient_norm
from src.losses.classification import build_loss
from src.models.classifier import build_classifier
from src.models.segmenter import build_segmenter
from src.runs import Run
from src.script import UserError
from src.tasks.classification import Classification
from src.views import VIEWS
from tests.engine.conftest import CLASSES, TinyLoader, TinyNet

TASK = Classification(CLASSES, build_loss("cross_entropy"))
CARDS = {"T4": (7, 5), "A100": (8, 0), "H100": (9, 0)}


@dataclass(frozen=True)
class MadeUp(Runtime):
    """A runtime that says it is on another device, and computes on the CPU."""

    def place(self, model: nn.Module) -> nn.Module:
        return model

    def upload(self, batch: Any) -> dict[str, Tensor]:
        return dict(batch)

    def autocast(self) -> Any:
        return torch.enable_grad()


def make_runtime(kind: str = "cuda", precision: str = "fp16", processes: int = 1) -> MadeUp:
    accelerator: Any = SimpleNamespace(
        device=torch.device(kind), is_main_process=True, process_index=0, num_processes=processes
    )
    return MadeUp(accelerator, precision, channels_last=kind == "cuda")


@pytest.fixture
def insert(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], MadeUp]:
    """Put a card into the machine and return its runtime."""

    def put(card: str) -> MadeUp:
        native = CARDS[card] >= (8, 0)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: (
                native or including_emulation
            )
        )  # fmt: skip
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: card)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: CARDS[card])
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
        return make_runtime(precision=default_precision("cuda"))

    return put


def test_bf16_is_the_default_of_cards_that_have_it(insert: Any) -> None:
    assert [insert(card).precision for card in CARDS] == ["fp16", "bf16", "bf16"]


def test_bf16_is_refused_where_it_is_emulated(insert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    card = insert("T4")
    monkeypatch.setattr(runtime, "Accelerator", lambda **_: card.accelerator)
    with pytest.raises(UserError, match=r"--precision bf16: T4 only emulates it.*use fp16"):
        start_runtime(precision="bf16")
    assert start_runtime(precision="fp16").precision == "fp16"
    insert("A100")
    assert start_runtime(precision="bf16").precision == "bf16"


def test_inference_computes_as_the_training_did_where_the_card_can(insert: Any) -> None:
    trained = insert("H100").describe_device() | {"precision": "bf16", "channels_last": False}
    assert trained["capability"] == "sm_90"
    there = insert("A100").as_recorded(trained)
    assert (there.precision, there.channels_last) == ("bf16", False)
    here = insert("T4").as_recorded(trained)
    assert (here.precision, here.channels_last) == ("fp16", True)
    assert start_runtime("cpu").as_recorded(trained).precision == "fp32"


@pytest.mark.parametrize("order", [("auto", "cpu", "auto"), ("cpu", "auto", "cpu")])
def test_the_cpu_can_be_asked_for_beside_a_card(
    monkeypatch: pytest.MonkeyPatch, order: tuple[str, ...]
) -> None:
    """A plan on a card ended at its tabular member; a video of a run was predicted on the CPU."""
    for state in (AcceleratorState, PartialState):
        monkeypatch.setattr(state, "_shared_state", {})
    monkeypatch.setattr(PartialState, "default_device", torch.device("meta"))  # the card
    kinds = {"auto": "meta", "cpu": "cpu"}
    started = [start_runtime(device, "fp32") for device in order]
    assert [runtime.device.type for runtime in started] == [kinds[device] for device in order]


@pytest.mark.parametrize(
    ("card", "fold", "precision"),
    [
        ("T4", 0, "fp16"),
        ("T4", 1, "fp16"),
        ("H100", 0, "bf16"),
        ("H100", 1, "bf16"),
        ("A100", 1, "bf16"),
    ],
)
def test_a_choice_made_on_another_card(
    insert: Any, tmp_path: Path, card: str, fold: int, precision: str
) -> None:
    """A run goes on in its precision where the card has it; other folds want the same card."""
    chosen = insert("A100").describe_device() | {"precision": "bf16", "channels_last": False}
    runs = [Run(tmp_path / "m" / f"fold{n}") for n in range(2)]
    runs[0].folder.mkdir(parents=True)
    runs[0].tuned.write_text(json.dumps(chosen))
    here = insert(card)
    found = autotune.recorded_choice(runs[fold], here, EngineConfig())
    kept = (card, fold) in {("H100", 0), ("A100", 1)}
    assert (found is not None) == kept
    settled = autotune.settle_runtime(
        TinyNet(), None, None, here, runs[fold], EngineConfig(autotune="off")
    )
    assert settled.precision == precision
    record = json.loads(runs[fold].tuned.read_text())
    assert record["card"] == ("A100" if kept else card)


def test_a_card_keeps_its_defaults_without_a_trial(insert: Any, tmp_path: Path) -> None:
    settled = autotune.settle_runtime(
        TinyNet(), None, None, insert("H100"), Run(tmp_path), EngineConfig()
    )  # there is no loader to measure with
    assert (settled.precision, settled.channels_last, settled.compiled) == ("bf16", True, False)


def time_layouts(
    here: MadeUp, monkeypatch: pytest.MonkeyPatch, step: dict[bool, float], start_up: list[float]
) -> tuple[Runtime, dict[str, float], int]:
    """Autotune on a card whose steps and start-up costs are known; 40 rows are shown."""
    clock, costs, layout = [0.0], list(start_up), [True]

    class Costly(Classification):
        def loss(self, model: Any, batch: Any) -> Any:
            assert len(batch["image"]) == 40
            clock[0] += step[layout[0]] + (costs.pop(0) if begins else 0.0)
            begins.clear()
            return super().loss(model, batch)

    begins: list[int] = []
    original = autotune.time_steps

    def time_steps(*args: Any) -> float:
        layout[0] = args[3].channels_last
        begins.append(1)
        return original(*args)

    monkeypatch.setattr(autotune, "time_steps", time_steps)
    monkeypatch.setattr(autotune.time, "perf_counter", lambda: clock[0])
    batch = next(iter(TinyLoader(40, 40, shuffle=False)))
    task = Costly(CLASSES, build_loss("cross_entropy"))
    return autotune.autotune(TinyNet(), task, batch, here, EngineConfig())


@pytest.mark.parametrize("start_up", [[0, 0], [3.5, 1.5], [4.5, 1.5], [5, 3], [40, 30]])
def test_start_up_costs_are_no_steps(
    insert: Any, monkeypatch: pytest.MonkeyPatch, start_up: list[float]
) -> None:
    step = {True: 0.020, False: 0.030}
    best, seconds, rows = time_layouts(insert("A100"), monkeypatch, step, start_up)
    assert best.channels_last and rows == 40
    assert seconds == {"bf16 channels_last": 0.02, "bf16 channels_first": 0.03}


@pytest.mark.parametrize(("other", "leaves"), [(0.0195, False), (0.018, True)])
def test_the_default_is_left_for_more_than_noise(
    insert: Any, monkeypatch: pytest.MonkeyPatch, other: float, leaves: bool
) -> None:
    step = {True: 0.020, False: other}
    best = time_layouts(insert("A100"), monkeypatch, step, [3, 1])[0]
    assert best.channels_last != leaves


def test_a_start_up_without_end_leaves_the_default(
    insert: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = {True: 0.020, False: 0.010}
    best, seconds, _ = time_layouts(insert("A100"), monkeypatch, step, [61, 0])
    assert best.channels_last and list(seconds) == ["bf16 channels_last"]


def test_mps_has_one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = runtime.Alone(torch.device("mps"))
    monkeypatch.setattr(runtime, "join_processes", lambda **_: alone)
    asked = start_runtime(channels_last="on")  # as micro nets do, for a CPU
    recorded = asked.with_choice("fp32", channels_last=True)  # of a run begun before
    assert not asked.channels_last and not recorded.channels_last
    found = autotune.candidates(make_runtime("mps", "fp32"), EngineConfig())
    assert [(r.precision, r.channels_last) for r in found] == [("fp32", False)]


@pytest.mark.parametrize(
    ("kind", "free", "processes", "options", "rows"),
    [
        ("cuda", 79e9, 1, {}, 64),
        ("cuda", 79e9, 1, {"grow_micro_batch": False}, 8),
        ("cuda", 79e9, 2, {}, 8),  # they could not shrink it again
        ("cuda", 14e9, 1, {}, 8),
        ("cuda", 14e9, 1, {"micro_batch_size": 0}, 64),
        ("cpu", 79e9, 1, {}, 8),
    ],
)
def test_a_large_card_starts_with_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    free: float,
    processes: int,
    options: dict[str, Any],
    rows: int,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (int(free), int(80e9)))
    config = EngineConfig(**({"batch_size": 64, "micro_batch_size": 8} | options))
    assert first_micro_batch(config, make_runtime(kind, processes=processes)) == rows


def test_memory_kept_from_an_earlier_fold_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    card = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (int(2e9), int(42e9)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: int(39e9))
    for allocated, is_free in ((1e9, True), (30e9, False)):
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_, a=allocated: int(a))
        assert runtime.is_large(card) == is_free
        assert predict.default_batch_size(224, card) == (64 if is_free else 16)


@pytest.mark.parametrize(
    ("kind", "precision", "fused"),
    [("mps", "fp16", False), ("mps", "fp32", True), ("cuda", "fp16", True), ("cpu", "fp32", True)],
)
def test_fused_optimizers_stand_where_they_honour_the_scaler(
    monkeypatch: pytest.MonkeyPatch, kind: str, precision: str, fused: bool
) -> None:
    asked: list[bool] = []

    def build(*args: Any, fused: bool) -> Any:
        asked.append(fused)
        return build_optimizer(*args, fused=fused)

    monkeypatch.setattr(checkpoint, "build_optimizer", build)
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda *_, enabled: SimpleNamespace(is_enabled=lambda: enabled)
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (0, 0))
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.8.0"))
    prepare_parts(TinyNet(), EngineConfig(ema_decay=0), make_runtime(kind, precision))
    assert asked == [fused]


def test_fp16_on_mps_is_refused_by_a_torch_without_its_scaler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before 2.8 it asked MPS for float64, at the first step (PyTorch #142397, #150255)."""
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.6.0"))
    with pytest.raises(UserError, match=r"--precision fp16 trains on MPS from torch 2\.8"):
        _ = make_runtime("mps", "fp16").scaler
    assert not make_runtime("mps", "bf16").scaler.is_enabled()


def test_running_statistics_are_kept_by_one_copy_a_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = nn.Sequential(*(nn.BatchNorm2d(3) for _ in range(5)))
    parts = prepare_parts(norms, EngineConfig(ema_decay=0), start_runtime("cpu"))
    copies: list[int] = []
    original = torch._foreach_copy_
    monkeypatch.setattr(
        torch, "_foreach_copy_", lambda a, b: (copies.append(len(b)), original(a, b))
    )
    parts.keep_buffers()
    assert sorted(copies) == [5, 10]  # counts of batches; means and variances
    before = {k: v.clone() for k, v in norms.state_dict().items()}
    norms(torch.randn(4, 3, 2, 2))
    parts.restore_buffers()
    assert all(torch.equal(v, before[k]) for k, v in norms.state_dict().items())


def test_frozen_norms_are_not_copied() -> None:
    class Frozen(nn.BatchNorm2d):
        def train(self, mode: bool = True) -> Frozen:
            return super().train(False)

    net = nn.Sequential(Frozen(3), nn.BatchNorm2d(2))
    parts = prepare_parts(net, EngineConfig(ema_decay=0), start_runtime("cpu"))
    assert sum(len(group) for group in parts.kept) == 3


@pytest.mark.parametrize(
    "message",
    [
        "GET was unable to find an engine to execute this computation",
        "FIND was unable to find an engine to execute this computation",
        "Unable to find a valid cuDNN algorithm to run convolution",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "Invalid buffer size: 12.00 GiB",
        "could not create a primitive",
        "can't start new thread",
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried",
        "unable to allocate shared memory(shm) for file </torch_1>: Resource unavailable (11)",
        "Couldn't open shared file mapping: <torch_1_2_3>, error code: <1455>",
    ],
)
def test_short_memory_is_known_by_every_name(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_algorithms_are_searched_for_shapes_that_come_again(
    monkeypatch: pytest.MonkeyPatch, train: Any
) -> None:
    asked: list[bool] = []
    for room in (loop, predict):
        monkeypatch.setattr(room, "search_algorithms", lambda _, on: asked.append(on))

    def predicted(rows: int, batch_size: int) -> list[bool]:
        asked.clear()
        predict.evaluate(
            TinyNet(), TinyLoader(rows, batch_size, shuffle=False), TASK, start_runtime("cpu"),
            num_rows=rows,
        )  # fmt: skip
        return asked

    assert predicted(12, 5) == [False] * 3  # too few batches to search for
    monkeypatch.setattr(predict, "SEARCH_STEPS", 3)
    assert predicted(12, 5) == [True, True, False]
    assert predicted(3, 1) == [False] * 3  # masks of native size
    for least, long in ((1, True), (10**6, False)):
        monkeypatch.setattr(loop, "SEARCH_STEPS", least)
        asked.clear()
        train(f"run{least}", epochs=1, valid=None)
        assert asked[:4] == [long, long, long, False]  # 30 rows by 8


@pytest.mark.parametrize("unsure", [False, True])
def test_a_card_is_shown_one_number_of_rows(unsure: bool) -> None:
    """It prepares its kernels for every new one."""
    seen: list[int] = []
    limit = 99

    class Noting(Classification):
        def predict(self, model: Any, batch: Any) -> Any:
            seen.append(len(batch["image"]))
            if seen[-1] > limit:
                raise torch.OutOfMemoryError("x")
            return super().predict(model, batch)

    net, task = TinyNet(), Noting(CLASSES, build_loss("cross_entropy"))
    few = (lambda logits: logits[:, 0] < -0.5) if unsure else None

    def predicted(runtime: Runtime) -> Any:
        seen.clear()
        out = torch.full((5, 12, CLASSES), torch.nan).half().numpy()
        loader = TinyLoader(12, 5, shuffle=False)
        predict.predict_logits(net, loader, task, runtime, out=out, views=VIEWS, is_unsure=few)
        return out.astype(float)

    expected = predicted(start_runtime("cpu"))
    assert len(set(seen)) > 1
    np.testing.assert_allclose(predicted(make_runtime()), expected, atol=2e-3)
    assert set(seen) == {5}
    limit = 2
    np.testing.assert_allclose(predicted(make_runtime()), expected, atol=2e-3)
    assert set(seen[seen.index(2) :]) == {2}


def test_the_search_is_switched_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    runtime.search_algorithms(torch.device("cpu"), True)
    assert not torch.backends.cudnn.benchmark
    runtime.search_algorithms(torch.device("cuda"), True)
    assert torch.backends.cudnn.benchmark


def test_a_card_clips_by_torchs_own_pass() -> None:
    param = nn.Parameter(torch.zeros(4))
    param.grad = torch.full((4,), 5.0)
    optimizer = build_optimizer("adamw", [{"params": [param]}], 0.1)
    clip_gradient(optimizer, [param], gradient_norm([param.grad]), 1.0, make_runtime())
    assert getattr(optimizer, "grad_scale", None) is None
    torch.testing.assert_close(param.grad, torch.full((4,), 0.5))


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
def test_networks_take_their_cpu_ways_on_a_cpu_alone(kind: str) -> None:
    net = build_classifier("test_efficientnet", 3, image_size=64)
    net.frozen_norms = True
    masks = build_segmenter("unet", "tu-test_efficientnet", 2)
    for model in (net, masks):
        cpu.tune_for_cpu(nn.ModuleDict({"network": model}), torch.device(kind))
        changed = [m for m in model.modules() if "forward" in vars(m)]
        assert bool(changed) == (kind == "cpu")
    held = [m for m in net.modules() if "held" in vars(m)]
    assert bool(held) == (kind == "cpu")
