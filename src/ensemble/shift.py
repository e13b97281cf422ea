"""Unlabelled test answers in; the class frequencies of the test rows, and what they change, out.

If only the class frequencies differ between train and test, those of the test rows maximise
mean log sum_c pi_c q_c(x) / pi0_c, where q are calibrated answers and pi0 the frequencies they
imply. The EM of Saerens, Latinne and Decaestecker 2002 (https://doi.org/10.1162/089976602753284446)
climbs to that maximum; it is the mixture problem of ``simplex.py``, solved and certified there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from src.ensemble.pool import TINY, log_softmax
from src.ensemble.simplex import solve_mixture

Array = npt.NDArray[Any]

MAX_VALUES = 1 << 22  # probabilities the estimate looks at: 32 MiB


@dataclass(frozen=True)
class Shift:
    """How the test rows' class frequencies differ from those the answers imply.

    Attributes:
        prior: (K,) estimated test frequencies if ``significant``, else those implied.
        implied: (K,) frequencies that the answers imply.
        p_value: of the likelihood-ratio test that nothing has shifted.
        gain: what correcting would take off the log loss if ``prior`` were exact, nats; it is
            fitted to the same rows, so rather an upper bound.
    """

    prior: Array
    implied: Array
    p_value: float
    gain: float

    @property
    def significant(self) -> bool:
        """Whether the shift is beyond chance (5 %)."""
        return self.p_value < 0.05


def no_shift(implied: Array) -> Shift:
    """Return the shift that changes nothing."""
    return Shift(implied, implied, 1.0, 0.0)


def estimate_shift(log_probs: Array, implied: Array) -> Shift:
    """Estimate the class frequencies of unlabelled rows.

    Args:
        log_probs: (N, K) calibrated answers; thin them to ``MAX_VALUES`` values beforehand.
        implied: (K,) class frequencies they imply, those of the OOF answers.
    """
    from scipy.stats import chi2

    num_rows, num_classes = log_probs.shape
    if num_rows < 2 * num_classes or num_classes < 2:  # too few rows to say anything
        return no_shift(implied)
    implied = np.maximum(implied, TINY)
    ratios = log_probs.astype(np.float64) - np.log(implied)
    solution = solve_mixture(ratios, start=implied)
    statistic = 2 * num_rows * (-solution.loss - _log_likelihood(ratios, implied))
    p_value = float(chi2.sf(max(statistic, 0.0), num_classes - 1))
    if p_value >= 0.05:
        return Shift(implied, implied, p_value, 0.0)
    # one imaginary row of each class, so that no class is declared impossible
    smooth = (solution.weights * num_rows + 1.0) / (num_rows + num_classes)
    belief = log_softmax(ratios + np.log(smooth)).astype(np.float64)
    gain = float(np.einsum("rk,rk->", np.exp(belief), belief - log_probs)) / num_rows
    return Shift(smooth, implied, p_value, gain)


def correct(log_probs: Array, shift: Shift) -> Array:
    """Return float32 log posteriors (R, K) under the test frequencies."""
    change = np.log(shift.prior) - np.log(np.maximum(shift.implied, TINY))
    return log_softmax(log_probs + change.astype(np.float32))


def _log_likelihood(ratios: Array, prior: Array) -> float:
    top = ratios.max(axis=1)
    return float(np.mean(np.log(np.exp(ratios - top[:, None]) @ prior) + top))
