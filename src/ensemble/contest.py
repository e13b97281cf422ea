"""Every way to weigh the members, side by side: fitted loss, nested loss and its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from src.ensemble.blend import (
    Tables,
    best_single,
    bootstrap_means,
    convex,
    cross_fit,
    greedy,
    interval,
    losses_of,
    seed_weights,
    uniform_weights,
)
from src.ensemble.fitting import Fitted
from src.ensemble.pool import FLOORS, Member
from src.ensemble.simplex import Mixture

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Entry:
    """One method.

    Attributes:
        name: of the method.
        weights: (M,) of members, or (M + 2,) of members and floors.
        loss: on the rows it was fitted on, nats.
        nested: (N,) loss of each row when fitted without its part.
    """

    name: str
    weights: Array
    loss: float
    nested: Array


def contest(
    members: Sequence[Member],
    tables: Tables,
    priors: Mapping[str, float],
) -> tuple[list[Entry], Mixture]:
    """Weigh the members in every way that pools linearly and does not calibrate.

    Args:
        members: (model, view) pairs.
        tables: from ``build_tables``.
        priors: model → prior weight.

    Returns:
        The entries, and the certified solution of the convex one.
    """
    table, parts = tables.raw, tables.parts
    fits = {
        "uniform": lambda _: uniform_weights(members),
        "seed priors": lambda _: seed_weights(members, priors),
        "best single": best_single,
        "greedy": greedy,
    }
    entries = [
        Entry(name, weights := fit(table), _mean(table, weights), cross_fit(fit, table, parts))
        for name, fit in fits.items()
    ]
    weights, mixture = convex(table)
    nested = cross_fit(lambda rows: convex(rows, start=weights)[0], table, parts)
    return [*entries, Entry("convex", weights, mixture.loss, nested)], mixture


def entry_of(name: str, fitted: Fitted) -> Entry:
    """Return a finished blend as an entry."""
    return Entry(name, fitted.blend.weights, fitted.loss, fitted.nested_losses)


def score_entries(entries: Sequence[Entry]) -> dict[str, dict[str, float]]:
    """Return name → fitted, nested, low, high: mean losses and the 95 % bootstrap interval."""
    means = bootstrap_means(np.stack([entry.nested for entry in entries], axis=1))
    scores = {}
    for entry, resampled in zip(entries, means.T, strict=True):
        low, high = interval(resampled)
        nested = float(entry.nested.mean())
        scores[entry.name] = {"fitted": entry.loss, "nested": nested, "low": low, "high": high}
    return scores


def is_better(challenger: Array, champion: Array) -> bool:
    """Tell whether nested losses (N,) are lower by more than one standard error, row by row."""
    change = challenger - champion
    return bool(change.mean() < -change.std() / np.sqrt(len(change)) and change.mean() < -1e-6)


def contributions(members: Sequence[Member], tables: Tables, weights: Array) -> list[list[Any]]:
    """Return rows (kind, name, weight, loss alone, loss gained by having it).

    What is gained compares the best weights with and without the model or view, on the rows they
    are fitted on; alone means only its members, equally weighted.

    Args:
        members: (model, view) pairs.
        tables: from ``build_tables``.
        weights: (M + 2,) of the convex entry.
    """
    table = tables.raw
    full = _mean(table, weights)
    rows: list[list[Any]] = []
    for kind, place in (("model", 0), ("view", 1)):
        names = list(dict.fromkeys(member[place] for member in members))
        for name in names:
            mine = np.array([member[place] == name for member in members] + [False] * len(FLOORS))
            alone = _mean(table, mine / mine.sum())
            gained = float("nan")
            if len(names) > 1:
                without = np.where(mine, 0.0, weights)
                gained = convex(table, columns=~mine, start=without)[1].loss - full
            rows.append([kind, name, float(weights[mine].sum()), alone, gained])
    for floor, weight in zip(FLOORS, weights[-len(FLOORS) :], strict=True):
        rows.append(["floor", floor, float(weight), float("nan"), float("nan")])
    return rows


def _mean(table: Array, weights: Array) -> float:
    return float(losses_of(table, weights).mean())
