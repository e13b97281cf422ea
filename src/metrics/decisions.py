"""Decision rules: labels or top-K lists from probabilities, tuned to a contest metric.

Rules: ``argmax``; ``prior``, argmax of log p - strength · log prior (Bayes-optimal for balanced
accuracy at strength 1, where it divides each probability by its class's frequency; for macro F1 a
strength between); ``cuts``, the expected grade cut at K - 1 points; ``none``, nothing to decide;
``labels``, of pairs (``src/classes.py``): each label calibrated, and given from its threshold on.

Labels are calibrated by Platt scaling: their log odds z become a z + b, fitted by maximum
likelihood (Platt 1999) under weak normal priors around a = 1 and b = 0, so that a label that few
images have stays about as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from src.files import Json
from src.metrics.classification import Array
from src.metrics.contest import Metric, f1_of_images

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


STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)  # of the prior correction that are tried
_BINS = 200  # places that a cut point may take
_SWEEPS = 20
_LEAST = 1e-12  # of a class frequency


@dataclass(frozen=True)
class Decision:
    """What becomes of log probabilities (R, K)."""

    rule: str  # ``none``, ``argmax``, ``prior``, ``cuts`` or ``labels``
    strength: float = 0.0  # of ``prior``
    prior: tuple[float, ...] = ()  # (K,) class frequencies, of ``prior``
    # (K - 1,) ascending points of the expected grade 0 … K - 1, of ``cuts``; of ``labels``,
    # (L,) the probability from which each is given, () = probabilities
    cuts: tuple[float, ...] = ()
    # (K,) class numbers from the lowest grade to the highest, of ``cuts``
    order: tuple[int, ...] = ()
    top: int = 0  # length of the lists, 0 = labels
    # of ``labels``, (L,) what the log odds of each label are multiplied by,
    slopes: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()  # and what is added then
    least: int = 0  # of ``labels``, how many an image is given at least, 0 or 1

    def apply(self, log_probs: Array) -> Array:
        """Return labels (R,), lists (R, T), or probabilities (R, K) where nothing is decided.

        Of pairs (R, 2), return 0 or 1, or probabilities, (R,).
        """
        if self.rule == "labels":
            odds = label_odds(log_probs, len(self.slopes)) * self.slopes + self.offsets
            return decide_labels(odds, self.cuts, self.least).ravel()
        if self.top:
            return np.argsort(-log_probs, axis=1, kind="stable")[:, : self.top]
        if self.rule == "cuts":
            grades = np.searchsorted(np.array(self.cuts), expected_grade(log_probs, self.order))
            return np.array(self.order)[grades]
        if self.rule == "prior":
            return _corrected(log_probs, np.array(self.prior), self.strength).argmax(axis=1)
        if self.rule == "argmax":
            return log_probs.argmax(axis=1)
        return np.exp(log_probs.astype(np.float64))

    def __str__(self) -> str:
        if self.top:
            return f"the {self.top} likeliest classes"
        if self.rule == "cuts":
            return "expected grade cut at " + ", ".join(f"{cut:.3f}" for cut in self.cuts)
        if self.rule == "labels":
            cuts = ", ".join(f"{cut:.2f}" for cut in self.cuts[:12])
            more = ", …" if len(self.cuts) > 12 else ""
            least = "; the likeliest where none is" if self.least else ""
            given = f", given from {cuts}{more}{least}" if cuts else ""
            return f"probabilities, each label calibrated{given}"
        if self.rule == "prior":
            return f"largest p / frequency^{self.strength:g}"
        return {"argmax": "likeliest class", "none": "probabilities as they are"}[self.rule]


def read_decision(content: Json) -> Decision:
    """Return the decision whose fields ``content`` holds."""
    return Decision(
        rule=str(content["rule"]),
        strength=float(content["strength"]),
        prior=tuple(map(float, content["prior"])),
        cuts=tuple(map(float, content["cuts"])),
        order=tuple(map(int, content["order"])),
        top=int(content["top"]),
        slopes=tuple(map(float, content.get("slopes", ()))),
        offsets=tuple(map(float, content.get("offsets", ()))),
        least=int(content.get("least", 0)),
    )


def plain_decision(metric: Metric, targets: Array, num_classes: int) -> Decision:
    """Return the rule before any tuning: full prior correction, or the nearest grade.

    For macro F1 it is argmax; labels are given from a probability of a half.
    """
    if metric.rule == "labels":
        num = metric.num_labels
        cuts = (0.5,) * num if metric.holds == "labels" else ()
        return Decision("labels", cuts=cuts, slopes=(1.0,) * num, offsets=(0.0,) * num)
    if metric.rule == "prior":
        strength = 1.0 if metric.name == "balanced_accuracy" else 0.0
        return Decision("prior", strength=strength, prior=_frequencies(targets, num_classes))
    cuts = tuple(np.arange(num_classes - 1) + 0.5) if metric.rule == "cuts" else ()
    return Decision(metric.rule, cuts=cuts, order=metric.order, top=metric.top)


def plain_score(metric: Metric, log_probs: Array, targets: Array) -> float:
    """Return the score of log probabilities (R, K) under the rule before any tuning."""
    decision = plain_decision(metric, targets, log_probs.shape[1])
    return metric.measure(decision.apply(log_probs), targets)


def fit_decision(metric: Metric, log_probs: Array, targets: Array) -> Decision:
    """Return the rule that scores best on rows with known classes.

    One number is tuned for ``prior``, K - 1 for ``cuts``, two or three a label for ``labels``, none
    otherwise. Judge it on other rows. ``log_probs`` are (R, K), ``targets`` (R,) class numbers.
    """
    plain = plain_decision(metric, targets, log_probs.shape[1])
    if metric.rule == "cuts":
        ranks = np.argsort(metric.order)
        grade = expected_grade(log_probs, metric.order)
        cuts = fit_cuts(grade, ranks[targets], len(ranks))
        return Decision("cuts", cuts=cuts, order=metric.order)
    if metric.rule == "labels":
        return fit_labels(metric, log_probs, targets)
    if metric.rule != "prior":
        return plain
    strengths = sorted(STRENGTHS, key=lambda s: abs(s - plain.strength))  # of ties the nearest

    def loss(strength: float) -> float:
        labels = _corrected(log_probs, np.array(plain.prior), strength).argmax(axis=1)
        return metric.loss(labels, targets)

    return Decision("prior", strength=min(strengths, key=loss), prior=plain.prior)


def fit_labels(metric: Metric, log_probs: Array, targets: Array) -> Decision:
    """Return each label's calibration and, where the metric scores labels, its threshold.

    Where every image of the rows has a label, every image is given one. ``log_probs`` (R, 2) are of
    pairs, image by image, ``targets`` (R,) of 0 and 1.
    """
    odds = label_odds(log_probs, metric.num_labels)
    truth = targets.reshape(odds.shape)
    slopes, offsets = calibrate_labels(odds, truth)
    cuts: tuple[float, ...] = ()
    least = 0
    if metric.holds == "labels":
        least = int(truth.any(axis=1).all())
        cuts = fit_thresholds(odds * slopes + offsets, truth, least)
    return Decision(
        "labels", cuts=cuts, least=least,
        slopes=tuple(slopes.tolist()), offsets=tuple(offsets.tolist()),
    )  # fmt: skip


def expected_grade(log_probs: Array, order: tuple[int, ...]) -> Array:
    """Return (R,) the mean of the grades 0 … K - 1 under log probabilities (R, K)."""
    probs = np.exp(log_probs[:, list(order)].astype(np.float64))
    return probs @ np.arange(len(order)) / probs.sum(axis=1)


def fit_cuts(grade: Array, targets: Array, num_grades: int) -> tuple[float, ...]:
    """Return the K - 1 ascending cut points whose grades agree best by quadratic weighted kappa.

    Coordinate ascent from the midpoints over at most 200 places between the rows' values: each cut
    moves to its best place between its neighbours until none moves.

    Args:
        grade: (R,) expected grades.
        targets: (R,) true grades, whole numbers.
        num_grades: K.
    """
    values = np.unique(grade)
    between = (values[1:] + values[:-1]) / 2
    if len(between) > _BINS:
        between = between[np.linspace(0, len(between) - 1, _BINS).astype(int)]
    plain = np.arange(num_grades - 1) + 0.5
    places = np.unique(np.r_[between, plain])
    # (G + 2, K): true grades of the rows below each place; nothing first, everything last
    below = np.zeros((len(places) + 2, num_grades))
    np.add.at(below, (np.searchsorted(places, grade) + 1, targets), 1)
    below = below.cumsum(axis=0)
    weight = (np.arange(num_grades)[:, None] - np.arange(num_grades)) ** 2
    # what the rows below a place add if their grade is i: to the disagreement, and to chance
    observed = below @ weight
    chance = below.sum(axis=1)[:, None] * (weight @ below[-1] / len(grade))
    cuts = np.searchsorted(places, plain) + 1

    def total(cost: Array) -> float:
        edges, grades = np.r_[0, cuts, len(below) - 1], np.arange(num_grades)
        return float((cost[edges[1:], grades] - cost[edges[:-1], grades]).sum())

    for _ in range(_SWEEPS):
        before = cuts.copy()
        for j in range(num_grades - 1):
            low = cuts[j - 1] if j else 1
            high = cuts[j + 1] if j + 2 < num_grades else len(places)
            tried = np.arange(low, high + 1)
            change = [cost[:, j] - cost[:, j + 1] for cost in (observed, chance)]
            seen, luck = (
                total(cost) + move[tried] - move[cuts[j]]
                for cost, move in zip((observed, chance), change, strict=True)
            )
            ratio = np.where(luck > 0, seen / np.maximum(luck, _LEAST), 0.0)
            good = tried[ratio <= ratio.min() + 1e-12]
            if cuts[j] not in good:
                cuts[j] = good[np.argmin(abs(good - cuts[j]))]
        if (cuts == before).all():
            break
    return tuple(places[cuts - 1].tolist())


def _corrected(log_probs: Array, prior: Array, strength: float) -> Array:
    return log_probs - (strength * np.log(np.maximum(prior, _LEAST))).astype(np.float32)


def _frequencies(targets: Array, num_classes: int) -> tuple[float, ...]:
    counts = np.bincount(targets, minlength=num_classes)
    return tuple((counts / counts.sum()).tolist())
