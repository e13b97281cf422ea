"""Alias suggestions: pairs of classes that OOF predictions cannot tell apart, with the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from src.metrics.classification import Array
from src.script import format_table

MAX_SKILL, MIN_SHARE = 0.3, 0.1  # of pairs that are taken for one class


@dataclass(frozen=True)
class Suggestion:
    """Two classes that the models cannot tell apart, with the evidence."""

    first: str  # name of the larger class
    second: str  # name of the smaller one
    num_rows: int  # OOF rows of both
    num_right: int  # rows for which the true one of the two has the larger probability
    chance: float  # the share of right choices when always naming the larger class
    log_loss: float  # mean -log p(true | one of the two), nats a row; merging takes all of it off
    base_log_loss: float  # the same for a guess by their frequencies


def suggest_aliases(log_probs: Array, targets: Array, classes: Sequence[str]) -> list[Suggestion]:
    """Return the pairs of classes that the predictions cannot tell apart, worst first.

    A pair is looked at when at least ``MIN_SHARE`` of its probability goes to the other name. It is
    proposed when, among the two, the choice is hardly better than a guess by frequency, twice: with
    L the mean log loss of that choice and H that of the guess, 1 - L / H < ``MAX_SKILL`` at the
    upper end of a 95 % interval of L's mean; and fewer than half of the choices that such a guess
    gets wrong are put right. ``log_probs`` (N, K) are out of fold, ``targets`` (N,) class numbers.
    """
    num_classes = len(classes)
    counts = np.bincount(targets, minlength=num_classes)
    given = np.zeros((num_classes, num_classes))  # probability class a's rows give to class b
    for k in np.flatnonzero(counts):
        given[k] = np.exp(log_probs[targets == k].astype(np.float64)).sum(axis=0)
    np.fill_diagonal(given, 0.0)
    share = (given + given.T) / np.maximum(counts[:, None] + counts[None, :], 1)
    found = []
    for a, b in zip(*np.nonzero(np.triu(share >= MIN_SHARE)), strict=True):
        if min(counts[a], counts[b]) >= 3:
            pair, skill = _compare(log_probs, targets, classes, (int(a), int(b)))
            if skill < MAX_SKILL and pair.num_right / pair.num_rows < (1 + pair.chance) / 2:
                found.append(pair)
    return sorted(found, key=lambda s: -s.log_loss * s.num_rows)


def _compare(
    log_probs: Array, targets: Array, classes: Sequence[str], pair: tuple[int, int]
) -> tuple[Suggestion, float]:
    """Return the evidence about a pair and the upper end of its skill."""
    a, b = pair
    rows = np.flatnonzero((targets == a) | (targets == b))
    if (targets[rows] == b).mean() > 0.5:
        a, b = b, a
    both = log_probs[rows][:, np.array([a, b])].astype(np.float64)
    joint = np.logaddexp(both[:, 0], both[:, 1])
    is_b = (targets[rows] == b).astype(int)
    losses = joint - both[np.arange(len(rows)), is_b]
    rate = is_b.mean()
    base = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    error = losses.std(ddof=1) / np.sqrt(len(rows))
    evidence = Suggestion(
        first=classes[a],
        second=classes[b],
        num_rows=len(rows),
        num_right=int((both.argmax(axis=1) == is_b).sum()),
        chance=float(1 - rate),
        log_loss=float(losses.mean()),
        base_log_loss=float(base),
    )
    return evidence, float(1 - (losses.mean() - 1.96 * error) / base)


def suggestions_table(suggestions: Sequence[Suggestion]) -> str:
    """Return the pairs that cannot be told apart, with the evidence."""
    header = ["class", "alias", "rows", "right", "by chance", "log loss", "guess", "gain a row"]
    rows = []
    for s in suggestions:
        choices = [s.num_rows, s.num_right, s.chance * s.num_rows]
        rows.append([s.first, s.second, *choices, s.log_loss, s.base_log_loss, s.log_loss])
    return format_table(header, rows)
