"""A structure in; the finished blend, its nested losses and its pooled OOF answers out.

Everything here reads the full class distributions from disk, a block of rows at a time.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from src.ensemble.oof import Oof
from src.ensemble.panel import Panel
from src.ensemble.pool import Blend, log_softmax, pool_arrays, true_losses
from src.ensemble.search import Structure
from src.metrics.classification import fit_temperature

Array = npt.NDArray[Any]

_BLOCK_VALUES = 1 << 18
_THREADS = 2


@dataclass(frozen=True)
class Fitted:
    """A blend and how it does on rows it has not seen.

    Attributes:
        blend: fitted on all rows.
        loss: of ``blend`` on the rows it was fitted on, nats.
        nested_losses: (N,) of each row, weights and final temperature fitted without its part.
        nested: (N, K) float32 log probabilities behind ``nested_losses``.
    """

    blend: Blend
    loss: float
    nested_losses: Array
    nested: Array


def fit_blend(panel: Panel, structure: Structure) -> Fitted:
    """Fit weights and temperature of a structure; cross-fit both for the nested losses.

    The temperature of all rows is fitted on full distributions, those of the parts on the panel.
    """
    oof, tables = panel.oof, panel.tables
    weights, without = panel.fit_parts(structure)
    own = tables.temperatures if structure.order == "before" else np.ones(len(oof.members))
    fit, nested = _pool_twice(oof, structure.pool, weights, without, own, tables)
    temperature = fit_temperature(fit, oof.targets, tolerance=1e-5)
    for part, others in zip(np.unique(tables.parts), without, strict=True):
        held_out = tables.parts == part
        cross = panel.temperature(structure, others, panel.parts != part)
        nested[held_out] = log_softmax(nested[held_out], cross)
    num_members = len(oof.members)
    blend = Blend(
        pool=structure.pool,
        members=oof.members,
        weights=weights[:num_members],
        floors=(float(weights[num_members]), float(weights[num_members + 1])),
        temperatures=own,
        temperature=temperature,
        prior=tables.prior,
    )
    loss = float(true_losses(log_softmax(fit, temperature), oof.targets).mean())
    return Fitted(blend, loss, true_losses(nested, oof.targets), nested)


def _pool_twice(
    oof: Oof, kind: str, weights: Array, without: Array, temperatures: Array, tables: Any
) -> tuple[Array, Array]:
    """Return (N, K) pooled with the weights of all rows, and with those of the other parts."""
    num_rows, num_classes = len(oof.targets), len(oof.classes)
    num_members = len(oof.members)
    used = np.flatnonzero((weights[:num_members] > 0) | (without[:, :num_members] > 0).any(axis=0))
    size = max(1, _BLOCK_VALUES // num_classes)
    pooled = np.empty((2, num_rows, num_classes), dtype=np.float32)
    blocks = [
        block[start : start + size]
        for block in (np.flatnonzero(tables.parts == part) for part in np.unique(tables.parts))
        for start in range(0, len(block), size)
    ]

    def work(rows: Array) -> None:
        members = np.empty((len(used), len(rows), num_classes), dtype=np.float32)
        for place, m in enumerate(used):
            members[place] = oof.read(oof.members[m], rows, float(temperatures[m]))
        for answer, w in zip(pooled, (weights, without[tables.parts[rows[0]]]), strict=True):
            answer[rows] = pool_arrays(kind, members, w[used], w[num_members:], tables.prior)

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(work, blocks))
    return pooled[0], pooled[1]
