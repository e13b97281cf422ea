import re
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks import blend, forecast, growth, run, timing, tracks, train_step
from benchmarks import onnx as onnx_files
from benchmarks import report as report_page
from src.ensemble.pool import mixture_losses, solve_mixture
from src.page import page, table
from src.reader import parse
from src.tool_config import ExportConfig

ROOT = Path(__file__).resolve().parents[2]


def test_what_the_tracks_of_the_damage_name_is_there(tmp_path: Path) -> None:
    assert all(map(find_spec, (*tracks.MASKS, *tracks.TOOLS)))
    commands = tracks.tools(tmp_path, tmp_path, 0)
    flags = next(flags for script, *flags in commands if script == "scripts.export")
    parse(ExportConfig, flags, prog="export", description="")


def test_contestants_take_turns_in_an_order_that_turns_round() -> None:
    seen = []

    def contestant(name: str) -> float:
        seen.append(name)
        return float(len(seen))

    results = timing.alternate({n: (lambda n=n: contestant(n)) for n in "ab"}, rounds=2)
    assert seen == ["a", "b", "b", "a", "a", "b"]  # the first round warms up
    assert results == {"a": [4.0, 5.0], "b": [3.0, 6.0]}


def test_spread_and_paired_by_hand() -> None:
    assert timing.paired([6, 8, 1], [2, 4, 4]) == [3.0, 2.0, 0.25]
    assert timing.spread([3.0, 2.0, 0.25], 2) == "2.00 (0.25 … 3.00)"


def test_a_report_keeps_the_sections_that_are_not_measured_anew(tmp_path: Path) -> None:
    path = tmp_path / "results.md"
    first = {"startup": "Start-up\n\nfast\n", "gpu_check": "GPU\n\nnone\n"}
    run.write_report(path, first)
    assert run.read_sections(path)["gpu_check"] == first["gpu_check"]
    run.write_report(path, run.read_sections(path) | {"startup": "Start-up\n\nfaster\n"})
    text = path.read_text(encoding="utf-8")
    assert "faster" in text and "none" in text and "fast\n" not in text
    assert text.index("Start-up") < text.index("GPU")


def test_every_benchmark_named_in_the_report_exists() -> None:
    assert all((ROOT / "benchmarks" / f"{name}.py").exists() for name in run.BENCHMARKS)


@pytest.mark.parametrize("norms", train_step.NORMS)
def test_the_real_loop_runs_beside_its_floor(norms: str, tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    names = timing.write_photographs(tmp_path, 8, (48, 64))
    assert len({(tmp_path / name).read_bytes() for name in names}) == 8
    args = Namespace(batch_size=4, steps=2, rounds=1, device="cpu")
    result = train_step.contest("test_resnet.r160_in1k", 32, norms, tmp_path, names, args)
    assert result["rows"] == 8
    assert all(len(result[name]) == 1 for name in ("floor", "loop", "data", "untuned"))


def test_growth_measures_in_a_process_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    rows = growth.measure_counts([3, 200], ("index",), tmp_path)
    assert [cells[:2] for cells in rows] == [["index", "3"], ["index", "200"]]
    assert all(10 < float(cells[-1]) < 400 for cells in rows)  # MB: no torch in there


def test_tpe_alone_stays_on_the_simplex_and_above_the_optimum() -> None:
    table = np.log(np.random.default_rng(0).beta(2, 1, (50, 4)))
    weights = blend.search_weights(table, trials=8, seed=0)
    assert weights.sum() == pytest.approx(1.0) and (weights >= 0).all()
    assert mixture_losses(table, weights).mean() > solve_mixture(table).loss


def test_a_split_of_the_forecast_study(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = np.arange(120) % 3
    groups = np.char.mod("g%d", np.arange(120) // 4)
    blocks = {
        f"features_{name}": rng.normal(size=(2, 120, 8)) + 2 * np.eye(3, 8)[targets]
        for name in "ab"
    }
    np.savez(tmp_path / "tiny.npz", targets=targets, groups=groups, **blocks)
    found = forecast.read_features(tmp_path / "tiny.npz")
    aside = forecast.split(found, 0.35, rng)
    assert not set(groups[aside]) & set(groups[~aside]) and 30 < aside.sum() < 54
    given = Namespace(folds=2, aside=0.35, trials=1, shift=0.0)
    one = forecast.repeat(found, 1, given)
    assert one.forecast.low < one.forecast.value < one.forecast.high < 2 and one.hidden < 1.1
    halves = forecast.Repeat(one.forecast, 0.1, one.forecast.high + 1, 9)
    same = forecast.Repeat(one.forecast, 0.1, one.forecast.value, 9)
    assert forecast.summarise([halves, same])[4:7] == ["50%", "0%", "50%"]
    kept = forecast.shift_rows(targets, np.arange(120), 3.0, rng)
    counts = np.bincount(targets[kept], minlength=3)
    assert counts.max() == 40 and counts.min() < 15


def test_an_onnx_file_is_timed_beside_its_network(tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    images = [np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)]
    row = onnx_files.measure("micro twohead_10k, 256 px", images, 2, tmp_path)
    assert row[0].startswith("micro") and float(row[2]) < 1e-4 and len(row) == 8
    assert all(float(cell) > 0 for cell in row[3:])


def test_opening_is_timed_up_to_a_sorted_table(tmp_path: Path) -> None:
    shown = table(["a", "b", "c"], [[1, 2, 2], [3, 4, 1]], caption="two rows")
    (tmp_path / "index.html").write_text(page("tiny", {"Rows": [shown]}), encoding="utf-8")
    lines = report_page.measure_opening(tmp_path / "index.html", 1, tmp_path / "profile")
    if len(lines) == 1:
        pytest.skip(lines[0])
    for line in lines:
        loaded, painted = (float(word) for word in re.findall(r"([0-9.]+) \(", line))
        assert 0 < loaded < painted < 30, line
