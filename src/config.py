"""Every option of every script: frozen dataclasses whose fields are the YAML keys and the flags.

Nothing is written back into a config: values derived from it are computed by whoever needs them.
``src/reader.py`` fills them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal


def option(default: Any, help: str, least: float | None = None) -> Any:
    """Declare a config field with its default, the text of ``--help`` and its least value."""
    return field(default=default, metadata={"help": help, "least": least})


@dataclass(frozen=True, kw_only=True)
class PlaceConfig:
    """Where data are read and results written."""

    data_dir: str = option("input", "folder of the data set, or the folder that holds just it")
    output_dir: str = option("output", "folder everything is written to")
    allow_outside: bool = option(False, "let paths in CSV files leave the data folder")


@dataclass(frozen=True, kw_only=True)
class EngineConfig(PlaceConfig):
    """What the loop needs, whatever is learned."""

    seed: int = option(
        0, "seed of folds, initial weights, order, augmentation, mixing, dropout", least=0
    )
    epochs: int = option(20, "passes over the training rows", least=1)
    batch_size: int = option(32, "rows an optimizer step sees, over all processes", least=1)
    micro_batch_size: int = option(0, "rows on the device at once; 0 = batch_size", least=0)
    optimizer: Literal["adamw", "sgd"] = option("adamw", "AdamW, or SGD with Nesterov momentum")
    lr: float = option(3e-4, "peak learning rate of the topmost backbone layer", least=0)
    head_lr_mult: float = option(5.0, "the head learns this many times faster than the backbone")
    layer_decay: float = option(
        1.0, "each layer below the top learns this fraction of the one above"
    )
    weight_decay: float = option(0.02, "decoupled weight decay; none on norms, biases and GeM's p")
    beta2: float = option(0.999, "AdamW's memory of squared gradients; short runs want 0.99")
    schedule: Literal["cosine", "warm_restarts", "poly"] = option(
        "cosine", "one-cycle cosine with warm-up, SGDR restarts, or polynomial decay"
    )
    warmup_epochs: float = option(1.0, "epochs of linear warm-up (cosine and poly)", least=0)
    lr_min: float = option(1e-6, "floor of the learning rate")
    restart_epochs: int = option(10, "T_0: epochs of the first cycle of warm_restarts", least=1)
    restart_mult: int = option(
        2, "T_mult: each cycle is this many times longer than the last", least=1
    )
    poly_power: float = option(1.0, "exponent of the polynomial decay")
    clip_grad: float = option(1.0, "largest norm of the gradient; 0 = no clipping")
    ema_decay: float = option(0.998, "decay of the averaged weights after warm-up; 0 = none")
    ema_share: float = option(0.0, "average over this last share of the steps; 0 = by ema_decay")
    patience: int = option(
        0, "stop after so many validations without a better score; 0 = never", least=0
    )
    valid_every: int = option(
        1, "epochs from one validation to the next; the last is always one", least=1
    )
    valid_ema_only: bool = option(False, "validate the averaged weights only, not the raw ones too")
    checkpoint_minutes: float = option(10.0, "minutes from one last.pt to the next", least=0)
    keep_last: bool = option(True, "keep last.pt of a finished run (16 bytes a parameter)")
    skip_nonfinite: int = option(
        0, "go on past at most so many steps whose loss is not finite", least=0
    )
    device: Literal["auto", "cuda", "mps", "xpu", "cpu"] = option("auto", "where to compute")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", "arithmetic of the network")
    channels_last: Literal["auto", "on", "off"] = option("auto", "memory layout of the images")
    autotune: Literal["on", "off"] = option(
        "on", "measure layout, precision and compile before a run"
    )
    compile: Literal["auto", "on", "off"] = option(
        "auto", "torch.compile the network; auto = tried on long runs, kept where it repays itself"
    )
    grad_checkpointing: bool = option(False, "recompute activations: less memory, a third slower")
    num_workers: int = option(-1, "loader processes; -1 = chosen by device and cores", least=-1)
    infer_batch_size: int = option(0, "rows at once without gradients; 0 = by resolution", least=0)
    wandb: bool = option(False, "log to Weights & Biases too (WANDB_MODE=offline is honoured)")
    accept_changes: bool = option(False, "resume although options differ from the interrupted run")


@dataclass(frozen=True, kw_only=True)
class FoldConfig(EngineConfig):
    """``train_fold.py``: one backbone × one fold."""

    # folds.csv settles them, and refuses another number
    settled: ClassVar[frozenset[str]] = frozenset({"folds"})

    model: str = option("", "a preset of configs/classify.yaml, or any timm id")
    fold: str = option("0", "0 … K-1, `all`, or `full` (every row, no validation)")
    folds: int = option(
        0, "K, settled by the first run on the data; 0 = as settled, at first 5", least=0
    )
    config: str = option("configs/classify.yaml", "YAML with a `train:` block and `models:` rows")
    name: str = option("", "name of the run's folder; empty = the model's name")
    timm_id: str = option("", "timm architecture and tag; empty = --model")
    pretrained: str = option("auto", "`auto`, `none`, or a weights file")
    image_size: int = option(
        0, "side of the square the network sees, px; 0 = its native size", least=0
    )
    pool: Literal["gem", "avg", "native"] = option(
        "gem", "pooling before the head; native = all the pretrained head does"
    )
    gem_p: float = option(3.0, "where GeM's learned exponent starts, above 1")
    norms: Literal["frozen", "batch"] = option(
        "batch", "statistics of a pretrained net's BatchNorm: of the batch, or kept as they are"
    )
    head_start: Literal["random", "probe"] = option(
        "random",
        "head before the first step: small random weights, or (pretrained nets) a linear probe of "
        "the features, with WiSE-FT towards it after the last",
    )
    head_lr_mult: float = option(
        5.0, "the head learns this many times faster than the backbone; 1 for --head_start probe"
    )
    drop_rate: float = option(0.0, "dropout before the head")
    drop_path_rate: float = option(0.0, "stochastic depth of the backbone")
    loss: Literal["cross_entropy", "focal", "bi_tempered"] = option(
        "cross_entropy", "training loss"
    )
    label_smoothing: float = option(0.0, "mass spread over all classes")
    focal_gamma: float = option(2.0, "focusing exponent of --loss focal")
    bi_tempered_t1: float = option(0.8, "t1 < 1 bounds the loss of an outlier")
    bi_tempered_t2: float = option(1.2, "t2 > 1 gives the softmax a heavier tail")
    mixup_alpha: float = option(0.0, "Beta(α, α) of mixup; 0 = none")
    cutmix_alpha: float = option(0.0, "Beta(α, α) of cutmix; 0 = none")
    mix_prob: float = option(1.0, "probability that a batch is mixed")
    mix_off_epochs: int = option(2, "no mixing in the last so many epochs")
    scale_min: float = option(0.5, "smallest share of the area a random crop keeps")
    hflip: float = option(0.5, "probability of a left-right flip")
    vflip: float = option(0.0, "probability of an up-down flip")
    rotate: float = option(10.0, "largest rotation, degrees")
    color: float = option(0.2, "strength of brightness, contrast and saturation changes")
    erase: float = option(0.0, "probability that a rectangle is erased")
    cache: Literal["auto", "ram", "disk", "none"] = option("auto", "where decoded pixels are kept")
    aliases: str = option(
        "", "CSV of class names that mean the same; empty = aliases.csv of the data"
    )
    image_column: str = option("", "column of train.csv with the path; empty = detected")
    label_column: str = option("", "column of train.csv with the class; empty = detected")
    group_column: str = option("", "column of train.csv whose rows share a fold; empty = detected")
    audit: bool = option(True, "look for duplicates and unreadable images before folds are made")
    tta_steps: int = option(5, "views stored for the held-out rows (1 … 5)")
    prior_weight: float = option(0.0, "weight of the model in the seed blend")


@dataclass(frozen=True, kw_only=True)
class BlendConfig(PlaceConfig):
    """``optimize_weights.py``: OOF predictions → weights.json."""

    models: tuple[str, ...] = option((), "models to blend; none = all with OOF predictions")
    tta_steps: int = option(5, "views of each model to consider (1 … 5)")
    trials: int = option(100, "structures Optuna tries in all; 0 = only the convex blend", least=0)
    timeout: float = option(20.0, "seconds after which Optuna starts no further trial")
    presets: str = option("configs/classify.yaml", "YAML whose rows have each model's prior_weight")
    aliases: str = option(
        "", "CSV of class names that mean the same; empty = aliases.csv of the data"
    )
    suggest_aliases: bool = option(False, "list pairs of classes that the models cannot tell apart")
    seed: int = option(0, "seed of Optuna's sampler and of the bootstrap", least=0)


@dataclass(frozen=True, kw_only=True)
class InferConfig(PlaceConfig):
    """``infer_ensemble.py``: checkpoints + weights.json + test images → submission.csv."""

    tta_steps: int = option(5, "views an image is shown in at most (1 … 5)")
    tta_adaptive: bool = option(False, "more than one view only where a model is unsure")
    output: str = option("", "the submission; empty = submission.csv in --output_dir")
    models: tuple[str, ...] = option((), "models to use; none = all that weights.json gives weight")
    prior_correction: Literal["off", "on"] = option(
        "off", "adapt to the test set's class frequencies (some competitions forbid it)"
    )
    alias_policy: Literal["split", "first", "both_equal_renormalised"] = option(
        "split", "where the mass of a class with several names goes"
    )
    device: Literal["auto", "cuda", "mps", "xpu", "cpu"] = option("auto", "where to compute")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", "arithmetic of the network")
    num_workers: int = option(-1, "loader processes; -1 = chosen by device and cores", least=-1)
    infer_batch_size: int = option(0, "rows at once; 0 = by resolution", least=0)


# These do not change what is learned, so a resumed or compared run may differ in them.
NOT_LEARNED = frozenset(
    {
        *("data_dir", "output_dir", "allow_outside", "config", "fold", "name"),
        *("device", "num_workers", "cache", "infer_batch_size", "checkpoint_minutes"),
        *("skip_nonfinite", "wandb", "accept_changes", "prior_weight", "audit", "keep_last"),
    }
)


def learned_options(config: Any) -> dict[str, Any]:
    """Return the options of ``config`` that shape what is learned."""
    idle = NOT_LEARNED | (config.settled if isinstance(config, FoldConfig) else frozenset())
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in idle}


def config_hash(config: Any) -> str:
    """Return 12 hex digits that name what ``config`` teaches."""
    text = json.dumps(learned_options(config), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
