"""Micro track: one run a data set and seed, scores (mean ± std over seeds), ablations, chains."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from src.data.masks import count_classes
from src.data.sources.registry import DATASETS, list_datasets
from src.engine.runtime import start_runtime
from src.files import Json
from src.mask_config import MicroConfig
from src.models.distilled import build_student, show_features
from src.models.micro.registry import (
    BUDGET_CLASSES,
    BY_SET,
    MICRO_NETS,
    build_micro,
    check_budget,
    count_trainable,
    measure_budget,
    net_of,
    rate_of,
)
from src.pipelines.distillation import compare_roles, gate, mean_spread
from src.pipelines.run_folder import SCENES, data_label, finished, parse_fold
from src.pipelines.segmentation import train as masks
from src.pipelines.segmentation.ensemble import load_member, pool_choice
from src.runs import Done, Output, Run, mark_teacher
from src.script import UserError, counted, format_table
from src.tasks.distillation import NAMES, Distillation
from src.tasks.protocols import Task
from src.tasks.segmentation import Segmentation

# Options that the public anchors were measured under: at their defaults.
STRICT = (
    *("resolution", "crop", "batch_size", "epochs", "tta_steps"),
    *("scale_min", "scale_max", "hflip", "vflip", "rotate", "color", "augment"),
)
# What each set's masks are like, as a term beside the others.
SET_TERMS: Mapping[str, Mapping[str, float]] = {
    "VOC": {"dice": 0.2},
    "ETIS": {"edge_ce": 0.2, "boundary": 0.2},
    "CVPPP": {"shape": 0.2},
    "CFD": {"edge_ce": 0.2},
    "CarDD": {"gce": 0.5},
}
TEACHING = {"kl": 0.3, "channel": 0.3}  # shares of the task's loss
# These choose which runs there are and shape none of them.
OF_RUNS = (
    *("ablate", "report", "chain", "allow_weak_teacher", "seeds", "name"),
    *("max_params", "allow_over_budget"),
)


@dataclass(frozen=True)
class MicroSet:
    """One data set: its name in tables and runs, and how it is read."""

    name: str
    source: str
    data_dir: str


def find_sets(config: MicroConfig) -> tuple[MicroSet, ...]:
    """Settle the data sets: some of the five, a folder of one's own, or generated road scenes.

    Raises:
        UserError: no such folder or set.
    """
    if not config.data_dir:
        if config.dataset:
            raise UserError(f"--dataset {config.dataset}: name the folder of the sets, --data_dir")
        source, root = masks.locate_data(config, num_scenes=12, num_frames=4)
        return (MicroSet(SCENES, source, str(root)),)
    if not Path(config.data_dir).is_dir():
        raise UserError(f"--data_dir {config.data_dir}: no such folder")
    here = list_datasets(config.data_dir)
    if config.dataset and config.dataset not in (*DATASETS, "all"):
        raise UserError(f"--dataset {config.dataset}: choose {', '.join(DATASETS)} or all")
    if config.dataset in DATASETS:
        here = (config.dataset,)
    elif not here and config.dataset == "all":
        raise UserError(
            f"--dataset all: {config.data_dir} holds none of {', '.join(DATASETS)}; pass the "
            "folder that holds them with --data_dir, or name the one set"
        )
    if not here:
        return (MicroSet(data_label(config.data_dir), config.source, config.data_dir),)
    missing = [name for name in DATASETS if name not in here]
    if config.dataset not in DATASETS and missing:
        print(f"note: not in {config.data_dir}: {', '.join(missing)}; the mean leaves them out")
    return tuple(MicroSet(name, f"micro/{name}", config.data_dir) for name in here)


def check_protocol(config: MicroConfig) -> None:
    """Refuse a strict run under other conditions than the anchors', and a floor above the rate.

    Raises:
        UserError: naming the option.
    """
    replace(config, lr=config.lr or rate_of(config.dataset))  # refuses --lr_min
    for name in STRICT if config.protocol == "strict" else ():
        wanted = getattr(MicroConfig, name)
        if getattr(config, name) != wanted:
            raise UserError(
                f"--{name} {getattr(config, name)}: the strict protocol has {wanted or 'none'}; "
                "pass --protocol free"
            )


def check_size(config: MicroConfig, sets: Sequence[MicroSet]) -> None:
    """Print the net's table of modules and refuse it over budget, before anything is trained.

    Counted with the head of the largest set, for every set whose options change the net.

    Raises:
        UserError: over ``--max_params``.
    """
    net = config.net or config.model
    models = {s.name: build_micro(net, BUDGET_CLASSES, dataset=s.name, drop=config.drop)
              for s in sets}  # fmt: skip
    sizes = {name: count_trainable(model) for name, model in models.items()}
    name = max(sizes, key=lambda name: sizes[name])
    which = f" as built for {name}" if len(set(sizes.values())) > 1 else ""
    print(f"{net}{which}, with {BUDGET_CLASSES} classes at 256x256, as the budget counts:")
    print(measure_budget(models[name]).table(), flush=True)
    if not config.allow_over_budget:
        check_budget(net, sizes[name], config.max_params)


def check_chain(nets: Sequence[str]) -> Sequence[str]:
    """Return the nets of ``--chain``.

    Raises:
        UserError: fewer than two, one twice, or one that does not exist.
    """
    unknown = [net for net in nets if net not in MICRO_NETS]
    if unknown:
        raise UserError(f"--chain: {unknown[0]} is unknown; nets are {', '.join(MICRO_NETS)}")
    if len(set(nets)) < max(2, len(nets)):
        raise UserError("--chain: two different nets at least, from first teacher to last student")
    return nets


def run_config(config: MicroConfig, where: MicroSet, seed: int) -> MicroConfig:
    """Return the options of one run, the same however the run was asked for."""
    defaults = {f.name: f.default for f in dataclasses.fields(config) if f.name in OF_RUNS}
    own = replace(config, **defaults)  # type: ignore[arg-type]
    net = net_of(config.net or config.model, where.name)
    return replace(
        own, seed=seed, dataset=where.name, model=net, net="", source=where.source,
        data_dir=where.data_dir, lr=own.lr or rate_of(where.name),
    )  # fmt: skip


def run_of(config: MicroConfig, name: str, where: MicroSet, seed: int, output: Output) -> Run:
    """Return the folder of one run."""
    return output.run(f"{name}-{where.name}-seed{seed}", parse_fold(config.fold))


_read = cache(masks.read_data)  # a set once, for all seeds


def read_set(config: MicroConfig, where: MicroSet) -> masks.MaskData:
    """Read a set once, for all seeds."""
    names = ("fold", "folds", "fold_seed", "group_by_name", "resolution", "crop", "window")
    keep: dict[str, Any] = {name: getattr(config, name) for name in names}
    return _read(MicroConfig(**keep, data_dir=where.data_dir, source=where.source))


def build_task(config: MicroConfig, data: masks.MaskData, images: Sequence[int]) -> Segmentation:
    """Build the task: cross-entropy, the less of it the more classes, and the track's own score.

    ``images`` (K,) are the training images that hold each class.
    """
    spec = config.loss or f"{1 / (data.index.num_classes - 1)!r} ce + protocol"
    if config.loss and config.set_losses:
        raise UserError("--set_losses adds to the default loss: leave --loss out")
    if config.set_losses:
        if config.dataset not in SET_TERMS:
            raise UserError(f"--set_losses: {config.dataset} is none of {', '.join(SET_TERMS)}")
        own = SET_TERMS[config.dataset].items()
        spec = " + ".join([spec, *(f"{weight} {name}" for name, weight in own)])
    rarity = [1 / max(1, count) for count in images]
    return masks.build_task(replace(config, loss=spec), data, "micro_protocol_iou", rarity)


def train_run(
    config: MicroConfig, where: MicroSet, seed: int, name: str, output: Output
) -> Finished:
    """Train one set with one seed, unless it is finished.

    ``config`` is the whole command's; its ``teacher`` is the name of the runs that teach. ``name``
    is the first part of the run's. Return the run and the content of its ``finished.json``.
    """
    own = run_config(config, where, seed)
    run = run_of(own, name, where, seed, output)
    with run.hold():
        data = read_set(config, where)
        taught = run_of(own, own.teacher, where, seed, output) if own.teacher else None
        about = mark_teacher(run, taught) if taught else {}
        done = finished(run, own, data.hash)
        if done is None:
            done = _train(own, run, data, where, seed, output, taught, about)
    return run, done


def _train(
    own: MicroConfig, run: Run, data: masks.MaskData, where: MicroSet, seed: int, output: Output,
    taught: Run | None, about: Json,
) -> Done:  # fmt: skip
    pixels, images = count_classes(data.index, data.split.train)
    plain = build_task(own, data, images.tolist())
    task: Task = plain
    spec = {"kind": "micro", "name": own.model, "num_outputs": plain.num_outputs}
    spec |= {"dataset": where.name, "drop": list(own.drop)}
    runtime = start_runtime(own.device, own.precision, own.channels_last)
    torch.manual_seed(seed)
    model: nn.Module = masks.build_network(spec)
    if own.prior:
        share = torch.from_numpy(pixels / max(1, pixels.sum()))
        model.set_prior(share)  # type: ignore[operator]
    if taught:
        teacher = load_member(taught).build()
        teacher = runtime.place(teacher).eval().requires_grad_(False)
        model = build_student(model, teacher, project=False, num_terms=len(NAMES))
        task = Distillation(plain, teacher, show_features, TEACHING)
    return masks.train_masks(
        own, run, data, model, task, output=output, network=spec, runtime=runtime,
        extra={"track": "micro", "protocol": own.protocol, **about},
    )  # fmt: skip


Finished = tuple[Run, Done]
PROTOCOL = (
    "score: I / (U + 1e-6) for each image and foreground class true in it, mean over a class's "
    "images, then over classes; held-out images; nested: each fifth of them at the views and "
    "threshold that the others choose; at 0.5: nothing chosen; same images: the best threshold on "
    "the images themselves; predicting background alone scores 0"
)


def chosen(done: Done) -> Mapping[str, float]:
    """Return the row of the views that were kept, ``nested`` with their choice; nan where none are.

    A run that was scored before there was a nested score counts at threshold 0.5.
    """
    if "views" not in done:
        return dict.fromkeys(("nested", "plain", "best", "threshold"), float("nan"))
    row = next(row for row in done["views"] if row["views"] == done["tta_steps"])
    return {"best": row["score"], **row, "nested": done.get("nested", row["plain"])}


def mean_over_sets(results: Mapping[str, Sequence[Finished]]) -> list[float]:
    """Return the mean over the sets, for each seed."""
    table = [[chosen(done)["nested"] for _, done in runs] for runs in results.values()]
    return np.mean(table, axis=0).tolist()


def score_table(results: Mapping[str, Sequence[Finished]]) -> str:
    """Return the table of set → its runs, one a seed, all sets with the same seeds."""
    rows = []
    for name, runs in results.items():
        kept = [chosen(done) for _, done in runs]
        scores = [done.get("scores", {}) for _, done in runs]
        pooled = [s.get("pooled_mean_iou_foreground", float("nan")) for s in scores]
        thresholds = " ".join(f"{row['threshold']:.3g}" for row in kept)
        shown = [mean_spread([row[key] for row in kept]) for key in ("nested", "plain", "best")]
        rows.append((name, *shown, thresholds, mean_spread(pooled)))
    if len(results) > 1:
        rows.append((f"mean of {len(results)}", mean_spread(mean_over_sets(results)), *[""] * 4))
    together = [
        f"{name}, one threshold for all seeds, nested {found[0].nested:.4f}: {found[0]}"
        for name, runs in results.items()
        if len(runs) > 1 and (found := pool_choice([load_member(run) for run, _ in runs]))
    ]
    seeds = len(next(iter(results.values())))
    views = sorted({int(chosen(done).get("views", 1)) for r in results.values() for _, done in r})
    how = f"{counted(seeds, 'seed')}; views {', '.join(map(str, views))}"
    heads = ["set", "nested", "at 0.5", "same images", "threshold", "pooled fg IoU"]
    table = format_table(heads, rows)
    return "\n".join([table, *together, f"{how}; {PROTOCOL}"])


def difference(first: Sequence[Finished], second: Sequence[Finished]) -> str:
    """Return the gain of ``second`` over ``first`` with its interval over images."""
    runs = [[run for run, _ in side] for side in (first, second)]
    return str(compare_roles(runs[0], runs[1], "micro_protocol_iou"))


def gate_sets(
    students: Mapping[str, Sequence[Finished]],
    teachers: Mapping[str, Sequence[Finished]],
    name: str,
    *,
    force: bool,
) -> None:
    """Refuse a teacher that is beyond doubt worse than its student on a set, mean over seeds.

    One that is behind within the noise of the images teaches: a chain takes a night.

    Raises:
        UserError: it is, and ``force`` is off.
    """
    for where, runs in students.items():
        low, high = (
            Done(score=float(np.mean([chosen(done)["nested"] for _, done in side])),
                 monitor=f"{where}, {name}")
            for side in (runs, teachers[where])
        )  # fmt: skip
        pupils, masters = ([run for run, _ in side] for side in (runs, teachers[where]))
        unsure = compare_roles(pupils, masters, "micro_protocol_iou").within_noise
        gate(low, high, lower_is_better=False, force=force or unsure)


def train_all(
    config: MicroConfig, sets: tuple[MicroSet, ...], name: str, output: Output
) -> dict[str, list[Finished]]:
    """Train one net on every set with every seed."""
    seeds = config.seeds or (config.seed,)
    return {
        where.name: [train_run(config, where, seed, name, output) for seed in seeds]
        for where in sets
    }


def show_sets(config: MicroConfig, sets: tuple[MicroSet, ...], output: Output) -> None:
    """Print the nets' sizes and what each set would be learned from; train nothing."""
    for net in check_chain(config.chain) if config.chain else (config.model,):
        check_size(replace(config, model=net), sets)
    for where in sets:
        run = run_of(config, config.name or config.model, where, config.seed, output)
        masks.show_data(read_set(config, where), run.folder)


def compete(config: MicroConfig, sets: tuple[MicroSet, ...], output: Output) -> None:
    """Train the net; then without each of its blocks and with a report, if asked.

    Raises:
        UserError: blocks of no net in particular.
    """
    if config.ablate and (config.net or config.model) == BY_SET:
        raise UserError("--ablate: name the net whose blocks it shall judge, --model twohead_10k")
    check_size(config, sets)
    name = config.name or config.model
    results = train_all(config, sets, name, output)
    print(f"\n{name}, {config.protocol} protocol\n{score_table(results)}", flush=True)
    if config.ablate:
        ablate(config, sets, name, output, results)
    if config.report:
        from src.pipelines.micro_report import write_report

        print(f"report: {write_report(config, sets, results, output.micro_report(name))}")


def ablate(
    config: MicroConfig,
    sets: tuple[MicroSet, ...],
    name: str,
    output: Output,
    whole: dict[str, list[Finished]],
) -> None:
    """Train without each block in turn and print what it was worth."""
    for block in MICRO_NETS[config.net or config.model].blocks:
        if block in config.drop:
            continue
        without = replace(config, drop=(*config.drop, block))
        results = train_all(without, sets, f"{name}-without-{block}", output)
        print(f"\n{name} without {block}\n{score_table(results)}")
        for where, runs in results.items():
            print(f"{where}, with {block} -> without: {difference(whole[where], runs)}", flush=True)


def teach(config: MicroConfig, sets: tuple[MicroSet, ...], output: Output) -> None:
    """Teach down the chain, then the last net by the first alone; a weak teacher is refused."""
    nets = check_chain(config.chain)
    check_size(replace(config, model=nets[-1], net=""), sets)

    def train(net: str, teacher: str = "") -> tuple[str, dict[str, list[Finished]]]:
        own = replace(config, model=net, net="", teacher=teacher)
        name = f"{net}-by-{teacher}" if teacher else f"{config.name}{'-' * bool(config.name)}{net}"
        results = train_all(own, sets, name, output)
        print(f"\n{name}\n{score_table(results)}", flush=True)
        return name, results

    def hop(net: str, name: str, above: dict[str, list[Finished]]) -> dict[str, list[Finished]]:
        gate_sets(alone[net][1], above, name, force=config.allow_weak_teacher)
        _, taught = train(net, name)
        for where, runs in taught.items():
            gain = difference(alone[net][1][where], runs)
            print(f"{where}, {net} alone -> by {name}: {gain}", flush=True)
        return taught

    alone = {net: train(net) for net in nets}
    name, above = alone[nets[0]]
    for net in nets[1:]:
        above, name = hop(net, name, above), f"{net}-by-{name}"
    if len(nets) > 2:
        hop(nets[-1], *alone[nets[0]])  # one hop, to set beside the chain
