"""Calibration: reliability, the expected test log loss, and label-shift estimation (EM).

The expected test loss is the mean of two estimates. The first is what the predictions expect of
themselves: sum_y r(y|x) (-log q(y|x)), where q is the prediction and r the same corrected to the
class frequencies estimated for the test rows (below); without label shift it is the mean entropy.
It is too high where the folds' average is less sure than it is right. The second is the nested OOF
loss of one fold's networks, times how much higher their entropy is on the test rows, less what
averaging gains; it is right on average and noisy. ``benchmarks/forecast.py`` measures both. Errors
take whole groups as what was drawn, and as many test rows a group as in OOF.

Label shift: if only the class frequencies differ between train and test, those of the test rows
maximise mean log sum_c pi_c q_c(x) / pi0_c, where q are calibrated predictions and pi0 the
frequencies they imply. The EM of Saerens, Latinne and Decaestecker 2002
(https://doi.org/10.1162/089976602753284446) climbs to that maximum; it is the mixture problem of
``pool.py``, solved and certified there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from src.ensemble.oof import Oof
from src.ensemble.pool import (
    TINY,
    Blend,
    log_softmax,
    mixture_losses,
    row_blocks,
    solve_mixture,
    true_losses,
)
from src.ensemble.test_predictions import Averaging
from src.ensemble.weights import OofSummary
from src.metrics.classification import Array, number_units

EDGES = np.array([0.0, 0.5, 0.7, 0.9, 0.97, 0.99, 1.0 + 1e-6])
FORECAST_LEVEL = "90 %"  # of the interval of a forecast
FORECAST_Z = 1.6449  # standard errors to its ends
_THRESHOLDS = (0.9999, 0.9995, 0.999, 0.998, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8, 0.7, 0.5)
_ADAPTIVE_VALUES = 1 << 22
_MAX_CHANGE = 1e-4  # of the log loss, nats


@dataclass(frozen=True)
class Estimate:
    """A number with its interval: 95 % of a score, ``FORECAST_LEVEL`` of a forecast."""

    value: float
    low: float
    high: float


@dataclass
class TestTally:
    """Sums over the test rows, added up block by block.

    ``moments`` holds the sums of, a row: expected loss, its variance, expected accuracy, its
    variance.
    """

    __test__ = False  # not a test case

    num_rows: int = 0
    moments: Array = field(default_factory=lambda: np.zeros(4))
    # (2, B): rows and expected correct predictions in each confidence bin
    bins: Array = field(default_factory=lambda: np.zeros((2, len(EDGES) - 1)))

    def add(self, log_probs: Array, posterior: Array) -> None:
        """Add R rows.

        ``log_probs`` (R, K) are submitted; ``posterior`` (R, K) is the log of what is believed, the
        same unless labels have shifted.
        """
        belief = np.exp(posterior.astype(np.float64))
        surprise = -log_probs.astype(np.float64)
        expected = np.einsum("rk,rk->r", belief, surprise)
        square = np.einsum("rk,rk,rk->r", belief, surprise, surprise)
        right = np.take_along_axis(belief, log_probs.argmax(axis=1)[:, None], axis=1)[:, 0]
        self.num_rows += len(log_probs)
        self.moments += [
            expected.sum(),
            np.maximum(square - expected**2, 0.0).sum(),
            right.sum(),
            (right * (1 - right)).sum(),
        ]
        place = np.digitize(np.exp(log_probs.max(axis=1)), EDGES) - 1
        self.bins += np.stack([np.bincount(place, w, self.bins.shape[1]) for w in (None, right)])


def summarise_oof(log_probs: Array, targets: Array, groups: Array | None = None) -> OofSummary:
    """Return what nested OOF predictions (N, K) say about calibration.

    Rows of one of the ``groups`` (N,), text, are no independent evidence; "" or None = none.
    """
    num_rows, num_classes = log_probs.shape
    losses = true_losses(log_probs, targets)
    entropies, prior = np.empty(num_rows), np.zeros(num_classes)
    for start in range(0, num_rows, 4096):
        block = log_probs[start : start + 4096].astype(np.float64)
        probs = np.exp(block)
        entropies[start : start + 4096] = -np.einsum("rk,rk->r", probs, block)
        prior += probs.sum(axis=0)
    confidence = np.exp(log_probs.max(axis=1).astype(np.float64))
    right = log_probs.argmax(axis=1) == targets
    units = number_units(groups, num_rows)
    residual = losses - entropies
    error, plain = mean_error(residual, units), mean_error(residual, np.arange(num_rows))
    return OofSummary(
        loss=float(losses.mean()),
        implied_prior=prior / prior.sum(),
        accuracy=float(right.mean()),
        entropy=float(entropies.mean()),
        residual_error=error,
        confidence=float(confidence.mean()),
        confidence_error=mean_error(right - confidence, units),
        design_effect=max(1.0, (error / plain) ** 2) if plain else 1.0,
        num_rows=float(num_rows),
        num_units=float(units.max() + 1),
    )


def mean_error(values: Array, units: Array) -> float:
    """Return the standard error of the mean of ``values`` (N,), drawn as whole ``units`` (N,)."""
    sums = np.bincount(units, values - values.mean())
    return float(np.sqrt((sums**2).sum() * len(sums) / max(len(sums) - 1, 1)) / len(values))


def reliability(log_probs: Array, targets: Array) -> Array:
    """Return (B, 3): rows, mean confidence and accuracy in each confidence bin of ``EDGES``."""
    confidence = np.exp(log_probs.max(axis=1).astype(np.float64))
    return bin_confidence(confidence, log_probs.argmax(axis=1) == targets)


def bin_confidence(confidence: Array, right: Array) -> Array:
    """Return what :func:`reliability` does of largest probabilities (N,) and whether right (N,)."""
    place = np.digitize(confidence, EDGES) - 1
    size = len(EDGES) - 1
    weights = (None, confidence, right.astype(np.float64))
    sums = [np.bincount(place, w, size) for w in weights]
    counts = np.maximum(sums[0], 1)
    return np.stack([sums[0], sums[1] / counts, sums[2] / counts], axis=1)


def name_bin(place: int) -> str:
    """Return the ends of a confidence bin of ``EDGES``, for people."""
    return f"{EDGES[place]:.2f} – {min(EDGES[place + 1], 1.0):.2f}"


def expected_loss(summary: OofSummary, tally: TestTally, averaging: Averaging) -> Estimate:
    """Return the expected test log loss; see the module."""
    own = tally.moments[0] / tally.num_rows
    gain, alone, entropy = (
        float(x.mean()) for x in (averaging.gain, averaging.fold_entropy, averaging.entropy)
    )
    ratio = alone / max(summary.entropy, TINY) * own / max(entropy, TINY)
    value = (own + max(summary.loss * ratio - gain, 0.0)) / 2
    chance = tally.moments[1] / tally.num_rows**2
    return _estimate(value, chance, summary.residual_error, summary)


def expected_accuracy(summary: OofSummary, tally: TestTally) -> Estimate:
    """Return the expected test accuracy from the predictions' own confidence."""
    value = tally.moments[2] / tally.num_rows
    chance = tally.moments[3] / tally.num_rows**2
    estimate = _estimate(value, chance, summary.confidence_error, summary)
    return Estimate(estimate.value, estimate.low, min(estimate.high, 1.0))


def _estimate(value: float, chance: float, error: float, summary: OofSummary) -> Estimate:
    """Return the estimate whose variance is ``chance``, of the test rows, and that of OOF."""
    from scipy.special import stdtrit

    width = np.sqrt(chance * summary.design_effect + error**2)
    width *= stdtrit(max(summary.num_units - 1, 1), 0.95)  # Student's t: few groups say little
    return Estimate(float(value), float(max(value - width, 0.0)), float(value + width))


def adaptive_threshold(oof: Oof, blend: Blend) -> tuple[float, float]:
    """Learn from which confidence a model's first view needs no other view.

    Where a model's first view has a probability above the threshold, its other views are taken to
    say the same. Return the lowest threshold at which, and above which, the blend's OOF log loss
    moves by less than 1e-4 nats, and the share of (row, model) pairs that still need all
    views; 1.1 and 1.0 if there is none.
    """
    num_rows, num_classes = len(oof.targets), len(oof.classes)
    most = max(_ADAPTIVE_VALUES // num_classes, 1000)
    rows = np.arange(0, num_rows, -(-num_rows // most))
    used = blend.used
    calibrated = [(blend.members[m], float(blend.temperatures[m])) for m in used]
    models = list(dict.fromkeys(model for (model, _), _ in calibrated))
    firsts = {model: next(mv for mv in blend.members if mv[0] == model) for model in models}
    owner = np.array([models.index(model) for (model, _), _ in calibrated])
    change, needed = np.zeros(len(_THRESHOLDS)), np.zeros(len(_THRESHOLDS))
    for block in row_blocks(len(rows), num_classes * len(used)):
        here = rows[block]
        sure = np.stack([np.exp(oof.read(firsts[m], here).max(axis=1)) for m in models])
        members = np.stack([oof.read(member, here, own) for member, own in calibrated])
        alone = np.stack([oof.read(firsts[model], here, own) for (model, _), own in calibrated])
        full = true_losses(blend.predict(members), oof.targets[here])
        for t, threshold in enumerate(_THRESHOLDS):
            skip = sure >= threshold  # (models, R)
            predictions = np.where(skip[owner][:, :, None], alone, members)
            change[t] += (true_losses(blend.predict(predictions), oof.targets[here]) - full).sum()
            needed[t] += (~skip).mean(axis=0).sum()
    good = np.abs(change) / len(rows) < _MAX_CHANGE
    last = int(np.argmin(good)) if not good.all() else len(good)  # thresholds fall
    if last == 0:
        return 1.1, 1.0
    return _THRESHOLDS[last - 1], float(needed[last - 1] / len(rows))


MAX_VALUES = 1 << 22  # probabilities the estimate looks at: 32 MiB


@dataclass(frozen=True)
class Shift:
    """How the test rows' class frequencies differ from those the predictions imply."""

    prior: Array  # (K,) estimated test frequencies if ``significant``, else those implied
    implied: Array  # (K,) frequencies that the predictions imply
    p_value: float  # of the likelihood-ratio test that nothing has shifted
    # what correcting would take off the log loss if ``prior`` were exact, nats; it is fitted
    # to the same rows, so rather an upper bound
    gain: float

    @property
    def significant(self) -> bool:
        """Whether the shift is beyond chance (5 %)."""
        return self.p_value < 0.05


def no_shift(implied: Array) -> Shift:
    """Return the shift that changes nothing."""
    return Shift(implied, implied, 1.0, 0.0)


def estimate_shift(
    log_probs: Array, implied: Array, *, num_oof: float = np.inf, design_effect: float = 1.0
) -> Shift:
    """Estimate the class frequencies of unlabelled rows.

    Args:
        log_probs: (N, K) calibrated predictions; thin them to ``MAX_VALUES`` values beforehand.
        implied: (K,) class frequencies they imply, those of the OOF predictions.
        num_oof: rows behind ``implied``, whose own chance adds to that of the unlabelled rows.
        design_effect: by which groups make chance differences larger; the test's statistic is
            divided by it (Rao & Scott 1981, https://doi.org/10.1080/01621459.1981.10477633).
    """
    from scipy.stats import chi2

    num_rows, num_classes = log_probs.shape
    if num_rows < 2 * num_classes or num_classes < 2:  # too few rows to say anything
        return no_shift(implied)
    implied = np.maximum(implied, TINY)
    ratios = log_probs.astype(np.float64) - np.log(implied)
    solution = solve_mixture(ratios, start=implied)
    statistic = 2 * num_rows * (mixture_losses(ratios, implied).mean() - solution.loss)
    statistic /= design_effect * (1 + num_rows / num_oof)
    p_value = float(chi2.sf(max(statistic, 0.0), num_classes - 1))
    if p_value >= 0.05:
        return Shift(implied, implied, p_value, 0.0)
    # one imaginary row of each class, so that no class is declared impossible
    smooth = (solution.weights * num_rows + 1.0) / (num_rows + num_classes)
    belief = log_softmax(ratios + np.log(smooth)).astype(np.float64)
    gain = float(np.einsum("rk,rk->", np.exp(belief), belief - log_probs)) / num_rows
    return Shift(smooth, implied, p_value, gain)


def find_shift(log_probs: Array, summary: OofSummary) -> Shift:
    """Estimate the test rows' class frequencies from an even sample of the predictions."""
    step = -(-log_probs.size // MAX_VALUES)
    return estimate_shift(
        log_probs[:: max(step, 1)], summary.implied_prior, num_oof=summary.num_rows,
        design_effect=summary.design_effect,
    )  # fmt: skip


def correct(log_probs: Array, shift: Shift) -> Array:
    """Return float32 log posteriors (R, K) under the test frequencies."""
    change = np.log(shift.prior) - np.log(np.maximum(shift.implied, TINY))
    return log_softmax(log_probs + change.astype(np.float32))
