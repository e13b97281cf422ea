"""Training of one mask run: network, loss, loaders, fit, scores and OOF."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from src.config import AugmentConfig
from src.data.dataset import ImageDataset, Loader
from src.data.masks import (
    VOID,
    MaskSplit,
    count_classes,
    hash_content,
    image_size,
    mask_dataset,
    read_labelled,
    split_rows,
)
from src.data.road_scenes import write_scenes
from src.data.sources.lanes import TWO_CLASSES
from src.data.sources.masks import MaskIndex
from src.data.sources.registry import detect_source
from src.data.transforms import Transform, build_augmentations, eval_transform, train_mask_transform
from src.engine.autotune import settle_runtime
from src.engine.checkpoint import refuse_other_run
from src.engine.cpu import tune_for_cpu
from src.engine.log import say
from src.engine.loop import fit
from src.engine.predict import default_batch_size, update_batch_norm
from src.engine.runtime import Runtime
from src.engine.weights import load_weights, run_identity, save_weights
from src.files import Json
from src.losses.segmentation import build_segmentation_loss
from src.mask_config import LaneConfig, ResizeConfig, SegmentationConfig
from src.models.pretrained import find_local, find_weights
from src.pipelines.run_folder import (
    SCENES,
    describe_training,
    finish_run,
    parse_fold,
    parse_size,
    recover_finished,
    write_config,
)
from src.pipelines.segmentation.score import HeldOut, score_held_out
from src.pipelines.training import run_loader, worst_mistakes
from src.runs import Done, Output, Run
from src.script import UserError, counted
from src.tasks.protocols import Task, inner_network, inner_task
from src.tasks.segmentation import Segmentation

SHOWN_MASKS = 200  # that a dry run looks at
PRIOR_MASKS = 64  # that the classes' share of the pixels is measured on
SCENE_SIZE = (384, 384)  # of generated road scenes, unless --resolution says another


@dataclass(frozen=True)
class MaskData:
    """What a run learns from."""

    index: MaskIndex  # labelled rows, no test row among them
    split: MaskSplit  # who is held out
    # (height, width) everything is resized to; None = native sizes, which differ
    size: tuple[int, int] | None
    crop: tuple[int, int]  # (height, width) of the training crops
    # (height, width) by which larger images are predicted; None = whole
    window: tuple[int, int] | None
    source: Json  # how the data were read, for inference

    @cached_property
    def hash(self) -> str:
        """Name who is held out, and what images and masks hold."""
        return f"{self.split.hash} {hash_content(self.index)}"


def locate_data(
    config: SegmentationConfig, *, num_scenes: int = 30, num_frames: int = 8
) -> tuple[str, Path]:
    """Return (layout, folder) of the data; road scenes are generated where none are named.

    Raises:
        UserError: no such folder.
    """
    root = Path(config.data_dir)
    if not config.data_dir and config.dry_run:
        raise UserError("--dry_run: name the data, --data_dir; without it road scenes are drawn")
    if not config.data_dir:
        size = parse_size("resolution", config.resolution) or SCENE_SIZE
        # every set has a folder of its own: a test scene of one is a training scene of another
        name = f"{SCENES}_{num_scenes}x{num_frames}_{size[1]}x{size[0]}_seed{config.fold_seed}"
        root = Output(Path(config.output_dir)).scenes(name)
        print(f"no --data_dir: {num_scenes} road scenes in {root}", flush=True)
        write_scenes(
            root, num_scenes=num_scenes, num_frames=num_frames, size=size, seed=config.fold_seed
        )
        return "lanes", root
    if not root.is_dir():
        raise UserError(f"--data_dir {root}: no such folder")
    if config.source != "auto":
        return config.source, root
    source = detect_source(root)
    if isinstance(config, LaneConfig) and source in TWO_CLASSES:
        return "lanes", root  # one class against the background, neighbouring frames in one group
    return source, root


def find_data(config: SegmentationConfig, **scenes: int) -> MaskData:
    """Locate the data, and read them."""
    source, root = locate_data(config, **scenes)
    return read_data(replace(config, source=source, data_dir=str(root)))


def read_data(config: SegmentationConfig) -> MaskData:
    """Read the labelled images and settle folds and sizes.

    Raises:
        UserError: what index, folds or sizes refuse.
    """
    if config.loss:
        build_segmentation_loss(config.loss)  # a mistake in it is met before anything is read
    build_augmentations(config.augment)
    index = read_labelled(config.source, config.data_dir, by_name=config.group_by_name)
    for note in index.notes:
        print(f"note: {note}")
    split = split_rows(index, parse_fold(config.fold), config.folds, config.fold_seed)
    size = parse_size("resolution", config.resolution)
    crop = parse_size("crop", config.crop) if config.crop else size
    if size is None:
        sizes = np.array([image_size(index.image_path(row)) for row in range(len(index))])
        size = None if (sizes != sizes[0]).any() else (int(sizes[0, 0]), int(sizes[0, 1]))
        crop = crop or size or (int(sizes[:, 0].max()), int(sizes[:, 1].max()))
    assert crop is not None
    about = {"source": config.source, "data_dir": config.data_dir, "options": {}}
    window = parse_size("window", config.window) if config.window else crop
    return MaskData(index, split, size, crop, window, about)


def show_data(data: MaskData, folder: Path) -> None:
    """Print what a run in ``folder`` would learn from, and how common each class is."""
    index = data.index
    rows = np.arange(len(index))[:: max(1, len(index) // SHOWN_MASKS)]
    pixels, images = count_classes(index, rows)
    print(f"{index.root}: {counted(len(index), 'labelled image')}, read as {data.source['source']}")
    width = max(map(len, index.classes))
    shares = 100 * pixels / max(1, pixels.sum())
    for name, share, count in zip(index.classes, shares, images, strict=True):
        masks = f"in {count} of {counted(len(rows), 'mask')}"
        print(f"  {name:<{width}}  {share:6.2f} % of the pixels, {masks}")
    print(f"{folder}: {describe_rows(data)}")
    print("dry run: nothing was written; scripts/check_data.py reads every image and mask")


def describe_rows(data: MaskData) -> str:
    """Say in a few words how many images are trained on and held out, and their size."""
    size = "native size" if data.size is None else f"{data.size[1]}x{data.size[0]}"
    rows = f"{counted(len(data.split.train), 'image')} to train, {len(data.split.valid)} held out"
    return f"{rows} ({data.split.how}), {size}"


def build_task(
    config: SegmentationConfig, data: MaskData, statistic: str = "pooled_iou",
    rarity: Sequence[float] | None = None,
) -> Segmentation:  # fmt: skip
    """Build the task of a mask run; ``rarity`` is that of the loss."""
    criterion = build_segmentation_loss(config.loss, ignore_index=VOID, rarity=rarity)
    return Segmentation(
        data.index.classes, criterion, VOID, statistic=statistic, window=data.window
    )


def train_loader(
    config: SegmentationConfig, data: MaskData, runtime: Runtime, output: Output
) -> Loader:
    """Build the loader of augmented crops."""
    own = config.shared(AugmentConfig) | config.shared(ResizeConfig)
    transform = train_mask_transform(data.crop, ignore_index=VOID, **own)
    return _loader(config, data, runtime, output, data.split.train, transform)


def valid_loader(
    config: SegmentationConfig, data: MaskData, runtime: Runtime, output: Output
) -> Loader | None:
    """Build the loader of the held-out images, None where none are held out."""
    rows = data.split.valid
    if not len(rows):
        return None
    batch = 1  # images of several sizes make no batch
    if data.size is not None:
        batch = config.infer_batch_size or default_batch_size(max(data.size), runtime.device)
    plain = eval_transform()  # nets pad for themselves
    return _loader(config, data, runtime, output, rows, plain, eval_batch_size=batch)


def _loader(
    config: SegmentationConfig, data: MaskData, runtime: Runtime, output: Output,
    rows: np.ndarray, transform: Transform, *, eval_batch_size: int = 0,
) -> Loader:  # fmt: skip
    def open_rows(num_workers: int, num_processes: int) -> ImageDataset:
        return mask_dataset(
            data.index, rows, transform, size=data.size, seed=config.seed, cache=config.cache,
            folder=output.cache, num_workers=num_workers, num_processes=num_processes,
        )  # fmt: skip

    return run_loader(config, runtime, len(rows), open_rows, eval_batch_size=eval_batch_size)


def start_at_prior(model: nn.Module, data: MaskData) -> None:
    """Let the net's first prediction be the classes' share of the training pixels."""
    rows = data.split.train[:: max(1, len(data.split.train) // PRIOR_MASKS)]
    pixels, _ = count_classes(data.index, rows)
    model.set_prior(torch.from_numpy(pixels / max(1, pixels.sum())))  # type: ignore[operator]


def train_masks(
    config: SegmentationConfig,
    run: Run,
    data: MaskData,
    model: nn.Module,
    task: Task,
    *,
    output: Output,
    network: Json,
    runtime: Runtime,
    extra: Mapping[str, str],
) -> Done:
    """Train a run to its finished folder, from the start or from where it stopped.

    ``run`` is held by the caller. ``model`` has its first weights and is trained in place, its best
    ones loaded at the end; ``task`` is a :class:`Segmentation` or holds one as ``inner``.
    ``output`` is the folder of the track, ``network`` the description from which inference builds
    ``model``, ``extra`` more to keep in ``config.yaml``. Return the content of ``finished.json``.
    """
    masks: Segmentation = inner_task(task)
    train = train_loader(config, data, runtime, output)
    valid = valid_loader(config, data, runtime, output)
    tune_for_cpu(model, runtime.device)
    identity = run_identity(config, run, data.hash)
    refuse_other_run(run, config, identity, data.hash)
    runtime = settle_runtime(model, task, train, runtime, run, config, identity)
    resolved = {"network": network, "classes": list(data.index.classes), "void": VOID}
    resolved |= {"size": data.size, "crop": data.crop, "window": data.window}
    resolved |= {"split": data.split.how, "split_hash": data.split.hash}
    resolved |= {"fold": config.fold, **data.source}
    kept = runtime.from_main(recover_finished(run) if runtime.is_main else None)
    write_config(run, config, {**resolved, **extra}, runtime, identity)
    say(runtime, f"{run.folder}: {describe_rows(data)}")
    started = time.monotonic()
    if kept is None:
        outcome = learn(config, run, data, model, task, train, valid, runtime)
    else:
        outcome = kept
        model.load_state_dict(load_weights(run.best))  # finished.json has their checksum
    minutes = (time.monotonic() - started) / 60
    done = describe_training(config, data.hash, masks.monitor)
    done |= {"history": outcome["history"], "score": outcome["score"]}
    done |= {"best_epoch": outcome["best_epoch"]}
    if valid is not None:
        held = HeldOut(data.index, data.split.valid, valid)
        done |= score_held_out(
            inner_network(model), masks, held, runtime, run,
            max_views=config.tta_steps,
            cleaning=getattr(config, "postprocess", False),
            about={"config_hash": done["config_hash"], "split_hash": data.split.hash},
        )  # fmt: skip
        looked = describe_looks(done["history"], masks.monitor)
        if looked:
            done["counted"] += f"; {looked}"
            say(runtime, f"note: {looked}")
        if config.renorm_images:  # the weights are no longer those that the loop scored
            done["score"] = done["views"][done["tta_steps"] - 1]["best"]
    shown = "none held out"
    if valid is not None:
        shown = f"{masks.monitor} {done['score']:.4f}, nested {done['nested']:.4f}"
    if runtime.is_main:
        finish_run(run, done, keep_last=config.keep_last)
        print(f"{run.folder}: finished in {minutes:.1f} min, {shown}", flush=True)
    runtime.agree(0)  # until all files are written that other processes may read next
    return done


def learn(
    config: SegmentationConfig, run: Run, data: MaskData, model: nn.Module, task: Task,
    train: Loader, valid: Loader | None, runtime: Runtime,
) -> Done:  # fmt: skip
    """Train a net and load its best weights, BatchNorm re-estimated if that is asked for."""
    state = fit(
        model, task, train, valid, config=config, run=run, runtime=runtime,
        names=data.index.table["id"].iloc[data.split.train].tolist(), split_hash=data.hash,
        draw=worst_mistakes(valid, task, data.index.classes, runtime),
    )  # fmt: skip
    runtime.accelerator.wait_for_everyone()  # until the best weights are written
    model.load_state_dict(load_weights(run.best, state.identity))
    if config.renorm_images:
        update_batch_norm(inner_network(model), train, runtime, config.renorm_images)
        if runtime.is_main:
            about = {"kind": "norms measured anew", "run": state.identity}
            save_weights(run.best, model.state_dict(), about)
    return {"history": state.history, "score": state.best, "best_epoch": state.best_epoch}


def describe_looks(history: Sequence[Mapping[str, float]], monitor: str) -> str:
    """Say how many validations of the held-out images the weights are the best of.

    ``history`` has rows of the validated epochs, of raw ("valid_") and averaged ("ema_") weights.
    The best score of ``monitor`` and the last epoch's bound what choosing was worth; empty where
    there was nothing to choose.
    """
    keys = [f"{kind}_{monitor}" for kind in ("valid", "ema")]
    rows = [[row[key] for key in keys if key in row] for row in history]
    looks = [scores for scores in rows if scores]
    count = sum(map(len, looks))
    if count < 2:
        return ""
    best, last = max(map(max, looks)), max(looks[-1])
    return (
        f"the weights are the best of {count} validations of the same images ({best:.4f}, "
        f"{last:.4f} in the last epoch)"
    )


WEIGHTS = Path("input") / "weights"


def segmenter_spec(arch: str, encoder: str, num_outputs: int, width: int = 0) -> Json:
    """Describe an smp net.

    Raises:
        UserError: no such encoder.
    """
    from src.models.segmenter import check_encoder

    check_encoder(encoder)
    net = {"kind": "segmenter", "arch": arch, "encoder": encoder}
    return {**net, "num_outputs": num_outputs, "decoder_width": width}


def build_network(spec: Json, weights: Path | str | None = None) -> nn.Module:
    """Build the net that ``spec`` describes.

    ``spec`` comes from :func:`segmenter_spec`, or is of ``src/models/micro``: ``kind`` micro,
    ``name``, ``num_outputs``, ``dataset`` and ``drop``. ``weights`` is a file of an encoder's
    pretrained weights.

    Raises:
        UserError: what the builders refuse.
    """
    if spec["kind"] == "micro":
        from src.models.micro.registry import build_micro

        drop = tuple(spec["drop"])
        return build_micro(
            spec["name"], spec["num_outputs"], dataset=spec["dataset"] or None, drop=drop
        )
    from src.models.segmenter import build_segmenter

    width = spec["decoder_width"] or None
    return build_segmenter(
        spec["arch"], spec["encoder"], spec["num_outputs"], weights=weights, decoder_width=width
    )


def find_encoder_weights(encoder: str, mode: str) -> Path | None:
    """Find the pretrained weights of an smp encoder.

    ``tu-NAME`` takes timm's weights; other names are looked for in ``input/weights``, then under
    timm's model of the same name and layout. ``mode`` is auto, none, or a file.

    Raises:
        UserError: there are none; the line says which file to put where.
    """
    if mode != "auto":
        return find_weights(encoder, mode)
    path = find_local(encoder.removeprefix("tu-"), WEIGHTS)
    if path is not None:
        return path
    import timm

    if encoder.startswith("tu-") or timm.is_model(encoder):
        return find_weights(encoder.removeprefix("tu-"))
    raise UserError(
        f"--pretrained auto: no weights of encoder {encoder}; put them at "
        f"{WEIGHTS / encoder}.safetensors (or .pth), or say --pretrained none"
    )
