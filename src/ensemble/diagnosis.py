"""Diagnosis of OOF predictions: losses by member and fold, confusions, costly rows.

One pass over the logits on disk, a block of rows at a time; what is kept is a few numbers a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from src.ensemble.blend import THREADS, contributions, convex
from src.ensemble.calibration import bin_confidence
from src.ensemble.oof import Oof
from src.ensemble.pool import (
    MAX_LOSS,
    TINY,
    Blend,
    add_floors,
    log_softmax,
    pool_arrays,
    row_blocks,
    true_losses,
)
from src.metrics.classification import Array

MAX_SOLVED = 4000  # rows that the gain of a member is computed on


@dataclass(frozen=True)
class Diagnosis:
    """What the OOF rows show of a blend and its members."""

    oof: Oof
    blend: Blend  # that was looked at
    member_logs: Array  # (N, M) log p(true class) of each member
    member_right: Array  # (N, M) whether its largest probability is the true class's
    choices: Array  # (N, models) the class that each model's first view prefers
    losses: Array  # (N,) of the blend, nats; fitted on the same rows unless the blend is fixed
    chosen: Array  # (N,) the class it prefers
    confidence: Array  # (N,) its largest probability
    raw_confidence: Array  # (N,) the same before the last temperature and the floors
    true_probs: Array  # (N,) its probability of the true class

    @property
    def right(self) -> Array:
        """Bool (N,): whether the blend's class is the true one."""
        return self.chosen == self.oof.targets

    def reliability(self) -> tuple[Array, Array]:
        """Return the bins (B, 3) of :func:`reliability` before and after calibration."""
        before, after = self.raw_confidence, self.confidence
        return bin_confidence(before, self.right), bin_confidence(after, self.right)

    def fold_losses(self) -> tuple[Array, Array]:
        """Return fold numbers (F,) and mean losses (M + 1, F) of the members and the blend."""
        folds = np.unique(self.oof.folds)
        table = np.c_[np.minimum(-self.member_logs, MAX_LOSS), self.losses]  # type: ignore[misc]
        return folds, np.stack([table[self.oof.folds == fold].mean(0) for fold in folds], axis=1)

    def agreement(self) -> Array:
        """Return (models + 1, models) shares of rows: model and model, last blend and model."""
        everyone = np.c_[self.choices, self.chosen]
        return np.stack([(everyone[:, [k]] == self.choices).mean(0)
                         for k in range(everyone.shape[1])])  # fmt: skip

    def confusions(self, num: int) -> list[tuple[int, int, int]]:
        """Return (true class, class it is taken for, rows) of the ``num`` most frequent mistakes.

        What is mistaken both ways stands once, the more frequent direction first.
        """
        targets, chosen = (x[~self.right].astype(np.int64) for x in (self.oof.targets, self.chosen))  # type: ignore[misc,index]
        size = len(self.oof.classes)
        low, high = np.minimum(targets, chosen), np.maximum(targets, chosen)
        codes, counts = np.unique(low * size + high, return_counts=True)
        found = []
        for place in np.argsort(-counts, kind="stable")[:num]:
            first, second = divmod(int(codes[place]), size)
            forth = int(((targets == first) & (chosen == second)).sum())
            if 2 * forth < counts[place]:
                first, second = second, first
            found.append((first, second, int(counts[place])))
        return found

    def mistaken_for(self) -> dict[int, tuple[int, int]]:
        """Return class → (the class it is most often taken for, rows)."""
        targets, chosen = (x[~self.right].astype(np.int64) for x in (self.oof.targets, self.chosen))  # type: ignore[misc,index]
        codes, counts = np.unique(targets * len(self.oof.classes) + chosen, return_counts=True)
        found: dict[int, tuple[int, int]] = {}
        for place in np.argsort(-counts, kind="stable"):
            first, second = divmod(int(codes[place]), len(self.oof.classes))
            found.setdefault(first, (second, int(counts[place])))
        return found

    def gains(self) -> list[list[object]]:
        """Return the rows of :func:`contributions`, of evenly drawn rows where there are many."""
        step = -(-len(self.losses) // MAX_SOLVED)
        logs = self.member_logs[::step].astype(np.float64)
        prior = np.log(np.maximum(self.blend.prior, TINY))[self.oof.targets[::step]]
        uniform = np.full(len(logs), -np.log(len(self.oof.classes)))
        table = np.c_[logs, uniform, prior]
        return contributions(self.oof.members, table, convex(table)[0])


def mean_blend(oof: Oof) -> Blend:
    """Return the plain mean of all members, for OOF predictions that nobody has blended."""
    num = len(oof.members)
    counts = np.bincount(oof.targets, minlength=len(oof.classes))
    return Blend(
        "linear", oof.members, np.full(num, 1 / num), np.ones(num), 1.0, (0.0, 0.0),
        counts / counts.sum(),
    )  # fmt: skip


def diagnose(oof: Oof, blend: Blend) -> Diagnosis:
    """Read every member's logits once.

    The members of ``blend`` with weight are among those of ``oof``.
    """
    num_rows, num_members = len(oof.targets), len(oof.members)
    firsts = [oof.members.index(next(m for m in oof.members if m[0] == model))
              for model in oof.models]  # fmt: skip
    used = {blend.members[m]: place for place, m in enumerate(blend.used)}
    own = {blend.members[m]: float(blend.temperatures[m]) for m in blend.used}
    logs = np.empty((num_rows, num_members), np.float32)
    right = np.empty((num_rows, num_members), bool)
    choices = np.empty((num_rows, len(firsts)), np.int32)
    chosen = np.empty(num_rows, np.int32)
    losses, sure, raw = (np.empty(num_rows) for _ in range(3))

    def work(rows: Array) -> None:
        targets, every = oof.targets[rows], np.arange(len(rows))
        stack = np.empty((len(used), len(rows), len(oof.classes)), np.float32)
        for place, member in enumerate(oof.members):
            log_probs = oof.read(member, rows)
            best = log_probs.argmax(axis=1)
            logs[rows, place] = log_probs[every, targets]
            right[rows, place] = best == targets
            if place in firsts:
                choices[rows, firsts.index(place)] = best
            if member in used:
                plain = own[member] == 1.0
                stack[used[member]] = log_probs if plain else log_softmax(log_probs, own[member])
        pooled = pool_arrays(blend.pool, stack, blend.weights[blend.used])
        final = add_floors(log_softmax(pooled, blend.temperature), blend.floors, blend.prior)
        raw[rows] = np.exp(pooled.max(axis=1))
        sure[rows] = np.exp(final.max(axis=1))
        losses[rows] = true_losses(final, targets)
        chosen[rows] = final.argmax(axis=1)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(work, row_blocks(num_rows, len(oof.classes) * max(len(used), 1))))
    return Diagnosis(oof, blend, logs, right, choices, losses, chosen, sure, raw, np.exp(-losses))


def costliest(losses: Array, num: int) -> Sequence[int]:
    """Return the numbers of the ``num`` rows with the highest losses, the highest first."""
    return np.argsort(-losses, kind="stable")[:num].tolist()  # type: ignore[misc]
