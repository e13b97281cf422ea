"""Contracts of the loop: Task, Meter and BatchLoader, as typing protocols.

B batch, C channels, K classes, H × W pixels, N rows of the index. A batch is a dict of tensors:
``image`` (B, 3, H, W) uint8, ``index`` (B,) int64 rows of the loader's data set, and what the task
learns from: ``target`` (B,) or (B, K), ``mask`` (B, H, W).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

Batch = dict[str, Tensor]


@runtime_checkable
class Meter(Protocol):
    """Gathers predictions of a validation and scores them; rows come in any order, each once."""

    def update(self, prediction: Tensor, batch: Batch) -> None:
        """Count the predictions of one batch, (B, K) or (B, K, H, W) logits."""
        ...

    def compute(self) -> dict[str, float]:
        """Return every score by name, the monitored one among them."""
        ...

    def state(self) -> Any:
        """Return what was counted (plain, picklable), for another process."""
        ...

    def merge_states(self, states: Sequence[Any]) -> None:
        """Replace the state by those of all processes, by rank."""
        ...


class Predictor(Protocol):
    """What prediction asks of a task."""

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return logits (B, K) or (B, K, H, W), or features (B, D)."""
        ...


@runtime_checkable
class Task(Predictor, Protocol):
    """What is learned: how a batch becomes a loss, a prediction and scores.

    A task is a frozen dataclass and never owns trainable weights.
    """

    @property
    def monitor(self) -> str:
        """Name of the score that chooses the best weights."""
        ...

    @property
    def lower_is_better(self) -> bool:
        """Direction of that score."""
        ...

    @property
    def loss_metric(self) -> str:
        """Name of the validation's loss, empty if there is none."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return ``loss``, a scalar to minimise, and further detached scalars to log."""
        ...

    def meter(self) -> Meter:
        """Return an empty meter."""
        ...


def inner_task(task: object) -> Any:
    """Return the task that a distillation contains, else the task itself."""
    return getattr(task, "inner", task)  # wrappers pass the attribute on


def inner_network(model: nn.Module) -> Any:
    """Return the network that predicts: the one that a student wraps, else the model itself."""
    return getattr(model, "network", model)


class BatchSampler(Protocol):
    """Rows of every batch, from any epoch and step on."""

    num_rows: int  # of the dataset
    own_size: int  # rows of a whole batch in this process

    def start(self, epoch: int, step: int = 0) -> None:
        """Begin at a step of an epoch."""
        ...

    def rows(self, epoch: int, step: int) -> np.ndarray:
        """Return the rows of a batch, those of all processes."""
        ...

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        ...

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the (epoch, row) keys of each batch."""
        ...


class BatchLoader(Protocol):
    """Batches in an order that is a pure function of (seed, epoch)."""

    dataset: Any  # what the rows are of
    collate_fn: Any  # samples → batch

    @property
    def batch_sampler(self) -> BatchSampler:
        """What names the rows of every batch, :class:`src.data.dataset.EpochSampler`."""
        ...

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches that are left of the epoch."""
        ...
