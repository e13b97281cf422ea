"""train_micro.py end to end on tiny images: budget, protocol, seeds, ablation, report, chain."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import infer_segmentation
import train_micro
from src.engine.weights import load_weights
from src.mask_config import MicroConfig
from src.models.micro.registry import MICRO_NETS, build_micro
from src.pipelines.micro import (
    STRICT,
    MicroSet,
    build_task,
    check_protocol,
    find_sets,
    read_set,
    run_config,
)
from src.pipelines.micro_report import decide
from src.reader import fill, read_rows
from src.script import UserError
from tests.mask_runs import FREE, draw


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two of the five sets; test masks withheld."""
    for name in ("CFD", "CVPPP"):
        draw(tmp_path / "micro" / name, "train", "abcdefg")
        draw(tmp_path / "micro" / name, "val", "hij")
        draw(tmp_path / "micro" / name, "test", "kl", masks=False)
    return tmp_path / "micro"


def micro(out: Path, root: Path, *argv: str) -> int:
    return train_micro.main([*FREE, "--data_dir", str(root), "--output_dir", str(out), *argv])


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_over_budget_is_refused_before_anything_is_trained(tmp_path: Path, root: Path) -> None:
    with pytest.raises(UserError, match="over --max_params 9,000"):
        micro(tmp_path / "out", root, "--max_params", "9000")
    assert not list((tmp_path / "out").rglob("*"))
    with pytest.raises(UserError, match=r"mininet_v3 has .* --allow_over_budget"):
        micro(tmp_path / "out", root, "--model", "mininet_v3")


def test_the_strict_protocol_is_the_default_and_kept() -> None:
    check_protocol(MicroConfig())
    for name, value in (("epochs", 31), ("hflip", 0.5), ("resolution", "320x320"),
                        ("augment", "gray")):  # fmt: skip
        assert name in STRICT
        with pytest.raises(UserError, match=f"--{name} .* free"):
            check_protocol(fill(MicroConfig, {"config": "", name: value}))
        check_protocol(fill(MicroConfig, {"config": "", name: value, "protocol": "free"}))


def test_the_floor_lies_below_the_rate_of_the_set() -> None:
    check_protocol(MicroConfig(lr_min=0.015, dataset="CFD"))
    with pytest.raises(UserError, match=r"--lr_min 0\.015: above --lr 0\.01"):
        check_protocol(MicroConfig(lr_min=0.015, dataset="VOC"))


def test_a_run_is_of_the_net_that_its_set_has() -> None:
    """A later choice must not change what a finished run is of."""
    for name, net, rate in (
        ("VOC", "distillation_10k", 1e-2), ("CFD", "meganet_10k", 2e-2),
        ("mine", "twohead_10k", 1e-2),
    ):  # fmt: skip
        own = run_config(MicroConfig(), MicroSet(name, "", ""), seed=0)
        assert own.model == net and own.lr == rate
        chosen = run_config(MicroConfig(lr=3e-3), MicroSet(name, "", ""), seed=0)
        assert chosen.lr == 3e-3
        assert type(build_micro("by_set", 2, dataset=name)) is type(build_micro(net, 2))
    assert run_config(MicroConfig(net="lcnet"), MicroSet("VOC", "", ""), seed=0).model == "lcnet"


def test_sets_seeds_report_and_masks(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = ("--dataset", "all", "--seeds", "0", "1", "--report", "--name", "net")
    assert micro(out, root, *argv) == 0
    said = capsys.readouterr().out
    scores = [[read(out / "micro" / f"net-{s}-seed{n}" / "fold0" / "finished.json")["nested"]
               for n in (0, 1)] for s in ("CVPPP", "CFD")]  # fmt: skip
    assert scores[0][0] != scores[0][1]
    per_seed = np.mean(scores, axis=0)
    mean = f"mean of 2  {per_seed.mean():.4f} ± {per_seed.std(ddof=1):.4f}"
    assert "CFD, one threshold for all seeds, nested 0." in said
    assert mean in said and "ETIS" in said.split("note: not in")[1].splitlines()[0]
    assert "9,509" in said and "0.0" in said
    report = (out / "micro" / "net-report.md").read_text(encoding="utf-8")
    assert mean in report and "- [ ] strict protocol" in report
    assert re.search(r"\| torch .*, channels last \| \d+\.\d \|", report)
    assert re.search(r"\| ONNX, .* \| (\d+\.\d|not measured: pip install onnx.*) \|", report)
    assert report.count("- [x] forward pass") == 5 and "- [ ] trained on all five sets" in report

    one = out / "micro" / "net-CFD-seed1" / "fold0"
    before = (one / "best.safetensors").stat().st_mtime_ns
    assert micro(out, root, *argv[:5], "--name", "net") == 0  # finished: nothing is done again
    assert "skipped" in capsys.readouterr().out
    assert (one / "best.safetensors").stat().st_mtime_ns == before
    masks = tmp_path / "masks"
    infer_segmentation.main(["--runs", str(one), "--device", "cpu", "--output", str(masks)])
    assert {p.stem for p in masks.rglob("*.png")} >= {"k", "l"}
    capsys.readouterr()
    every = str(out / "micro" / "net-*-seed*" / "fold0")
    infer_segmentation.main(["--runs", every, "--device", "cpu", "--output", str(tmp_path / "m")])
    said = capsys.readouterr().out
    assert "2 data sets, a folder each: CFD, CVPPP" in said and said.count("2 runs, weights") == 2
    for name in ("CFD", "CVPPP"):
        found = sorted((tmp_path / "m" / name / "masks").iterdir())
        assert [path.name for path in found] == ["k.png", "l.png"]


def test_each_block_is_dropped_with_three_seeds(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="--seeds 0 1 2"):
        micro(tmp_path, root, "--ablate", "--seeds", "0", "1")
    argv = ("--dataset", "CFD", "--ablate", "--epochs", "1", "--seeds", "0", "1", "2")
    with pytest.raises(UserError, match="--model twohead_10k"):
        micro(tmp_path, root, *argv)
    assert micro(tmp_path / "out", root, *argv, "--model", "twohead_10k") == 0
    said = capsys.readouterr().out
    for block in MICRO_NETS["twohead_10k"].blocks:
        assert f"CFD, with {block} -> without: micro_protocol_iou" in said
        weights = load_weights(
            tmp_path / "out" / "micro" / f"twohead_10k-without-{block}-CFD-seed2" / "fold0"
            / "best.safetensors"
        )  # fmt: skip
        assert not any(key.startswith("branches.1") for key in weights)


def test_a_chain_teaches_and_gates(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, nets = tmp_path / "out", ("micronet", "twohead_8k", "twohead_10k")
    with pytest.raises(UserError, match="two different nets"):
        micro(out, root, "--chain", "lcnet", "lcnet")
    argv = ("--dataset", "CFD", "--epochs", "1", "--chain", *nets, "--allow_weak_teacher")
    assert micro(out, root, *argv) == 0
    said = capsys.readouterr().out
    assert "twohead_10k alone -> by twohead_8k-by-micronet" in said
    assert "twohead_10k alone -> by micronet" in said  # the one hop
    assert said.count("teacher 0.") == 3
    kept = read(out / "micro" / "twohead_10k-by-micronet-CFD-seed0" / "fold0" / "finished.json")
    assert kept["config"]["teacher"] == "micronet"


def test_every_preset_parses() -> None:
    path = Path(train_micro.__file__).parent / "configs" / "micro.yaml"
    _, rows = read_rows(path, MicroConfig)
    assert {"free", "teacher", "chain"} <= rows.keys()
    for name in rows:
        config = fill(MicroConfig, {"config": str(path), "model": name}, row_by="model")
        check_protocol(config)
        for net in config.chain or (config.net,):
            assert net in MICRO_NETS, name


def test_slices_of_one_name_are_parted_where_that_is_asked_for(tmp_path: Path) -> None:
    draw(tmp_path, "set", "0123456789")
    rng = np.random.default_rng(0)
    for patient in "0123456789":
        for suffix, kind in (("jpg", "images"), ("png", "masks")):
            path = tmp_path / "set" / kind / f"{patient}.{suffix}"
            path.replace(path.with_stem(f"{patient}_1"))
            pixels = rng.integers(0, 2, (32, 32, 3) if kind == "images" else (32, 32), np.uint8)
            cv2.imwrite(str(path.with_stem(f"{patient}_2")), pixels)
    where = MicroSet("set", "folders", str(tmp_path / "set"))
    together, parted = (
        read_set(MicroConfig(group_by_name=on), where).index.table["group"] for on in (True, False)
    )
    assert together.nunique() == 10
    assert not parted.any()


def test_the_more_classes_the_less_cross_entropy(root: Path) -> None:
    where = MicroSet("CFD", "micro/CFD", str(root))
    config = MicroConfig(resolution="32x32")
    data = read_set(config, where)
    own = run_config(config, where, seed=0)
    task = build_task(own, data, [7, 7])
    assert {name: weight for name, weight, _ in task.criterion.terms} == {"ce": 1, "protocol": 1}
    many = replace(data, index=replace(data.index, classes=tuple(map(str, range(21)))))
    weights = {name: w for name, w, _ in build_task(own, many, [1] * 21).criterion.terms}
    assert weights == {"ce": 1 / 20, "protocol": 1}
    edges = build_task(replace(own, set_losses=True), data, [7, 7]).criterion.terms
    assert [name for name, _, _ in edges] == ["ce", "protocol", "edge_ce"]
    with pytest.raises(UserError, match="--set_losses"):
        build_task(replace(own, set_losses=True, loss="ce"), data, [7, 7])


@pytest.mark.parametrize(
    ("score", "what"), [(0.53, "distil"), (0.5299, "ablate"), (0.49, "tune"), (0.46, "debug")]
)
def test_the_score_decides(score: float, what: str) -> None:
    assert what in decide(score)


@pytest.mark.parametrize(("dataset", "place"), [("all", "CFD"), ("CFD", "CFD/train")])
def test_a_folder_too_low_is_told_to_go_up(root: Path, dataset: str, place: str) -> None:
    config = MicroConfig(data_dir=str(root / place), dataset=dataset)
    with pytest.raises(UserError, match=r"pass the folder that holds .* with --data_dir"):
        read_set(config, find_sets(config)[0])
