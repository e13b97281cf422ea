"""Minutes of harm: kills at random times, and runs long enough to show a leak."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks.kill_resume import LEARNED, MODEL, Bench, make_competition
from benchmarks.timing import ROOT
from tests.scripts.conftest import RUNNING, Place

pytestmark = pytest.mark.slow
MIB = 2**20


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_kills_at_random_times_change_no_bit(bench: Bench) -> None:
    bench.at_random(12)
    assert bench.kills == 12 and not bench.wrong


def test_kills_between_writes_change_no_bit(bench: Bench) -> None:
    for phase, stride in ((0, 9), (2, 2), (3, 2)):
        bench.at_every_write(phase, stride=stride)
    assert bench.kills > 20 and not bench.wrong


def test_two_processes_train_together(tmp_path: Path) -> None:
    """As several GPUs do; here on the CPU, with torch's own launcher."""
    make_competition(tmp_path / "data")
    places = ["--data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "output")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    script = [str(ROOT / "train_fold.py"), *LEARNED.split(), *RUNNING, "--config", "", *places]
    command = [*launcher, "2", *script, "--fold", "0"]
    first, again = (
        subprocess.run(command, capture_output=True, text=True, env={**os.environ}, timeout=300)
        for _ in range(2)
    )
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("epoch 1/") == first.stdout.count("finished in") == 1
    assert again.returncode == 0 and "skipped" in again.stdout
    with np.load(tmp_path / "output" / MODEL / "fold0" / "oof.npz") as oof:
        assert np.isfinite(oof["logits"]).all() and oof["logits"].shape[2] == 2


def watch(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[float, int, int]]:
    """Return a table that fills: step → (memory in MiB, open files, threads) of this process."""
    import src.engine.loop as loop

    seen: dict[int, tuple[float, int, int]] = {}
    train_step, process = loop.train_step, psutil.Process()

    def step(parts: Any, *args: Any, **kwargs: Any) -> Any:
        if parts.state.step % 50 == 0:
            memory = process.memory_info().rss / MIB
            seen[parts.state.step] = (memory, process.num_fds(), process.num_threads())
        return train_step(parts, *args, **kwargs)

    monkeypatch.setattr(loop, "train_step", step)
    return seen


@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_fifty_epochs_and_two_thousand_steps_leak_nothing(
    fresh: Place, monkeypatch: pytest.MonkeyPatch, num_workers: str
) -> None:
    seen = watch(monkeypatch)
    prediction = fresh.train(
        *("--epochs", "126", "--batch_size", "1", "--micro_batch_size", "1", "--patience", "0"),
        *("--num_workers", num_workers, "--mixup_alpha", "0", "--cutmix_alpha", "0"),
        *("--image_size", "64"),
    )
    assert prediction.status == 0, prediction.err
    steps = sorted(seen)
    assert steps[-1] >= 1950
    early, late = seen[500], seen[steps[-1]]
    assert late[0] - early[0] < 24, f"memory grew: {early} → {late}"
    # batches on their way from a loader process hold files: a few more or less by chance
    assert late[1] - early[1] <= 16 and late[2] == early[2], f"files grew: {early} → {late}"


def test_one_process_training_many_folds_keeps_no_file_open(fresh: Place) -> None:
    process = psutil.Process()
    counts = []
    for name in "abcd":
        prediction = fresh.train(
            "--name", name, "--fold", "all", "--epochs", "1", "--num_workers", "2"
        )
        assert prediction.status == 0, prediction.err
        counts.append((process.num_fds(), process.num_threads(), len(process.children())))
    assert all(late <= early for late, early in zip(counts[-1], counts[1], strict=True)), counts
