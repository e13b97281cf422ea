"""Every option of every script: frozen dataclasses whose fields are the YAML keys and the flags.

Nothing is written back into a config: values derived from it are computed by whoever needs them.
``src/option.py`` declares, ``src/reader.py`` fills. What several scripts share is declared once, in
a mix-in; a script with another default names it in ``@defaults``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import ClassVar, Literal

from src.files import Json
from src.option import Options, defaults, option
from src.script import UserError
from src.views import VIEWS

MAX_SEED = 2**31 - 1
MAX_EPOCHS = 100_000
MAX_MEMBERS = 16  # of a plan
SIZE = r"(1[6-9]|[2-9]\d|\d{3}|[1-8]\d{3})"  # 16 to 8999 pixels
SIZES = rf"native|{SIZE}([xX×]{SIZE})?"
METRICS = r"log_loss|accuracy|balanced_accuracy|macro_f1|micro_f1|qwk|auc|map@[1-9]\d?"
OF_LABELS = "mean_auc|f1_samples|map|rmse|mae"  # find_metric() says why the last two are not there


@dataclass(frozen=True, kw_only=True)
class PlaceConfig(Options, group="data and output"):
    """Where data are read and results written."""

    data_dir: str = option(
        "input", "folder of the data set, or the folder that holds just it", first=True
    )
    output_dir: str = option("output", "folder everything is written to", first=True)


@dataclass(frozen=True, kw_only=True)
class OutsideConfig(Options, group="data and output"):
    """Where images of a classification may lie."""

    allow_outside: bool = option(False, "let paths in CSV files leave the data folder")


@dataclass(frozen=True, kw_only=True)
class ResumeConfig(Options, group="data and output"):
    """What an earlier job left."""

    resume_from: str = option("", "earlier output folder; its runs are copied here on first use")


@dataclass(frozen=True, kw_only=True)
class DeviceConfig(Options, group="hardware"):
    """Where and how a network is computed."""

    device: Literal["auto", "cuda", "mps", "xpu", "cpu"] = option("auto", "where to compute")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", "arithmetic of the network")


@dataclass(frozen=True, kw_only=True)
class HardwareConfig(DeviceConfig, group="hardware"):
    """How images are loaded for it, too."""

    num_workers: int = option(
        -1, "loader processes; -1 = chosen by device and cores", least=-1, most=1024
    )
    infer_batch_size: int = option(
        0, "rows at once without gradients; 0 = by resolution", least=0, most=65_536
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Options, group="optimizer"):
    """How a gradient becomes a step."""

    optimizer: Literal["adamw", "sgd"] = option("adamw", "AdamW, or SGD with Nesterov momentum")
    lr: float = option(
        3e-4, "peak learning rate of the topmost backbone layer", above=0, most=10, first=True
    )
    head_lr_mult: float = option(
        5.0, "the head or decoder learns this many times faster than the backbone",
        above=0, most=1000,
    )  # fmt: skip
    layer_decay: float = option(
        1.0, "each layer below the top learns this fraction of the one above", above=0, most=1
    )
    weight_decay: float = option(
        0.02, "decoupled weight decay; none on norms, biases and GeM's p", least=0, most=1
    )
    beta2: float = option(
        0.999, "AdamW's memory of squared gradients; short runs want 0.99", least=0, below=1
    )
    clip_grad: float = option(
        1.0, "largest norm of the gradient; 0 = no clipping", least=0, most=1_000_000
    )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Options, group="schedule"):
    """How long is trained, at which rate, and which weights are kept."""

    epochs: int = option(20, "passes over the training rows", least=1, most=MAX_EPOCHS, first=True)
    batch_size: int = option(
        32, "rows an optimizer step sees, over all processes", least=1, most=65_536, first=True
    )
    micro_batch_size: int = option(
        0, "rows on the device at once, accumulated to a step; 0 = batch_size", least=0, most=65_536
    )
    grow_micro_batch: bool = option(
        True, "start at the whole batch on a card with 40 GB free, whatever micro_batch_size is"
    )
    schedule: Literal["cosine", "constant", "warm_restarts", "poly"] = option(
        "cosine",
        "one-cycle cosine with warm-up, a constant rate, SGDR restarts, or polynomial decay",
    )
    warmup_epochs: float = option(
        1.0, "epochs of linear warm-up (all but warm_restarts)", least=0, most=MAX_EPOCHS
    )
    lr_min: float = option(1e-6, "floor of the learning rate", least=0, most=10)
    restart_epochs: int = option(
        10, "T_0: epochs of the first cycle of warm_restarts", least=1, most=MAX_EPOCHS
    )
    restart_mult: int = option(
        2, "T_mult: each cycle is this many times longer than the last", least=1, most=100
    )
    poly_power: float = option(1.0, "exponent of the polynomial decay", above=0, most=10)
    ema_decay: float = option(
        0.998, "decay of the averaged weights after warm-up; 0 = none", least=0, below=1
    )
    ema_share: float = option(
        0.0, "average over this last share of the steps; 0 = by ema_decay", least=0, most=1
    )
    patience: int = option(
        0, "stop after so many validations without a better score; 0 = never",
        least=0, most=MAX_EPOCHS,
    )  # fmt: skip
    valid_every: int = option(
        1, "epochs from one validation to the next; the last is always one",
        least=1, most=MAX_EPOCHS,
    )  # fmt: skip
    valid_ema_only: bool = option(False, "validate the averaged weights only, not the raw ones too")


@dataclass(frozen=True, kw_only=True)
class EngineConfig(PlaceConfig, ScheduleConfig, OptimizerConfig, HardwareConfig, group="run"):
    """What the loop needs, whatever is learned."""

    seed: int = option(
        0, "seed of initial weights, order, augmentation, mixing, dropout; of photographs' folds",
        least=0, most=MAX_SEED, group="data and output",
    )  # fmt: skip
    channels_last: Literal["auto", "on", "off"] = option(
        "auto", "memory layout of the images; off on MPS", group="hardware"
    )
    autotune: Literal["on", "off"] = option(
        "on", "measure layout and precision before a run, not on CUDA", group="hardware"
    )
    compile: Literal["auto", "on", "off"] = option(
        "auto", "torch.compile the network; auto = off: it gained little where it was measured",
        group="hardware",
    )  # fmt: skip
    grad_checkpointing: bool = option(
        False, "recompute activations: less memory, a third slower", group="hardware"
    )
    checkpoint_minutes: float = option(
        10.0, "minutes from one last.pt to the next", least=0, most=1_000_000_000
    )
    keep_last: bool = option(True, "keep last.pt of a finished run (16 bytes a parameter)")
    skip_nonfinite: int = option(
        0, "go on past at most so many steps whose loss is not finite", least=0, most=1_000_000
    )
    wandb: bool = option(False, "log to Weights & Biases too (WANDB_MODE=offline is honoured)")
    mlflow: bool = option(False, "log to MLflow too (MLFLOW_TRACKING_URI, else a file)")
    accept_changes: bool = option(False, "resume although options differ from the interrupted run")

    def __post_init__(self) -> None:
        """Check that the rates are in order, besides each option's own bounds."""
        super().__post_init__()
        if self.lr and self.lr_min > self.lr:  # 0 = the data set's own
            raise UserError(f"--lr_min {self.lr_min}: above --lr {self.lr}")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Options, group="augmentation"):
    """How training images are varied, whatever is learned."""

    hflip: float = option(0.5, "probability of a left-right flip", least=0, most=1)
    vflip: float = option(0.0, "probability of an up-down flip", least=0, most=1)
    rotate: float = option(0.0, "largest rotation, degrees", least=0, most=180)
    color: float = option(
        0.2, "strength of brightness, contrast and saturation changes", least=0, most=1
    )
    augment: str = option(
        "", "more, each with its probability, as in `0.2 blur(limit=5) + 0.1 gray`; blur, noise, "
        "jpeg, gray, sharpen, clahe",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CacheConfig(Options, group="hardware"):
    """Where decoded images are kept."""

    cache: Literal["auto", "ram", "disk", "none"] = option("auto", "where decoded pixels are kept")


@dataclass(frozen=True, kw_only=True)
class AliasConfig(Options, group="data and output"):
    """Which class names mean the same."""

    aliases: str = option(
        "", "CSV of class names that mean the same; empty = aliases.csv of the data"
    )


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig(Options, group="data and output"):
    """Columns of ``train.csv``."""

    image_column: str = option("", "column of train.csv with the path; empty = detected")
    label_column: str = option("", "column of train.csv with the class; empty = detected")
    group_column: str = option("", "column of train.csv whose rows share a fold; empty = detected")


@dataclass(frozen=True, kw_only=True)
class RowsConfig(ColumnsConfig, group="data and output"):
    """Rows that are learned."""

    extra_train: str = option(
        "", "folder of more images of the same classes, trained on and never held out; empty = none"
    )


@dataclass(frozen=True, kw_only=True)
class ContestConfig(Options, group="validation and inference"):
    """What the contest counts."""

    metric: str = option(
        "log_loss",
        "what the contest counts, for early stopping, the weights that are kept and the blend: "
        "log_loss, accuracy, balanced_accuracy, macro_f1, micro_f1, qwk (ordered classes), auc, "
        "map@K (as in map@3); of several labels log_loss, mean_auc, f1_samples, map; runs = as "
        "trained, in optimize_weights.py", form=rf"{METRICS}|{OF_LABELS}|runs", first=True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MetricConfig(ContestConfig, group="validation and inference"):
    """What the contest counts, and the order of grades."""

    ordinal: tuple[str, ...] = option(
        (), "classes from the lowest grade to the highest, for --metric qwk; none = by number"
    )


@dataclass(frozen=True, kw_only=True)
class ViewsConfig(Options, group="validation and inference"):
    """Test-time augmentation."""

    tta_steps: int = option(
        len(VIEWS), "views of an image that are predicted", least=1, most=len(VIEWS)
    )


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(Options, group="model"):
    """The network of a classification, and what it starts from."""

    model: str = option("", "a preset of configs/classify.yaml, or any timm id", first=True)
    timm_id: str = option("", "timm architecture and tag; empty = --model")
    pretrained: str = option("auto", "`auto`, `none`, or a weights file", first=True)
    image_size: int = option(
        0, "side of the square the network sees, px; 0 = its native size",
        least=16, most=4096, also=0, first=True,
    )  # fmt: skip
    pool: Literal["gem", "avg", "native", "stages"] = option(
        "gem",
        "pooling before the head; native = all the pretrained head does; stages = GeM, and beside "
        "it mean and GeM of three earlier maps (with --head_start probe)",
    )
    gem_p: float = option(
        0.0, "where GeM's learned exponent starts, above 1; 0 = 3 after ReLU, 1.05 on signed maps",
        least=0, most=100,
    )  # fmt: skip
    norms: Literal["frozen", "batch"] = option(
        "batch", "statistics of a pretrained net's BatchNorm: of the batch, or kept as they are"
    )
    head_start: Literal["random", "probe"] = option(
        "random",
        "head before the first step: small random weights, or (pretrained nets) a linear probe of "
        "the features, with WiSE-FT towards it after the last; it wants --head_lr_mult 1",
    )
    drop_rate: float = option(0.0, "dropout before the head", least=0, below=1)
    drop_path_rate: float = option(0.0, "stochastic depth of the backbone", least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class ClassLossConfig(Options, group="loss"):
    """The training loss of a classification."""

    loss: str = option(
        "cross_entropy",
        "training loss: cross_entropy, focal(gamma=2), bi_tempered(t1=0.8, t2=1.2), or a sum as "
        "in `cross_entropy + 0.5 focal`; of several labels an image bce, focal, asymmetric",
    )
    label_smoothing: float = option(0.0, "mass spread over all classes", least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class MixConfig(Options, group="augmentation"):
    """Crops, erasing and mixing of photographs."""

    scale_min: float = option(0.5, "smallest share of the area a crop keeps", above=0, most=1)
    erase: float = option(0.0, "probability that a rectangle is erased", least=0, most=1)
    mixup_alpha: float = option(0.0, "Beta(α, α) of mixup; 0 = none", least=0, most=100)
    cutmix_alpha: float = option(0.0, "Beta(α, α) of cutmix; 0 = none", least=0, most=100)
    mix_prob: float = option(1.0, "probability that a batch is mixed", least=0, most=1)
    mix_off_epochs: int = option(2, "last epochs without mixing", least=0, most=MAX_EPOCHS)


@dataclass(frozen=True, kw_only=True)
@defaults(rotate=10.0)
class FoldConfig(
    EngineConfig, ClassifierConfig, ClassLossConfig, AugmentConfig, MixConfig, CacheConfig,
    AliasConfig, MetricConfig, ViewsConfig, ResumeConfig, RowsConfig, OutsideConfig,
    group="data and output",
):  # fmt: skip
    """``train_fold.py``: one backbone × one fold."""

    settled: ClassVar[frozenset[str]] = frozenset({"folds"})  # by folds.csv: no other is taken

    epochs: int = option(
        20, "passes over the training rows; 0 = the linear probe alone (--head_start probe)",
        least=0, most=MAX_EPOCHS, group="schedule", first=True,
    )  # fmt: skip
    tta_scale: float = option(
        1.0, "upright and flipped views at so many times the size, besides; 1 = none",
        least=1, most=2, group="validation and inference",
    )  # fmt: skip
    fold: str = option(
        "0", "0 … K-1, `all`, or `full` (every row, no validation)",
        form=r"[0-9]{1,6}|all|full", first=True,
    )  # fmt: skip
    folds: int = option(
        0, "K, settled by the first run on the data; 0 = as settled, at first 5",
        least=2, most=1000, also=0,
    )  # fmt: skip
    config: str = option(
        "configs/classify.yaml", "YAML with a `train:` block and `models:` rows", first=True
    )
    name: str = option("", "name of the run's folder; empty = the model's name")
    audit: bool = option(True, "look for duplicates and unreadable images before folds are made")
    dry_run: bool = option(
        False, "show index, classes, folds, columns and sample, and write and train nothing",
        group="run", first=True,
    )  # fmt: skip
    prior_weight: float = option(
        0.0, "share in the blend called prior weights, a yardstick", least=0, most=10**6,
        group="model",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Check that there is something to learn, besides each option's own bounds."""
        super().__post_init__()
        if self.metric == "runs":
            raise UserError("--metric runs: is for optimize_weights.py; name a metric")
        if self.epochs == 0 and (self.head_start != "probe" or self.pretrained == "none"):
            raise UserError(
                "--epochs 0: only the linear probe of a pretrained net learns without any; pass "
                "--head_start probe, or --epochs"
            )


@dataclass(frozen=True, kw_only=True)
class StudyConfig(Options, group="run"):
    """Where an Optuna study lies that several machines share."""

    storage: str = option("", "database URL or file of a study that machines share; empty = alone")


@dataclass(frozen=True, kw_only=True)
@defaults(metric="runs")
class BlendConfig(
    PlaceConfig, AliasConfig, MetricConfig, ViewsConfig, StudyConfig, group="ensemble"
):
    """``optimize_weights.py``: OOF predictions → weights.json."""

    models: tuple[str, ...] = option(
        (), "models to blend; none = all with OOF predictions", first=True
    )
    trials: int = option(
        100, "structures Optuna tries, fewer where the data are large; 0 = only the convex blend",
        least=0, most=100_000, first=True,
    )  # fmt: skip
    presets: str = option(
        "configs/classify.yaml", "YAML whose rows have each model's prior_weight; empty = none"
    )
    suggest_aliases: bool = option(False, "list pairs of classes that the models cannot tell apart")
    seed: int = option(0, "seed of Optuna's sampler and of the bootstrap", least=0, most=MAX_SEED)


@dataclass(frozen=True, kw_only=True)
class InferConfig(PlaceConfig, OutsideConfig, ViewsConfig, HardwareConfig, group="ensemble"):
    """``infer_ensemble.py``: checkpoints + weights.json + test images → submission.csv."""

    tta_adaptive: bool = option(
        False, "more than one view only where a model is unsure", group="validation and inference"
    )
    output: str = option(
        "", "the submission; empty = submission.csv in --output_dir",
        group="data and output", first=True,
    )  # fmt: skip
    models: tuple[str, ...] = option(
        (), "models to use; none = all that weights.json gives weight", first=True
    )
    allow_missing_folds: bool = option(False, "predict without folds of weights.json that are lost")
    prior_correction: Literal["off", "on"] = option(
        "off", "adapt to the test set's class frequencies (some competitions forbid it)"
    )
    alias_policy: Literal["split", "first", "both_equal_renormalised"] = option(
        "split", "where the mass of a class with several names goes"
    )


# These do not change what is learned, so a resumed or compared run may differ in them.
NOT_LEARNED = frozenset(
    {
        *("data_dir", "extra_train", "output_dir", "allow_outside", "config", "fold", "name"),
        *("device", "num_workers", "cache", "infer_batch_size", "checkpoint_minutes"),
        *("skip_nonfinite", "dry_run", "accept_changes", "prior_weight", "audit"),
        *("keep_last", "resume_from", "storage", "grow_micro_batch", "wandb", "mlflow"),
    }
)


def learned_options(config: Options) -> Json:
    """Return the options of ``config`` that shape what is learned."""
    idle = NOT_LEARNED | (config.settled if isinstance(config, FoldConfig) else frozenset())
    if isinstance(config, MetricConfig) and config.metric == MetricConfig.metric:
        idle |= {"metric", "ordinal"}  # runs from before there was a choice keep their hash
    if getattr(config, "group_by_name", False):
        idle |= {"group_by_name"}  # as above; who was held out is in the hash of the split
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in idle}


def config_hash(config: Options) -> str:
    """Return 12 hex digits: a hash of the options that shape what is learned."""
    text = json.dumps(learned_options(config), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
