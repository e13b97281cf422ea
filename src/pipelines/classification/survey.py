"""Survey of backbones and image sizes: leave-one-out score of a linear probe, speed, one table.

A ridge classifier on the frozen features of a sample of the images, scored by leave-one-out
(:mod:`src.models.probe`), orders sizes and backbones in one pass each, before anything is trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from src.config import EngineConfig
from src.data.canonical import ImageSource
from src.data.dataset import EpochSampler, ImageDataset, make_loader
from src.data.decode import read_bytes, read_size
from src.data.index import Index
from src.data.transforms import eval_transform
from src.engine.autotune import autotune, time_steps
from src.engine.cpu import tune_for_cpu, with_fastest_threads, with_threads
from src.engine.log import say
from src.engine.predict import default_batch_size
from src.engine.runtime import Runtime, is_out_of_memory, release_memory
from src.ensemble.pool import log_softmax, true_losses
from src.losses.classification import build_loss
from src.metrics.classification import fit_temperature
from src.models.classifier import Classifier, build_classifier, takes_stages
from src.models.convolutions import fold_norms
from src.models.pretrained import SUFFIXES, check_timm_id, find_data_config, find_weights
from src.models.probe import fit_probe
from src.pipelines.classification.plan import Candidate, short_name
from src.pipelines.classification.train import ClassData
from src.pipelines.classification.wise_ft import embed_rows
from src.script import UserError
from src.tasks.classification import Classification
from src.tool_config import PlanConfig
from src.views import VIEWS, View

# of the native size: 128, 192, 96, 160, 256, 64 px for 224; where time is short, the last ones go
SHARES = (0.57, 0.86, 0.43, 0.71, 1.14, 0.29)
STRIDE = 32
USEFUL_SHARE = 0.71  # of the native size, 160 of 224 px: see plan.SMALLNESS
ENLARGED = 1.6  # images of 95 to 100 px were better enlarged to 160
MAX_ROWS = 400
LEAST_SHARE = 0.45  # of a backbone's best pixels a second; lite0 has .46 at 64 px, 256 px = 1
PATIENCE = 3.0
TRIAL_ROWS = 16
LEAST_GAIN = 0.01  # of a further probe
BEYOND_THE_STEP = 1.15  # optimizer, data and averaging beside forward and backward


def find_backbones(models: Sequence[str]) -> list[str]:
    """Return the timm ids to survey: those asked for, else all with a file of weights.

    Raises:
        UserError: none, or an id that timm does not know.
    """
    if models:
        return list(dict.fromkeys(map(check_timm_id, models)))
    folder = Path("input/weights")
    files = sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES)
    if not files:
        raise UserError(
            f"no weights in {folder}: run python scripts/fetch_weights.py tf_efficientnet_lite0 "
            "tf_efficientnet_lite1, or name timm ids with --models"
        )
    known = []
    for path in files:
        try:
            known.append(check_timm_id(path.stem))
        except UserError as error:
            print(f"note: {path}: not surveyed ({error})")
    if not known:
        raise UserError(f"no file in {folder} is named by a timm id: name timm ids with --models")
    return list(dict.fromkeys(known))


def sizes_of(timm_id: str, sizes: Sequence[int]) -> list[int]:
    """Return the sizes worth a look: those asked for, or shares of the native one."""
    native = find_data_config(timm_id)
    if native.fixed_size:
        return [native.image_size]
    shares = (max(1, round(share * native.image_size / STRIDE)) * STRIDE for share in SHARES)
    return list(dict.fromkeys(sizes or shares))


def sample_rows(data: ClassData, seed: int) -> np.ndarray:
    """Return at most ``MAX_ROWS`` rows that are in a fold, of each class or set its share."""
    rows = np.flatnonzero(data.folds.fold >= 0)
    targets = data.targets(rows)
    if data.index.several:  # sets of labels
        targets = np.unique(targets, axis=0, return_inverse=True)[1].ravel()
    order = np.random.default_rng(seed).permutation(len(rows))
    ranked = order[np.argsort(targets[order], kind="stable")]  # class by class
    step = max(1.0, len(ranked) / MAX_ROWS)
    return np.sort(rows[ranked[np.arange(0, len(ranked), step).astype(int)]])


def survey(
    data: ClassData,
    backbones: Sequence[str],
    sizes: Sequence[int],
    runtime: Runtime,
    *,
    pretrained: str = "auto",
    seed: int = 0,
    seconds: float = float("inf"),
    expected: Callable[[Candidate], float] = lambda candidate: candidate.log_loss,
    affordable: Callable[[Candidate], bool] = lambda candidate: True,
    trainable: Callable[[Candidate], bool] = lambda candidate: True,
    threads: int = 0,
) -> list[Candidate]:
    """Measure the first backbone at every size, the others where the first is best.

    Args:
        data: photographs and folds.
        backbones: timm ids.
        sizes: px; none = shares of each native size.
        runtime: device and precision.
        pretrained: `auto` or a file.
        seed: of the sample.
        seconds: after which nothing more is measured; while nothing is trainable, ``PATIENCE``
            times as many.
        expected: what a candidate may come to in the time there is; the others are looked at where
            that or the probe's loss is least.
        affordable: whether there is time for a candidate's probe of all images.
        trainable: whether there is time for a fold; until one has it, smaller sizes come first.
        threads: of a CPU, with which folds will train; 0 = all.

    Raises:
        UserError: weights that are not there, an image that cannot be decoded, no memory at all.
        Interrupted: a signal asked to stop.
    """
    started = time.monotonic()
    rows = sample_rows(data, seed)
    side = useful_side(data.index, rows)
    found: list[Candidate] = []
    left_out: list[Tensor] = []
    missed: list[str] = []
    todo = [(backbones[0], size) for size in sizes_of(backbones[0], sizes)]
    while todo:
        hopeless = not any(map(trainable, found))
        if hopeless and found and todo[0][0] == backbones[0]:
            least = min(candidate.image_size for candidate in found)
            todo.sort(key=lambda place: -place[1] if place[1] < least else 0)
        timm_id, size = todo.pop(0)
        allowed = seconds * (PATIENCE if hopeless else 1)
        if found and time.monotonic() - started > allowed:
            missed.append(f"{timm_id} at {size} px")
            continue
        try:
            seen, told = look(data, rows, timm_id, size, runtime, pretrained, threads)
            alike = [net for net in backbones if short_name(net) == short_name(timm_id)]
            seen = replace(seen, useful_size=min(seen.useful_size, side), whole_id=len(alike) > 1)
            found.append(seen)
            left_out.append(told)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            release_memory(runtime.device)
            say(runtime, f"survey: {timm_id} at {size} px does not fit into memory")
        else:
            say(runtime, f"survey: {found[-1].summary}")
        if not todo and found and timm_id == backbones[0]:
            todo = _elsewhere(steady_rates(found), backbones[1:], sizes, expected)
    if not found:
        raise UserError(f"{timm_id} fits into memory at no size: pass smaller --sizes or --models")
    if missed:
        say(runtime, f"survey: no time left for {', '.join(missed)}")
    cheap = [affordable(candidate) for candidate in found]
    return steady_rates(add_gains(found, left_out, data.targets(rows), cheap))


def add_gains(
    found: Sequence[Candidate],
    left_out: Sequence[Tensor],
    targets: np.ndarray,
    affordable: Sequence[bool],
) -> list[Candidate]:
    """Return the candidates with what each probe takes off the loss of those with more.

    The best affordable probe first; then, time after time, the one that makes the loss of the mean
    least; then the others so. ``left_out`` are each candidate's log probabilities (N, K) of the
    rows left out; of several labels, of having each. ``targets`` are classes (N,) or labels (N, K).
    """
    told = [log_probs.numpy() for log_probs in left_out]
    if targets.ndim == 2:
        told = [np.stack([np.log1p(-np.exp(t).clip(max=1 - 1e-6)), t], -1) for t in told]
        told, targets = [t.reshape(-1, 2) for t in told], targets.ravel().astype(np.int64)

    def loss_of(members: Sequence[int]) -> float:
        mean = np.mean([told[m] for m in members], axis=0)
        temperature = fit_temperature(mean, targets)
        return float(true_losses(log_softmax(mean, temperature), targets).mean())

    gains, chosen, least = np.zeros(len(found)), list[int](), np.inf
    for pool in (np.flatnonzero(affordable).tolist(), range(len(found))):
        while losses := {c: loss_of([*chosen, c]) for c in pool if c not in chosen}:
            best = min(losses, key=lambda c: losses[c])
            if losses[best] >= (1 - LEAST_GAIN) * least:
                break
            gains[best], least = 1 - losses[best] / least, losses[best]
            chosen.append(best)
    return [replace(c, gain=round(float(gain), 4)) for c, gain in zip(found, gains, strict=True)]


def steady_rates(found: Sequence[Candidate]) -> list[Candidate]:
    """Raise training rates that a disturbed machine made too low.

    A backbone sees about as many pixels a second at every size; a rate below ``LEAST_SHARE`` of the
    best one measured for it was disturbed, and would rule its size out for good.
    """
    best: dict[str, float] = {}
    for c in found:
        best[c.timm_id] = max(best.get(c.timm_id, 0.0), c.train_rate * c.image_size**2)
    return [
        replace(c, train_rate=max(c.train_rate, LEAST_SHARE * best[c.timm_id] / c.image_size**2))
        for c in found
    ]


def _elsewhere(
    found: Sequence[Candidate],
    backbones: Sequence[str],
    sizes: Sequence[int],
    expected: Callable[[Candidate], float],
) -> list[tuple[str, int]]:
    """Return (backbone, size) of the others, at the two places where the first one was best."""
    best = min(found, key=lambda c: c.log_loss), min(found, key=expected)
    native = find_data_config(found[0].timm_id).image_size
    todo = []
    for timm_id in backbones:
        own = find_data_config(timm_id).image_size
        for candidate in dict.fromkeys(best):
            wanted = candidate.image_size * own / native
            away = {abs(size - wanted): size for size in sizes_of(timm_id, sizes)}
            todo.append((timm_id, away[min(away)]))
    return list(dict.fromkeys(todo))


def settle(
    data: ClassData, timm_id: str, runtime: Runtime, config: PlanConfig, threads: int = 0
) -> Runtime:
    """Return the fastest layout and precision for a step of a backbone at its first size.

    ``threads`` are those that a fold has on a CPU, 0 = all. On a card the default ones, as
    :func:`src.engine.autotune.settle_runtime` says.
    """
    if runtime.device.type == "cuda":
        return runtime
    size = sizes_of(timm_id, config.sizes)[0]
    model = build_classifier(timm_id, len(data.classes), image_size=size)
    tune_for_cpu(model, runtime.device)
    engine = EngineConfig(precision=config.precision, device=config.device)
    task, batch = trial(len(data.classes), size)
    with with_threads(threads):
        chosen, seconds, rows = autotune(model, task, batch, runtime, engine)
    timed = ", ".join(f"{name} {1e3 * s:.0f} ms" for name, s in seconds.items())
    say(runtime, f"autotune: {chosen} (a step of {rows}: {timed})")
    return chosen


def trial(num_classes: int, size: int) -> tuple[Classification, dict[str, Tensor]]:
    """Return a task and a batch to time steps with."""
    image = torch.randint(0, 256, (TRIAL_ROWS, 3, size, size), dtype=torch.uint8)
    target = torch.arange(TRIAL_ROWS) % num_classes
    task = Classification(num_classes, build_loss("cross_entropy"))
    return task, {"image": image, "target": target, "index": torch.arange(TRIAL_ROWS)}


def look(
    data: ClassData,
    rows: np.ndarray,
    timm_id: str,
    size: int,
    runtime: Runtime,
    pretrained: str,
    threads: int = 0,
) -> tuple[Candidate, Tensor]:
    """Measure one backbone at one size; return what its probe says of the rows left out, too."""
    num_classes = len(data.classes)
    weights = find_weights(timm_id, pretrained)
    model = build_classifier(timm_id, num_classes, image_size=size, pool="avg", weights=weights)
    stages = takes_stages(model)  # before it is on a card, which prepares itself for one image
    folded = fold_norms(model, size)
    batch_size = min(default_batch_size(size, runtime.device), max(1, len(rows) // 2))
    head, tail = np.split(rows, [batch_size])
    with with_fastest_threads(runtime.device):
        # the first pass is not timed: on a card it was seen to take seconds
        first = embed(folded, data.index, head, size, runtime, batch_size=batch_size)
        begun = time.perf_counter()
        rest = embed(folded, data.index, tail, size, runtime, batch_size=batch_size)
        infer_rate = len(tail) / (time.perf_counter() - begun)
    features = torch.cat([first, rest], dim=1)[0]
    probe = fit_probe(features, torch.as_tensor(data.targets(rows)), num_classes)
    tune_for_cpu(model, runtime.device)
    task, batch = trial(num_classes, size)
    with with_threads(threads):
        step = time_steps(model, task, batch, runtime, 6.0)
    rate = TRIAL_ROWS / (step * BEYOND_THE_STEP)
    native = find_data_config(timm_id)
    scores = probe.log_loss, probe.accuracy
    seen = Candidate(
        timm_id, size, *scores, rate, infer_rate, native.fixed_size, stages,
        round(USEFUL_SHARE * native.image_size),
    )  # fmt: skip
    return seen, probe.left_out


def useful_side(index: Index, rows: np.ndarray) -> int:
    """Return up to what size (px) images are worth enlarging: by the median of about fifty."""
    images = index.table["image"].iloc[rows[:: max(1, len(rows) // 50)]]
    sizes = [read_size(read_bytes(index.root / image), image) for image in images]
    return round(ENLARGED * np.median([min(width, height) for width, height, _ in sizes]))


def embed(
    model: nn.Module,
    index: Index,
    rows: np.ndarray,
    size: int,
    runtime: Runtime,
    views: Sequence[View] = VIEWS[:1],
    batch_size: int = MAX_ROWS,
) -> Tensor:
    """Return the features (V, N, D) of images ``rows`` in ``views``, as the head sees them.

    At most ``batch_size`` images are in memory at once.
    """
    source = ImageSource(index.root, index.table["image"].iloc[rows].tolist(), size)
    batch_size = min(batch_size, default_batch_size(size, runtime.device))
    loader = make_loader(
        ImageDataset(source, None, eval_transform(size)),
        EpochSampler(len(source), batch_size),
        device_type=runtime.device.type,
    )
    assert isinstance(model, Classifier)
    return embed_rows(model, loader, runtime, views)


def survey_table(found: Sequence[Candidate], num_rows: int) -> list[list[object]]:
    """Return rows (backbone, px, probe's log loss, accuracy, images/s, minutes an epoch)."""
    return [
        [c.timm_id, c.image_size, c.log_loss, c.accuracy, c.train_rate, c.infer_rate,
         num_rows / c.train_rate / 60]
        for c in sorted(found, key=lambda c: c.log_loss)
    ]  # fmt: skip
