"""Tables and lines that the blend and inference scripts print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from src.ensemble.calibration import (
    FORECAST_LEVEL,
    Estimate,
    Shift,
    TestTally,
    correct,
    expected_accuracy,
    expected_loss,
    name_bin,
    reliability,
)
from src.ensemble.contest import NUM_PLAIN, Board, Candidate, forecast_score, score_of
from src.ensemble.search import Fitted
from src.ensemble.test_predictions import BlendedPredictions, EnsemblePredictor, averaging_gain
from src.ensemble.weights import ContestScore, Weights
from src.files import write_json
from src.metrics.classification import Array
from src.metrics.contest import find_metric
from src.metrics.decisions import Decision
from src.script import format_table


def scores_table(
    scores: Mapping[str, Mapping[str, float]], adopted: str, metric: str = "log loss (nats)"
) -> str:
    """Return the methods side by side; an arrow marks what ``weights.json`` holds."""
    rows = []
    for name, score in scores.items():
        interval = f"[{score['low']:.5f}, {score['high']:.5f}]"
        marked = f"{'→' if name == adopted else ' '} {name}"
        rows.append([marked, score["fitted"], score["nested"], interval])
    return format_table([f"  {metric}", "fitted", "nested", "95 % interval"], rows)


def candidates_table(
    board: Board, candidates: Sequence[Candidate], adopted: Candidate
) -> tuple[str, dict[str, dict[str, float]]]:
    """Return the candidates side by side (of Optuna's the best and the adopted), and their scores.

    An arrow marks what ``weights.json`` holds.
    """
    metric, targets = board.metric, board.targets
    searched = sorted(candidates[NUM_PLAIN:], key=lambda one: metric.loss(one.submitted, targets))
    best = [one for one in searched if one is searched[0] or one is adopted]
    scores = {}
    for one in [*candidates[:NUM_PLAIN], *best]:
        score = score_of(metric, one.submitted, targets)
        scores[one.name] = {
            "fitted": one.fitted, "nested": score.value, "low": score.low, "high": score.high
        }  # fmt: skip
    return scores_table(scores, adopted.name, f"{metric.name} ({len(candidates)} tried)"), scores


def reliability_table(bins: Array) -> str:
    """Return rows, confidence and accuracy by confidence."""
    rows = [
        [name_bin(b), int(count), confidence, accuracy]
        for b, (count, confidence, accuracy) in enumerate(bins)
        if count
    ]
    return format_table(["confidence", "rows", "claimed", "right"], rows)


def test_bins_table(bins: Array) -> str:
    """Return test rows and expected correct predictions by confidence; ``bins`` is (2, B)."""
    total = max(bins[0].sum(), 1)
    rows = [
        [name_bin(b), int(count), f"{count / total:.1%}", right / count]
        for b, (count, right) in enumerate(bins.T)
        if count
    ]
    return format_table(["confidence", "test rows", "share", "expected right"], rows)


def estimate_line(name: str, estimate: Estimate) -> str:
    """Return one estimate with its interval."""
    low, high = estimate.low, estimate.high
    return f"{name}: {estimate.value:.5f}  ({FORECAST_LEVEL}: {low:.5f} to {high:.5f})"


def shift_lines(shift: Shift, classes: Sequence[str], *, corrected: bool) -> list[str]:
    """Return what is known about the test rows' class frequencies."""
    if not shift.significant:
        return [f"label shift: none beyond chance (p = {shift.p_value:.2g})"]
    ratio = shift.prior / np.maximum(shift.implied, 1e-12)
    order = np.argsort(-np.abs(np.log(np.maximum(ratio, 1e-12))))[:5]
    lines = [
        f"label shift: test classes are not as frequent as in train (p = {shift.p_value:.1g}); "
        "most changed:",
        format_table(
            ["", "class", "train", "test"],
            [[" ", classes[k], float(shift.implied[k]), float(shift.prior[k])] for k in order],
        ),
        f"  correcting for it would gain about {shift.gain:.5f} nats",
    ]
    if corrected:
        lines.append("  --prior_correction on: the submission is corrected")
    else:
        lines.append(
            "  --prior_correction on would apply it; off by default, because it uses statistics of "
            "the test set, which some competitions forbid"
        )
    return lines


def contest_lines(contest: ContestScore, forecast: Estimate) -> str:
    """Return the nested OOF score of what the contest counts, its decision and its forecast."""
    return (
        f"OOF {contest.metric} {contest.score:.5f} ({contest.num_rows} rows, choice and decision "
        f"cross-fitted); averaging the folds' networks {forecast.value - contest.score:+.5f}; "
        f"decision: {contest.decision}\n"
        f"{estimate_line(f'predicted test {contest.metric}', forecast)}"
    )


def labels_table(log_probs: Array, decision: Decision, labels: Sequence[str]) -> str:
    """Return how many of the test images each of the L labels is expected on, and given to."""
    plain = replace(decision, cuts=())
    probs = plain.apply(log_probs).reshape(-1, len(labels))
    header, columns = ["label", "expected share"], [probs.mean(axis=0)]
    if decision.cuts:
        header += ["from", "given to"]
        marks = decision.apply(log_probs).reshape(probs.shape)
        columns += [np.array(decision.cuts), marks.mean(axis=0)]
    rows = [[name, *map(float, cells)] for name, *cells in zip(labels, *columns, strict=True)]
    return format_table(header, rows)


def agreement_table(predictions: BlendedPredictions) -> str:
    """Return how often each model prefers the blend's class, and each other model's."""
    final = np.concatenate([log_probs.argmax(axis=1) for log_probs in predictions.blocks()])
    choices = predictions.choices
    others = [final, *choices.values()]
    rows = [
        [name, *(float(np.mean(own == other)) for other in others)] for name, own in choices.items()
    ]
    return format_table(["agreement", "blend", *choices], rows)


def least_certain_table(
    predictions: BlendedPredictions, ids: Sequence[str], classes: Sequence[str]
) -> str:
    """Return the ten test images with the smallest largest probability, and their best classes."""
    sure = np.concatenate([log_probs.max(axis=1) for log_probs in predictions.blocks()])
    rows = []
    for row in np.argsort(sure, kind="stable")[:10]:
        first, second = np.argsort(-predictions.log_probs[row], kind="stable")[:2]
        p, q = np.exp(predictions.log_probs[row][[first, second]].astype(float))
        rows.append([ids[row], f"{classes[first]} {p:.3f}", f"{classes[second]} {q:.3f}"])
    return format_table(["least certain", "first", "second"], rows)


def report_forecast(
    prediction: Path,
    weights: Weights,
    predictor: EnsemblePredictor,
    predictions: BlendedPredictions,
    shift: Shift | None,
    ids: list[str],
    about: dict[str, object],
    *,
    corrected: bool,
) -> None:
    """Write the expected score and ``about`` to ``prediction``; print it, and the certainty.

    Where an image may have several labels, the log losses are of images × labels, before each
    label's own calibration.
    """
    tally = TestTally()
    moved = shift if shift is not None and shift.significant else None
    for log_probs in predictions.blocks():
        posterior = log_probs if moved is None else correct(log_probs, moved)
        tally.add(posterior if corrected else log_probs, posterior)
    summary, contest = weights.summary, weights.contest
    expected = expected_loss(summary, tally, predictions.averaging)
    content = {"oof_log_loss": summary.loss, "test_log_loss": asdict(expected)} | about
    if contest:
        names, several = weights.labels or weights.classes, bool(weights.labels)
        metric = find_metric(contest.metric, names, contest.ordinal, several=several)
        score = forecast_score(
            Estimate(contest.score, contest.low, contest.high),
            contest.num_rows,
            len(ids),
            bounds=metric.bounds,
            design_effect=1.0 if weights.labels else summary.design_effect,
            gain=averaging_gain(predictor, metric, contest.decision),
        )
        content |= {"metric": contest.metric, "oof": contest.score, "test": asdict(score)}
    write_json(prediction, content)
    if shift is None:
        assert contest is not None
        print(f"\n{labels_table(predictions.log_probs, contest.decision, weights.labels)}\n")
    else:
        print(f"\n{test_bins_table(tally.bins)}\n")
        print(f"{agreement_table(predictions)}\n")
        print(f"{least_certain_table(predictions, ids, weights.classes)}\n")
        print("\n".join(shift_lines(shift, weights.classes, corrected=corrected)))
        gain = float(predictions.averaging.gain.mean())
        print(f"\nOOF log loss {summary.loss:.5f}; averaging the folds' networks {-gain:+.5f}")
        print(estimate_line("predicted test log loss", expected))
        if contest is None or contest.metric != "accuracy":  # one forecast of it is enough
            print(estimate_line("predicted test accuracy", expected_accuracy(summary, tally)))
    if contest:
        print(contest_lines(contest, score))


def report_trust(adopted: Fitted, weights: Weights, share: float, targets: Array) -> None:
    """Print how far the predictions can be trusted."""
    summary, threshold = weights.summary, weights.adaptive_threshold
    print(reliability_table(reliability(adopted.nested, targets)))
    if weights.labels:
        print(
            "(rows are images × labels, before each label's own calibration)\n\nOOF binary log "
            f"loss, uncalibrated by label, {summary.loss:.5f}; temperature "
            f"{adopted.blend.temperature:.4f}"
        )
        return
    adaptive = (
        f"a model that gives its first view {threshold:g} or more needs no other; "
        f"{share:.1%} of the images do need more"
        if threshold <= 1
        else "would move the log loss by 1e-4 or more at any threshold; every image needs all views"
    )
    print(
        f"\nOOF log loss {summary.loss:.5f}, accuracy {summary.accuracy:.4f}; temperature "
        f"{adopted.blend.temperature:.4f}; mean entropy {summary.entropy:.5f}\n"
        f"--tta_adaptive: {adaptive}"
    )
