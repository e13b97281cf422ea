"""Every knob of every script: frozen dataclasses whose fields are the YAML keys and the flags.

Nothing is written back into a config: values derived from it are computed by whoever needs them.
``src/reader.py`` fills them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal


def knob(default: Any, help: str, least: float | None = None) -> Any:
    """Declare a config field with its default, the text of ``--help`` and its least value."""
    return field(default=default, metadata={"help": help, "least": least})


@dataclass(frozen=True, kw_only=True)
class PlaceConfig:
    """Where data are read and results written."""

    data_dir: str = knob("input", "folder of the data set, or the folder that holds just it")
    output_dir: str = knob("output", "folder everything is written to")
    allow_outside: bool = knob(False, "let paths in CSV files leave the data folder")


@dataclass(frozen=True, kw_only=True)
class EngineConfig(PlaceConfig):
    """What the loop needs, whatever is learned."""

    seed: int = knob(
        0, "seed of folds, initial weights, order, augmentation, mixing, dropout", least=0
    )
    epochs: int = knob(20, "passes over the training rows", least=1)
    batch_size: int = knob(32, "rows an optimizer step sees, over all processes", least=1)
    micro_batch_size: int = knob(0, "rows on the device at once; 0 = batch_size", least=0)
    optimizer: Literal["adamw", "sgd"] = knob("adamw", "AdamW, or SGD with Nesterov momentum")
    lr: float = knob(3e-4, "peak learning rate of the topmost backbone layer", least=0)
    head_lr_mult: float = knob(5.0, "the head learns this many times faster than the backbone")
    layer_decay: float = knob(1.0, "each layer below the top learns this fraction of the one above")
    weight_decay: float = knob(0.02, "decoupled weight decay; none on norms, biases and GeM's p")
    beta2: float = knob(0.999, "AdamW's memory of squared gradients; short runs want 0.99")
    schedule: Literal["cosine", "warm_restarts", "poly"] = knob(
        "cosine", "one-cycle cosine with warm-up, SGDR restarts, or polynomial decay"
    )
    warmup_epochs: float = knob(1.0, "epochs of linear warm-up (cosine and poly)", least=0)
    lr_min: float = knob(1e-6, "floor of the learning rate")
    restart_epochs: int = knob(10, "T_0: epochs of the first cycle of warm_restarts", least=1)
    restart_mult: int = knob(
        2, "T_mult: each cycle is this many times longer than the last", least=1
    )
    poly_power: float = knob(1.0, "exponent of the polynomial decay")
    clip_grad: float = knob(1.0, "largest norm of the gradient; 0 = no clipping")
    ema_decay: float = knob(0.998, "decay of the averaged weights after warm-up; 0 = none")
    ema_share: float = knob(0.0, "average over this last share of the steps; 0 = by ema_decay")
    patience: int = knob(
        0, "stop after so many validations without a better score; 0 = never", least=0
    )
    valid_every: int = knob(
        1, "epochs from one validation to the next; the last is always one", least=1
    )
    valid_ema_only: bool = knob(False, "validate the averaged weights only, not the raw ones too")
    checkpoint_minutes: float = knob(10.0, "minutes from one last.pt to the next", least=0)
    keep_last: bool = knob(True, "keep last.pt of a finished run (16 bytes a parameter)")
    skip_nonfinite: int = knob(
        0, "go on past at most so many steps whose loss is not finite", least=0
    )
    device: Literal["auto", "cuda", "mps", "xpu", "cpu"] = knob("auto", "where to compute")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = knob("auto", "arithmetic of the network")
    channels_last: Literal["auto", "on", "off"] = knob("auto", "memory layout of the images")
    autotune: Literal["on", "off"] = knob(
        "on", "measure layout, precision and compile before a run"
    )
    compile: Literal["auto", "on", "off"] = knob(
        "auto", "torch.compile the network; auto = tried on long runs, kept where it repays itself"
    )
    grad_checkpointing: bool = knob(False, "recompute activations: less memory, a third slower")
    num_workers: int = knob(-1, "loader processes; -1 = chosen by device and cores", least=-1)
    infer_batch_size: int = knob(0, "rows at once without gradients; 0 = by resolution", least=0)
    wandb: bool = knob(False, "log to Weights & Biases too (WANDB_MODE=offline is honoured)")
    accept_changes: bool = knob(False, "resume although knobs differ from the interrupted run")


@dataclass(frozen=True, kw_only=True)
class FoldConfig(EngineConfig):
    """``train_fold.py``: one backbone × one fold."""

    settled: ClassVar = frozenset({"folds"})  # by folds.csv, which refuses another number

    model: str = knob("", "a preset of configs/classify.yaml, or any timm id")
    fold: str = knob("0", "0 … K-1, `all`, or `full` (every row, no validation)")
    folds: int = knob(
        0, "K, settled by the first run on the data; 0 = as settled, at first 5", least=0
    )
    config: str = knob("configs/classify.yaml", "YAML with a `train:` block and `models:` rows")
    name: str = knob("", "name of the run's folder; empty = the model's name")
    timm_id: str = knob("", "timm architecture and tag; empty = --model")
    pretrained: str = knob("auto", "`auto`, `none`, or a weights file")
    image_size: int = knob(
        0, "side of the square the network sees, px; 0 = its native size", least=0
    )
    pool: Literal["gem", "avg", "native"] = knob(
        "gem", "pooling before the head; native = all the pretrained head does"
    )
    gem_p: float = knob(3.0, "where GeM's learned exponent starts, above 1")
    norms: Literal["frozen", "batch"] = knob(
        "frozen", "BatchNorm of a pretrained net: at its running statistics, or the batch's"
    )
    head_start: Literal["probe", "random"] = knob(
        "probe", "the head of a pretrained net begins as a linear probe of its features, or small"
    )
    head_lr_mult: float = knob(
        1.0, "the head learns this many times faster than the backbone; 5 to 10 for a random start"
    )
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
class BlendConfig(PlaceConfig):
    """``optimize_weights.py``: OOF predictions → weights.json."""

    models: tuple[str, ...] = knob((), "models to blend; none = all with OOF predictions")
    tta_steps: int = knob(5, "views of each model to consider (1 … 5)")
    trials: int = knob(100, "structures Optuna tries in all; 0 = only the convex blend", least=0)
    timeout: float = knob(20.0, "seconds after which Optuna starts no further trial")
    presets: str = knob("configs/classify.yaml", "YAML whose rows have each model's prior_weight")
    aliases: str = knob(
        "", "CSV of class names that mean the same; empty = aliases.csv of the data"
    )
    suggest_aliases: bool = knob(False, "list pairs of classes that the models cannot tell apart")
    seed: int = knob(0, "seed of Optuna's sampler and of the bootstrap", least=0)


@dataclass(frozen=True, kw_only=True)
class InferConfig(PlaceConfig):
    """``infer_ensemble.py``: checkpoints + weights.json + test images → submission.csv."""

    tta_steps: int = knob(5, "views an image is shown in at most (1 … 5)")
    tta_adaptive: bool = knob(False, "more than one view only where a model is unsure")
    output: str = knob("", "the submission; empty = submission.csv in --output_dir")
    models: tuple[str, ...] = knob((), "models to use; none = all that weights.json gives weight")
    prior_correction: Literal["off", "on"] = knob(
        "off", "adapt to the test set's class frequencies (some competitions forbid it)"
    )
    alias_policy: Literal["split", "first", "both_equal_renormalised"] = knob(
        "split", "where the mass of a class with several names goes"
    )
    device: Literal["auto", "cuda", "mps", "xpu", "cpu"] = knob("auto", "where to compute")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = knob("auto", "arithmetic of the network")
    num_workers: int = knob(-1, "loader processes; -1 = chosen by device and cores", least=-1)
    infer_batch_size: int = knob(0, "rows at once; 0 = by resolution", least=0)


# These do not change what is learned, so a resumed or compared run may differ in them.
NOT_LEARNED = frozenset(
    {
        *("data_dir", "output_dir", "allow_outside", "config", "fold", "name"),
        *("device", "num_workers", "cache", "infer_batch_size", "checkpoint_minutes"),
        *("skip_nonfinite", "wandb", "accept_changes", "prior_weight", "audit", "keep_last"),
    }
)


def learned_knobs(config: Any) -> dict[str, Any]:
    """Return the knobs of ``config`` that shape what is learned."""
    idle = NOT_LEARNED | (config.settled if isinstance(config, FoldConfig) else frozenset())
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in idle}


def config_hash(config: Any) -> str:
    """Return 12 hex digits that name what ``config`` teaches."""
    text = json.dumps(learned_knobs(config), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
