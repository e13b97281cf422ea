"""Every number of every script has bounds, and no absurd value passes them."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import typing
from pathlib import Path
from typing import Any

import pytest

from scripts.cluster import ClusterConfig
from src.config import BlendConfig, EngineConfig, FoldConfig, InferConfig
from src.mask_config import DistillConfig, InferSegmentationConfig, LaneConfig, MicroConfig
from src.option import GROUPS, Options, defaults, option
from src.pipelines.grid import GridConfig
from src.reader import build_parser, field_types, fill, parse, read_yaml
from src.script import UserError
from src.tool_config import CheckConfig, ExportConfig, PlanConfig, PredictConfig, ReportConfig

CONFIGS: dict[str, Any] = {
    "train_fold": FoldConfig,
    "optimize_weights": BlendConfig,
    "infer_ensemble": InferConfig,
    "train_lane": LaneConfig,
    "train_micro": MicroConfig,
    "train_distill": DistillConfig,
    "infer_segmentation": InferSegmentationConfig,
    "scripts.report": ReportConfig,
    "scripts.check_data": CheckConfig,
    "scripts.predict": PredictConfig,
    "scripts.export": ExportConfig,
    "scripts.plan": PlanConfig,
    "scripts.overnight": GridConfig,
    "scripts.cluster": ClusterConfig,
}
ABSURD = ("-1", "-0.5", "1e9", "-1e9", "inf", "-1e400", "nan", "²", "1" * 5000, "0x10", "1_0", "")
ABSURD_TEXT = ("a\0b", "../\udcff", "9" * 5000)


def number_of(kind: Any) -> type | None:
    """Return int or float for an option of numbers, one or several."""
    inner = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
    return inner if inner in (int, float) else None


@pytest.mark.parametrize("script", CONFIGS)
def test_every_number_declares_finite_bounds(script: str) -> None:
    kinds = field_types(CONFIGS[script])
    for entry in dataclasses.fields(CONFIGS[script]):
        assert entry.metadata["group"] in GROUPS and entry.metadata["help"], entry.name
        limits = entry.metadata["limits"]
        if number_of(kinds[entry.name]):
            assert ("least" in limits) != ("above" in limits), entry.name
            assert ("most" in limits) != ("below" in limits), entry.name
            assert all(map(math.isfinite, limits.values())), entry.name
        else:
            assert not limits, entry.name


def is_within(entry: dataclasses.Field[Any], value: Any) -> bool:
    """Tell whether a value that was accepted is one; written apart from the code under test."""
    values = value if isinstance(value, tuple) else (value,)
    for item in values:
        if isinstance(item, bool | str):
            continue
        bounds = entry.metadata["limits"]
        inside = bounds.get("least", bounds.get("above")) <= item
        inside &= item <= bounds.get("most", bounds.get("below"))
        inside &= item not in (bounds.get("above"), bounds.get("below"))
        if not (inside or item == bounds.get("also")):
            return False
    return True


def test_two_thousand_absurd_values_are_refused_or_in_bounds() -> None:
    tried, refused = 0, 0
    for script, config_class in CONFIGS.items():
        kinds = field_types(config_class)
        start = {"config": ""} if "config" in kinds else {}
        for entry in dataclasses.fields(config_class):
            for text in ABSURD if number_of(kinds[entry.name]) else ABSURD_TEXT:
                tried += 1
                try:
                    found = fill(config_class, {**start, entry.name: text})
                except UserError as error:
                    refused += 1
                    assert entry.name in str(error) and len(str(error)) < 400, (script, text)
                    assert "\n" not in str(error)
                    continue
                assert is_within(entry, getattr(found, entry.name)), (script, entry.name, text)
    assert tried >= 2000 and refused > 0.8 * tried, (tried, refused)


@pytest.mark.parametrize("script", CONFIGS)
@pytest.mark.parametrize(
    "flags",
    [
        ["--tta_steps", "6"], ["--num_workers", "-2"], ["--seed", "4294967296"], ["--fold", "²"],
        ["--rotate", "inf"], ["--image_size", "1000000"], ["--hflip", "1.1"], ["--beta2", "1"],
        ["--ema-decay=-1"], ["--lr_min", "1"], ["--loss", ""], ["--scale_min", "0"],
        ["--augment", "fog"],
    ],
)  # fmt: skip
def test_scripts_refuse_before_they_read(
    script: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither data nor output are there: a complaint about the flag comes first."""
    name = flags[0].partition("=")[0].lstrip("-").replace("-", "_")
    kinds = field_types(CONFIGS[script])
    if name not in kinds or (flags[0] in {"--loss", "--augment"} and script != "train_fold"):
        pytest.skip(f"{script} has no such option")
    monkeypatch.chdir(tmp_path)
    where = {"data_dir": "none", "output_dir": "nowhere"}
    place = [word for key, to in where.items() if key in kinds for word in (f"--{key}", to)]
    config = ["--config", ""] if "config" in kinds else []
    with pytest.raises(UserError, match=name):
        importlib.import_module(script).main([*place, *config, *flags])
    assert not list(tmp_path.iterdir())


def test_a_config_made_by_hand_is_checked_too() -> None:
    assert EngineConfig(epochs=1).epochs == 1
    with pytest.raises(UserError, match="--epochs 0: at least 1, at most"):
        EngineConfig(epochs=0)
    with pytest.raises(UserError, match=r"--beta2 1\.0: at least 0, below 1"):
        EngineConfig(beta2=1.0)
    with pytest.raises(UserError, match="--image_size 15: at least 16, at most 4096, or 0"):
        FoldConfig(image_size=15)
    with pytest.raises(UserError, match=r"--scale_min 2.0: above --scale_max 1\.5"):
        LaneConfig(scale_min=2.0)
    with pytest.raises(UserError, match="--seeds -1"):
        MicroConfig(seeds=(0, -1))
    assert LaneConfig(crop="").crop == "" and LaneConfig(crop="64x96").crop == "64x96"
    with pytest.raises(UserError, match="--crop 9x9: expected HxW"):
        LaneConfig(crop="9x9")


def test_another_default_keeps_everything_else() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Base(Options, group="run"):
        share: float = option(0.5, "a share", least=0, most=1)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    @defaults(share=0.25)
    class Other(Base, group="model"):
        width: int = option(3, "a width", least=1, most=9)

    assert (Base().share, Other().share) == (0.5, 0.25)
    entries = {entry.name: entry for entry in dataclasses.fields(Other)}
    assert entries["share"].metadata == dataclasses.fields(Base)[0].metadata
    assert entries["width"].metadata["group"] == "model" and field_types(Other)["share"] is float
    with pytest.raises(UserError, match="--share 2"):
        Other(share=2)


@pytest.mark.parametrize("script", CONFIGS)
def test_help_begins_with_what_is_used_most(script: str) -> None:
    config_class = CONFIGS[script]
    text = build_parser(config_class, f"{script}.py", "").format_help()
    top = text.split("most used:")[1].split("\n\n")[0]
    first = [entry for entry in dataclasses.fields(config_class) if entry.metadata["first"]]
    assert 4 <= len(first) <= 12
    assert top.lstrip().startswith("--data_dir ") or not hasattr(config_class, "data_dir")
    assert all(f"--{entry.name} " in top for entry in first) and top.count("\n  --") == len(first)
    assert all(text.count(f"  --{e.name} ") == 1 for e in dataclasses.fields(config_class))
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("name", "offering"),
    [
        ("data_dir", set(CONFIGS) - {"scripts.predict"}),
        ("output_dir", set(CONFIGS) - {"scripts.export"}),
        ("allow_outside", {"train_fold", "infer_ensemble", "train_distill", "scripts.check_data",
                           "scripts.plan", "scripts.overnight", "scripts.cluster"}),
    ],
)  # fmt: skip
def test_scripts_offer_only_the_places_that_they_use(name: str, offering: set[str]) -> None:
    assert {script for script, own in CONFIGS.items() if name in field_types(own)} == offering


HOSTILE_YAML = {
    "decimal": "train: {epochs: " + "9" * 5000 + "}",
    "hex": "train: {epochs: 0x" + "f" * 5000 + "}",
    "hex key": "0x" + "f" * 5000 + ": 1",
    "hex row": "models: {0x" + "f" * 5000 + ": {epochs: 0}}",
    "sexagesimal": "train: {epochs: " + "1" + ":59" * 3000 + "}",
    "date": "train: {epochs: 2020-99-99}",
    "day": "train: {name: 2020-01-01}",
    "set": "train: {name: !!set {a, b}}",
    "binary": "train: {name: !!binary aGVsbG8=}",
    "infinite": "train: {rotate: .inf}",
    "negative": "train: {hflip: -0.1}",
    "null byte": 'train: {name: "a\\0b"}',
    "nested": "train: {epochs: " + "[" * 300 + "]" * 300 + "}",
    "list of a list": "models: [a]",
    "number": "7",
    "row of a number": "models: {a: {x: 3}}",
}


@pytest.mark.parametrize("case", HOSTILE_YAML)
def test_hostile_yaml_is_one_line(tmp_path: Path, case: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(HOSTILE_YAML[case])
    how: dict[str, Any] = {"prog": "x", "description": "", "row_by": "model"}
    with pytest.raises(UserError) as error:
        found = parse(FoldConfig, ["--config", str(path), "--model", "a"], **how)
        assert case == "hex row" and found  # a row that nobody asked for
        raise UserError("read")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_only_short_regular_files_are_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--presets .*regular"):
        read_yaml(Path("/dev/zero"), "presets")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(UserError, match=r"--config .*regular"):
        read_yaml(fifo)
    with pytest.raises(UserError, match="regular"):
        read_yaml(tmp_path)
    long = tmp_path / "long.yaml"
    long.write_text("#" * 1_000_001)
    with pytest.raises(UserError, match="longer than 1,000,000 bytes"):
        read_yaml(long)
    with pytest.raises(UserError, match=r"--presets .*none\.yaml: no such file"):
        read_yaml(tmp_path / "none.yaml", "presets")
