"""Every knob of every script, and the one reader: defaults < YAML ``train:`` < YAML row < flag.

A frozen dataclass goes in (its fields are the YAML keys and the flags), a filled instance comes
out. Nothing is written back into it: values derived from a config are computed by whoever needs
them.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import hashlib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from src.runs import UserError

Config = TypeVar("Config")


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
    folds: int = knob(5, "K, fixed for the data set by the first run")
    config: str = knob("configs/classify.yaml", "YAML with a `train:` block and `models:` rows")
    name: str = knob("", "name of the run's folder; empty = the model's name")
    timm_id: str = knob("", "timm architecture and tag; empty = --model")
    pretrained: str = knob("auto", "`auto`, `none`, or a weights file")
    image_size: int = knob(0, "side of the square the network sees, px; 0 = its native size")
    pool: Literal["auto", "gem", "gem_shift", "avg", "native"] = knob(
        "auto", "pooling before the head"
    )
    drop_rate: float = knob(0.0, "dropout before the head")
    drop_path_rate: float = knob(0.0, "stochastic depth of the backbone")
    loss: Literal["ce", "focal", "bi_tempered"] = knob("ce", "training loss")
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


# These do not change what is learned, so a resumed or compared run may differ in them.
NOT_LEARNED = frozenset(
    "data_dir output_dir allow_outside config fold device num_workers checkpoint_minutes "
    "skip_nonfinite infer_batch_size wandb accept_changes cache prior_weight name".split()
)


def learned_knobs(config: Any) -> dict[str, Any]:
    """Return the knobs of ``config`` that shape what is learned."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_LEARNED}


def config_hash(config: Any) -> str:
    """Return 12 hex digits that name what ``config`` teaches."""
    text = json.dumps(learned_knobs(config), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def nearest(word: str, words: Sequence[str]) -> str:
    """Return `` (did you mean X?)`` or nothing."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


@functools.cache
def field_types(config_class: type) -> dict[str, Any]:
    """Return field name → resolved annotation."""
    return typing.get_type_hints(config_class)


def coerce(name: str, value: Any, kind: Any) -> Any:
    """Return ``value`` as annotation ``kind`` says; "1e-4" is a float where a float is due.

    Raises:
        UserError: naming ``name``, the value and what was expected.
    """
    origin = typing.get_origin(kind)
    if origin is Literal:
        # YAML 1.1 reads a bare on/off as a boolean
        if isinstance(value, bool) and {"on", "off"} <= set(typing.get_args(kind)):
            value = "on" if value else "off"
        if value not in typing.get_args(kind):
            choices = ", ".join(map(str, typing.get_args(kind)))
            raise UserError(f"{name}: {value!r} is none of {choices}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        inner = next(k for k in typing.get_args(kind) if k is not type(None))
        return coerce(name, value, inner)
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(coerce(name, item, typing.get_args(kind)[0]) for item in items)
    return coerce_plain(name, value, kind)


def coerce_plain(name: str, value: Any, kind: type) -> Any:
    """Coerce to bool, int, float or str without guessing: 1.5 is no int, "maybe" no bool."""
    expected = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
    text = str(value).strip()
    try:
        if value is None or isinstance(value, (list, dict)):
            raise ValueError
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "on": True}.get(text.lower()) or {
                "false": False, "0": False, "no": False, "off": False
            }[text.lower()]  # fmt: skip
        if kind is str:
            return str(value)
        if isinstance(value, bool):
            raise ValueError
        number = float(text)
        if kind is int and number != int(number):
            raise ValueError
        if number != number:
            raise ValueError
        return int(text) if kind is int and text.lstrip("+-").isdigit() else kind(number)
    except (ValueError, KeyError, OverflowError):
        raise UserError(f"{name}: {value!r} is not {expected}") from None


def check_keys(where: str, keys: Sequence[str], config_class: type) -> None:
    """Refuse keys that are no field of ``config_class``, naming the nearest."""
    names = list(field_types(config_class))
    for key in keys:
        if key not in names:
            raise UserError(f"{where}: unknown key {key!r}{nearest(str(key), names)}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping safely (no objects are constructed)."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"--config {path}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--config {path}: cannot be read as YAML ({reason})") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: expected a mapping with `train:` and `models:`")
    return content


def read_rows(path: Path, config_class: type, row_of: str = "models") -> tuple[dict, dict]:
    """Return the ``train:`` block and the named rows of a config file, keys checked."""
    content = read_yaml(path)
    for key in content:
        if key not in ("train", row_of):
            raise UserError(f"{path}: unknown block {key!r}{nearest(str(key), ['train', row_of])}")
    common, rows = content.get("train") or {}, content.get(row_of) or {}
    for where, block in [
        ("train", common),
        *((f"{row_of}: {name}", r) for name, r in rows.items()),
    ]:
        if not isinstance(block or {}, dict):
            raise UserError(f"{path}: {where}: expected a mapping of knobs")
        check_keys(f"{path}: {where}", list(block or {}), config_class)
    return common, {str(name): row or {} for name, row in rows.items()}


def build_parser(config_class: type, prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with one flag a field; dashes are accepted for underscores."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    for entry in dataclasses.fields(config_class):
        kind = field_types(config_class)[entry.name]
        names = dict.fromkeys([f"--{entry.name}", f"--{entry.name.replace('_', '-')}"])
        many = typing.get_origin(kind) is tuple
        nargs = "+" if many else "?" if kind is bool else None
        shown = "{" + ",".join(map(str, typing.get_args(kind))) + "}"
        metavar = shown if typing.get_origin(kind) is Literal else entry.name.upper()
        text = f"{entry.metadata.get('help', '')} [{entry.default!r}]".replace("%", "%%")
        extra = {"const": True} if kind is bool else {}
        parser.add_argument(*names, nargs=nargs, metavar=metavar, help=text, **extra)  # type: ignore[arg-type]
    return parser


def parse(
    config_class: type[Config],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    row_by: str = "",
    row_of: str = "models",
) -> Config:
    """Read flags, and the YAML file they name, into ``config_class``.

    Args:
        config_class: frozen dataclass; a ``config`` field holds the path of the YAML file.
        argv: the words after the program's name.
        prog: name shown by ``--help``.
        description: one line shown by ``--help``.
        row_by: field whose value picks the row of the YAML file (``model``).
        row_of: the YAML block that holds the rows.

    Raises:
        UserError: unknown flag, key or value, naming the nearest.
    """
    parser = build_parser(config_class, prog, description)
    parser.error = functools.partial(_refuse, parser)  # type: ignore[assignment,method-assign]
    flags, rest = parser.parse_known_args(list(argv))
    if rest:
        word = rest[0].split("=")[0]
        names = [f"--{name}" for name in field_types(config_class)]
        raise UserError(f"unknown flag {word}{nearest(word.replace('-', '_'), names)}")
    return fill(config_class, vars(flags), row_by=row_by, row_of=row_of)


def _refuse(parser: argparse.ArgumentParser, message: str) -> typing.NoReturn:
    raise UserError(f"{message}; see python {parser.prog} --help")


def fill(
    config_class: type[Config],
    flags: Mapping[str, Any],
    *,
    row_by: str = "",
    row_of: str = "models",
) -> Config:
    """Lay ``flags`` over the YAML row over the YAML block over the defaults."""
    kinds = field_types(config_class)
    values: dict[str, Any] = {}
    if "config" in kinds:
        default = next(f.default for f in dataclasses.fields(config_class) if f.name == "config")  # type: ignore[arg-type]
        path = str(flags.get("config", default))
        if path:
            common, rows = read_rows(Path(path), config_class, row_of)
            values |= common
            values |= rows.get(str(flags.get(row_by, values.get(row_by, ""))), {})
    values |= flags
    return config_class(
        **{name: coerce(name, value, kinds[name]) for name, value in values.items()}
    )
