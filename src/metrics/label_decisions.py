"""Platt scaling and thresholds of labels, where an image may have several of them.

Each label's log odds z become a z + b, fitted by maximum likelihood (Platt 1999) under weak normal
priors around a = 1 and b = 0, so that a label that few images have stays about as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from src.metrics.multilabel import f1_of_images

Array = npt.NDArray[Any]

GRID = tuple(round(0.05 * step, 2) for step in range(1, 20))  # thresholds that are tried
_SPREAD = (0.5, 1.0)  # standard deviations of the priors of a and b
_STEPS = 25
_LEAST_SLOPE = 0.05


def label_odds(log_probs: Array, num_labels: int) -> Array:
    """Return the log odds (N, L) float64 of pairs (N · L, 2) of log probabilities."""
    odds = log_probs[:, 1].astype(np.float64) - log_probs[:, 0]
    return odds.reshape(-1, num_labels)


def decide_labels(odds: Array, cuts: Sequence[float] | Array, least: int = 0) -> Array:
    """Return 0 or 1 for each image and label (N, L), or probabilities where there are no cuts.

    Args:
        odds: (N, L) log odds.
        cuts: (L,) probability from which each label is given.
        least: 1 = an image that would get none gets the label that misses its cut by least.
    """
    if not len(cuts):
        return sigmoid(odds)
    margin = odds - _logit(np.array(cuts))
    marks = (margin >= 0).astype(np.int64)
    if least:
        none = np.flatnonzero(~marks.any(axis=1))
        marks[none, margin[none].argmax(axis=1)] = 1
    return marks


def calibrate_labels(odds: Array, targets: Array) -> tuple[Array, Array]:
    """Return slopes a and offsets b (L,) that minimise the penalised binary cross-entropy.

    Newton's method on all labels at once, each step halved until no label's loss grows.

    Args:
        odds: (N, L) log odds.
        targets: (N, L) of 0 and 1.
    """
    z = np.clip(odds, -50.0, 50.0)
    params = np.stack([np.ones(z.shape[1]), np.zeros(z.shape[1])])
    weight = 1.0 / np.square(_SPREAD)
    start = params.copy()

    def loss(at: Array) -> Array:
        scaled = at[0] * z + at[1]
        penalty = (weight[:, None] * (at - start) ** 2).sum(axis=0) / 2
        return (np.logaddexp(0, scaled) - targets * scaled).sum(axis=0) + penalty

    best = loss(params)
    for _ in range(_STEPS):
        probs = sigmoid(params[0] * z + params[1])
        slope, bend = probs - targets, probs * (1 - probs)
        gradient = np.stack([(slope * z).sum(axis=0), slope.sum(axis=0)])
        gradient += weight[:, None] * (params - start)
        aa, ab, bb = ((bend * part).sum(axis=0) for part in (z * z, z, np.ones_like(z)))
        aa, bb = aa + weight[0], bb + weight[1]
        det = aa * bb - ab * ab
        step = np.stack([bb * gradient[0] - ab * gradient[1], aa * gradient[1] - ab * gradient[0]])
        step /= det
        for _ in range(8):
            tried = params - step
            tried[0] = np.maximum(tried[0], _LEAST_SLOPE)
            found = loss(tried)
            worse = found > best
            if not worse.any():
                break
            step[:, worse] /= 2
        tried[:, worse] = params[:, worse]
        done = np.abs(tried - params).max() < 1e-6
        params, best = tried, loss(tried)
        if done:
            break
    return params[0], params[1]


def fit_thresholds(odds: Array, targets: Array, least: int = 0) -> tuple[float, ...]:
    """Return the (L,) thresholds of ``GRID`` with the best mean F1 of the images.

    One threshold is sought for all labels; then each label takes one of its own where that helps by
    more than one standard error, images paired. (Images that are given nothing count meanwhile as
    they do under the common threshold.)

    Args:
        odds: (N, L) calibrated log odds.
        targets: (N, L) of 0 and 1.
        least: of :func:`decide_labels`.
    """
    num_rows, num_labels = odds.shape

    def score(cut: float) -> Array:
        marks = decide_labels(odds, (cut,) * num_labels, least)
        return f1_of_images((marks * targets).sum(axis=1), (marks + targets).sum(axis=1))

    by_cut = {cut: score(cut) for cut in sorted(GRID, key=lambda cut: abs(cut - 0.5))}
    common = max(by_cut, key=lambda cut: float(by_cut[cut].mean()))
    cuts = np.full(num_labels, common)
    marks = decide_labels(odds, cuts)
    hits, given, had = (marks * targets).sum(axis=1), marks.sum(axis=1), targets.sum(axis=1)

    def scores_of(hits: Array, given: Array) -> Array:
        return np.where(given > 0, f1_of_images(hits, given + had), by_cut[common])

    current = scores_of(hits, given)
    probs = sigmoid(odds)
    for k in range(num_labels):
        best, chosen = current, None
        for cut in GRID:
            change = (probs[:, k] >= cut).astype(np.int64) - marks[:, k]
            tried = scores_of(hits + change * targets[:, k], given + change)
            if tried.mean() > best.mean() + 1e-12:
                best, chosen = tried, (cut, change)
        gain = best - current
        if chosen is None or gain.mean() <= gain.std() / np.sqrt(num_rows):
            continue
        cuts[k], change = chosen
        hits, given, current = hits + change * targets[:, k], given + change, best
    return tuple(cuts.tolist())


def sigmoid(odds: Array) -> Array:
    """Return probabilities of log odds."""
    return np.exp(-np.logaddexp(0.0, -odds))


def _logit(probs: Array) -> Array:
    return np.log(probs) - np.log1p(-probs)
