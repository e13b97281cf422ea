"""fit(): learns, resumes bit for bit, stops when told to, refuses what is wrong."""

from __future__ import annotations

import csv
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from src.engine.checkpoint import TrainState, save_state
from src.engine.interrupt import Interrupted
from src.engine.loop import warn_of_overfitting
from src.engine.runtime import start_runtime
from src.engine.weights import read_about
from src.losses.classification import build_loss
from src.runs import Run
from src.script import MachineError, UserError
from src.tasks.classification import Classification
from tests.engine.conftest import CLASSES, TinyLoader, TinyNet


class Stopping(Classification):
    """Sends this process a SIGTERM while the ``at``-th loss is computed."""

    def loss(self, model: Any, batch: Any) -> Any:
        calls[0] += 1
        if calls[0] == stop_at[0]:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().loss(model, batch)


calls, stop_at = [0], [0]


def same(a: Path, b: Path) -> bool:
    """Compare two safetensors files bit for bit."""
    left, right = load_file(a), load_file(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def final(run: Run) -> dict[str, Any]:
    """Return the saved state of a finished run."""
    return torch.load(run.last, weights_only=True)


def test_it_learns(train: Any) -> None:
    run, state = train(epochs=12, lr=2e-2, optimizer="sgd", ema_decay=0.9)
    assert state.done and state.step == 12 * 4
    assert state.best < 0.5 < state.history[0]["valid_log_loss"]
    rows = list(csv.DictReader(run.metrics.open()))
    assert len(rows) == 12 and float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert "ema_calibrated_log_loss" in rows[0]


def test_steps_may_be_faster_than_the_clock(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Python 3.13 Windows' monotonic clock stood still for 16 ms."""
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    _, state = train(epochs=1)
    assert state.done


def test_the_train_loss_is_a_mean_over_rows(train: Any) -> None:
    class Rows(Classification):
        def loss(self, model: Any, batch: Any) -> Any:
            return {"loss": super().loss(model, batch)["loss"] * 0 + len(batch["image"])}

    _, state = train(epochs=2, task=Rows(CLASSES, build_loss("cross_entropy")))
    losses = [row["train_loss"] for row in state.history]  # batches of 8, 8, 8 and 6 rows
    assert losses == pytest.approx([(3 * 8 * 8 + 6 * 6) / 30] * 2)


@pytest.mark.parametrize("at", [1, 3, 4, 5, 11])
@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 3, "optimizer": "sgd"}])
def test_interrupted_run_ends_bit_identical(train: Any, at: int, options: dict[str, Any]) -> None:
    whole, _ = train("whole", **options)
    calls[0], stop_at[0] = 0, at
    task = Stopping(CLASSES, build_loss("cross_entropy"))
    with pytest.raises(Interrupted) as stop:
        train("cut", task=task, **options)
    assert stop.value.status == 128 + signal.SIGTERM
    cut, _ = train("cut", task=task, **options)
    assert same(whole.best, cut.best)
    assert whole.metrics.read_bytes() == cut.metrics.read_bytes()
    for part in ("model", "ema"):
        left, right = final(whole)[part], final(cut)[part]
        assert all(torch.equal(left[k], right[k]) for k in left)


def test_interrupted_on_two_threads_it_ends_bit_identical(train: Any) -> None:
    """``make test`` gives a process one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        test_interrupted_run_ends_bit_identical(train, 5, {})
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_a_compiled_run_that_was_interrupted_ends_bit_identical(train: Any) -> None:
    """Its losses are those of an eager run, but for the last bits and the noise of dropout."""
    test_interrupted_run_ends_bit_identical(train, 5, {"compiled": True, "micro_batch_size": 3})
    eager, compiled = (
        train(name, model=TinyNet(drop=0.0), compiled=name == "compiled")[1].history
        for name in ("eager", "compiled")
    )
    for mine, other in zip(eager, compiled, strict=True):
        assert mine["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)


def test_a_smaller_last_batch_is_not_compiled(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 rows by 8: the last of an epoch has 6."""
    seen: list[int] = []

    def compiler(graph: Any, inputs: Any) -> Any:
        seen.append(next(x.shape[0] for x in inputs if x.ndim == 4 and x.shape[1] == 3))
        return graph.forward

    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m: original(m, backend=compiler))
    torch._dynamo.reset()
    train("compiled", compiled=True, epochs=2, valid=None)
    assert seen == [8]


def test_a_network_that_cannot_be_compiled_is_one_line(
    train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where there is no triton and mostly no compiler either."""

    def compiler(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("Compiler: cl is not found.")

    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m: original(m, backend=compiler))
    torch._dynamo.reset()
    with pytest.raises(UserError, match=r"cl is not found.*leave --compile out"):
        train("compiled", compiled=True, valid=None)


def test_another_seed_ends_elsewhere(train: Any) -> None:
    a, _ = train("a")
    b, _ = train("b", seed=1)  # dropout differs
    assert not same(a.best, b.best)


def test_micro_batches_share_one_effective_batch(train: Any) -> None:
    """Without BatchNorm and dropout the gradient does not depend on how a batch is cut."""

    class Plain(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.backbone[1] = torch.nn.Identity()
            self.drop = torch.nn.Identity()

    a, _ = train("a", model=Plain(), optimizer="sgd", lr=1e-2)
    b, _ = train("b", model=Plain(), optimizer="sgd", lr=1e-2, micro_batch_size=3)
    left, right = load_file(a.best), load_file(b.best)
    assert all(torch.allclose(left[k], right[k], atol=1e-5) for k in left)


def test_other_options_are_refused_by_name(train: Any) -> None:
    calls[0], stop_at[0] = 0, 5
    task = Stopping(CLASSES, build_loss("cross_entropy"))
    with pytest.raises(Interrupted):
        train("run", task=task)
    with pytest.raises(UserError, match=r"weight_decay 0.02 → 0.5"):
        train("run", weight_decay=0.5)
    with pytest.raises(UserError, match=r"--batch_size stays within a run"):
        train("run", batch_size=6, accept_changes=True)
    with pytest.raises(UserError, match="had 1 epoch, and --epochs 1 would have ended before"):
        train("run", epochs=1, accept_changes=True)
    changes = {"weight_decay": 0.5, "micro_batch_size": 3, "beta2": 0.9}
    run, state = train("run", accept_changes=True, **changes)
    assert state.done and state.micro_batch_size == 3
    groups = final(run)["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.5}
    assert all(tuple(group["betas"]) == (0.9, 0.9) for group in groups)


@pytest.mark.parametrize(("lr", "kept"), [(0.3, "ema"), (0.1, "valid")])
def test_the_better_of_raw_and_averaged_weights_is_kept(train: Any, lr: float, kept: str) -> None:
    run, state = train(epochs=4, lr=lr, lr_min=lr, optimizer="sgd", ema_decay=0.5)
    scores = {
        (kind, row["epoch"]): row[f"{kind}_calibrated_log_loss"]
        for row in state.history
        for kind in ("valid", "ema")
    }
    kind, epoch = min(scores, key=scores.__getitem__)
    about = read_about(run.best)
    assert kind == kept and (about["kind"], about["epoch"]) == (kind, str(epoch))
    assert (state.best, state.best_epoch) == (scores[kind, epoch], epoch) and epoch == 4
    weights, own = load_file(run.best), final(run)["ema" if kept == "ema" else "model"]
    assert all(torch.equal(weights[name], own[name]) for name in weights)


@pytest.mark.parametrize("patience", [1, 3])
def test_patience_counts_validations_without_a_better_score(train: Any, patience: int) -> None:
    still = {"epochs": 30, "lr": 1e-9, "lr_min": 0.0, "ema_decay": 0.0, "warmup_epochs": 0}
    _, state = train(**still, patience=patience)
    assert (state.best_epoch, state.epoch) == (1, 1 + patience)
    _, state = train("second", **still, patience=patience, valid_every=2)
    assert (state.best_epoch, state.epoch) == (2, 2 + 2 * patience)


def test_an_equal_score_is_no_better_one(train: Any) -> None:
    class Flat(Classification):
        def meter(self) -> Any:
            scores = {"calibrated_log_loss": 1.0}
            return SimpleNamespace(update=lambda *_: None, compute=lambda: scores)

    task = Flat(CLASSES, build_loss("cross_entropy"))
    _, state = train(epochs=9, task=task, patience=2, ema_decay=0.0)
    assert (state.best_epoch, state.epoch) == (1, 3)


@pytest.mark.parametrize(
    ("gaps", "misses", "said"),
    [
        ([0.0, 0.1, 0.2, 0.3, 0.4, 0.5], 5, True),
        ([9.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5], 5, True),
        ([0.0, 0.1, 0.2, 0.3, 0.4, 0.5], 4, False),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 5, False),
        ([0.0, 0.1, 0.2, 0.2, 0.4, 0.5], 5, False),
    ],
)
def test_over_fitting_is_said_after_five_growing_gaps(
    gaps: list[float], misses: int, said: bool, capsys: Any
) -> None:
    job: Any = SimpleNamespace(
        task=Classification(CLASSES, build_loss("cross_entropy")), runtime=start_runtime("cpu")
    )
    history = [{"valid_log_loss": 1.0 + gap, "train_loss": 1.0} for gap in gaps]
    state = TrainState(micro_batch_size=1, steps_per_epoch=1, history=history, misses=misses)
    warn_of_overfitting(job, state)
    assert ("over-fitting?" in capsys.readouterr().out) == said


def test_without_validation_the_last_average_is_kept(train: Any) -> None:
    run, state = train(valid=None)
    saved = final(run)
    assert state.best is None
    assert all(torch.equal(v, saved["ema"][k]) for k, v in load_file(run.best).items())


def test_finished_state_is_not_trained_again(train: Any) -> None:
    run, _ = train()
    before, state_before = run.best.read_bytes(), final(run)
    _, state = train(task=Classification(CLASSES, lambda *_: 1 / 0))  # type: ignore[arg-type]
    assert state.done and run.best.read_bytes() == before
    assert final(run)["optimizer"]["param_groups"] == state_before["optimizer"]["param_groups"]


class Lost(Classification):
    """The score is a number at the first of three validations only."""

    def meter(self) -> Any:
        meter = super().meter()
        compute = meter.compute

        def broken() -> dict[str, float]:
            scores = compute()
            calls[0] += 1
            return scores | ({self.monitor: float("nan")} if calls[0] >= 2 else {})

        meter.compute = broken
        return meter


def test_a_score_that_is_no_number_never_wins(train: Any, capsys: Any) -> None:
    calls[0] = 0
    task = Lost(CLASSES, build_loss("cross_entropy"))
    _, state = train(task=task, ema_decay=0.0, patience=5)
    assert state.best_epoch == 1 and state.best == state.best
    assert "is nan: worst" in capsys.readouterr().out


def to_four(done: int, epochs: int) -> int:
    """Shorten a run to four epochs once two are done; wish for more later, which is ignored."""
    return 4 if done == 2 else epochs + 1


def test_shortened_run_ends_its_schedule_there(train: Any) -> None:
    run, state = train(epochs=9, lr=1e-3, shorten=to_four)
    assert state.done and state.step == 4 * 4 and state.epochs == 4
    rates = [float(row["lr"]) for row in csv.DictReader(run.metrics.open())]
    assert rates[1] > 8e-4  # as of nine epochs, of which one warms up
    assert rates[-1] == pytest.approx(1e-6)  # the cosine ends at its floor, not cut half-way


def test_shortened_run_stops_mixing_as_long_before_its_end(train: Any) -> None:
    """The last of four epochs is mixed as the last of nine would have been."""
    seen: list[int] = []

    def mix(batch: dict[str, Any], step: int, epoch: int) -> dict[str, Any]:
        seen.append(epoch)
        return batch

    train(epochs=9, shorten=to_four, mix=mix)
    assert list(dict.fromkeys(seen)) == [0, 1, 7, 8]


def test_shortening_below_what_is_done_ends_the_run(train: Any) -> None:
    _, state = train(epochs=9, shorten=lambda done, epochs: 0 if done == 3 else epochs)
    assert state.done and state.step == 3 * 4 and state.best_epoch > 0


@pytest.mark.parametrize("at", [8, 9, 13])
def test_shortened_run_resumes_bit_identical(train: Any, at: int) -> None:
    whole, _ = train("whole", epochs=9, shorten=to_four)
    calls[0], stop_at[0] = 0, at
    options = {"epochs": 9, "task": Stopping(CLASSES, build_loss("cross_entropy"))}
    with pytest.raises(Interrupted):
        train("cut", shorten=to_four, **options)
    stop_at[0] = 0
    # the decision was saved: the resumed run has another clock, which asks for no shortening
    later = to_four if at == 8 else lambda done, epochs: epochs
    cut, state = train("cut", shorten=later, **options)
    assert state.step == 4 * 4 and same(whole.best, cut.best)


def test_another_number_of_steps_an_epoch_is_refused(train: Any) -> None:
    """As where another number of processes settles the last batch otherwise."""
    calls[0], stop_at[0] = 0, 5
    with pytest.raises(Interrupted):
        train("run", task=Stopping(CLASSES, build_loss("cross_entropy")))
    run = Run(train("other")[0].folder.parent / "run")
    saved = final(run)
    saved["state"]["steps_per_epoch"] = 9
    save_state(run, saved)
    with pytest.raises(UserError, match="with 9 steps an epoch and would now have 4"):
        train("run")


def test_a_dead_loader_process_saves_first(train: Any) -> None:
    whole, _ = train("whole")

    class DyingLoader(TinyLoader):
        def __iter__(self) -> Any:
            for number, batch in enumerate(super().__iter__()):
                if number == 2:
                    raise MachineError("a loader process died")
                yield batch

    with pytest.raises(MachineError):
        train("cut", loader=DyingLoader(30, 8, shuffle=True))
    run = Run(whole.folder.parent / "cut")
    assert final(run)["state"]["step"] == 2
    cut, _ = train("cut")
    assert same(whole.best, cut.best)
