"""Train one backbone on one fold: python train_fold.py --model convnext_large --fold 1.

Photographs in, output/<model>/fold<k>/ out: weights, metrics and the logits of the held-out
images. Started again, it goes on where it stopped; a finished fold is skipped.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config import FoldConfig, config_hash, learned_knobs
from src.reader import parse
from src.runs import (
    Output,
    Run,
    UserError,
    read_json,
    run_script,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from src.data.folds import Folds
    from src.data.index import Index
    from src.engine.loop import Mix
    from src.engine.runtime import Runtime


def main(argv: list[str]) -> int:
    """Train the folds that ``argv`` asks for, one after another."""
    config = parse(
        FoldConfig, argv, prog="train_fold.py", description=__doc__ or "", row_by="model"
    )
    if not config.model:
        raise UserError("--model is missing: a preset of configs/classify.yaml, or any timm id")
    output = Output(Path(config.output_dir))
    name = config.name or config.model
    if config.fold != "all" and finished(output.run(name, fold_of(config.fold)), config):
        return 0  # before anything heavy is imported

    from src.engine.interrupt import Interrupted
    from src.engine.runtime import start_runtime
    from src.tracks.photographs import prepare_data

    index, folds = prepare_data(config, output)
    every = list(range(folds.num_folds))
    wanted = every if config.fold == "all" else [fold_of(config.fold)]
    if wanted[0] not in (*every, "full"):
        raise UserError(f"--fold {config.fold}: folds.csv has folds 0 to {folds.num_folds - 1}")
    runtime = start_runtime(config.device, config.precision, config.channels_last)
    for fold in wanted:
        run = output.run(name, fold)
        try:
            with run.hold():
                if not finished(run, config):
                    train(config, output, run, index, folds, fold, runtime)
        except Interrupted as stop:
            print(f"{stop}; the state is saved, the same command goes on from here")
            return stop.status
    return 0


def fold_of(text: str) -> int | str:
    """Read ``--fold``: a number, or ``full``."""
    if text.isdigit():
        return int(text)
    if text != "full":
        raise UserError(f"--fold {text}: a number from 0, `all` or `full`")
    return text


def finished(run: Run, config: FoldConfig) -> bool:
    """Tell whether the run is complete, and say so.

    Raises:
        UserError: it is, but with other knobs.
    """
    try:
        done = read_json(run.finished)
    except FileNotFoundError:
        return False
    if done.get("config_hash") != config_hash(config):
        now = learned_knobs(config)
        changed = [f"{k} was {v!r}" for k, v in done.get("config", {}).items() if now.get(k) != v]
        raise UserError(
            f"{run.folder} is finished, with other knobs ({', '.join(changed)}): pass another "
            "--name, or delete the folder"
        )
    print(f"{run.folder}: finished, {done.get('monitor')} {done.get('score')}; skipped")
    return True


def train(
    config: FoldConfig,
    output: Output,
    run: Run,
    index: Index,
    folds: Folds,
    fold: int | str,
    runtime: Runtime,
) -> None:
    """Train one fold to its finished folder."""
    import torch

    from src.data.cache import open_cache
    from src.data.canonical import ImageSource, canonical_side
    from src.data.dataset import ImageDataset
    from src.data.loader import EpochSampler, default_num_workers, make_loader
    from src.data.transforms import eval_transform, train_transform
    from src.engine.autotune import settle_runtime
    from src.engine.checkpoint import load_weights
    from src.engine.loop import fit
    from src.engine.predict import default_batch_size
    from src.losses.classification import build_loss
    from src.models.classifier import build_classifier
    from src.models.pretrained import find_weights
    from src.models.zoo import check_timm_id, find_data_config
    from src.tasks.classification import Classification
    from src.tracks.photographs import find_aliases

    timm_id = check_timm_id(config.timm_id or config.model)
    size = config.image_size or find_data_config(timm_id).image_size
    weights = find_weights(timm_id, config.pretrained)
    aliases = find_aliases(config, index)
    classes = aliases.trained
    images = index.table["image"].tolist()
    targets = aliases.targets(index.table["target"].tolist())
    held_out = None if fold == "full" else int(fold)
    rows = folds.train_rows(held_out)
    device = runtime.device.type
    workers = default_num_workers(device) if config.num_workers < 0 else config.num_workers

    def dataset(rows: Any, side: int, transform: Any) -> ImageDataset:
        pixels = open_cache(
            ImageSource(index.root, images, side),
            config.cache,
            rows=rows,
            folder=output.cache,
            num_workers=workers,
            num_processes=runtime.num_processes,
        )
        return ImageDataset(pixels, targets[rows], transform, seed=config.seed)

    train_data = dataset(
        rows,
        canonical_side(size),
        train_transform(
            size,
            scale_min=config.scale_min,
            hflip=config.hflip,
            vflip=config.vflip,
            rotate=config.rotate,
            color=config.color,
            erase=config.erase,
        ),
    )
    order = EpochSampler(
        len(rows),
        config.batch_size,
        seed=config.seed,
        shuffle=True,
        rank=runtime.rank,
        world_size=runtime.num_processes,
    )
    train_loader = make_loader(train_data, order, num_workers=workers, device_type=device)
    valid_loader = None
    if held_out is not None:
        valid_rows = folds.valid_rows(held_out)
        valid_data = dataset(valid_rows, size, eval_transform(size))
        batch = config.infer_batch_size or default_batch_size(size, runtime.device)
        valid_order = EpochSampler(len(valid_rows), batch)
        valid_loader = make_loader(valid_data, valid_order, num_workers=workers, device_type=device)

    torch.manual_seed(config.seed)
    model = build_classifier(
        timm_id,
        len(classes),
        image_size=size,
        pool=config.pool,
        gem_p=config.gem_p,
        drop_rate=config.drop_rate,
        drop_path_rate=config.drop_path_rate,
        weights=weights,
    )
    task = Classification(
        len(classes),
        build_loss(
            config.loss,
            label_smoothing=config.label_smoothing,
            focal_gamma=config.focal_gamma,
            t1=config.bi_tempered_t1,
            t2=config.bi_tempered_t2,
        ),
    )
    runtime = settle_runtime(model, task, train_loader, runtime, run, config)
    about = {"timm_id": timm_id, "image_size": size, "classes": list(classes)}
    about |= {"aliases": [list(names) for names in aliases.members() if len(names) > 1]}
    about |= {"folds_hash": folds.folds_hash, "fold": str(fold), "weights": str(weights)}
    write_config(run, config, about, runtime)
    started = time.monotonic()
    names = index.table["id"].iloc[rows].tolist()
    print(f"{run.folder}: {timm_id} at {size} px, {len(rows)} images, {len(classes)} classes")
    state = fit(
        model,
        task,
        train_loader,
        valid_loader,
        config=config,
        run=run,
        runtime=runtime,
        names=names,
        mix=make_mix(config, len(classes)),
    )
    minutes = (time.monotonic() - started) / 60
    if valid_loader is not None:
        model.load_state_dict(load_weights(run.best))
        ids = index.table["id"].iloc[valid_rows].to_numpy(dtype=str)
        write_oof(config, run, model, task, valid_loader, runtime, ids, classes, folds, fold)
    score = None if state.best is None else round(state.best, 6)
    run.previous.unlink(missing_ok=True)
    done = {"config_hash": config_hash(config), "config": learned_knobs(config)}
    write_json(run.finished, done | {"monitor": task.monitor, "score": score})
    print(f"{run.folder}: finished in {minutes:.1f} min, {task.monitor} {score}")


def make_mix(config: FoldConfig, num_classes: int) -> Mix | None:
    """Return the mixing of batches, None if there is none."""
    from src.data.mixing import mix

    if not (config.mixup_alpha or config.cutmix_alpha):
        return None

    def mix_batch(batch: dict[str, Any], step: int, epoch: int) -> dict[str, Any]:
        if epoch >= config.epochs - config.mix_off_epochs:
            return batch
        image, target = mix(
            batch["image"],
            batch["target"],
            num_classes=num_classes,
            seed=config.seed,
            step=step,
            mixup_alpha=config.mixup_alpha,
            cutmix_alpha=config.cutmix_alpha,
            prob=config.mix_prob,
        )
        return batch | {"image": image, "target": target}

    return mix_batch


def write_oof(
    config: FoldConfig,
    run: Run,
    model: Any,
    task: Any,
    loader: Any,
    runtime: Runtime,
    ids: Any,
    classes: Sequence[str],
    folds: Folds,
    fold: int | str,
) -> None:
    """Predict the held-out images exactly as test images will be, and write ``oof.npz``."""
    import numpy as np

    from src.engine.interrupt import catch_signals
    from src.engine.predict import predict_logits
    from src.engine.tta import first_views
    from src.ensemble.store import save_oof

    views = first_views(config.tta_steps)
    logits = np.empty((len(views), len(ids), len(classes)), np.float16)
    with catch_signals() as pause:
        predict_logits(
            model, loader, task, runtime, out=logits, views=views, pause=pause, label="oof"
        )
    save_oof(
        run.oof,
        logits=logits,
        ids=ids,
        targets=np.array(loader.dataset.data.targets),
        views=[view.name for view in views],
        classes=classes,
        fold=str(fold),
        config_hash=config_hash(config),
        folds_hash=folds.folds_hash,
    )


def write_config(run: Run, config: FoldConfig, about: dict[str, Any], runtime: Runtime) -> None:
    """Write ``config.yaml``: the knobs, what they came to, versions, commit and device."""
    import yaml

    from src.engine.log import versions

    content = {"knobs": dataclasses.asdict(config), "resolved": about}
    content["runtime"] = {
        "device": str(runtime.device),
        "precision": runtime.precision,
        "channels_last": runtime.channels_last,
        "processes": runtime.num_processes,
    }
    content["versions"] = versions()
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
    write_text(run.config, text)


if __name__ == "__main__":
    run_script(main)
