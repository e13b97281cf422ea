"""Linear probe in closed form: ridge regression with leave-one-out log loss.

The strength of the ridge and the scale of the logits are those with the least leave-one-out log
loss (a little smoothed), which needs no second fit (Allen 1974, the PRESS statistic): it costs
one eigenvalue problem of N × N or D × D, the smaller one, however many the classes.

Of several labels an image each has a sigmoid: one scale for all labels' logits, over p (1 - p) of
the label's frequency p as between least squares and Gaussian classes, and a bias for each label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from src.models.stages import floor_spread

RIDGES = (2.5e-5, 8e-5, 2.5e-4, 8e-4, 2.5e-3, 8e-3, 2.5e-2)  # of the sum of squares
LOG_SCALES = (-1.0, 6.0)  # of the logits
LABEL_LOG_SCALES = (-3.0, 4.0)  # of logits that are measured in p (1 - p)
SMOOTHING = 0.05  # without it rows that are all right ask for boundless logits to start from


@dataclass(frozen=True)
class LinearProbe:
    """A linear head and what it is worth."""

    weight: Tensor  # (K, D) float32
    bias: Tensor  # (K,) float32
    # leave-one-out log loss of the rows it was fitted on, nats; of several labels the mean
    # binary cross-entropy
    log_loss: float
    accuracy: float  # leave-one-out accuracy, in [0, 1]; of several labels the share of those told
    # (N, K) float32 log probabilities of each row, fitted without it; of several labels, of
    # having each
    left_out: Tensor


@dataclass(frozen=True)
class _Scaled:
    """Left-out regressions turned into logits ``scale`` × regression + ``bias``."""

    smooth: float  # the smoothed loss that scale and bias make least
    scale: Tensor  # (K,), or () for all
    bias: Tensor  # (K,), or () for all
    logits: Tensor  # (N, K)


def fit_probe(
    features: Tensor, target: Tensor, num_classes: int, level_widths: Sequence[int] = ()
) -> LinearProbe:
    """Fit a linear head to ``features`` (N, D) of rows of known ``target``.

    Args:
        features: finite.
        target: class (N,), or labels (N, K) of 0 and 1 where a row may have several.
        num_classes: K.
        level_widths: columns of each level of the features, all to count alike; () = one level.

    Raises:
        ValueError: fewer than two rows, or features that are not finite.
    """
    if len(features) < 2 or not bool(torch.isfinite(features).all()):
        raise ValueError("a linear head needs two rows or more, of finite features")
    several = target.ndim == 2
    x = features.double()
    widths = torch.tensor(list(level_widths) or [x.shape[1]])
    mean, std = x.mean(0), floor_spread(x.std(0), widths.tolist())
    std = std * widths.to(x.dtype).sqrt().repeat_interleave(widths)
    x = (x - mean) / std
    hot = target.double() if several else F.one_hot(target.long(), num_classes).double()
    truth = hot - hot.mean(0)
    values, basis = _principal_axes(x)
    rotated = x @ basis  # (N, R)
    moments = rotated.T @ truth  # (R, K)
    best: tuple[_Scaled, Tensor] | None = None
    for ridge in RIDGES:
        gain = 1 / (values + ridge * values.sum())
        fitted = rotated @ (gain[:, None] * moments)
        leverage = (rotated.square() @ gain + 1 / len(x)).clamp_max(1 - 1e-6)
        left_out = truth - (truth - fitted) / (1 - leverage)[:, None]
        found = _scale_labels(left_out, hot) if several else _scale_classes(left_out, target.long())
        if best is None or found.smooth < best[0].smooth:
            best = found, gain
    assert best is not None
    chosen, gain = best
    weight = chosen.scale[..., None] * (basis @ (gain[:, None] * moments)).T / std
    bias = chosen.bias - weight @ mean
    if several:
        log_probs = F.logsigmoid(chosen.logits)
        log_loss = F.binary_cross_entropy_with_logits(chosen.logits, hot)
        right = (chosen.logits > 0) == (hot > 0)
    else:
        log_probs = F.log_softmax(chosen.logits, 1)
        log_loss = F.cross_entropy(chosen.logits, target.long())
        right = chosen.logits.argmax(1) == target
    accuracy = float(right.double().mean())
    return LinearProbe(weight.float(), bias.float(), float(log_loss), accuracy, log_probs.float())


def _principal_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared singular values (R,) of (N, D) and its right singular vectors (D, R)."""
    if len(x) >= x.shape[1]:
        values, basis = torch.linalg.eigh(x.T @ x)
        return values.clamp_min(0), basis
    values, left = torch.linalg.eigh(x @ x.T)  # the smaller problem
    seen = values > 1e-12 * values[-1]
    return values[seen], x.T @ (left[:, seen] / values[seen].sqrt())


def _scale_classes(left_out: Tensor, target: Tensor) -> _Scaled:
    """Scale the left-out regressions (N, K) of classes ``target`` (N,)."""

    def loss_at(log_scale: float) -> float:
        logits = math.exp(log_scale) * left_out
        return float(F.cross_entropy(logits, target, label_smoothing=SMOOTHING))

    found = minimize_scalar(loss_at, bounds=LOG_SCALES, options={"xatol": 0.02})
    scale = torch.tensor(math.exp(found.x), dtype=torch.float64)
    return _Scaled(float(found.fun), scale, torch.zeros_like(scale), scale * left_out)


def _scale_labels(left_out: Tensor, hot: Tensor) -> _Scaled:
    """Scale the left-out regressions (N, L) of labels ``hot`` (N, L), and find their biases."""
    share = hot.mean(0).clamp(0.5 / len(hot), 1 - 0.5 / len(hot))
    regression = left_out / (share * (1 - share))
    soft = torch.lerp(hot, share.expand_as(hot), SMOOTHING)  # which keeps frequencies

    def loss_at(point: np.ndarray) -> tuple[float, np.ndarray]:
        scale, bias = math.exp(point[0]), torch.from_numpy(point[1:])
        logits = scale * regression + bias
        off = (logits.sigmoid() - soft) / logits.numel()
        slope = np.append(scale * float((off * regression).sum()), off.sum(0).numpy())
        return float(F.binary_cross_entropy_with_logits(logits, soft)), slope

    start = np.append(0.0, share.logit().numpy())
    bounds = [LABEL_LOG_SCALES] + [(-20.0, 20.0)] * len(share)
    found = minimize(loss_at, start, jac=True, method="L-BFGS-B", bounds=bounds)
    scale = math.exp(found.x[0]) / (share * (1 - share))
    bias = torch.from_numpy(found.x[1:])
    return _Scaled(float(found.fun), scale, bias, scale * left_out + bias)
