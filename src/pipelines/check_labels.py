"""Suspicious labels: rows that a probe fitted without them, or OOF predictions, contradict.

The probe is a ridge classifier on features of a pretrained backbone, left out row by row in closed
form (``src/models/probe.py``). Source of the idea: Northcutt et al. 2021, "Confident Learning",
https://arxiv.org/abs/1911.00068; here rows are ranked by their loss alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from src.classes import to_hot
from src.data.csv_io import write_csv
from src.data.index import Index
from src.engine.runtime import start_runtime
from src.ensemble.aliases import suggest_aliases
from src.ensemble.predictions import pair_ids
from src.models.classifier import build_classifier
from src.models.convolutions import fold_norms
from src.models.pretrained import check_timm_id, find_data_config, find_weights
from src.models.probe import fit_probe
from src.page import Html, gallery, note, table
from src.pipelines.classification.panels import study
from src.pipelines.classification.survey import embed, find_backbones
from src.pipelines.pictures import show_photograph
from src.runs import Output
from src.script import UserError, counted
from src.tool_config import CheckConfig

if TYPE_CHECKING:
    from src.pipelines.check_data import Check

Contradiction = tuple[str, str, str, float, float, str]
COLUMNS = ("rank", "id", "image", "label", "suggested", "p_label", "p_suggested", "judge")


@dataclass(frozen=True)
class Verdict:
    """What one judge says of rows it was not fitted on."""

    judge: str
    ids: list[str]  # (N,) rows
    losses: np.ndarray  # (N,) -log p(label)
    chosen: list[str]  # (N,) the class it prefers, by name
    confidence: np.ndarray  # (N,) the probability of that class


def check_labels(
    check: Check, config: CheckConfig, output: Output, train: Index, unreadable: set[int]
) -> None:
    """Rank the rows whose label is contradicted, on the page and in ``suspect_labels.csv``."""
    parts: list[Html] = []
    verdicts = []
    if output.folds.exists():
        try:
            verdicts.append(from_oof(output, train.several))
        except UserError as error:
            parts.append(note(f"no OOF predictions to judge by: {error}"))
    if config.probe != "off":
        try:
            verdicts.append(from_probe(check, config, train, unreadable))
        except UserError as error:
            parts.append(note(f"no probe: {error}"))
    ids, images = train.table["id"].tolist(), train.table["image"].tolist()
    image, label = (dict(zip(ids, x, strict=True)) for x in (images, train.table["target"]))
    if train.several:
        hot = to_hot(train.table["target"].tolist(), train.classes)
        pairs = pair_ids(np.array(ids), len(train.classes)).tolist()
        label = dict(zip(pairs, _states(train.classes, hot.ravel()), strict=True))
    rows = [(name.partition("\0")[0], *rest) for name, *rest in rank(verdicts, label)]
    if verdicts:
        path = output.suspect_labels
        full = [(n + 1, row[0], image[row[0]], *row[1:]) for n, row in enumerate(rows)]
        write_csv(path, COLUMNS, full)
        share = len(rows) / max(len(label), 1)
        check.numbers["suspect_labels"] = len(rows)
        # of a net that was hardly trained most are, which says nothing of the labels
        by = " or the ".join(f"{v.judge} ({_share(v, label):.1%})" for v in verdicts)
        check.say(
            "note", f"{counted(len(rows), 'label')} ({share:.1%}) contradicted by the {by}: {path}"
        )
        heads = ["id", "label", "suggested", "p of label", "p of suggested", "judge"]
        shown = []
        for row in rows[: config.examples]:
            caption = f"label {row[1]}, {row[5]}: {row[2]} ({row[4]:.0%})"
            shown += show_photograph(train.root / image[row[0]], caption)
        caption = "the most contradicted first; suspect_labels.csv has all"
        parts += [gallery(shown), table(heads, rows[:500], caption=caption)]
    check.sections["Suspicious labels"] = parts


def rank(verdicts: list[Verdict], label: dict[str, str]) -> list[Contradiction]:
    """Return (id, label, suggested, p of it, p of suggested, judge) of contradicted rows.

    A row is suspected where a judge prefers another class; the highest loss comes first, and what
    several judges contradict counts with the smaller loss of those that do, before the others.
    """
    found: dict[str, list[tuple[float, str, float, str]]] = {}
    for verdict in verdicts:
        said = zip(verdict.ids, verdict.losses, verdict.chosen, verdict.confidence, strict=True)
        for name, loss, chosen, confidence in said:
            if name in label and chosen != label[name]:
                item = (float(loss), chosen, float(confidence), verdict.judge)
                found.setdefault(name, []).append(item)

    def key(name: str) -> tuple[int, float, str]:
        return -len(found[name]), -min(found[name])[0], name

    rows = []
    for name in sorted(found, key=key):
        loss, chosen, confidence, _ = min(found[name])
        judges = " and ".join(item[3] for item in found[name])
        rows.append((name, label[name], chosen, float(np.exp(-loss)), confidence, judges))
    return rows


def _share(verdict: Verdict, label: Mapping[str, str]) -> float:
    """Return the share of the labels that a judge contradicts."""
    said = zip(verdict.ids, verdict.chosen, strict=True)
    return float(np.mean([chosen != label[name] for name, chosen in said if name in label]))


def _states(labels: Sequence[str], has: np.ndarray) -> list[str]:
    """Return what pairs of image and label are called: the label's name, or that it is absent."""
    names = list(labels) * (len(has) // len(labels))
    return [name if said else f"not {name}" for name, said in zip(names, has, strict=True)]


def from_oof(output: Output, several: bool) -> Verdict:
    """Judge by the OOF predictions of the blend; of several labels an image, pair by pair.

    Raises:
        UserError: none there, or of the other kind than the data, whose images have ``several``
            labels or one class.
    """
    found = study(output)
    diagnosis, weights = found.diagnosis, found.weights
    names, ids = diagnosis.oof.classes, diagnosis.oof.ids.tolist()
    if bool(diagnosis.oof.labels) != several:
        theirs = "one class" if several else "several labels"
        raise UserError(
            f"they are of {theirs} an image, and the data were read otherwise: pass the --metric "
            "that was trained with"
        )
    if diagnosis.oof.labels:
        chosen = _states(diagnosis.oof.labels, diagnosis.chosen)
        return Verdict("OOF", ids, diagnosis.losses, chosen, diagnosis.confidence)
    label = dict(zip(found.folds.table["id"].tolist(), found.folds.table["target"].tolist(),
                     strict=True))  # fmt: skip
    same = {other: group for group in (weights.alias_groups if weights else ()) for other in group}
    chosen = []
    for row, name in enumerate(ids):
        said = names[diagnosis.chosen[row]]
        own = label[name]
        chosen.append(own if said in same.get(own, ()) else said)  # another name of the same
    return Verdict("OOF", ids, diagnosis.losses, chosen, diagnosis.confidence)


def _backbone_at_hand() -> str:
    try:
        return find_backbones(())[0]
    except UserError:
        raise UserError(
            "no weights in input/weights: run python scripts/fetch_weights.py "
            "tf_efficientnet_lite0, or name a backbone with --model"
        ) from None


def from_probe(check: Check, config: CheckConfig, train: Index, unreadable: set[int]) -> Verdict:
    """Judge by a linear probe on a backbone's features, each row left out; list alias pairs.

    Raises:
        UserError: no weights, or too few images.
    """
    timm_id = check_timm_id(config.model) if config.model else _backbone_at_hand()
    size = config.image_size or find_data_config(timm_id).image_size
    weights = find_weights(timm_id)
    rows = np.array([row for row in range(len(train.table)) if row not in unreadable])
    if len(rows) < 2 or len(train.classes) < 2:
        raise UserError("a linear probe needs two images and two classes")
    model = build_classifier(
        timm_id, len(train.classes), image_size=size, pool="avg", weights=weights
    )
    runtime = start_runtime(config.device, config.precision)
    print(f"probe: {timm_id} at {size} px on {len(rows)} images", flush=True)
    features = embed(fold_norms(model, size), train, rows, size, runtime)[0]
    names, ids = train.table["target"].iloc[rows].tolist(), train.table["id"].iloc[rows]
    hot = to_hot(names, train.classes)
    targets = hot if train.several else hot.argmax(axis=1)
    probe = fit_probe(features, torch.from_numpy(targets), len(train.classes))
    left_out = probe.left_out.numpy()
    check.numbers["probe"] = {"log_loss": probe.log_loss, "accuracy": probe.accuracy}
    if train.several:
        present = np.exp(left_out.astype(np.float64)).ravel()
        true = np.where(hot.ravel() > 0, present, 1 - present)
        chosen = _states(train.classes, present > 0.5)
        every = pair_ids(ids.to_numpy(dtype=str), len(train.classes)).tolist()
        sure = np.maximum(present, 1 - present)
        return Verdict("probe", every, -np.log(np.maximum(true, 1e-9)), chosen, sure)
    pairs = suggest_aliases(left_out, targets, train.classes)
    if pairs:
        first = f"{pairs[0].first} and {pairs[0].second}"
        check.say(
            "warning", f"{counted(len(pairs), 'pair')} of classes cannot be told apart, as {first}"
        )
        listed = [[p.first, p.second, p.num_rows, p.num_right] for p in pairs]
        heads = ["class", "other", "rows", "told right"]
        caption = "pairs that the probe cannot tell apart"
        check.sections["Alias pairs"] = [table(heads, listed, caption=caption)]
    best = left_out.argmax(axis=1)
    losses = -left_out[np.arange(len(rows)), targets].astype(np.float64)
    chosen = [train.classes[k] for k in best]
    return Verdict("probe", ids.tolist(), losses, chosen, np.exp(left_out.max(axis=1)))
