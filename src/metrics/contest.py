"""Contest metrics: accuracy, F1, QWK, AUC, MAP@K; of several labels mean AUC, samples F1, mAP.

One table: a :class:`Metric` says what a submission holds and how it is scored. Formulas, sources
and tests: ``docs/metrics.md``. ``targets`` are (N,) class numbers in [0, K), or where an image may
have several labels (N, K) of 0 and 1, which a :class:`Metric` sees as pairs (``src/classes.py``).
Everything but log loss is better when greater.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from src.classes import nfc
from src.metrics.classification import EPS, Array, log_loss, macro_f1
from src.script import UserError


def binary_log_loss(probs: Array, targets: Array) -> float:
    """Return the mean binary cross-entropy over images and labels, in nats.

    Args:
        probs: (N, K), clipped to [1e-15, 1 - 1e-15].
        targets: (N, K).
    """
    clipped = np.clip(probs.astype(np.float64), EPS, 1.0 - EPS)
    return float(-np.log(np.where(targets > 0, clipped, 1.0 - clipped)).mean())


def mean_label_auc(probs: Array, targets: Array) -> float:
    """Return the area under the ROC curve, a mean over the labels; ties count half.

    A label that every image has, or none, has no curve and is left out.

    Source: Hanley & McNeil 1982, https://doi.org/10.1148/radiology.143.1.7063747: the area is the
    probability that a positive row ranks above a negative one.
    """

    def area(scores: Array, has: Array) -> float:
        positive, others = scores[has], np.sort(scores[~has])
        below, up_to = (np.searchsorted(others, positive, side) for side in ("left", "right"))
        return float((below + up_to).mean() / (2 * len(others)))

    return _mean_over_labels(area, probs, targets, both=True)


def mean_label_precision(probs: Array, targets: Array) -> float:
    """Return the average precision Σ (R_i - R_{i-1}) P_i, a mean over the labels (mAP).

    i runs over the different scores, from the highest on. A label that no image has is left out.

    Source: Zhu 2004, Recall, precision and average precision, University of Waterloo.
    """

    def precision(scores: Array, has: Array) -> float:
        order = np.argsort(-scores, kind="stable")
        last = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])  # of equal scores
        hits = np.cumsum(has[order])[last]
        return float((np.diff(np.r_[0, hits]) * hits / (last + 1)).sum() / has.sum())

    return _mean_over_labels(precision, probs, targets, both=False)


def samples_f1(marks: Array, targets: Array) -> float:
    """Return the mean over images of 2 TP / (labels it has + labels it was given).

    An image without labels that is given none counts 1.

    Args:
        marks: (N, K) of 0 and 1.
        targets: (N, K).
    """
    return float(f1_of_images((marks * targets).sum(1), marks.sum(1) + targets.sum(1)).mean())


def f1_of_images(hits: Array, both: Array) -> Array:
    """Return (N,) F1 of the true positives of each image, and of the labels had plus given."""
    return np.where(both > 0, 2.0 * hits / np.maximum(both, 1), 1.0)


def _mean_over_labels(
    measure: Callable[[Array, Array], float], probs: Array, targets: Array, *, both: bool
) -> float:
    found = []
    for k in range(probs.shape[1]):
        has = targets[:, k] > 0
        if has.any() and not (both and has.all()):
            found.append(measure(probs[:, k], has))
    return float(np.mean(found)) if found else float("nan")


Measure = Callable[[Array, Array], float]

NAMES = ("log_loss", "accuracy", "balanced_accuracy", "macro_f1", "micro_f1", "qwk", "auc", "map@K")
OF_LABELS = ("mean_auc", "f1_samples", "map")  # and log_loss


@dataclass(frozen=True)
class Metric:
    """A metric and what it scores."""

    name: str  # as ``--metric`` says it
    # what is scored: ``probabilities`` (N, K), ``labels`` (N,) of class numbers, or ``top``,
    # (N, T) of class numbers, the likeliest first
    holds: str
    measure: Measure  # (what ``holds`` says, targets) → score
    rule: str = "none"  # how labels are decided, a key of ``src/metrics/decisions.py``
    greater_is_better: bool = True
    top: int = 0  # T
    # class numbers from the lowest grade to the highest, for ordered classes
    order: tuple[int, ...] = ()
    # L, where an image has several labels: N is then images × labels; 0 = one class
    num_labels: int = 0

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest score there is."""
        if not self.greater_is_better:
            return 0.0, np.inf
        return -1.0 if self.name == "qwk" else 0.0, 1.0

    @property
    def unit(self) -> int:
        """How many rows an image has."""
        return self.num_labels or 1

    def rows_of(self, images: Array) -> Array:
        """Return the numbers of the rows of images (I,), each image's together."""
        return (images[:, None] * self.unit + np.arange(self.unit)).ravel()

    def loss(self, submitted: Array, targets: Array) -> float:
        """Return the score, turned so that lower is better."""
        score = self.measure(submitted, targets)
        return -score if self.greater_is_better else score


def find_metric(
    name: str, classes: Sequence[str], ordinal: Sequence[str] = (), *, several: bool = False
) -> Metric:
    """Return the metric of a name for K ``classes``.

    ``name`` is one of ``NAMES``, with a number for K in ``map@K``. ``ordinal`` has the class names
    from the lowest grade to the highest; empty = by number. With ``several`` they are labels of
    which an image may have several.

    Raises:
        UserError: no such metric, or classes without an order where one is needed.
    """
    num_classes = len(classes)
    if several:
        return _find_label_metric(name, num_classes)
    if ordinal:  # of no use to other metrics, but not nonsense either
        grade_order(classes, ordinal)
    top = re.fullmatch(r"map@([1-9]\d?)", name)
    if top:
        size = min(int(top[1]), num_classes)
        return Metric(name, "top", mean_average_precision, top=size)
    if name == "qwk":
        order = grade_order(classes, ordinal)
        ranks = np.argsort(order)
        measure = partial(_graded_kappa, ranks=ranks)
        return Metric(name, "labels", measure, rule="cuts", order=order)
    f1 = partial(macro_f1, num_classes=num_classes)
    table = {
        "log_loss": Metric(name, "probabilities", log_loss, greater_is_better=False),
        "accuracy": Metric(name, "labels", accuracy, rule="argmax"),
        "micro_f1": Metric(name, "labels", accuracy, rule="argmax"),
        "balanced_accuracy": Metric(name, "labels", balanced_accuracy, rule="prior"),
        "macro_f1": Metric(name, "labels", f1, rule="prior"),
        "auc": Metric(name, "probabilities", mean_auc),
    }
    if name not in table:
        why = "is for several labels an image, and these images have one class each"
        why = why if name in OF_LABELS else "numbers are not learned here, but classes and labels"
        raise UserError(f"--metric {name}: {why}; choose one of {', '.join(NAMES)}")
    return table[name]


def _find_label_metric(name: str, num_labels: int) -> Metric:
    table = {
        "log_loss": ("probabilities", binary_log_loss),
        "mean_auc": ("probabilities", mean_label_auc),
        "map": ("probabilities", mean_label_precision),
        "f1_samples": ("labels", samples_f1),
    }
    if name not in table:
        raise UserError(
            f"--metric {name}: is for one class an image, and these images have several labels; "
            f"choose one of {', '.join(table)}"
        )
    holds, of_images = table[name]
    measure = partial(_by_image, measure=of_images, num_labels=num_labels)
    better = name != "log_loss"
    return Metric(
        name, holds, measure, rule="labels", greater_is_better=better, num_labels=num_labels
    )


def _by_image(submitted: Array, targets: Array, *, measure: Measure, num_labels: int) -> float:
    """Score what is submitted for the pairs (N · L,) of images and labels."""
    return measure(submitted.reshape(-1, num_labels), targets.reshape(-1, num_labels))


def grade_order(classes: Sequence[str], ordinal: Sequence[str] = ()) -> tuple[int, ...]:
    """Return the class numbers from the lowest grade to the highest.

    Raises:
        UserError: the names are no numbers and no order is given, or it names other classes.
    """
    if not ordinal:
        grades = [_grade(name) for name in classes]
        if None in grades:
            shown = " ".join(f"'{name}'" if " " in name else name for name in classes[:3])
            raise UserError(
                f"--metric qwk: class {classes[grades.index(None)]!r} is no number; give the "
                f"classes from the lowest to the highest, put into that order: --ordinal {shown}"
                f"{' …' if len(classes) > 3 else ''}"
            )
        return tuple(np.argsort(np.array(grades, dtype=float), kind="stable").tolist())
    wanted, known = [nfc(name) for name in ordinal], [nfc(name) for name in classes]
    if sorted(wanted) != sorted(known):
        odd = sorted(set(wanted) ^ set(known)) or [n for n in wanted if wanted.count(n) > 1]
        raise UserError(
            f"--ordinal: {odd[0]!r} is not once among both the classes and the order; name every "
            f"class once: {' '.join(known[:5])}{' …' if len(known) > 5 else ''}"
        )
    return tuple(known.index(name) for name in wanted)


def accuracy(labels: Array, targets: Array) -> float:
    """Return the share of rows (N,) whose label is the target; micro F1 is the same number."""
    return float(np.mean(labels == targets))


def balanced_accuracy(labels: Array, targets: Array) -> float:
    """Return the mean recall of the classes that occur among the targets.

    Source: Brodersen et al. 2010, https://doi.org/10.1109/ICPR.2010.764.
    """
    counts = np.bincount(targets)
    hits = np.bincount(targets[labels == targets], minlength=len(counts))
    return float(np.mean(hits[counts > 0] / counts[counts > 0]))


def quadratic_weighted_kappa(grades: Array, targets: Array) -> float:
    """Return 1 - sum w O / sum w E with w = (i - j)², of whole grades (N,) from 0.

    O counts pairs of given and true grade; E is what the two histograms would give by chance.
    Where both are one and the same grade everywhere, it is 1 (there is no disagreement); where only
    chance is left, 0.

    Source: Cohen 1968, https://doi.org/10.1037/h0026256.
    """
    grades, targets = grades.astype(np.float64), targets.astype(np.float64)
    observed = np.mean((grades - targets) ** 2)
    # mean over all pairs of rows: E (a - b)² of independent a and b
    chance = grades.var() + targets.var() + (grades.mean() - targets.mean()) ** 2
    return float(1.0 - observed / chance) if chance > 0 else 1.0


def mean_auc(probs: Array, targets: Array) -> float:
    """Return :func:`mean_label_auc` of probabilities (N, K) and class numbers (N,).

    Each class stands against the rest; with two classes both curves have one area.
    """
    return mean_label_auc(probs, targets[:, None] == np.arange(probs.shape[1]))


def mean_average_precision(top: Array, targets: Array) -> float:
    """Return the mean of 1 / (place of the true class in the list), 0 where it is not in it.

    Args:
        top: (N, T) class numbers, the likeliest first, each once.
        targets: (N,); with one true class a row, average precision at T is this.
    """
    places = np.arange(1, top.shape[1] + 1)
    return float(np.mean(np.where(top == targets[:, None], 1.0 / places, 0.0).sum(axis=1)))


def _graded_kappa(labels: Array, targets: Array, *, ranks: Array) -> float:
    return quadratic_weighted_kappa(ranks[labels], ranks[targets])


def _grade(name: str) -> float | None:
    return float(name) if re.fullmatch(r"[+-]?\d{1,9}(\.\d{1,9})?", name) else None
