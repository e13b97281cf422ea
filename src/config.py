"""Every knob of every script: frozen dataclasses whose fields are the YAML keys and the flags.

Nothing is written back into a config: values derived from it are computed by whoever needs them.
``src/reader.py`` fills them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal


def knob(default: Any, help: str) -> Any:
    """Declare a config field with its default and the text that ``--help`` shows."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class PlaceConfig:
    """Where data are read and results written."""

    data_dir: str = knob("input", "folder of the data set, or the folder that holds just it")
    output_dir: str = knob("output", "folder everything is written to")
    allow_outside: bool = knob(False, "let paths in CSV files leave the data folder")


@dataclass(frozen=True, kw_only=True)
class EngineConfig(PlaceConfig):
    """What the loop needs, whatever is learned."""

    seed: int = knob(0, "seed of folds, initial weights, order, augmentation, mixing, dropout")
    epochs: int = knob(20, "passes over the training rows")
    batch_size: int = knob(32, "rows an optimizer step sees, over all processes")
    micro_batch_size: int = knob(0, "rows on the device at once; 0 = batch_size")
    optimizer: Literal["adamw", "sgd"] = knob("adamw", "AdamW, or SGD with Nesterov momentum")
    lr: float = knob(3e-4, "peak learning rate of the topmost backbone layer")
    head_lr_mult: float = knob(5.0, "the head learns this many times faster than the backbone")
    layer_decay: float = knob(1.0, "each layer below the top learns this fraction of the one above")
    weight_decay: float = knob(0.02, "decoupled weight decay; none on norms, biases and GeM's p")
    beta2: float = knob(0.999, "AdamW's memory of squared gradients; short runs want 0.99")
    schedule: Literal["cosine", "warm_restarts", "poly"] = knob(
        "cosine", "one-cycle cosine with warm-up, SGDR restarts, or polynomial decay"
    )
    warmup_epochs: float = knob(1.0, "epochs of linear warm-up (cosine and poly)")
    lr_min: float = knob(1e-6, "floor of the learning rate")
    restart_epochs: int = knob(10, "T_0: epochs of the first cycle of warm_restarts")
    restart_mult: int = knob(2, "T_mult: each cycle is this many times longer than the last")
    poly_power: float = knob(1.0, "exponent of the polynomial decay")
    clip_grad: float = knob(1.0, "largest norm of the gradient; 0 = no clipping")
    ema_decay: float = knob(0.998, "decay of the averaged weights after warm-up; 0 = none")
    ema_share: float = knob(0.0, "average over this last share of the steps; 0 = by ema_decay")
    patience: int = knob(0, "stop after so many validations without a better score; 0 = never")
    valid_every: int = knob(1, "epochs from one validation to the next; the last is always one")
    valid_ema_only: bool = knob(False, "validate the averaged weights only, not the raw ones too")
    checkpoint_minutes: float = knob(10.0, "minutes from one last.pt to the next")
    skip_nonfinite: int = knob(0, "go on past at most so many steps whose loss is not finite")
    device: Literal["auto", "cuda", "mps", "xpu", "cpu"] = knob("auto", "where to compute")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = knob("auto", "arithmetic of the network")
    channels_last: Literal["auto", "on", "off"] = knob("auto", "memory layout of the images")
    autotune: Literal["on", "off"] = knob("on", "measure layout and precision before a new run")
    compile: bool = knob(False, "torch.compile the network (repays itself on long GPU runs)")
    grad_checkpointing: bool = knob(False, "recompute activations: less memory, a third slower")
    num_workers: int = knob(-1, "loader processes; -1 = chosen by device and cores")
    infer_batch_size: int = knob(0, "rows at once without gradients; 0 = by resolution")
    wandb: bool = knob(False, "log to Weights & Biases too (WANDB_MODE=offline is honoured)")
    accept_changes: bool = knob(False, "resume although knobs differ from the interrupted run")


@dataclass(frozen=True, kw_only=True)
class FoldConfig(EngineConfig):
    """``train_fold.py``: one backbone × one fold."""

    model: str = knob("", "a preset of configs/classify.yaml, or any timm id")
    fold: str = knob("0", "0 … K-1, `all`, or `full` (every row, no validation)")
    folds: int = knob(0, "K, settled by the first run on the data; 0 = as settled, at first 5")
    config: str = knob("configs/classify.yaml", "YAML with a `train:` block and `models:` rows")
    name: str = knob("", "name of the run's folder; empty = the model's name")
    timm_id: str = knob("", "timm architecture and tag; empty = --model")
    pretrained: str = knob("auto", "`auto`, `none`, or a weights file")
    image_size: int = knob(0, "side of the square the network sees, px; 0 = its native size")
    pool: Literal["gem", "avg", "native"] = knob(
        "gem", "pooling before the head; native = all the pretrained head does"
    )
    gem_p: float = knob(3.0, "where GeM's learned exponent starts, above 1")
    drop_rate: float = knob(0.0, "dropout before the head")
    drop_path_rate: float = knob(0.0, "stochastic depth of the backbone")
    loss: Literal["cross_entropy", "focal", "bi_tempered"] = knob("cross_entropy", "training loss")
    label_smoothing: float = knob(0.0, "mass spread over all classes")
    focal_gamma: float = knob(2.0, "focusing exponent of --loss focal")
    bi_tempered_t1: float = knob(0.8, "t1 < 1 bounds the loss of an outlier")
    bi_tempered_t2: float = knob(1.2, "t2 > 1 gives the softmax a heavier tail")
    mixup_alpha: float = knob(0.0, "Beta(α, α) of mixup; 0 = none")
    cutmix_alpha: float = knob(0.0, "Beta(α, α) of cutmix; 0 = none")
    mix_prob: float = knob(1.0, "probability that a batch is mixed")
    mix_off_epochs: int = knob(2, "no mixing in the last so many epochs")
    scale_min: float = knob(0.5, "smallest share of the area a random crop keeps")
    hflip: float = knob(0.5, "probability of a left-right flip")
    vflip: float = knob(0.0, "probability of an up-down flip")
    rotate: float = knob(10.0, "largest rotation, degrees")
    color: float = knob(0.2, "strength of brightness, contrast and saturation changes")
    erase: float = knob(0.0, "probability that a rectangle is erased")
    cache: Literal["auto", "ram", "disk", "none"] = knob("auto", "where decoded pixels are kept")
    aliases: str = knob(
        "", "CSV of class names that mean the same; empty = aliases.csv of the data"
    )
    image_column: str = knob("", "column of train.csv with the path; empty = detected")
    label_column: str = knob("", "column of train.csv with the class; empty = detected")
    group_column: str = knob("", "column of train.csv whose rows share a fold; empty = detected")
    audit: bool = knob(True, "look for duplicates and unreadable images before folds are made")
    tta_steps: int = knob(5, "views stored for the held-out rows (1 … 5)")
    prior_weight: float = knob(0.0, "weight of the model in the seed blend")


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(EngineConfig):
    """What every script that learns masks needs."""

    config: str = knob("", "YAML with a `train:` block and `models:` rows")
    name: str = knob("", "name of the run's folder; empty = data set and network")
    source: str = knob("auto", "layout of the data; auto = looked up (see src/data/sources)")
    fold: str = knob("0", "0 … K-1, or `full` (every labelled row, no validation)")
    folds: int = knob(0, "K group-aware folds; 0 = the data's own valid split, 5 if it has none")
    resolution: str = knob("native", "HxW that images are resized to, or `native`")
    crop: str = knob("", "HxW of the training crops; empty = the resolution, or largest image")
    window: str = knob("", "HxW that larger images are predicted by; empty = crop, native = whole")
    loss: str = knob("ce + dice", "weighted sum of terms, as in `bce + 0.5 dice`")
    scale_min: float = knob(0.75, "smallest factor a training image is resized by")
    scale_max: float = knob(1.5, "largest factor a training image is resized by")
    hflip: float = knob(0.5, "probability of a left-right flip")
    vflip: float = knob(0.0, "probability of an up-down flip")
    rotate: float = knob(0.0, "largest rotation, degrees")
    color: float = knob(0.2, "strength of brightness, contrast and saturation changes")
    cache: Literal["auto", "ram", "disk", "none"] = knob("auto", "where decoded pixels are kept")
    renorm_images: int = knob(0, "measure BatchNorm's statistics anew on so many images at the end")
    prior: bool = knob(True, "start the head at the classes' share of the training pixels")
    tta_steps: int = knob(5, "views scored on the held-out images (1 … 5)")


@dataclass(frozen=True, kw_only=True)
class LaneConfig(SegmentationConfig):
    """``train_lane.py``: a thin foreground class, DeepLabV3+ by default."""

    data_dir: str = knob("", "folder of the data set; empty = road scenes are generated")
    config: str = knob("configs/lane.yaml", "YAML with a `train:` block and `models:` rows")
    model: str = knob("", "a preset of configs/lane.yaml")
    arch: Literal["deeplabv3plus", "unet", "fpn", "segformer"] = knob(
        "deeplabv3plus", "decoder; DeepLabV3+ keeps its skip at stride 4"
    )
    encoder: str = knob("resnet101", "any smp encoder, or tu-NAME for any timm backbone")
    decoder_width: int = knob(0, "channels of the decoder; 0 = as published")
    pretrained: str = knob("auto", "`auto`, `none`, or the encoder's weights file")
    resolution: str = knob("384x384", "HxW that images are resized to, or `native`")
    loss: str = knob("bce + dice", "weighted sum of terms, as in `bce + dice + 0.5 boundary`")
    epochs: int = knob(100, "passes over the training rows")
    batch_size: int = knob(12, "rows an optimizer step sees")
    micro_batch_size: int = knob(4, "rows on the device at once: 4 × 3 accumulated steps = 12")
    lr: float = knob(1e-5, "peak learning rate of the backbone")
    head_lr_mult: float = knob(10.0, "the decoder learns this many times faster")
    weight_decay: float = knob(0.01, "decoupled weight decay; none on norms and biases")
    postprocess: bool = knob(False, "try morphology and components; kept if it helps on valid")
    num_scenes: int = knob(30, "road scenes to generate where no data are given")
    num_frames: int = knob(8, "frames of each generated scene")


@dataclass(frozen=True, kw_only=True)
class MicroConfig(SegmentationConfig):
    """``train_micro.py``: a net under a parameter budget; the defaults are the strict protocol."""

    data_dir: str = knob("", "folder of the five sets, or of one of your own; empty = road scenes")
    config: str = knob("configs/micro.yaml", "YAML with a `train:` block and `models:` rows")
    model: str = knob("twohead_10k", "a micro net, or a preset of configs/micro.yaml")
    net: str = knob("", "the micro net of a preset; empty = --model")
    dataset: str = knob("", "VOC, ETIS, CVPPP, CFD, CarDD or all; empty = all that are there")
    protocol: Literal["strict", "free"] = knob("strict", "strict = the public anchors' conditions")
    max_params: int = knob(10_000, "trainable parameters allowed, with a 21-class head")
    allow_over_budget: bool = knob(False, "train a net above --max_params all the same")
    drop: tuple[str, ...] = knob((), "blocks of the net to leave out")
    teacher: str = knob("", "name of finished runs on the same sets and seeds that teach the net")
    chain: tuple[str, ...] = knob((), "nets from first teacher to last student, each gated")
    allow_weak_teacher: bool = knob(False, "teach although the teacher does not beat the student")
    seeds: tuple[int, ...] = knob((), "seeds to repeat every set with; empty = --seed alone")
    ablate: bool = knob(False, "one more run for each block dropped, three seeds or more")
    report: bool = knob(False, "write costs, latency, scores, checklist and the decision")
    loss: str = knob("", "terms, as in `ce + protocol`; empty = ce / (K - 1) + protocol")
    set_losses: bool = knob(False, "add each set's own term: edges, outline, shape, label noise")
    resolution: str = knob("256x256", "HxW that images are resized to, or `native`")
    epochs: int = knob(30, "passes over the training rows")
    batch_size: int = knob(16, "rows an optimizer step sees")
    lr: float = knob(1e-2, "peak learning rate")
    lr_min: float = knob(1e-4, "learning rate of the last step")
    beta2: float = knob(0.99, "AdamW's memory of squared gradients")
    weight_decay: float = knob(0.01, "decoupled weight decay; none on norms and biases")
    warmup_epochs: float = knob(0.0, "epochs of linear warm-up")
    clip_grad: float = knob(0.0, "largest norm of the gradient; 0 = no clipping")
    ema_share: float = knob(0.1, "average over this last share of the steps; 0 = by ema_decay")
    renorm_images: int = knob(512, "images on which BatchNorm is measured anew at the end")
    valid_every: int = knob(1000, "epochs from one validation to the next; the last is always one")
    valid_ema_only: bool = knob(True, "validate the averaged weights only, not the raw ones too")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = knob("fp32", "arithmetic of the network")
    channels_last: Literal["auto", "on", "off"] = knob("on", "memory layout of the images")
    scale_min: float = knob(1.0, "smallest factor a training image is resized by")
    scale_max: float = knob(1.0, "largest factor a training image is resized by")
    hflip: float = knob(0.0, "probability of a left-right flip")
    color: float = knob(0.0, "strength of brightness, contrast and saturation changes")
    tta_steps: int = knob(1, "views scored on the held-out images (1 … 5)")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(SegmentationConfig):
    """``train_distill.py``: a student alone, a teacher, and the student taught by it."""

    data_dir: str = knob("", "folder of the data set; empty = road scenes are generated")
    config: str = knob("configs/distill.yaml", "YAML with a `train:` block and `models:` rows")
    model: str = knob("", "a preset of configs/distill.yaml")
    kind: Literal["segmentation", "classification"] = knob("segmentation", "what is learned")
    arch: Literal["segformer", "deeplabv3plus", "unet", "fpn"] = knob("segformer", "both decoders")
    student: str = knob("mit_b0", "student's encoder (timm id for classification)")
    teacher: str = knob("mit_b2", "teacher's encoder (timm id for classification)")
    student_arch: str = knob("", "decoder of the student; empty = --arch")
    teacher_arch: str = knob("", "decoder of the teacher; empty = --arch")
    student_pretrained: str = knob("auto", "`auto`, `none`, or the student encoder's weights")
    teacher_pretrained: str = knob("auto", "`auto`, `none`, or the teacher encoder's weights")
    student_width: int = knob(0, "channels of the student's decoder; 0 = as published")
    teacher_width: int = knob(0, "channels of the teacher's decoder; 0 = as published")
    image_size: int = knob(0, "side for classification, px; 0 = the student's native size")
    head_lr_mult: float = knob(10.0, "the head learns this many times faster than the encoder")
    weight_kl: float = knob(0.3, "share of the KL between soft labels; 0 = without the term")
    weight_attention: float = knob(0.0, "share of attention transfer")
    weight_similarity: float = knob(0.0, "share of similarity preservation")
    weight_channel: float = knob(0.3, "share of the channel-wise KL over places (masks only)")
    weight_feature: float = knob(0.0, "share of feature mimicking through a projector")
    temperature: float = knob(4.0, "T of the softened distributions")
    tta_steps: int = knob(1, "views scored on the held-out images (1 … 5)")
    share_every: int = knob(50, "steps from one measurement of the gradient shares to the next")
    allow_weak_teacher: bool = knob(False, "teach although the teacher does not beat the student")
    ablate: bool = knob(False, "one more run for each term alone, at its weight (0.3 if it is 0)")
    tune: int = knob(0, "trials of a search for weights and temperature on valid; 0 = none")
    tune_epochs: int = knob(0, "epochs of a trial; 0 = a quarter of --epochs")
    seeds: tuple[int, ...] = knob((), "seeds to repeat everything with; empty = --seed alone")


@dataclass(frozen=True, kw_only=True)
class InferSegmentationConfig(PlaceConfig):
    """``infer_segmentation.py``: runs of any mask track and images → masks."""

    data_dir: str = knob("", "folder of the data set; empty = the one the runs were trained on")
    source: str = knob("", "layout of the data; empty = as the runs read it")
    runs: tuple[str, ...] = knob((), "folders of finished runs; patterns are expanded")
    checkpoint: str = knob("", "weights to use instead of the run's best (one run only)")
    split: Literal["test", "valid"] = knob("test", "which images")
    tta_steps: int = knob(0, "views (1 … 5); 0 = as many as did best on valid")
    threshold: float = knob(-1.0, "probability of the foreground; -1 = the runs' own, from valid")
    resolution: str = knob("", "HxW, or `native`; empty = as the runs were trained")
    blend: Literal["oof", "uniform"] = knob("oof", "weights of the runs, from held-out pixels")
    postprocess: bool = knob(True, "apply the post-processing that a run found to help")
    output: str = knob("", "folder for the masks; empty = <output_dir>/masks/<split>")
    overlays: bool = knob(False, "write the masks drawn over the images, too")
    worst: int = knob(12, "images in the gallery of the worst (where masks exist)")
    compare: tuple[str, ...] = knob((), "two runs, or two folders of masks, to set side by side")
    device: Literal["auto", "cuda", "mps", "xpu", "cpu"] = knob("auto", "where to compute")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = knob("auto", "arithmetic of the network")
    num_workers: int = knob(-1, "loader processes; -1 = chosen by device and cores")
    infer_batch_size: int = knob(0, "rows at once; 0 = by resolution")


# These do not change what is learned, so a resumed or compared run may differ in them.
NOT_LEARNED = frozenset(
    {
        *("data_dir", "output_dir", "allow_outside", "config", "fold", "name"),
        *("device", "num_workers", "cache", "infer_batch_size", "checkpoint_minutes"),
        *("skip_nonfinite", "wandb", "accept_changes", "prior_weight", "folds", "audit"),
    }
)


def learned_knobs(config: Any) -> dict[str, Any]:
    """Return the knobs of ``config`` that shape what is learned."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_LEARNED}


def config_hash(config: Any) -> str:
    """Return 12 hex digits that name what ``config`` teaches."""
    text = json.dumps(learned_knobs(config), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
