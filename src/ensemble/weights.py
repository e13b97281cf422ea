"""Reader and writer of ``output/weights.json``: all that inference needs of the blend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from src.classes import STATES, merge_classes
from src.ensemble.pool import Blend
from src.files import Json, describe_file, read_json, refuse_shape, write_json
from src.metrics.classification import Array
from src.metrics.decisions import Decision, read_decision
from src.runs import safe_name
from src.script import UserError, brief, nearest
from src.views import base_view

VERSION = 2
BLEND_AGAIN = "run optimize_weights.py again"
FORECAST_AGAIN = "run infer_ensemble.py again"


@dataclass(frozen=True)
class OofSummary:
    """What the OOF rows say about the blend's predictions, for the prediction of the test score."""

    loss: float  # mean nested loss, nats
    # (K,) mean nested probability: the class frequencies the predictions imply
    implied_prior: Array
    accuracy: float  # share of rows whose largest probability is the true class's
    entropy: float  # mean entropy of the nested predictions, the loss they expect of themselves
    residual_error: float  # standard error of mean(loss - entropy), by groups
    confidence: float  # mean of the largest probability
    confidence_error: float  # standard error of mean(right - confidence), in the same way
    design_effect: float  # variance of that mean over what it would be without groups, at least 1
    num_rows: float  # N
    num_units: float  # groups, and rows of their own


@dataclass(frozen=True)
class ContestScore:
    """The contest's metric, where that is not log loss, and what the blend scores by it."""

    metric: str  # its name, as ``--metric`` says it
    ordinal: tuple[str, ...]  # classes from the lowest grade to the highest, where that was said
    decision: Decision  # how probabilities become what is submitted
    score: float
    low: float  # lower end of its 95 % interval
    high: float  # upper end
    num_rows: int  # OOF rows behind it


@dataclass(frozen=True)
class Weights:
    """The content of ``weights.json``."""

    blend: Blend  # members, weights, temperatures
    order: str  # where members are calibrated, "before" or "after" pooling
    classes: tuple[str, ...]  # (K) merged class names
    source_classes: tuple[str, ...]  # (K0) class names of the logits
    alias_groups: tuple[tuple[str, ...], ...]  # names that mean the same
    folds_hash: str  # of the folds the OOF rows came from
    # model → fold → hash of the config it was trained with
    config_hashes: Mapping[str, Mapping[str, str]]
    scores: Mapping[str, Mapping[str, float]]  # name of the method → its losses, for reading
    summary: OofSummary  # of the OOF predictions
    # confidence of a model's first view from which it needs no other; above 1 means always
    # all views
    adaptive_threshold: float
    # metric, decision and score where that metric is not log loss; None = it is
    contest: ContestScore | None = None
    # (L) names where an image may have several labels; () = one class each. The classes are
    # then absent and present
    labels: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[int, ...]:
        """Of each column of the logits its class after merging aliases."""
        return merge_classes(self.source_classes, self.alias_groups).trained_of

    @property
    def predicted(self) -> tuple[str, ...]:
        """Names of what each logit of the networks is of."""
        return self.labels or self.source_classes


def used_models(blend: Blend) -> tuple[str, ...]:
    """Return the models with any weight, in order."""
    return tuple(dict.fromkeys(blend.members[m][0] for m in blend.used))


def needed_views(blend: Blend, model: str, views: Sequence[str]) -> tuple[str, ...]:
    """Return the views a model must be shown: ``views`` up to the last used, then larger ones."""
    needed = [view for name, view in (blend.members[m] for m in blend.used) if name == model]
    last = max((views.index(view) for view in needed if view in views), default=-1)
    return (*views[: last + 1], *(view for view in needed if view not in views))


def restrict(
    blend: Blend, *, models: Sequence[str] = (), views: Sequence[str] = ()
) -> tuple[Blend, float]:
    """Return the blend without the other models and views, and the share of weight that moved.

    A view's weight goes to the kept views of its model in proportion (to the first one where none
    had weight); the kept members together weigh what all weighed before. ``models``, and ``views``
    at whatever size, are those to keep; empty means all.

    Raises:
        UserError: a model that the blend does not have, or nothing with weight is left.
    """
    weights = blend.weights.copy()
    models = [safe_name(model) for model in models]
    names = [model for model, _ in blend.members]
    known = dict.fromkeys(names)
    for model in models:
        if model not in known:
            raise UserError(
                f"--models {model}: weights.json has no such model{nearest(model, known)}; its "
                f"models are {', '.join(known)}"
            )
    for model in known:
        mine = np.array([name == model for name in names])
        kept = mine & np.array([not views or base_view(view) in views for _, view in blend.members])
        if (models and model not in models) or not kept.any():
            weights[mine] = 0.0
            continue
        before, after = weights[mine].sum(), weights[kept].sum()
        if after > 0:
            weights[kept] *= before / after
        else:
            weights[np.flatnonzero(kept)[0]] = before
        weights[mine & ~kept] = 0.0
    total, left = blend.weights.sum(), weights.sum()
    if left <= 0:
        raise UserError(
            "--models / --tta_steps leave nothing that weights.json gives weight; its models are "
            f"{', '.join(known)}"
        )
    weights *= total / left
    moved = float(np.abs(weights - blend.weights).sum() / 2 / total)
    return replace(blend, weights=weights), moved


def write_weights(path: Path, weights: Weights) -> None:
    """Write ``weights.json``; floats are kept to the last bit."""
    blend, summary = weights.blend, weights.summary
    more: Json = {"contest": asdict(weights.contest)} if weights.contest else {}
    if weights.contest and not weights.labels:
        for name in ("slopes", "offsets", "least"):
            del more["contest"]["decision"][name]
    more |= {"labels": list(weights.labels)} if weights.labels else {}
    write_json(
        path,
        {
            "version": VERSION,
            "pool": blend.pool,
            "order": weights.order,
            "members": [
                {"model": m, "view": v, "weight": float(w), "temperature": float(t)}
                for (m, v), w, t in zip(
                    blend.members, blend.weights, blend.temperatures, strict=True
                )
            ],
            "floor": {"uniform": blend.floors[0], "prior": blend.floors[1]},
            "temperature": float(blend.temperature),
            "classes": list(weights.classes),
            "prior": blend.prior.tolist(),
            "source_classes": list(weights.source_classes),
            "alias_groups": [list(group) for group in weights.alias_groups],
            "folds_hash": weights.folds_hash,
            "config_hash": {m: dict(h) for m, h in weights.config_hashes.items()},
            "adaptive_threshold": weights.adaptive_threshold,
            "scores": {name: dict(score) for name, score in weights.scores.items()},
            "oof": asdict(summary) | {"implied_prior": summary.implied_prior.tolist()},
            **more,
        },
    )


def read_weights(path: Path) -> Weights:
    """Read ``weights.json``.

    Raises:
        UserError: missing, of another version, or not what ``write_weights`` writes.
    """
    try:
        content = read_json(path, BLEND_AGAIN)
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}, expected {VERSION}")
        weights = _from_json(content)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run optimize_weights.py first") from None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"{type(error).__name__}: {brief(error)}"
        raise UserError(f"{path}: not a blend ({said}); {BLEND_AGAIN}") from None
    wrong = _find_invalid(weights)
    if wrong:
        raise UserError(f"{path}: {wrong} out of range; {BLEND_AGAIN}")
    return weights


def read_forecast(path: Path, *, blend: Path | None = None) -> Json:
    """Read ``prediction.json``, the forecast of the last submission.

    ``blend`` is the ``weights.json`` that it must be of.

    Raises:
        FileNotFoundError: there is none.
        UserError: not what ``infer_ensemble.py`` writes, or of another blend.
    """
    content = read_json(path, FORECAST_AGAIN)
    number = (float, int)
    kinds: dict[str, type | tuple[type, ...]] = {
        "test_log_loss": dict,
        "oof_log_loss": number,
        "weights": str,
    }
    refuse_shape(path, content, kinds | {"average_temperature": number}, FORECAST_AGAIN)
    expected = content["test_log_loss"]
    refuse_shape(path, expected, dict.fromkeys(("value", "low", "high"), number), FORECAST_AGAIN)
    found = (content["oof_log_loss"], *(expected[key] for key in ("value", "low", "high")))
    if not (np.isfinite(found).all() and 1e-4 < content["average_temperature"] < 1e4):
        raise UserError(f"{path}: numbers out of range; {FORECAST_AGAIN}")
    if "metric" in content:
        refuse_shape(path, content, {"metric": str, "oof": number}, FORECAST_AGAIN)
    if blend is not None and content["weights"] != describe_file(blend)["crc32"]:
        raise UserError(f"{path}: of another blend; {FORECAST_AGAIN}")
    return content


def _find_invalid(weights: Weights) -> str:
    """Return what about the numbers or names cannot be a blend's, "" if nothing is."""
    blend, summary = weights.blend, weights.summary
    temperatures = np.r_[blend.temperatures, blend.temperature]
    priors = (blend.prior, summary.implied_prior)
    numbers = (summary.loss, summary.accuracy, summary.entropy, summary.confidence)
    hashes = weights.config_hashes
    checks = {
        "weights": np.isfinite(blend.weights).all() and (blend.weights >= 0).all(),
        "sum of weights": 1e-6 < blend.weights.sum() < 1e3,
        "temperatures": ((temperatures > 1e-4) & (temperatures < 1e4)).all(),
        "floors": all(0 <= floor <= 1 for floor in blend.floors),
        "priors": all(
            len(p) == len(weights.classes) and (p >= 0).all() and abs(p.sum() - 1) < 1e-3
            for p in priors
        ),
        "scores": np.isfinite(numbers).all(),
        "members": len(set(blend.members)) == len(blend.members)
        and all(safe_name(model) == model for model, _ in blend.members),
        "order": weights.order in ("after", "before"),
        "adaptive_threshold": weights.adaptive_threshold >= 0,
        "labels": not weights.labels or _fits_labels(weights),
        "config_hash": isinstance(hashes, dict)
        and all(isinstance(folds, dict) for folds in hashes.values()),
    }
    return next((name for name, sound in checks.items() if not sound), "")


def _fits_labels(weights: Weights) -> bool:
    """Tell whether the decision is about as many labels as there are."""
    decision = weights.contest.decision if weights.contest else None
    num = len(weights.labels)
    if decision is None or decision.rule != "labels" or len(weights.classes) != len(STATES):
        return False
    fits = len(decision.slopes) == len(decision.offsets) == num
    numbers = np.array([*decision.slopes, *decision.offsets, *decision.cuts])
    return fits and len(decision.cuts) in (0, num) and bool(np.isfinite(numbers).all())


def _from_json(content: Json) -> Weights:
    members, oof, floor = content["members"], content["oof"], content["floor"]
    blend = Blend(
        pool=str(content["pool"]),
        members=tuple((str(m["model"]), str(m["view"])) for m in members),
        weights=np.array([float(m["weight"]) for m in members]),
        floors=(float(floor["uniform"]), float(floor["prior"])),
        temperatures=np.array([float(m["temperature"]) for m in members]),
        temperature=float(content["temperature"]),
        prior=np.array(content["prior"], dtype=np.float64),
    )
    if blend.pool not in ("linear", "log") or len(blend.prior) != len(content["classes"]):
        raise ValueError("pool or classes do not fit")
    implied = np.array(oof["implied_prior"], dtype=np.float64)
    numbers = {f.name: float(oof[f.name]) for f in fields(OofSummary) if f.name != "implied_prior"}
    summary = OofSummary(implied_prior=implied, **numbers)
    return Weights(
        blend=blend,
        order=str(content["order"]),
        classes=tuple(map(str, content["classes"])),
        source_classes=tuple(map(str, content["source_classes"])),
        alias_groups=tuple(tuple(map(str, group)) for group in content["alias_groups"]),
        folds_hash=str(content["folds_hash"]),
        config_hashes=content["config_hash"],
        scores=content["scores"],
        summary=summary,
        adaptive_threshold=float(content["adaptive_threshold"]),
        contest=_read_contest(content["contest"]) if "contest" in content else None,
        labels=tuple(map(str, content.get("labels", ()))),
    )


def _read_contest(content: Json) -> ContestScore:
    return ContestScore(
        metric=str(content["metric"]),
        ordinal=tuple(map(str, content["ordinal"])),
        decision=read_decision(content["decision"]),
        score=float(content["score"]),
        low=float(content["low"]),
        high=float(content["high"]),
        num_rows=int(content["num_rows"]),
    )
