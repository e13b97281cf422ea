from __future__ import annotations

import ast
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from src.config import config_hash
from src.mask_config import DistillConfig
from src.metrics.bootstrap import Difference
from src.pipelines import micro
from src.pipelines.distillation import alone, gate, role_config, weights_of
from src.pipelines.run_folder import parse_size
from src.script import UserError

ROOT = Path(__file__).parents[2]


def test_a_teacher_must_beat_its_student(capsys: pytest.CaptureFixture[str]) -> None:
    weak = {"score": 0.40, "monitor": "pooled_mean_iou"}
    strong = {"score": 0.50, "monitor": "pooled_mean_iou"}
    gate(weak, strong, lower_is_better=False, force=False)
    with pytest.raises(UserError, match="does not beat"):
        gate(strong, weak, lower_is_better=False, force=False)
    with pytest.raises(UserError, match="does not beat"):
        gate(weak, weak, lower_is_better=False, force=False)
    gate(strong, weak, lower_is_better=True, force=False)  # a loss: less is better
    gate(strong, weak, lower_is_better=False, force=True)
    assert "warning" in capsys.readouterr().out


def test_a_chain_goes_on_where_a_teacher_is_behind_by_noise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run: Any = None
    sides = [{"CFD": [(run, {"score": score})]} for score in (0.50, 0.49)]
    monkeypatch.setattr(micro, "chosen", lambda done: {"nested": done["score"]})
    for high, refused in ((0.01, False), (-0.001, True)):
        change = Difference("micro_protocol_iou", 0.5, 0.49, -0.05, high, 24)
        monkeypatch.setattr(micro, "compare_roles", lambda *_, change=change: change)
        with pytest.raises(UserError, match="does not beat") if refused else nullcontext():
            micro.gate_sets(*sides, "net", force=False)
    assert "teaches all the same" in capsys.readouterr().out


def test_teaching_options_do_not_touch_student_and_teacher() -> None:
    one = DistillConfig(weight_kl=0.3)
    other = DistillConfig(weight_kl=0.7, temperature=2.0, ablate=True, tune=5)
    for role in ("student", "teacher"):
        assert config_hash(role_config(one, role)) == config_hash(role_config(other, role))
    assert config_hash(role_config(one, "distilled")) != config_hash(
        role_config(other, "distilled")
    )
    wide = DistillConfig(teacher_width=512)
    assert config_hash(role_config(wide, "student")) == config_hash(role_config(one, "student"))
    assert config_hash(role_config(wide, "teacher")) != config_hash(role_config(one, "teacher"))


def test_a_teacher_may_train_longer() -> None:
    plain, longer = DistillConfig(epochs=6), DistillConfig(epochs=6, teacher_epochs=12)
    assert role_config(longer, "teacher") == role_config(DistillConfig(epochs=12), "teacher")
    for role in ("student", "distilled"):
        assert role_config(longer, role) == role_config(plain, role)


def test_ablation_runs_one_term() -> None:
    assert weights_of(alone(DistillConfig(), "attention")) == {"attention": 0.3}
    assert weights_of(alone(DistillConfig(weight_kl=0.7), "kl")) == {"kl": 0.7}
    with pytest.raises(UserError, match="weight_kl"):
        weights_of(DistillConfig(weight_kl=-1.0))
    own = DistillConfig(weight_kl=0.0, weight_channel=0.2)
    assert alone(own, "channel") == own  # which train_distill.py has trained already


def test_sizes() -> None:
    assert parse_size("resolution", "384x512") == (384, 512)
    assert parse_size("resolution", "96") == (96, 96)
    assert parse_size("resolution", "native") is None
    for wrong in ("384x", "0x10", "big"):
        with pytest.raises(UserError, match="--resolution"):
            parse_size("resolution", wrong)


def test_the_test_split_has_one_reader() -> None:
    callers = set()
    for path in [*ROOT.glob("*.py"), *(ROOT / "src").rglob("*.py")]:
        for outer in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for node in ast.walk(outer) if isinstance(outer, ast.FunctionDef) else ():
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "read_test_masks":
                    callers.add((path.name, outer.name))
    assert callers == {("infer_segmentation.py", "read_images")}
