"""Pooled answers in, the temperature and the floor that finish them out.

Both are fitted together: without a floor one mislabelled image would soften every answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from src.ensemble.pool import MAX_LOSS, TINY
from src.ensemble.simplex import Mixture, mixture_losses, solve_mixture
from src.metrics.classification import MAX_TEMPERATURE, MIN_TEMPERATURE

Array = npt.NDArray[Any]


def fit_finish(
    true_at: Callable[[float], Array], floors: Array, prior: Array
) -> tuple[float, tuple[float, float]]:
    """Return the temperature and the weights of the two floors with the lowest loss.

    Args:
        true_at: temperature → (R,) log probability of the true class.
        floors: (R, 2) the same of the uniform distribution and of the class frequencies.
        prior: (K,) class frequencies.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return fit_floors(true_at(float(np.exp(log_temperature))), floors, prior).loss

    found = minimize_scalar(
        loss,
        bounds=(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-3},
    )
    temperature = float(np.exp(found.x))
    _, uniform, frequencies = fit_floors(true_at(temperature), floors, prior).weights
    return temperature, (float(uniform), float(frequencies))


def fit_floors(log_probs: Array, floors: Array, prior: Array) -> Mixture:
    """Return the best mixture of an answer with the two floors, weights (3,).

    One imaginary row is added, of any class, which the answer holds impossible. So no answer is
    surer than its number of rows can prove (Laplace's rule of succession: a mistake not yet seen in
    n rows has a chance of about 1 / n). It costs 1 / n nats a row where no mistake comes; it caps
    what one mislabelled image costs.

    Args:
        log_probs: (R,) log probability of the true class.
        floors: (R, 2) the same of the uniform distribution and of the class frequencies.
        prior: (K,) class frequencies.
    """
    imaginary = [-MAX_LOSS, -np.log(len(prior)), np.log(np.maximum(prior, TINY)).mean()]
    table = np.vstack([np.column_stack([log_probs, floors]), imaginary])
    return solve_mixture(table, start=np.array([0.98, 0.01, 0.01]), tolerance=1e-7)


def finished_losses(log_probs: Array, floors: Array, shares: tuple[float, float]) -> Array:
    """Return (R,) losses of answers mixed with the floors, clipped as the grader clips.

    Args:
        log_probs: (R,) log probability of the true class.
        floors: (R, 2) the same of the floors.
        shares: weights of the floors.
    """
    table = np.column_stack([log_probs, floors])
    losses = mixture_losses(table, np.array([1.0 - sum(shares), *shares]))
    return np.minimum(losses, MAX_LOSS)
