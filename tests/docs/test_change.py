"""docs/change.md: each row's change, made for a moment, is taken by options, builders, scripts."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import albumentations as A
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import train_distill
import train_fold
from src.config import FoldConfig
from src.data.masks import read_labelled
from src.data.sample import load_aliases
from src.data.sources.masks import MaskIndex, Source
from src.data.sources.registry import SOURCES, detect_source
from src.data.transforms import AUGMENTATIONS, train_mask_transform, train_transform
from src.losses.classification import LOSSES, build_loss
from src.losses.segmentation import TERMS
from src.mask_config import LaneConfig, MicroConfig
from src.metrics.contest import find_metric
from src.models.micro.registry import MICRO_NETS, build_micro
from src.models.micro.unet import TwoHeadUNet
from src.models.pretrained import check_timm_id
from src.option import option
from src.pipelines.micro import MicroSet, check_size
from src.pipelines.segmentation.train import build_network, build_task, segmenter_spec
from src.reader import build_parser, parse
from src.script import UserError
from src.tasks.classification import Classification

ROOT = Path(__file__).resolve().parents[2]
HOW: dict[str, Any] = {"prog": "x", "description": "", "row_by": "model"}


def rows() -> list[list[str]]:
    """Return the cells of the table's rows."""
    text = (ROOT / "docs" / "change.md").read_text(encoding="utf-8")
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line.startswith("| ") and not line.startswith("| to change")
    ]


def test_every_row_has_its_test_and_opens_what_is_there() -> None:
    found = rows()
    tests = [row[-1].strip("` |") for row in found]
    assert len(found) >= 10 and len(set(tests)) == len(found)
    assert all(callable(globals()[name]) for name in tests)
    for row in found:
        place = re.fullmatch(r"`src/(\S+)\.py`, `(\w+)`", row[1])
        assert place or row[1] == "nothing", row[1]
        if place:
            assert hasattr(importlib.import_module(f"src.{place[1].replace('/', '.')}"), place[2])


def accepts(tmp_path: Path, *flags: str) -> bool:
    """Tell whether ``train_fold.py`` and ``train_distill.py`` go on to look for the data."""
    places = ["--config", "", "--data_dir", str(tmp_path / "none"), "--output_dir", str(tmp_path)]
    for script, kind in ((train_fold, []), (train_distill, ["--kind", "classification"])):
        student = ["--student", "test_resnet"] if kind else ["--model", "test_resnet"]
        student += ["--teacher", "test_resnet"] if kind else []
        with pytest.raises(UserError) as error:
            script.main([*places, *kind, *student, *flags])
        if "data_dir" not in str(error.value):
            assert flags[0] in str(error.value)
            return False
    return True


def test_a_classification_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(
        logits: torch.Tensor,
        target: torch.Tensor,
        q: Annotated[float, {"above": 0, "most": 1}] = 0.7,
    ) -> torch.Tensor:
        return (1 - (target * logits.softmax(1)).sum(1) ** q) / q

    assert not accepts(tmp_path, "--loss", "mine")
    monkeypatch.setitem(LOSSES, "mine", mine)
    assert accepts(tmp_path, "--loss", "0.5 mine(q=1)")
    assert not accepts(tmp_path, "--loss", "mine(q=2)")
    task = Classification(2, build_loss("0.5 mine(q=1)"))
    batch = {"image": torch.zeros(1, 2), "target": torch.tensor([0])}
    assert task.loss(torch.nn.Identity(), batch)["loss"].item() == pytest.approx(0.25)


def test_a_term_of_the_mask_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(
        log_probs: torch.Tensor,
        target: torch.Tensor,
        ignore_index: int | None,
        factor: Annotated[float, {"above": 0, "most": 9}] = 1.0,
    ) -> torch.Tensor:
        return factor * log_probs.exp()[:, 1].mean()

    config = LaneConfig(loss="bce + 0.5 mine(factor=4)")
    data: Any = SimpleNamespace(index=SimpleNamespace(classes=("a", "b")), window=(8, 8))
    with pytest.raises(UserError, match="'mine' is unknown"):
        build_task(config, data)
    monkeypatch.setitem(TERMS, "mine", mine)
    terms = build_task(config, data).criterion(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2))
    assert terms["mine"].item() == pytest.approx(2.0)
    assert terms["loss"].item() == pytest.approx(np.log(2) + 1.0)


def test_an_augmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(p: float, level: Annotated[int, {"least": 0, "most": 255}] = 128) -> A.Solarize:
        return A.Solarize(threshold_range=(level / 255, level / 255), p=p)

    assert not accepts(tmp_path, "--augment", "mine")
    monkeypatch.setitem(AUGMENTATIONS, "mine", mine)
    assert accepts(tmp_path, "--augment", "mine(level=0)")
    assert not accepts(tmp_path, "--augment", "mine(level=256)")
    image = np.full((8, 8, 3), 55, np.uint8)
    off: dict[str, Any] = {"hflip": 0.0, "color": 0.0, "scale_min": 1.0}
    for transform in (
        train_transform(8, **off, rotate=0, augment="mine(level=0)"),
        train_mask_transform((8, 8), **off, scale_max=1.0, augment="mine(level=0)"),
    ):
        found = transform((0, 0, 0), image=image, mask=image[..., 0])
        assert (found["image"] == 200).all() and (found["mask"] == 55).all()


def test_a_view(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    path, line = tmp_path / "src" / "views.py", '    View("rot90", '
    text = path.read_text(encoding="utf-8")
    assert text.count(line) == 1
    new = '    View("transpose", lambda x: x.transpose(-1, -2), lambda x: x.transpose(-1, -2)),\n'
    path.write_text(text.replace(line, new + line), encoding="utf-8")
    code = (
        "import sys\n"
        "from src.config import BlendConfig, FoldConfig\n"
        "from src.mask_config import InferSegmentationConfig\n"
        "from src.reader import fill\n"
        "from src.tool_config import PredictConfig\n"
        "from src.views import first_views, view_names\n"
        "for kind in (FoldConfig, BlendConfig, InferSegmentationConfig, PredictConfig):\n"
        "    assert fill(kind, {'config': '', 'tta_steps': '6'} if kind is FoldConfig else\n"
        "                {'tta_steps': '6'}).tta_steps == 6\n"
        "assert FoldConfig().tta_steps == 6 and first_views(6)[4].name == 'transpose'\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "print(*view_names(5))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["identity", "hflip", "vflip", "both", "transpose"], done.stderr


def test_a_backbone(tmp_path: Path) -> None:
    assert parse(FoldConfig, ["--model", "test_vit"], **HOW).model == "test_vit"
    assert check_timm_id("test_vit").startswith("test_vit")
    path = tmp_path / "mine.yaml"
    row = {"timm_id": "test_resnet", "image_size": 64, "lr": "2e-4"}
    path.write_text(yaml.safe_dump({"models": {"mine": row}}), encoding="utf-8")
    found = parse(FoldConfig, ["--config", str(path), "--model", "mine"], **HOW)
    assert (found.timm_id, found.image_size, found.lr) == ("test_resnet", 64, 2e-4)


def test_an_encoder() -> None:
    flags = ["--config", "", "--encoder", "tu-test_resnet", "--arch", "unet"]
    config = parse(LaneConfig, flags, **HOW)
    net = build_network(segmenter_spec(config.arch, config.encoder, 1, 16)).eval()
    with torch.inference_mode():
        assert net(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape[:2] == (1, 1)


def test_a_micro_net(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="mine is unknown"):
        build_micro("mine", 2)
    size = replace(MICRO_NETS["twohead_8k"], options={"widths": (6, 8, 10, 12)})
    monkeypatch.setitem(MICRO_NETS, "mine", size)
    config = parse(MicroConfig, ["--config", "", "--model", "mine"], **HOW)
    check_size(config, [MicroSet("CFD", "micro/CFD", "")])
    assert "mine, with 21 classes" in capsys.readouterr().out
    net = build_micro("mine", 2)
    assert isinstance(net, TwoHeadUNet)
    assert sum(p.numel() for p in net.parameters()) < 5_000


def test_a_layout_of_mask_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_mine(root: Path) -> MaskIndex:
        table = pd.DataFrame(
            {"id": ["a"], "image": ["a.png"], "target": ["a.txt"], "group": "", "split": "train"}
        )
        return MaskIndex(root, table, ("ground", "thing"), None, lambda path: np.eye(2))

    with pytest.raises(UserError, match="mine is unknown"):
        read_labelled("mine", tmp_path)
    sign = Source("mine", read_mine, lambda root: (root / "mine.txt").exists())
    monkeypatch.setitem(SOURCES, "mine", sign)
    config = parse(LaneConfig, ["--config", "", "--source", "mine"], **HOW)
    found = read_labelled(config.source, tmp_path)
    assert found.classes == ("ground", "thing") and len(found.table) == 1
    assert detect_source(tmp_path) == "folders"
    (tmp_path / "mine.txt").touch()
    assert detect_source(tmp_path) == "mine"


def test_the_metric_that_decides() -> None:
    config = parse(FoldConfig, ["--config", "", "--metric", "macro_f1"], **HOW)
    metric = find_metric(config.metric, ("a", "b"), config.ordinal)
    task = Classification(2, build_loss("cross_entropy"), metric)
    assert task.monitor == "macro_f1" and not task.lower_is_better


def test_an_option() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Mine(FoldConfig, group="augmentation"):
        fog: float = option(0.0, "density of fog", least=0, most=1)

    assert parse(Mine, ["--config", "", "--fog", "0.25"], **HOW).fog == 0.25
    with pytest.raises(UserError, match=r"--fog 2\.0: at least 0, at most 1"):
        parse(Mine, ["--config", "", "--fog", "2"], **HOW)
    assert "density of fog [0.0]" in build_parser(Mine, "x", "").format_help()


def test_classes_that_mean_the_same(tmp_path: Path) -> None:
    (tmp_path / "aliases.csv").write_text("car,automobile\n", encoding="utf-8")
    found = load_aliases(tmp_path, "", ("automobile", "bus", "car"))
    assert ("automobile", "car") in [tuple(sorted(names)) for names in found.members()]
