"""scripts/report.py --watch: progress and time left by hand, cheap looks, lines, table, page."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.pipelines import watch as module
from src.pipelines.watch import Lines, Watch, is_alive, live_table, watch
from src.runs import Output
from tests.browser import show

START = 1_000_000_000.0  # seconds, of files and clocks


class Training:
    """A run's folder as a training process would leave it after each epoch."""

    def __init__(self, root: Path, name: str, *, epochs: int = 10, score: str = "valid_log_loss"):
        self.folder, self.score = root / name / "fold0", score
        self.folder.mkdir(parents=True)
        parts = {"options": {"epochs": epochs, "lr": 0.1}, "resolved": {}, "runtime": {}}
        self.write("config.yaml", yaml.safe_dump(parts), START)
        self.write(".lock", f"process {os.getpid()} on {platform.node()}", START)

    def write(self, name: str, text: str, at: float) -> None:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        os.utime(path, (at, at))

    def reach(self, epoch: int, at: float) -> None:
        """End epoch number ``epoch`` so many seconds after the start."""
        rows = [f"{n},{1 / n:.3f},{2 / n:.3f}" for n in range(1, epoch + 1)]
        self.write("metrics.csv", "\n".join([f"epoch,train_loss,{self.score}", *rows]), START + at)

    def finish(self, epochs: int) -> None:
        done = {"config_hash": "x", "config": {}, "epochs": epochs, "score": 0.2, "history": [],
                "monitor": self.score.partition("_")[2], "files": {}, "split_hash": ""}  # fmt: skip
        self.write("finished.json", json.dumps(done), START)


def test_time_left_by_hand(tmp_path: Path) -> None:
    now = START + 70.0
    run = Training(tmp_path, "net")
    looked = Watch(Output(tmp_path), lambda: now)
    (row,) = looked.look()
    assert row.epoch == 0 and row.left != row.left and row.state == "running"
    run.reach(3, 60.0)  # 20 s an epoch since the start, 10 s of the fourth are over
    (row,) = looked.look()
    assert (row.epoch, row.epochs, row.pace) == (3, 10, 20.0)
    assert row.left == pytest.approx(7 * 20 - 10) and row.score == 0.667 and row.loss == 0.333
    resumed = Watch(Output(tmp_path), lambda: now)
    run.write("config.yaml", (run.folder / "config.yaml").read_text(), START + 55)
    assert resumed.look()[0].pace == pytest.approx(5 / 3), "as if three epochs took five seconds"
    run.reach(4, 90.0)
    now = START + 90.0
    (row,) = resumed.look()
    assert row.pace == 30.0 and row.left == 6 * 30, "what was seen counts"
    assert row.cells() == ["net", "0", "4/10", 0.25, 0.5, "log_loss", "30", "0:03:00", "running"]


def test_masks_and_states(tmp_path: Path) -> None:
    lane = Training(tmp_path / "lane", "net", epochs=4, score="ema_pooled_iou")
    lane.reach(2, 10.0)
    lane.write(".lock", f"process {2**22 + 1} on {platform.node()}", START)
    done = Training(tmp_path, "a", epochs=2)
    done.reach(2, 10.0)
    done.finish(2)
    Training(tmp_path, "b")
    rows = Watch(Output(tmp_path)).look()
    assert [(r.run.name, r.state) for r in rows] == [
        ("b", "running"), ("lane/net", "stopped"), ("a", "finished"),
    ]  # fmt: skip
    assert rows[1].score == 1.0 and rows[1].cells()[5] == "pooled_iou"
    text = live_table(rows)
    assert "lane/net" in text and "1 finished" in text and "\na " not in text
    assert "nothing is training" in live_table([])


def test_a_look_reads_what_changed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [Training(tmp_path, name) for name in "abc"]
    read: list[str] = []
    real = module.read_run
    monkeypatch.setattr(module, "read_run", lambda run, name: read.append(name) or real(run, name))
    looked = Watch(Output(tmp_path))
    assert len(looked.look()) == 3 and looked.changed and read == ["a", "b", "c"]
    looked.look()
    assert not looked.changed and len(read) == 3
    runs[1].reach(1, 5.0)
    looked.look()
    assert looked.changed and read[3:] == ["b"]
    runs[1].write("config.yaml", "{", START + 9)  # half of something: the last sound one stays
    assert len(looked.look()) == 3


def test_a_log_gets_a_line_for_each_epoch(tmp_path: Path) -> None:
    run = Training(tmp_path, "net")
    Training(tmp_path, "old").finish(3)
    looked, lines = Watch(Output(tmp_path), lambda: START + 20), Lines()
    assert lines.new(looked.look()) == ["net fold 0: epoch 0/10, state running"]
    assert lines.new(looked.look()) == []
    run.reach(2, 20.0)
    assert lines.new(looked.look()) == [
        "net fold 0: epoch 2/10, train_loss 0.5, score 1, score is log_loss, s/epoch 10, "
        "left 0:01:20, state running"
    ]
    run.finish(2)
    (line,) = lines.new(looked.look())
    assert line.endswith("state finished")


def test_watching_ends_when_nothing_trains_any_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, clock, pages = Training(tmp_path, "net", epochs=3), [START], []
    page = tmp_path / "report" / "watch.html"

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        pages.append(page.read_text(encoding="utf-8"))
        number = len(pages)
        if number <= 3:
            run.reach(number, 5.0 * number)
        elif number == 4:
            run.finish(3)

    watch(Output(tmp_path), sleep=sleep, now=lambda: clock[0])
    assert clock[0] == START + 15 + module.IDLE_SECONDS, "it was last seen running after 15 s"
    assert is_alive(run.folder / ".lock"), "a process that goes on after its last run is no reason"
    assert all('<meta http-equiv="refresh" content="10">' in text for text in pages)
    last = page.read_text(encoding="utf-8")
    assert 'http-equiv="refresh"' not in last and "<td>finished</td>" in last
    said = capsys.readouterr().out
    assert "epoch 3/3" in said and "watched 1 run: 0 running, 0 stopped, 1 finished; " in said


def test_ctrl_c_ends_watching_and_leaves_a_still_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Training(tmp_path, "net")
    run.reach(4, 40.0)

    def sleep(_: float) -> None:
        raise KeyboardInterrupt

    watch(Output(tmp_path), sleep=sleep, now=lambda: START + 40)
    assert "1 running" in capsys.readouterr().out
    html, console = show(tmp_path / "report" / "watch.html")
    assert not console and "Learning curves" in html and "0:01:00" in html


def test_only_a_living_process_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / ".lock"
    assert not is_alive(lock)
    texts: dict[str, Any] = {f"process {os.getpid()} on {platform.node()}": True, "": False,
                             f"process {2**22 + 1} on {platform.node()}": False,
                             "process 1 on elsewhere": True}  # fmt: skip
    for text, expected in texts.items():
        lock.write_text(text)
        assert is_alive(lock) is expected, text
    os.utime(lock, (START, START))
    assert not is_alive(lock), "elsewhere, and nothing was written for long"


@pytest.mark.skipif(os.name == "nt", reason="a link that leads nowhere")
def test_a_file_that_is_renamed_meanwhile_stops_no_run(tmp_path: Path) -> None:
    """It is listed by its temporary name, and gone when it is looked at."""
    (tmp_path / ".metrics.csv.1.tmp").symlink_to(tmp_path / "gone")
    lock = tmp_path / ".lock"
    for holder in (f"process {os.getpid()} on {platform.node()}", "process 1 on elsewhere"):
        lock.write_text(holder)
        assert is_alive(lock)
