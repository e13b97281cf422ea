"""Linear probe in closed form: ridge regression with leave-one-out log loss.

The strength of the ridge and the scale of the logits are those with the least leave-one-out log
loss (a little smoothed), which needs no second fit (Allen 1974, the PRESS statistic): N rows cost
one eigenvalue problem of D × D, however many the classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # over N, for features of unit variance
LOG_SCALES = (-1.0, 6.0)  # of the logits
SMOOTHING = 0.05  # without it rows that are all right ask for boundless logits to start from


@dataclass(frozen=True)
class LinearProbe:
    """A linear head and what it is worth.

    Attributes:
        weight: (K, D) float32.
        bias: (K,) float32.
        log_loss: leave-one-out log loss of the rows it was fitted on, nats.
        accuracy: leave-one-out accuracy, in [0, 1].
        left_out: (N, K) float32 log probabilities of each row, fitted without it.
    """

    weight: Tensor
    bias: Tensor
    log_loss: float
    accuracy: float
    left_out: Tensor


def fit_probe(features: Tensor, target: Tensor, num_classes: int) -> LinearProbe:
    """Fit a linear head to ``features`` (N, D) of rows whose class is ``target`` (N,).

    Raises:
        ValueError: fewer than two rows, or features that are not finite.
    """
    if len(features) < 2 or not bool(torch.isfinite(features).all()):
        raise ValueError("a linear head needs two rows or more, of finite features")
    x = features.double()
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    x = (x - mean) / std
    truth = F.one_hot(target.long(), num_classes).double()
    truth -= truth.mean(0)
    values, basis = torch.linalg.eigh(x.T @ x)
    rotated = x @ basis  # (N, D)
    moments = rotated.T @ truth  # (D, K)
    best, chosen = float("inf"), (0.0, 0.0, 0.0, 0.0)
    for ridge in RIDGES:
        gain = 1 / (values.clamp_min(0) + ridge * len(x))
        fitted = rotated @ (gain[:, None] * moments)
        leverage = (rotated.square() @ gain + 1 / len(x)).clamp_max(1 - 1e-6)
        left_out = truth - (truth - fitted) / (1 - leverage)[:, None]

        def loss_at(log_scale: float, left_out: Tensor = left_out) -> float:
            logits = math.exp(log_scale) * left_out
            return float(F.cross_entropy(logits, target.long(), label_smoothing=SMOOTHING))

        found = minimize_scalar(loss_at, bounds=LOG_SCALES, options={"xatol": 0.02})
        if found.fun < best:
            best, scale = found.fun, math.exp(found.x)
            log_loss = float(F.cross_entropy(scale * left_out, target.long()))
            accuracy = float((left_out.argmax(1) == target).double().mean())
            chosen = (ridge, scale, log_loss, accuracy)
            log_probs = F.log_softmax(scale * left_out, 1).float()
    ridge, scale, log_loss, accuracy = chosen
    gain = 1 / (values.clamp_min(0) + ridge * len(x))
    weight = scale * (basis @ (gain[:, None] * moments)).T / std
    return LinearProbe(weight.float(), (-weight @ mean).float(), log_loss, accuracy, log_probs)
