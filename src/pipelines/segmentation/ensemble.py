"""Ensemble of finished mask runs: loading, blend weights, class probabilities at native size."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from src.data.dataset import EpochSampler, Loader, make_loader
from src.data.masks import image_size, mask_dataset
from src.data.sources.colours import read_colours
from src.data.sources.folders import holds_masks, read_classes
from src.data.sources.masks import MaskIndex
from src.data.sources.places import find_inner
from src.data.sources.registry import detect_source, list_datasets
from src.data.transforms import eval_transform
from src.engine.interrupt import Pause, catch_signals
from src.engine.predict import default_batch_size, predict
from src.engine.runtime import Runtime
from src.ensemble.pool import solve_mixture
from src.files import Json, read_arrays
from src.metrics.counts import load_counts
from src.metrics.thresholds import Choice, SweepCounts, choose_views
from src.models.convolutions import FOLDING_SIDE, fold_norms
from src.models.pretrained import read_state
from src.pipelines.run_folder import data_label, parse_size, refuse_lost
from src.pipelines.segmentation.score import fit_size, mean_probs
from src.pipelines.segmentation.train import build_network
from src.runs import GO_ON, REPAIR, Done, Run, read_config, read_done
from src.script import UserError, counted
from src.tasks.segmentation import Segmentation
from src.views import first_views

WRAPPED = "network."  # a distilled student's own tensors


@dataclass(frozen=True)
class Member:
    """One trained net and how it predicts."""

    run: Run
    options: Json  # its config
    resolved: Json  # what the config came to: network, classes, data, sizes
    done: Done  # what ``finished.json`` holds; empty for an unfinished run's checkpoint
    weights: Path
    num_views: int  # views to average
    threshold: float  # of the foreground, for so many views
    share: float = 1.0  # weight in the blend; all members' sum to 1

    @property
    def folder(self) -> Path:
        """The model's folder; its folds share it."""
        return self.run.folder.parent

    @property
    def data_dir(self) -> str:
        """The folder that it learned from, however that was written."""
        return os.path.realpath(self.resolved["data_dir"])

    @property
    def task(self) -> Segmentation:
        """Say what the net's channels mean and by which windows it predicts."""
        window = self.resolved["window"]
        return Segmentation(
            tuple(self.resolved["classes"]), _never, self.resolved["void"],
            window=tuple(window) if window else None,
        )  # fmt: skip

    def size(self, override: str) -> tuple[int, int] | None:
        """Return the (height, width) that images are resized to; None is native."""
        return parse_size("resolution", override or self.options["resolution"])

    def build(self) -> nn.Module:
        """Build the net with its weights.

        Raises:
            UserError: the weights do not fit.
        """
        model = build_network(self.resolved["network"])
        state = read_state(self.weights)
        if any(key.startswith(WRAPPED) for key in state):
            state = {
                key.removeprefix(WRAPPED): value
                for key, value in state.items()
                if key.startswith(WRAPPED)
            }
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()[:150]
            raise UserError(f"{self.weights} does not fit {self.run.folder}: {reason}") from None
        return model


@dataclass(frozen=True)
class RunSweeps:
    """Counts of a run's held-out images at every threshold."""

    statistic: str  # what the threshold is chosen by
    sweeps: list[SweepCounts]  # for 1, 2, … views
    units: list[str]  # of each image: its group, or itself


def find_runs(patterns: Sequence[str]) -> list[Run]:
    """Expand folder patterns to runs, in order, each once.

    Raises:
        UserError: a pattern without a run.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        literal = re.sub(r"\[", "[[]", pattern)  # a folder may be called "[A] cars"
        found_here = [pattern] if Path(pattern).is_dir() else []
        names = found_here or sorted(glob.glob(pattern) or glob.glob(literal))  # noqa: PTH207
        # a finished run that has lost its config.yaml is refused, not left out
        kinds = [(Path(name), Run(Path(name))) for name in names]
        runs = [path for path, run in kinds if run.config.is_file() or run.finished.is_file()]
        if not runs:
            raise UserError(f"--runs {pattern}: no run there (a folder with config.yaml)")
        found |= dict.fromkeys(runs)
    return [Run(folder) for folder in found]


def find_source(source: str, data_dir: str, trained: Json) -> tuple[str, Path, Json]:
    """Settle how the images to predict are read: layout, folder, options of the source.

    Photographs without masks are read whatever their folders are called, in the classes of the
    runs; the folder of all micro sets and that of one both mean the set that was trained on.
    ``source`` empty is settled here; ``data_dir`` empty is the folder that was trained on.
    ``trained`` is what the first run's config came to.
    """
    root = Path(data_dir or trained["data_dir"])
    asked, options = bool(source), {} if source else dict(trained["options"])
    source = source or trained["source"]
    sets = list_datasets(root)
    if not asked and Path(trained["data_dir"]).name in sets and not source.startswith("micro/"):
        root /= Path(trained["data_dir"]).name
    if source == "auto" and root.is_dir():
        source = detect_source(root)
    own = bool(data_dir) and root.is_dir() and (not asked or source == "folders")
    if source.startswith("micro/"):
        own = own and source.removeprefix("micro/") not in (*sets, root.resolve().name)
    own = own and detect_source(root) == "folders" and not holds_masks(root)
    if own:
        source, options = "folders", {}
    if source == "folders" and (own or (len(trained["classes"]) > 2 and not _names_labels(root))):
        options["classes"] = trained["classes"]  # unlabelled images cannot tell them
    return source, root, options


def _names_labels(root: Path) -> bool:
    """Tell whether a data folder names the labels of its masks itself, maybe in another order."""
    inner = find_inner(root) if root.is_dir() else root
    return bool(read_classes(inner)) or read_colours(inner) is not None


def load_member(run: Run, *, checkpoint: str = "", tta_steps: int = 0) -> Member:
    """Read what a run left.

    ``checkpoint`` are weights instead of its best; an unfinished run needs them. ``tta_steps`` 0
    are as many views as did best on valid.

    Raises:
        UserError: not finished, or weights that do not exist.
    """
    done: Done = {}
    try:
        done = read_done(run)
        refuse_lost(run, done, run.config, *(() if checkpoint else (run.best,)))
    except FileNotFoundError:
        if not checkpoint:
            asked = f", or pass --checkpoint {run.best}" if run.best.exists() else ""
            state = "finished" if run.folder.is_dir() else "there"
            raise UserError(f"{run.folder} is not {state}: {GO_ON}{asked}") from None
    content = read_config(run)
    weights = Path(checkpoint) if checkpoint else run.best
    if not weights.is_file():
        raise UserError(f"{weights}: no such weights")
    table = {int(row["views"]): row["threshold"] for row in done.get("views", [])}
    num_views = tta_steps or done.get("tta_steps", 1)
    threshold = table.get(num_views, done.get("threshold", 0.5))
    return Member(run, content["options"], content["resolved"], done, weights, num_views, threshold)


def check_alike(members: Sequence[Member], *, one_data_set: bool) -> None:
    """Refuse to join runs that learned different classes, or (if asked) different data."""
    first = members[0]
    for member in members[1:]:
        pairs = {"classes": (member.resolved["classes"], first.resolved["classes"])}
        pairs |= {"data_dir": (member.data_dir, first.data_dir)} if one_data_set else {}
        for key, (own, known) in pairs.items():
            if own != known:
                raise UserError(
                    f"{member.run.folder} and {first.run.folder} learned different data "
                    f"({key}: {own} and {known}): narrow --runs"
                )


def by_data_set(members: Sequence[Member], *, data_dir: str = "") -> dict[str, list[Member]]:
    """Group runs by the data they learned from: {name of the set: its runs}, in order.

    ``data_dir`` is one folder that is read instead; micro sets in it are still told apart.
    """
    found: dict[tuple[str, str], list[Member]] = {}
    for member in members:
        source = member.resolved["source"]
        micro = source.removeprefix("micro/") if source.startswith("micro/") else ""
        found.setdefault((data_dir or member.data_dir, micro), []).append(member)
    names = [micro or data_label(folder) for folder, micro in found]
    unique = [name if names.count(name) == 1 else f"{name}-{n}" for n, name in enumerate(names, 1)]
    return dict(zip(unique, found.values(), strict=True))


def settle_shares(members: Sequence[Member], mode: str) -> tuple[list[float], str]:
    """Return the weight of every member and one line about where it comes from.

    The folds of a model share its weight evenly; models of one name in several output folders are
    one where their options are. With ``oof`` the models' weights minimise the
    log loss of the mixture over pixels that none of them was trained on: convex, solved exactly.
    """
    options = {m.folder: m.done.get("config_hash", "") for m in members}
    # a model's folds may lie in the output folders of several machines
    model_of = {folder: (folder.name, known) for folder, known in options.items()}
    models: dict[tuple[str, str], list[Member]] = {}
    for member in members:
        models.setdefault(model_of[member.folder], []).append(member)
    share, how = dict.fromkeys(models, 1 / len(models)), "uniform"
    if mode == "oof" and len(models) > 1:
        tables = [_read_oof(folds) for folds in models.values()]
        common = sorted(set.intersection(*(set(table) for table in tables)))
        if common:
            probs = np.stack([np.concatenate([t[i] for i in common]) for t in tables], axis=1)
            found = solve_mixture(np.log(np.maximum(probs, 1e-6)))
            share = dict(zip(models, found.weights.tolist(), strict=True))
            how = f"from {counted(len(common), 'image')} held out by all"
            how += f", {found.loss:.4f} nats a pixel"
        else:
            how = "uniform, since no image was held out by all models"
    names = [name for name, _ in models]
    text = ", ".join(
        f"{model[0] if names.count(model[0]) == 1 else models[model][0].folder} {weight:.3f}"
        for model, weight in share.items()
    )
    own = [model_of[member.folder] for member in members]
    return [share[m] / len(models[m]) for m in own], f"weights {how}: {text}"


def load_sweeps(run: Run, done: Done) -> RunSweeps | None:
    """Read what a run's held-out images count at every threshold; None where it swept none.

    Raises:
        UserError: lost, or not what its training wrote.
    """
    refuse_lost(run, done, run.oof, run.oof_sweep)
    if run.oof_sweep.name not in done.get("files", {}):
        return None
    names = ("statistic", "thresholds", "hits", "union", "target")
    found = read_arrays(run.oof_sweep, names, REPAIR)
    oof = read_arrays(run.oof, ("ids", "groups"), REPAIR)
    sweeps = [
        SweepCounts(found["thresholds"], hits, union, found["target"])
        for hits, union in zip(found["hits"], found["union"], strict=True)
    ]
    pairs = zip(oof["groups"].tolist(), oof["ids"].tolist(), strict=True)
    units = [group or f"\0{name}" for group, name in pairs]
    return RunSweeps(str(found["statistic"]), sweeps, units)


def pool_choice(members: Sequence[Member]) -> tuple[Choice, int] | None:
    """Choose one threshold for several runs, on the held-out images of all of them.

    An image (or group of them) is one piece of evidence however many runs held it out.

    Returns:
        The choice and the number of images or groups; None where a run has not swept its views,
        or was judged by another score.
    """
    found = [load_sweeps(member.run, member.done) for member in members]
    swept = [sweep for sweep in found if sweep is not None]
    fits = len(swept) == len(members) and all(
        sweep.statistic == swept[0].statistic and member.num_views <= len(sweep.sweeps)
        for member, sweep in zip(members, swept, strict=True)
    )
    if not fits:
        return None
    units = [unit for sweep in swept for unit in sweep.units]
    joined = [s.sweeps[m.num_views - 1] for m, s in zip(members, swept, strict=True)]
    return choose_views([SweepCounts.join(joined)], swept[0].statistic, units), len(set(units))


def settle_threshold(members: Sequence[Member]) -> tuple[float, str]:
    """Return the threshold of a blend and a few words about where it comes from."""
    if len(members) == 1:
        return members[0].threshold, "from valid"
    pooled = pool_choice(members)
    if pooled is None:
        mass = sum(member.share for member in members)
        mean = sum(member.share * member.threshold for member in members) / mass
        return mean, "from valid, mean of the runs'"
    choice, num_units = pooled
    units = counted(num_units, "image or group", "images or groups")
    return choice.threshold, f"from valid, {units} of {len(members)} runs"


def _read_oof(members: Sequence[Member]) -> dict[tuple[str, tuple[int, ...]], np.ndarray]:
    """Return {image: (P,) probability of the true class} of a model's folds together.

    Images of several data sets may share an id; the pixels of each class tell them apart.
    """
    found: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}
    for member in members:
        run = member.run
        refuse_lost(run, member.done, run.oof, run.oof_counts)
        if run.oof.is_file():
            oof = read_arrays(run.oof, ("ids", "true_probs"), REPAIR)
            ids = oof["ids"].tolist()
            pixels: list[tuple[int, ...]] = [()] * len(ids)
            if run.oof_counts.is_file():
                pixels = [tuple(row) for row in load_counts(run.oof_counts, REPAIR).target.tolist()]
            found |= dict(zip(zip(ids, pixels, strict=True), oof["true_probs"], strict=True))
    return found


def _never(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    raise AssertionError("a member does not learn")


CHUNK = 32  # images whose maps are held at once


def blend_maps(
    members: Sequence[Member],
    index: MaskIndex,
    rows: np.ndarray,
    runtime: Runtime,
    *,
    resolution: str = "",
    batch_size: int = 0,
    num_workers: int = -1,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (row, probabilities (1 or K, H, W) at native size), a chunk of images at a time.

    ``resolution`` is HxW or ``native`` instead of what the members were trained at; ``batch_size``
    0 goes by resolution. No loader processes are started unasked (``num_workers`` -1): a chunk is
    over before they have.
    """
    models = [fold_norms(member.build(), FOLDING_SIDE) for member in members]
    with catch_signals() as pause:
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            sizes = [image_size(index.image_path(int(row))) for row in part]
            total: list[Tensor | None] = [None] * len(part)
            for member, model in zip(members, models, strict=True):
                size = member.size(resolution)
                if size is None and len(set(sizes)) == 1:
                    size = sizes[0]
                data = mask_dataset(
                    index, part, eval_transform(), size=size, labelled=False, cache="none"
                )
                batch = 1
                if size is not None:
                    batch = batch_size or default_batch_size(max(size), runtime.device)
                loader = make_loader(
                    data, EpochSampler(len(part), batch), num_workers=max(0, num_workers),
                    device_type=runtime.device.type,
                )  # fmt: skip
                _add_maps(total, sizes, member, runtime.place(model), loader, runtime, pause)
                if len(members) > 1:
                    model.to("cpu")
            for row, probs in zip(part.tolist(), total, strict=True):
                assert probs is not None
                yield row, probs


def _add_maps(
    total: list[Tensor | None], sizes: Sequence[tuple[int, int]], member: Member,
    model: nn.Module, loader: Loader, runtime: Runtime, pause: Pause,
) -> None:  # fmt: skip
    """Add a member's share of a chunk's probabilities, each map at its image's native size."""

    def write(batch: dict[str, Tensor], outputs: list[Tensor]) -> None:
        for probs, place in zip(mean_probs(outputs), batch["index"].tolist(), strict=True):
            native = fit_size(probs, sizes[place]).cpu() * member.share
            before = total[place]
            total[place] = native if before is None else before + native

    predict(
        model, loader, member.task, runtime, num_rows=len(total), write=write,
        views=first_views(member.num_views), pause=pause,
    )  # fmt: skip
