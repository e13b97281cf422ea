"""Table of the lane recipes: hand-computed rows, and a run of everything on tiny masks."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import lanes
from benchmarks.lanes import ARMS, Scored, row
from src.mask_config import LaneConfig
from src.metrics.counts import SegmentationCounts
from src.reader import read_rows
from tests.mask_runs import TINY


def counts(hits: int, images: int = 6) -> SegmentationCounts:
    """Return images of 100 pixels: 10 of a lane, 10 predicted, ``hits`` of them right."""

    def every(background: int, lane: int) -> np.ndarray:
        return np.tile([background, lane], (images, 1))

    boundary = np.tile([3, 4, 3, 4], (images, 2, 1))  # precision and recall 3 of 4
    lane, wrong = every(90, 10), 10 - hits
    return SegmentationCounts(
        np.arange(images), every(90 - wrong, hits), lane, lane, every(0, 0), boundary, np.array(0)
    )


def scored(*hits: int) -> Scored:
    return Scored([counts(number) for number in hits], list("abcdef"))


def test_a_row_is_the_mean_over_runs_with_both_intervals_of_the_difference() -> None:
    base = scored(5, 5)  # IoU 5 of 15; of the background 85 of 95
    assert row("default", base, base) == ["default", "0.3333", "", "", "0.7500", "0.6140"]
    cells = row("own", scored(10, 5), base)  # gaps of 2/3 and 0: spread .4714, t(1) 12.706
    assert cells[:2] == ["own", "0.6667"]
    assert cells[2] == "+0.3333 [+0.3333, +0.3333]"  # all images alike
    assert cells[3] == "+0.3333 [-3.9021, +4.5687]"


def test_an_ensemble_has_no_interval_over_seeds() -> None:
    cells = row("ensemble", scored(10), scored(5, 5))
    assert cells[2].startswith("+0.6667") and cells[3] == ""


def test_images_of_one_scene_are_resampled_together() -> None:
    easy, hard = counts(10), counts(5)
    half = np.arange(6) < 3
    mixed = SegmentationCounts(
        easy.index, np.where(half[:, None], easy.intersection, hard.intersection), easy.predicted,
        easy.target, easy.void_predicted, easy.boundary, easy.background,
    )  # fmt: skip
    base, own = [hard], [mixed]
    alone = row("own", Scored(own, list("abcdef")), Scored(base, list("abcdef")))[2]
    scenes = row("own", Scored(own, list("aaabbb")), Scored(base, list("aaabbb")))[2]
    assert scenes.endswith("[+0.0000, +0.6667]")  # either scene twice
    assert not alone.endswith("[+0.0000, +0.6667]")


@pytest.mark.parametrize("path", ["configs/lane.yaml", "configs/lane_light.yaml"])
def test_every_arm_is_a_row_of_both_files(path: str) -> None:
    assert {row for row in ARMS.values() if row} <= set(read_rows(Path(path), LaneConfig)[1])


@pytest.mark.slow
def test_everything_runs_and_what_is_finished_is_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from src.data.road_scenes import write_scenes

    data = write_scenes(tmp_path / "scenes", num_scenes=6, num_frames=1, size=(32, 32))
    flags = ["--data_dir", str(data), "--out", str(tmp_path / "out"), "--light"]
    flags += ["--seeds", "0", "1"]
    rest = [*TINY, "--encoder", "resnet18", "--pretrained", "none", "--epochs", "1"]
    assert lanes.main([*flags, "--", *rest]) == 0
    first = capsys.readouterr().out
    table = first[first.index("|  |") :]
    assert all(f"| {name} |" in table for name in (*list(ARMS)[:4], *lanes.VARIANTS, "ensemble"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert lanes.main([*flags, "--", *rest]) == 0
    assert capsys.readouterr().out.endswith(table)
    trained = {path for path in before if path.suffix in {".png", ".npz", ".safetensors"}}
    assert all(path.stat().st_mtime_ns == before[path] for path in trained)
