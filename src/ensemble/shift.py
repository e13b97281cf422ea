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
        covariance: (K, K) of the estimate; zero if not significant.
        p_value: of the likelihood-ratio test that nothing has shifted.
        gain: what correcting would take off the log loss, nats, estimated on halves of the rows
            with frequencies of the other half; can be negative.
        gain_error: its standard error.
        gap: certificate of the solution, nats.
    """

    prior: Array
    implied: Array
    covariance: Array
    p_value: float
    gain: float
    gain_error: float
    gap: float

    @property
    def significant(self) -> bool:
        """Whether the shift is beyond chance (5 %)."""
        return self.p_value < 0.05


def no_shift(implied: Array) -> Shift:
    """Return the shift that changes nothing."""
    zeros = np.zeros((len(implied), len(implied)))
    return Shift(implied, implied, zeros, 1.0, 0.0, 0.0, 0.0)


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
    gain, error = _cross_gain(log_probs, ratios, implied)
    if p_value >= 0.05:
        return Shift(implied, implied, np.zeros((num_classes,) * 2), p_value, gain, error, 0.0)
    # one imaginary row of each class, so that no class is declared impossible
    smooth = (solution.weights * num_rows + 1.0) / (num_rows + num_classes)
    covariance = _covariance(ratios, solution.weights)
    return Shift(smooth, implied, covariance, p_value, gain, error, solution.gap)


def correct(log_probs: Array, shift: Shift) -> Array:
    """Return float32 log posteriors (R, K) under the test frequencies."""
    change = np.log(shift.prior) - np.log(np.maximum(shift.implied, TINY))
    return log_softmax(log_probs + change.astype(np.float32))


def _log_likelihood(ratios: Array, prior: Array) -> float:
    top = ratios.max(axis=1)
    return float(np.mean(np.log(np.exp(ratios - top[:, None]) @ prior) + top))


def _cross_gain(log_probs: Array, ratios: Array, implied: Array) -> tuple[float, float]:
    """Return the gain of correcting, each half judged with the other half's frequencies.

    On a half B: the mean over rows of sum_y r_B(y|x) log(r_A(y|x) / q(y|x)), where r_A and r_B are
    the posteriors under the frequencies that the halves A and B say.
    """
    num_rows, num_classes = ratios.shape
    half = np.arange(num_rows) % 2 == 0
    priors = []
    for rows in (half, ~half):
        weights = solve_mixture(ratios[rows], start=implied, tolerance=1e-5).weights
        priors.append((weights * rows.sum() + 1.0) / (rows.sum() + num_classes))
    gains = np.empty(num_rows)
    for rows, own, other in ((half, *priors), (~half, *priors[::-1])):
        belief = np.exp(log_softmax(ratios[rows] + np.log(own)).astype(np.float64))
        answer = log_softmax(ratios[rows] + np.log(other))
        gains[rows] = np.einsum("rk,rk->r", belief, answer - log_probs[rows])
    return float(gains.mean()), float(gains.std() / np.sqrt(num_rows))


def _covariance(ratios: Array, prior: Array) -> Array:
    """Return the (K, K) covariance of the estimate, from the Fisher information on its support."""
    num_classes = ratios.shape[1]
    support = np.flatnonzero(prior > 1e-8)
    densities = np.exp(ratios - ratios.max(axis=1, keepdims=True))
    relative = densities[:, support] / (densities @ prior)[:, None]
    information = relative.T @ relative
    information[np.diag_indices_from(information)] += 1e-9 * np.trace(information)
    inverse = np.linalg.inv(information)
    row_sums = inverse.sum(axis=1)
    inverse -= np.outer(row_sums, row_sums) / row_sums.sum()  # frequencies sum to one
    covariance = np.zeros((num_classes, num_classes))
    covariance[np.ix_(support, support)] = inverse
    return covariance
