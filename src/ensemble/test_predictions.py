"""Test-set predictions of the blend: members pooled per fold, folds averaged as log probabilities.

Every fold's network repeats the whole OOF recipe: the members of fold k are pooled and calibrated
with the fitted weights, then the folds' predictions are averaged as logarithms. For
that mean log q(y) = mean_k log q_k(y) - log Z with Z <= 1 whatever the label is, so -log Z is the
exact gain of the K fold models' average over the mean fold model, known without labels. It also
keeps the sharpness the temperature was fitted for; a mean of probabilities would be underconfident.

The temperature was fitted on single folds, whose noise the average partly removes, so it is a
little too high for it. Of log probabilities that are signal plus noise, the best linear prediction
from one shrinks by V_s / (V_s + V_n), from the mean of S by V_s / (V_s + V_n / S) (regression
dilution); the ratio is the temperature of the mean, and the folds' spread on the test images says
what V_n is, without labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from src.ensemble.pool import Blend, entropy, log_softmax, member_log_probs
from src.ensemble.predictions import TestRun, atomic_array
from src.metrics.classification import Array, row_slices
from src.metrics.contest import Metric
from src.metrics.decisions import Decision
from src.script import UserError

_BLOCK_VALUES = 1 << 18
_GAIN_VALUES, _GAIN_LEAST = 100_000, 500  # probabilities, and images at least
_GAIN_DRAWS = 16


@dataclass(frozen=True)
class EnsemblePredictor:
    """The test logits of all models of a blend."""

    runs: Mapping[str, Sequence[TestRun]]  # model → its folds' predictions
    blend: Blend  # fitted weights; their members are among the runs' models and views
    columns: tuple[int, ...]  # (K0,) merged class of each column
    num_rows: int  # N
    temperature: float = 1.0  # of the folds' average, from :func:`average_temperature`

    @property
    def num_folds(self) -> int:
        """How many networks the model with most folds has."""
        return max(len(runs) for runs in self.runs.values())

    def predict(self, rows: slice | Array) -> BlendedPredictions:
        """Return the blended prediction of a slice of rows, or of row numbers (R,)."""
        pooled, choices = self.predict_folds(rows)
        mean = pooled.mean(axis=0)
        gain = -_log_sum_exp(mean).astype(np.float64)
        mean /= np.float32(self.temperature)
        mean -= _log_sum_exp(mean)[:, None]
        alone = entropy(pooled).mean(axis=0)
        return BlendedPredictions(mean, Averaging(gain, alone, entropy(mean)), choices)

    def predict_folds(self, rows: slice | Array) -> tuple[Array, dict[str, Array]]:
        """Return the log probabilities (S, R, K) of every fold, and each model's classes (R,)."""
        blend = self.blend
        num_classes = len(blend.prior)
        votes: dict[str, Array] = {}
        folds = []
        for fold in range(self.num_folds):
            members = []
            for m in blend.used:
                model, view = blend.members[m]
                runs = self.runs[model]
                run = runs[fold % len(runs)]  # of a model of fewer folds they come again
                logits = np.asarray(run.logits[run.views.index(view), rows], dtype=np.float32)
                if not np.isfinite(logits).all():
                    raise UserError(
                        f"{run.path}: holds values that are not finite; delete it and infer again"
                    )
                own = float(blend.temperatures[m])
                members.append(member_log_probs(logits, own, self.columns, num_classes))
                vote = votes.setdefault(model, np.zeros(members[-1].shape, dtype=np.float32))
                vote += np.float32(blend.weights[m]) * np.exp(members[-1])
            folds.append(blend.predict(np.stack(members)))
        choices = {model: vote.argmax(axis=1) for model, vote in votes.items()}
        return np.stack(folds), choices


def average_temperature(predictor: EnsemblePredictor) -> float:
    """Estimate the temperature of the folds' average, in (0, 1]; see the module.

    From an even choice of rows with about a quarter of a million values.
    """
    if predictor.num_folds < 2:
        return 1.0
    num_rows, num_classes = predictor.num_rows, len(predictor.blend.prior)
    step = max(1, num_rows * num_classes // _BLOCK_VALUES)
    folds, _ = predictor.predict_folds(slice(0, num_rows, step))
    centred = folds.astype(np.float64)
    centred -= centred.mean(axis=2, keepdims=True)
    noise = float(centred.var(axis=0, ddof=1).mean())
    total = float((centred**2).mean())
    if total <= 0:
        return 1.0
    return 1.0 - (noise / total) * (1 - 1 / len(folds))


def averaging_gain(predictor: EnsemblePredictor, metric: Metric, decision: Decision) -> float:
    """Estimate by how much the folds' average scores above one fold's networks, without labels.

    As far as the average's probabilities are right, labels drawn from them are like the test rows':
    the mean difference of both scores on such labels is what averaging gains. From an even choice
    of images, the same labels for all.
    """
    if predictor.num_folds < 2:
        return 0.0
    num_images = predictor.num_rows // metric.unit
    most = max(_GAIN_VALUES // (len(predictor.blend.prior) * metric.unit), _GAIN_LEAST)
    images = np.arange(0, num_images, -(-num_images // most))
    rows = metric.rows_of(images)
    folds, mean = predictor.predict_folds(rows)[0], predictor.predict(rows).log_probs
    return expected_gain(folds, mean, metric, decision)


def expected_gain(folds: Array, mean: Array, metric: Metric, decision: Decision) -> float:
    """Return the mean of :func:`averaging_gain` over draws of labels.

    ``folds`` (S, R, K) are log probabilities of every fold's networks, ``mean`` (R, K) of their
    average.
    """
    rng = np.random.default_rng(0)
    probs = np.exp(mean.astype(np.float64))
    if decision.rule == "labels":  # calibrated, as they are submitted
        present = replace(decision, cuts=()).apply(mean)
        probs = np.stack([1 - present, present], axis=1)
    steps = probs.cumsum(axis=1)
    steps /= steps[:, -1:]
    submitted, alone = decision.apply(mean), [decision.apply(fold) for fold in folds]
    gains = []
    for _ in range(_GAIN_DRAWS):
        labels = (rng.random((len(steps), 1)) > steps).sum(axis=1)
        scores = [metric.measure(one, labels) for one in alone]
        gains.append(metric.measure(submitted, labels) - float(np.mean(scores)))
    return float(np.mean(gains))


def _log_sum_exp(values: Array) -> Array:
    """Return (R,) log of the sum of exponentials of (R, K)."""
    top = values.max(axis=1)
    return top + np.log(np.exp(values - top[:, None]).sum(axis=1))


@dataclass(frozen=True)
class Averaging:
    """What averaging the folds' predictions does to R rows, nats."""

    # (R,) by which the average's loss is below the folds' mean loss, whatever the label
    gain: Array
    fold_entropy: Array  # (R,) mean entropy of the folds' predictions
    entropy: Array  # (R,) entropy of the average


@dataclass(frozen=True)
class BlendedPredictions:
    """What the blend says about R rows."""

    log_probs: Array  # (R, K) float32, normalised
    averaging: Averaging  # what averaging the folds did
    choices: Mapping[str, Array]  # model → (R,) the class it prefers

    def blocks(self) -> Iterator[Array]:
        """Yield the log probabilities of consecutive rows, in memory."""
        for rows in row_slices(len(self.log_probs), self.log_probs.shape[1], _BLOCK_VALUES):
            yield np.array(self.log_probs[rows])


def pool_lines(log_probs: Array, lines: Sequence[str]) -> Array:
    """Return log probabilities of a submission's lines, which several images share each.

    ``log_probs`` are (N, K) of N images whose ``lines`` stand together, or (N · L, 2) of pairs of
    images and labels. A line has the geometric mean of its images' probabilities, normalised.
    """
    names = np.asarray(lines)
    starts = np.flatnonzero(np.concatenate([[True], names[1:] != names[:-1]]))
    counts = np.diff([*starts, len(names)])
    rows = log_probs.reshape(len(names), -1).astype(np.float64)
    mean = np.add.reduceat(rows, starts) / counts[:, None]
    return log_softmax(mean.reshape(-1, log_probs.shape[1]))


def save_predictions(
    path: Path, predictor: EnsemblePredictor, *, progress: Callable[[int], object]
) -> BlendedPredictions:
    """Predict all rows block by block, into an ``.npy`` of log probabilities (N, K) float32.

    ``progress`` is called with the number of rows after each block.
    """
    num_rows, num_classes = predictor.num_rows, len(predictor.blend.prior)
    averaging = Averaging(*np.empty((3, num_rows)))
    choices: dict[str, Array] = {}
    with atomic_array(path, (num_rows, num_classes), np.float32) as log_probs:
        for rows in row_slices(num_rows, num_classes, _BLOCK_VALUES):
            prediction = predictor.predict(rows)
            log_probs[rows] = prediction.log_probs
            for field in fields(Averaging):
                getattr(averaging, field.name)[rows] = getattr(prediction.averaging, field.name)
            for model, chosen in prediction.choices.items():
                place = choices.setdefault(model, np.empty(num_rows, dtype=np.int32))
                place[rows] = chosen
            progress(rows.stop - rows.start)
    whole = np.load(path, mmap_mode="r", allow_pickle=False)
    return BlendedPredictions(whole, averaging, choices)
