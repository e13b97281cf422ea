"""Forecast of the test log loss against the loss on rows kept aside, over repeated splits.

Real images, cheap members: features of a frozen backbone, linear probes in closed form and small
heads whose epoch (and share of the way from the probe) is chosen on the held-out fold, as training
chooses it. Everything after that is what the scripts run: OOF files, blend, search of its
structure, temperatures, average of the folds, label shift, forecast.

    python benchmarks/forecast.py --make hands/ --sizes 128 192     # features: hands.npz
    python benchmarks/forecast.py hands.npz rooms.npz --repeats 50  # one row a set

A feature file holds ``targets`` (N,), ``groups`` (N,) text and, a backbone or size each,
``features_<name>`` (V, N, D) of V views; of scikit-learn's digits they are the pixels
(``--make digits``). Features are reduced to ``DIMENSIONS`` principal components first, which needs
no labels.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.data.folds import assign_folds
from src.ensemble.blend import build_tables
from src.ensemble.calibration import (
    Estimate,
    Shift,
    TestTally,
    correct,
    estimate_shift,
    expected_loss,
    summarise_oof,
)
from src.ensemble.oof import FoldTable, Oof, load_oof
from src.ensemble.pool import log_softmax, true_losses
from src.ensemble.predictions import TestRun, save_oof
from src.ensemble.search import (
    Fitted,
    build_panel,
    fit_blend,
    full_structure,
    is_better,
    search_structures,
)
from src.ensemble.test_predictions import EnsemblePredictor, average_temperature
from src.metrics.classification import fit_temperature
from src.models.probe import fit_probe
from src.script import format_table

Array = npt.NDArray[Any]

DIMENSIONS = 256
HIDDEN, EPOCHS, BATCH = 64, 8, 64
SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)  # of the way from the probe to the trained head


@dataclass(frozen=True)
class Features:
    """A set of images as features.

    Attributes:
        name: of the set.
        targets: (N,) class numbers.
        groups: (N,) text, "" = none.
        blocks: name → (V, N, D) float32.
    """

    name: str
    targets: Array
    groups: Array
    blocks: dict[str, Tensor]

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.targets.max()) + 1


def main() -> int:
    """Make features, or repeat the splits and print one row a set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("features", nargs="*", type=Path)
    parser.add_argument("--make", help="a data folder, or digits")
    parser.add_argument("--model", default="lite0")
    parser.add_argument("--sizes", nargs="+", type=int, default=[128])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--aside", type=float, default=0.35, help="share that is kept aside")
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--shift", type=float, default=0.0, help="see shift_rows")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.make:
        made = make_digits() if given.make == "digits" else make_features(given)
        np.savez(f"{Path(given.make).name}.npz", **made)  # type: ignore[arg-type]
        return 0
    rows = []
    for path in given.features:
        found = read_features(path)
        pairs = [repeat(found, seed, given) for seed in range(given.repeats)]
        rows.append([found.name, *summarise(pairs)])
        print(format_table(HEADER, rows[-1:]), flush=True)
    print("\n" + format_table(HEADER, rows))
    return 0


HEADER = [
    "set", "rows", "OOF", "forecast", "hidden", "inside", "below", "above", "median error"
]  # fmt: skip


@dataclass(frozen=True)
class Repeat:
    """One split: the forecast, nested OOF loss, hidden loss, and rows kept aside."""

    forecast: Estimate
    nested: float
    hidden: float
    num_rows: int


def summarise(pairs: Sequence[Repeat]) -> list[Any]:
    """Return the cells of ``HEADER`` after the first; below and above: hidden of the interval."""
    hidden = np.array([pair.hidden for pair in pairs])
    low, value, high = np.array(
        [[p.forecast.low, p.forecast.value, p.forecast.high] for p in pairs]
    ).T
    below, above = hidden < low, hidden > high
    error = np.median(np.abs(value - hidden) / hidden)
    means = [float(np.mean(x)) for x in ([p.nested for p in pairs], value, hidden)]
    inside = 1 - below.mean() - above.mean()
    shares = [f"{share:.0%}" for share in (inside, below.mean(), above.mean(), error)]
    return [int(np.mean([p.num_rows for p in pairs])), *means, *shares]


def repeat(found: Features, seed: int, given: argparse.Namespace) -> Repeat:
    """Split, train, blend, forecast; look at the hidden labels last."""
    rng = np.random.default_rng(seed)
    aside = split(found, given.aside, rng)
    rows, hidden = np.flatnonzero(~aside), np.flatnonzero(aside)
    if given.shift:
        hidden = shift_rows(found.targets, hidden, given.shift, rng)
    names = [f"{k:02d}" for k in found.targets]
    groups = found.groups[rows].tolist()
    folds = assign_folds([names[r] for r in rows], given.folds, seed, groups)
    with tempfile.TemporaryDirectory() as folder:
        runs = train(found, rows, hidden, np.asarray(folds), seed, Path(folder))
        ids = np.char.mod("%06d", rows)
        table = FoldTable(ids, np.array(names)[rows], np.asarray(folds), "-", found.groups[rows])
        oof = load_oof(Path(folder), table)
        adopted = blend(oof, given.trials, seed)
        forecast, log_probs = predict(adopted, oof, runs, len(hidden))
    loss = float(true_losses(log_probs, found.targets[hidden]).mean())
    return Repeat(forecast, float(adopted.nested_losses.mean()), loss, len(hidden))


def split(found: Features, share: float, rng: np.random.Generator) -> Array:
    """Return (N,) bool: who is kept aside, whole groups at random, each class known to the rest."""
    units = np.array([g or f"\0{row}" for row, g in enumerate(found.groups.tolist())])
    names = np.unique(units)
    while True:
        order = rng.permutation(names)
        aside = np.isin(units, order[: round(share * len(order))])
        if np.bincount(found.targets[~aside], minlength=found.num_classes).min() >= 3:
            return aside


def shift_rows(targets: Array, rows: Array, strength: float, rng: np.random.Generator) -> Array:
    """Keep rows of a class with a probability that falls from 1 to exp(-strength) over the classes.

    The order of the classes is drawn.
    """
    size = int(targets.max()) + 1
    place = rng.permutation(size) / max(size - 1, 1)
    return rows[rng.random(len(rows)) < np.exp(-strength * place[targets[rows]])]


def blend(oof: Oof, trials: int, seed: int) -> Fitted:
    """Fit the blend as ``optimize_weights.py`` does."""
    panel = build_panel(oof, build_tables(oof))
    start = full_structure(oof.members)
    adopted = fit_blend(panel, start)
    best, _ = search_structures(
        panel.score, oof.members, journal=None, name="", trials=trials, seed=seed
    )
    if best != start:
        searched = fit_blend(panel, best)
        if is_better(searched.nested_losses, adopted.nested_losses):
            return searched
    return adopted


def predict(
    adopted: Fitted, oof: Oof, runs: dict[str, list[TestRun]], num_rows: int
) -> tuple[Estimate, Array]:
    """Return the forecast and the submitted log probabilities, as ``infer_ensemble.py`` does."""
    used = {oof.members[m][0] for m in adopted.blend.used}
    columns = tuple(range(len(oof.classes)))
    kept = {model: runs[model] for model in used}
    predictor = EnsemblePredictor(kept, adopted.blend, columns, num_rows)
    heat = average_temperature(predictor)
    predictor = EnsemblePredictor(kept, adopted.blend, columns, num_rows, heat)
    found = predictor.predict(slice(0, num_rows))
    log_probs, summary = found.log_probs, summarise_oof(adopted.nested, oof.targets, oof.groups)
    shift: Shift = estimate_shift(
        log_probs, summary.implied_prior, num_oof=summary.num_rows,
        design_effect=summary.design_effect,
    )  # fmt: skip
    tally = TestTally()
    tally.add(log_probs, correct(log_probs, shift) if shift.significant else log_probs)
    return expected_loss(summary, tally, found.averaging), log_probs


def train(
    found: Features, rows: Array, hidden: Array, folds: Array, seed: int, folder: Path
) -> dict[str, list[TestRun]]:
    """Train every member on every fold; write its OOF file, return its test logits."""
    classes = tuple(f"{k:02d}" for k in range(found.num_classes))
    runs: dict[str, list[TestRun]] = {}
    for fold in range(int(folds.max()) + 1):
        fit, held = rows[folds != fold], rows[folds == fold]
        for model, block, head in members(found, fit, held, seed * 100 + fold):
            views = [f"view{v}" for v in range(len(block))]
            with torch.no_grad():
                logits, unseen = (head(block[:, where]).numpy() for where in (held, hidden))
            path = folder / model / f"fold{fold}" / "oof.npz"
            save_oof(
                path, logits=logits, ids=np.char.mod("%06d", held),
                targets=found.targets[held], views=views, classes=classes, fold=str(fold),
                config_hash="-", folds_hash="-",
            )  # fmt: skip
            run = TestRun(path.parent, unseen.astype(np.float16), tuple(views), classes)
            runs.setdefault(model, []).append(run)
    return runs


def members(
    found: Features, fit: Array, held: Array, seed: int
) -> Iterator[tuple[str, Tensor, nn.Module]]:
    """Yield name, features (V, N, D) and head of each member of one fold."""
    targets, size = torch.as_tensor(found.targets), found.num_classes
    first, last = next(iter(found.blocks.values())), list(found.blocks.values())[-1]
    probe = fit_probe(last[0, fit], targets[fit], size)
    start = linear(probe.weight, probe.bias)
    yield "probe", last, start
    torch.manual_seed(seed)
    yield "walked", last, walk(start, last[0], targets, fit, held)
    layers = nn.Linear(first.shape[2], HIDDEN), nn.ReLU(), nn.Dropout(0.2), nn.Linear(HIDDEN, size)
    yield "hidden", first, tune(nn.Sequential(*layers), first[0], targets, fit, held, rate=5e-3)


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a linear head."""
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head


def tune(
    net: nn.Module, x: Tensor, targets: Tensor, fit: Array, held: Array, *, rate: float
) -> nn.Module:
    """Train ``net``; keep the epoch whose calibrated loss on the held-out rows is lowest."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.01)
    best, kept = float("inf"), {}
    for _ in range(EPOCHS):
        net.train()
        order = torch.as_tensor(fit)[torch.randperm(len(fit))]
        for rows in order.split(BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x[rows]), targets[rows], label_smoothing=0.02)
            loss.backward()
            optimizer.step()
        net.eval()
        score = calibrated_loss(net, x[held], targets[held])
        if score < best:
            best, kept = score, {k: v.clone() for k, v in net.state_dict().items()}
    net.load_state_dict(kept)
    return net


def walk(start: nn.Linear, x: Tensor, targets: Tensor, fit: Array, held: Array) -> nn.Module:
    """Train on from the probe; keep the share of the way that is best on the held-out rows."""
    end = tune(linear(start.weight, start.bias), x, targets, fit, held, rate=1e-3)
    assert isinstance(end, nn.Linear)
    heads = [
        linear(start.weight.lerp(end.weight, share), start.bias.lerp(end.bias, share))
        for share in SHARES
    ]
    return min(heads, key=lambda head: calibrated_loss(head, x[held], targets[held]))


def calibrated_loss(net: nn.Module, x: Tensor, targets: Tensor) -> float:
    """Return the loss at the best temperature, which is the score that chooses epochs."""
    with torch.no_grad():
        logits = net(x).numpy()
    temperature = fit_temperature(logits, targets.numpy())
    return float(true_losses(log_softmax(logits, temperature), targets.numpy()).mean())


def read_features(path: Path) -> Features:
    """Read a feature file, reduced and of unit scale."""
    data = np.load(path, allow_pickle=False)
    blocks = {
        name.removeprefix("features_"): reduce(data[name])
        for name in data.files
        if name.startswith("features_")
    }
    return Features(path.stem, data["targets"].astype(np.int64), data["groups"].astype(str), blocks)


def reduce(block: Array) -> Tensor:
    """Return (V, N, min(D, ``DIMENSIONS``)) principal components of unit mean deviation."""
    x = torch.as_tensor(block, dtype=torch.float64)
    x = x - x[0].mean(0)
    basis = torch.linalg.eigh(x[0].T @ x[0])[1].flip(1)[:, :DIMENSIONS]
    x = x @ basis
    return (x / x[0].std(0).mean()).float()


def make_digits() -> dict[str, Array]:
    """Return scikit-learn's digits as features: pixels, and pixels one to the left as a view."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = data.images / 16
    flat = [np.roll(images, -by, axis=2).reshape(len(images), -1) for by in (0, 1)]
    groups = np.full(len(images), "", dtype="<U1")
    halves = {f"features_{part}": np.stack([x[:, part::2] for x in flat]) for part in (0, 1)}
    return {"targets": data.target, "groups": groups, **halves}


def make_features(given: argparse.Namespace) -> dict[str, Array]:
    """Return the features of the train images of a data folder, upright and flipped."""
    from src.data.index import read_train
    from src.engine.runtime import start_runtime
    from src.models.classifier import build_classifier
    from src.models.convolutions import fold_norms
    from src.models.pretrained import check_timm_id, find_weights
    from src.pipelines.classification.survey import embed
    from src.views import first_views

    index = read_train(Path(given.make))
    timm_id = check_timm_id(given.model)
    names, targets = np.unique(index.table["target"].to_numpy(dtype=str), return_inverse=True)
    made: dict[str, Array] = {
        "targets": targets,
        "groups": index.table["group"].to_numpy(dtype=str),
    }
    for size in given.sizes:
        net = build_classifier(
            timm_id, len(names), image_size=size, weights=find_weights(timm_id, "auto")
        )
        rows, views = np.arange(len(targets)), first_views(2)
        found = embed(fold_norms(net, size), index, rows, size, start_runtime(), views)
        made[f"features_{size}"] = found.float().numpy()
    return made


if __name__ == "__main__":
    sys.exit(main())
