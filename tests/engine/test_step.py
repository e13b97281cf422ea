"""A step under harm: no memory, numbers gone bad."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from src.engine.optim import build_optimizer
from src.engine.runtime import seed_step, start_runtime
from src.engine.step import clip_gradient, gradient_norm
from src.losses.classification import build_loss
from src.script import UserError
from src.tasks.classification import Classification
from tests.engine.conftest import CLASSES, TinyNet


class Hungry(Classification):
    """Memory is out for more than ``limit`` rows at once."""

    limit = 3
    error: Exception = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    def loss(self, model: Any, batch: Any) -> Any:
        value = super().loss(model, batch)
        if len(batch["image"]) > self.limit:
            raise self.error
        return value


class Poisoned(Classification):
    """The loss of the batch that holds row 7 is not a number."""

    def loss(self, model: Any, batch: Any) -> Any:
        value = super().loss(model, batch)
        if 7 in batch["index"].tolist():
            value["loss"] = value["loss"] * float("nan")
        return value


LOSS = build_loss("cross_entropy")


@pytest.mark.parametrize("error", [Hungry.error, MemoryError(), torch.OutOfMemoryError("x")])
def test_out_of_memory_equals_a_smaller_micro_batch(
    train: Any, capsys: Any, error: Exception
) -> None:
    task = type("Task", (Hungry,), {"error": error})(CLASSES, LOSS)
    a, state = train("a", task=task)
    b, _ = train("b", micro_batch_size=2)
    assert state.micro_batch_size == 2
    assert "micro-batch 8 → 4, same effective batch" in capsys.readouterr().out
    left, right = (torch.load(r.last, weights_only=True)["model"] for r in (a, b))
    assert all(torch.equal(left[k], right[k]) for k in left)


def test_out_of_memory_with_one_row_is_one_clear_line(train: Any) -> None:
    task = type("Task", (Hungry,), {"limit": 0})(CLASSES, LOSS)
    with pytest.raises(UserError, match="one image at a time"):
        train(task=task)


def test_other_errors_pass_through(train: Any) -> None:
    task = type("Task", (Hungry,), {"error": RuntimeError("shape mismatch")})(CLASSES, LOSS)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        train(task=task)


def test_a_bad_loss_stops_before_the_step_and_names_the_rows(train: Any) -> None:
    with pytest.raises(UserError, match=r"epoch 1, step \d.*--skip_nonfinite 1"):
        train(task=Poisoned(CLASSES, LOSS), epochs=1)


def test_bad_losses_are_passed_over_up_to_n(train: Any, capsys: Any) -> None:
    run, state = train(task=Poisoned(CLASSES, LOSS), skip_nonfinite=3)
    assert state.nonfinite == 3 and state.done
    assert re.search(r"epoch 1, step \d: passed over \(1 of at most 3\)", capsys.readouterr().out)
    assert "id7" in json.loads(run.nonfinite.read_text())["ids"]
    weights = torch.load(run.last, weights_only=True)["model"]
    assert all(torch.isfinite(v).all() for v in weights.values())
    with pytest.raises(UserError, match="step"):
        train("other", task=Poisoned(CLASSES, LOSS), skip_nonfinite=2)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_step_that_is_passed_over_leaves_weights_and_statistics(train: Any, bad: str) -> None:
    class Lost(Classification):
        def loss(self, model: Any, batch: Any) -> Any:
            value = super().loss(model, batch)["loss"]
            if bad == "loss":
                return {"loss": value * float("nan")}
            return {"loss": value + (value * 0).sqrt()}  # the slope of a root at 0 is infinite

    model = TinyNet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task = Lost(CLASSES, LOSS)
    _, state = train(task=task, model=model, epochs=1, skip_nonfinite=9, valid=None)
    assert state.nonfinite == state.step == 4
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def make_gradients(scale: float) -> list[Tensor]:
    """Matrices and kernels, plain, transposed and channels_last."""
    kernel = torch.randn(6, 5, 3, 3).to(memory_format=torch.channels_last)
    return [g * scale for g in (torch.randn(7, 5), torch.randn(9), torch.randn(4, 6).T, kernel)]


def test_the_norm_is_torchs() -> None:
    gradients = make_gradients(3.0)
    expected = torch.nn.utils.get_total_norm(gradients)
    torch.testing.assert_close(gradient_norm(gradients), expected, rtol=1e-5, atol=0)
    assert float(gradient_norm([])) == 0.0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("scale", [1e-3, 50.0])
def test_a_step_with_a_clipped_gradient_is_that_of_torchs_clipping(
    optimizer: str, scale: float
) -> None:
    runtime = start_runtime("cpu")
    torch.manual_seed(0)
    twins = [[torch.nn.Parameter(torch.zeros_like(g)) for g in make_gradients(1.0)] for _ in "ab"]
    ours, theirs = (build_optimizer(optimizer, [{"params": p}], 0.1) for p in twins)
    for step in range(3):
        gradients = make_gradients(1e-3 if step == 1 else scale)  # a limit once met does not linger
        for params in twins:
            for param, gradient in zip(params, gradients, strict=True):
                param.grad = gradient.clone()
        clip_gradient(ours, twins[0], gradient_norm(gradients), 1.0, runtime)
        torch.nn.utils.clip_grad_norm_(twins[1], 1.0)
        ours.step()
        theirs.step()
        for mine, other in zip(*twins, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-7)


def test_with_the_fp16_scaler_the_gradient_itself_is_clipped() -> None:
    runtime = start_runtime("cpu").with_choice("fp16", channels_last=False)
    params = [torch.nn.Parameter(torch.zeros_like(g)) for g in make_gradients(1.0)]
    for param, gradient in zip(params, make_gradients(50.0), strict=True):
        param.grad = gradient
    optimizer = build_optimizer("adamw", [{"params": params}], 0.1)
    norm = gradient_norm([p.grad for p in params])
    clip_gradient(optimizer, params, norm, 1.0, runtime)
    assert getattr(optimizer, "grad_scale", None) is None  # the scaler's own place
    assert float(gradient_norm([p.grad for p in params])) == pytest.approx(1.0, rel=1e-4)


def test_a_seeded_step_draws_as_torch_seeded_by_the_mixed_key() -> None:
    seed_step(0, 0)
    mixed = 0xCBF29CE484222325
    for _ in range(2):
        mixed = mixed * 0x100000001B3 % 2**64  # FNV-1a over two zeros
    drawn = torch.rand(3)
    torch.manual_seed(mixed >> 1)
    assert torch.equal(drawn, torch.rand(3))


def test_fp16_goes_on_after_a_step_that_was_passed_over(train: Any) -> None:
    """The loss scaler, which GPUs without bf16 need; here on the CPU."""
    _, state = train(task=Poisoned(CLASSES, LOSS), computed_in="fp16", skip_nonfinite=3, epochs=2)
    assert state.done and state.nonfinite == 2


def test_a_run_goes_on_in_fp16_on_a_card_without_bf16(train: Any) -> None:
    """Its state holds no scale; it was called that of another network."""
    first, second = (train(computed_in=kind, epochs=1)[1] for kind in ("bf16", "fp16"))
    assert first.done and second.step == first.step


def test_fp16_gradients_that_overflow_at_every_scale_stop_the_run(train: Any) -> None:
    class Overflowing(Classification):
        def loss(self, model: Any, batch: Any) -> Any:
            value = super().loss(model, batch)
            for p in model.parameters():
                p.register_hook(lambda g: g * torch.inf)
            return value

    with pytest.raises(UserError, match="overflow at every scale"):
        train(task=Overflowing(CLASSES, LOSS), computed_in="fp16", epochs=8)
