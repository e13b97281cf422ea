"""The config reader: who overrules whom, what a value may look like, what is refused how."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config import FoldConfig, config_hash
from src.mask_config import DistillConfig, LaneConfig, MicroConfig
from src.option import Options, option
from src.reader import coerce, parse, read_rows, read_yaml
from src.script import UserError

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Sample(Options, group="run"):
    config: str = option("", "YAML")
    model: str = option("", "row")
    lr: float = option(1.0, "a number, 5 % of them odd")
    num: int = option(1, "a whole number")
    flag: bool = option(False, "true or false")
    names: tuple[str, ...] = option((), "several")
    sizes: tuple[int, ...] = option((), "several numbers")
    mode: Literal["auto", "on", "off"] = option("auto", "choice")
    fixed: ClassVar[int] = 1


def read(*argv: str) -> Sample:
    return parse(Sample, argv, prog="sample.py", description="", row_by="model")


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """Return ``config(text)``: the flags that name a YAML file with this text."""

    def write(text: str) -> list[str]:
        path = tmp_path / "sample.yaml"
        path.write_text(text, encoding="utf-8")
        return ["--config", str(path)]

    return write


def test_default_below_train_below_row_below_flag(config: Any) -> None:
    assert read().lr == 1.0
    flags = config("train: {lr: 2, num: 2, flag: true}\nmodels: {a: {lr: 3, num: 3}}")
    assert (read(*flags).lr, read(*flags).num) == (2.0, 2)
    assert read(*flags, "--model", "a").lr == 3.0
    mine = read(*flags, "--model", "a", "--lr", "4")
    assert (mine.lr, mine.num, mine.flag) == (4.0, 3, True)
    assert read(*flags, "--model", "other").lr == 2.0  # any other model takes the block


def test_values_are_read_as_the_field_says(config: Any) -> None:
    assert isinstance(yaml.safe_load("lr: 1e-4")["lr"], str)  # why coercion is needed
    flags = config(
        "train: {lr: 1e-4, num: 1e3, flag: no, names: [a, 7], sizes: 5, mode: off, model: 012}"
    )
    found = read(*flags)
    assert found.lr == 1e-4 and isinstance(found.lr, float)
    assert found.num == 1000 and isinstance(found.num, int)
    assert found.flag is False and found.names == ("a", "7") and found.sizes == (5,)
    assert found.mode == "off"  # YAML 1.1 reads a bare off as false


def test_flags_take_several_words() -> None:
    assert read("--sizes", "1", "2", "--names", "a").sizes == (1, 2)


def test_flags_take_dashes_equals_and_bare_booleans() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Dashed(Options, group="run"):
        batch_size: int = option(1, "rows")
        allow_outside: bool = option(False, "let paths out")

    def dashed(*argv: str) -> Dashed:
        return parse(Dashed, argv, prog="x", description="")

    assert dashed("--batch-size", "3").batch_size == 3
    assert dashed("--batch_size=4").batch_size == dashed("--batch-size=4").batch_size == 4
    assert dashed("--allow_outside").allow_outside is True
    assert dashed("--allow-outside", "false").allow_outside is False


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--nmu", "3"], r"unknown flag --nmu \(did you mean --num\?\)"),
        (["--learning_rate", "3"], "unknown flag --learning_rate"),
        (["--lr", "fast"], "lr: 'fast' is not a number"),
        (["--lr", "nan"], "lr: 'nan' is not a number"),
        (["--num", "1.5"], "num: '1.5' is not a whole number"),
        (["--num", "inf"], "num: 'inf' is not a whole number"),
        (["--flag", "maybe"], "flag: 'maybe' is not true or false"),
        (["--mode", "atuo"], "mode: 'atuo' is none of auto, on, off"),
        (["--num"], "--num.*--help"),
        (["--config", "no/such.yaml"], r"--config no/such\.yaml: no such file"),
        (["stray"], "stray"),
    ],
)
def test_mistakes_are_named(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(*argv)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {fixed: 1}", "train: unknown key 'fixed'"),
        ("train: {nmu: 1}", r"train: unknown key 'nmu' \(did you mean num\?\)"),
        ("models: {a: {flga: 1}}", r"models: a: unknown key 'flga' \(did you mean flag\?\)"),
        ("trian: {num: 1}", r"unknown block 'trian' \(did you mean train\?\)"),
        ("train: [1, 2]", "train: expected a mapping"),
        ("models: {a: 3}", "models: a: expected a mapping"),
        ("- 1", "expected a mapping"),
        ("train: {num: [1]}", "num: .* is not a whole number"),
        ("train: {num: true}", "num: True is not a whole number"),
        ("train: {lr: }", "lr: None is not a number"),
        ("train: {a: 1", "cannot be read as YAML"),
        ("train: !!python/object/apply:os.system ['touch hacked']", "cannot be read as YAML"),
        ("a: &a [*a]\ntrain: !!python/name:os.system", "cannot be read as YAML"),
        ("[" * 600, "cannot be read as YAML"),
    ],
)
def test_bad_yaml_is_named(config: Any, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(*config(text))
    assert "\n" not in str(error.value)
    assert not Path("hacked").exists()


def test_a_yaml_bomb_costs_nothing(config: Any) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 20)]
    with pytest.raises(UserError, match="unknown block 'a0'"):
        read(*config("\n".join(lines)))


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="cannot be read as YAML"):
        read_yaml(path)
    path.write_bytes("\ufefftrain: {num: 4}".encode())
    assert read("--config", str(path)).num == 4


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
ANY = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN, inner, max_size=3)
)
KINDS: list[Any] = [bool, int, float, str, tuple[int, ...], Literal["on", "off"]]


@given(value=ANY, kind=st.sampled_from(KINDS))
def test_any_value_has_the_right_type_or_is_refused(value: Any, kind: Any) -> None:
    try:
        found = coerce("option", value, kind)
    except UserError as error:
        assert str(error).startswith("option: ")
        return
    kinds = {Literal["on", "off"]: str, tuple[int, ...]: tuple}
    assert isinstance(found, kinds.get(kind, kind))
    assert kind is bool or not isinstance(found, bool)


@given(blocks=st.dictionaries(st.sampled_from(["train", "models", "x"]), ANY, max_size=3))
@settings(max_examples=60, deadline=None)
def test_any_yaml_is_a_config_or_a_refusal(tmp_path_factory: Any, blocks: Any) -> None:
    path = tmp_path_factory.mktemp("yaml") / "x.yaml"
    try:
        path.write_text(yaml.safe_dump(blocks, allow_unicode=True), encoding="utf-8")
    except (UnicodeEncodeError, yaml.YAMLError):
        return
    with contextlib.suppress(UserError):
        assert isinstance(read("--config", str(path), "--model", "a"), Sample)


@given(st.lists(st.text(max_size=8) | st.sampled_from(["--lr", "--num", "--flag", "--names"])))
@settings(max_examples=100, deadline=None)
def test_any_words_are_a_config_or_a_refusal(words: list[str]) -> None:
    try:
        assert isinstance(read(*words), Sample)
    except UserError:
        pass
    except SystemExit as stop:  # -h
        assert stop.code == 0


CONFIGS: dict[str, Any] = {
    "lane": LaneConfig, "lane_light": LaneConfig, "micro": MicroConfig, "distill": DistillConfig,
}  # fmt: skip


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_config_parses_against_its_script(path: Path) -> None:
    config_class = CONFIGS.get(path.stem, FoldConfig)
    for name in read_rows(path, config_class)[1] or [""]:
        flags = ["--config", str(path), "--model", name]
        found = parse(config_class, flags, prog="x", description="", row_by="model")
        assert dataclasses.is_dataclass(found)


def test_the_hash_names_what_is_learned_and_nothing_else() -> None:
    base = FoldConfig()
    assert config_hash(base) == config_hash(dataclasses.replace(base, num_workers=3, fold="2"))
    assert config_hash(base) != config_hash(dataclasses.replace(base, lr=1e-3))


@pytest.mark.parametrize("script", ["train_fold", "optimize_weights", "infer_ensemble"])
def test_help_is_there_at_once(script: str) -> None:
    code = (
        f"import sys, {script} as s; sys.argv = ['x']\ntry: s.main(['--help'])\nexcept SystemExit"
    )
    code += ": pass\nheavy = {'torch', 'pandas', 'numpy', 'cv2', 'timm'} & set(sys.modules)\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "assert not heavy, heavy"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--output_dir" in done.stdout


def test_presets_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "convnext_large" in read_yaml(Path("configs/classify.yaml"))["models"]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "classify.yaml").write_text("models: {mine: {}}")
    assert list(read_yaml(Path("configs/classify.yaml"))["models"]) == ["mine"]
    with pytest.raises(UserError, match=r"other.yaml: no such file"):
        read_yaml(Path("configs/other.yaml"))


@pytest.mark.parametrize("flags", [["--epochs", "-1"], ["--restart_epochs", "0"],
                                   ["--valid_every", "0"], ["--batch_size", "0"],
                                   ["--num_workers", "-2"]])  # fmt: skip
def test_numbers_below_sense_are_refused(flags: list[str]) -> None:
    with pytest.raises(UserError, match=rf"{flags[0]} {flags[1]}: at least"):
        parse(FoldConfig, ["--config", "", *flags], prog="p", description="d")


def test_a_preset_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("models: {cracks: {epochs: 3}}")
    read = {"prog": "p", "description": "d", "row_by": "model", "rows_only": True}
    argv = ["--config", str(path), "--model"]
    assert parse(LaneConfig, [*argv, "cracks"], **read).epochs == 3
    with pytest.raises(UserError, match=r"--model crack: .*did you mean cracks"):
        parse(LaneConfig, [*argv, "crack"], **read)


def test_a_package_that_a_flag_needs_is_asked_for_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("wandb", "mlflow"):
        with pytest.raises(UserError, match=rf"--{name}: .* pip install {name}, or drop the flag"):
            parse(FoldConfig, [f"--{name}"], prog="p", description="")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    both = parse(FoldConfig, ["--wandb", "--mlflow"], prog="p", description="")
    assert both.wandb and both.mlflow
