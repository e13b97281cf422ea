from __future__ import annotations

import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from src.data.dataset import EpochSampler
from src.engine.predict import update_batch_norm
from src.engine.runtime import start_runtime


class Batches:
    """Batches of the numbers 1, 3, 5, … in the order of an EpochSampler."""

    def __init__(self, rows: int, batch_size: int) -> None:
        self.batch_sampler = EpochSampler(rows, batch_size)

    def __iter__(self):
        for keys in self.batch_sampler:
            row = torch.tensor([row for _, row in keys])
            yield {"image": (2.0 * row + 1).view(-1, 1, 1, 1), "index": row}


def test_statistics_are_the_mean_over_batches_and_dropout_stays_off() -> None:
    norm = nn.BatchNorm2d(1, momentum=0.3)
    norm.running_mean.fill_(100)
    model = nn.Sequential(nn.Dropout(0.9), norm).train()
    update_batch_norm(model, Batches(13, 4), start_runtime("cpu"), num_rows=100)
    # 1 3 5 7 | 9 … 15 | 17 … 23, and the last batch of a single row is left out
    assert norm.running_mean.item() == 12
    assert abs(norm.running_var.item() - 20 / 3) < 1e-5
    assert norm.momentum == 0.3 and not model.training

    update_batch_norm(model, Batches(13, 4), start_runtime("cpu"), num_rows=5)
    assert norm.running_mean.item() == 8  # two batches are enough


def test_a_net_without_norms_is_left_alone() -> None:
    update_batch_norm(nn.Conv2d(1, 1, 1), None, start_runtime("cpu"), num_rows=5)


def test_a_compiled_net_is_measured_without_compiling_anew() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x + 0.0)

    model, counter = Net(), CompileCounter()
    model.compile(backend=counter)
    runtime = start_runtime("cpu").with_choice("fp32", channels_last=False, compiled=True)
    update_batch_norm(model, Batches(13, 4), runtime, num_rows=100)
    assert model.norm.running_mean.item() == 12 and counter.frame_count == 0
