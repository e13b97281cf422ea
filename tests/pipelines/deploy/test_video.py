"""Video: every frame of a file, the newest of a live source, latencies, the written file."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from src.pipelines.deploy import video
from src.pipelines.deploy.model import ImageModel
from src.pipelines.deploy.video import every_frame, newest_frames, pace, run_video, write_video
from src.script import MachineError, UserError

SECONDS = 10  # that a test waits for another thread


class Clock:
    """A clock that stands still until somebody advances it past another's sleep."""

    def __init__(self) -> None:
        self.time = 0.0
        self.until: float | None = None  # when the sleeper wakes
        self.free = False  # nobody sleeps any more
        self.changed = threading.Condition()

    def __call__(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        with self.changed:
            if self.free:
                return
            self.until = self.time + seconds
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: self.until is None, SECONDS)

    def release(self) -> None:
        """Wake the sleeper for good."""
        with self.changed:
            self.free, self.until = True, None
            self.changed.notify_all()

    def advance(self, seconds: float) -> None:
        """Let time pass; whoever wakes meanwhile acts before it goes on."""
        end = self.time + seconds
        with self.changed:
            while not self.free:
                assert self.changed.wait_for(lambda: self.until is not None, SECONDS)
                if self.until > end:  # type: ignore[operator]
                    break
                self.time = self.until  # type: ignore[assignment]
                self.until = None
                self.changed.notify_all()
            self.time = end


def number_of(image: np.ndarray) -> int:
    return int(image[0, 0, 0])


def slow_model(clock: Clock, seconds: float, seen: list[int]) -> ImageModel:
    def probs(image: np.ndarray) -> np.ndarray:
        seen.append(number_of(image))
        clock.advance(seconds)
        return np.array([0.25, 0.75], np.float32)

    return ImageModel(probs, ("a", "b"), "classes")


def frames_of(count: int) -> Any:
    numbers = iter(range(count))

    def read() -> np.ndarray | None:
        number = next(numbers, None)
        return None if number is None else np.full((16, 24, 3), number, np.uint8)

    return read


def test_a_live_source_drops_frames_and_never_lags() -> None:
    """Ten frames a second, a network that takes a quarter of one: two or three come meanwhile."""
    clock, seen, written = Clock(), [], []
    live = pace(frames_of(200), 10.0, clock, clock.sleep)
    with newest_frames(live, clock) as frames:
        with clock.changed:  # the first frame is due at 0.1
            assert clock.changed.wait_for(lambda: clock.until is not None, SECONDS)
        clock.advance(0.1)
        timing = run_video(frames, slow_model(clock, 0.25, seen), lambda *w: written.append(w[1]),
                           most=20, clock=clock)  # fmt: skip
        clock.release()
    assert seen[:5] == [0, 2, 5, 7, 10] and len(seen) == 20
    assert timing.dropped == sum(written) == seen[-1] - 19
    assert max(timing.whole) <= 0.25 + 0.1 + 1e-6, "a frame is at most one frame old"
    assert timing.network == pytest.approx([0.25] * 20)
    assert timing.lines()[0].startswith("20 frames in 5.0 s: 4.0 frames/s, ")


def test_a_file_waits_and_no_frame_is_dropped() -> None:
    clock, seen = Clock(), []
    clock.release()
    timing = run_video(every_frame(frames_of(7), clock), slow_model(clock, 0.5, seen),
                       lambda *_: None, clock=clock)  # fmt: skip
    assert seen == list(range(7)) and timing.dropped == 0
    assert timing.lines() == [
        "7 frames in 3.5 s: 2.0 frames/s, 0 dropped",
        "  network, ms: p50 500.0 · p95 500.0 · p99 500.0",
        "  arrival to picture, ms: p50 500.0 · p95 500.0 · p99 500.0",
    ]


def test_percentiles_by_hand() -> None:
    timing = video.Timing([v / 1e3 for v in range(101)], [0.2] * 101, 3, 10.1)
    assert timing.lines()[1] == "  network, ms: p50 50.0 · p95 95.0 · p99 99.0"
    assert video.Timing().lines() == ["no frame"]
    assert video.Timing([0.1], [0.2]).lines()[0].startswith("1 frame in ")


def test_ctrl_c_keeps_what_was_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    def probs(image: np.ndarray) -> np.ndarray:
        if number_of(image) == 3:
            raise KeyboardInterrupt
        return np.array([1.0, 0.0])

    model = ImageModel(probs, ("a", "b"), "classes")
    timing = run_video(every_frame(frames_of(9)), model, lambda *_: None)
    assert len(timing.whole) == 3 and "interrupted" in capsys.readouterr().out


def read_video(path: Path) -> list[float]:
    """Return the mean of every frame."""
    capture, means = cv2.VideoCapture(str(path)), []
    while (found := capture.read())[0]:
        means.append(float(found[1].mean()))
    return means


@pytest.mark.parametrize("broken", [False, True])
def test_a_dropped_frame_shows_the_last_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    if broken:  # an OpenCV without MPEG-4
        monkeypatch.setattr(video, "CODECS", ((".mp4", "none"), video.CODECS[1]))
        cv2.setLogLevel(0) if not hasattr(cv2.utils, "logging") else None
    with write_video(tmp_path / "x.mp4", 25.0, (64, 48)) as (write, path):
        for value, skipped in ((0, 2), (100, 0), (200, 3)):
            write(np.full((48, 64, 3), value, np.uint8), skipped)
    assert path.suffix == (".avi" if broken else ".mp4")
    assert read_video(path) == pytest.approx([0, 100, 100, 100, 100, 200], abs=4)
    left = {p.name for p in path.parent.iterdir()}
    assert left == {path.name, f".{path.name}.written"}, "nothing half-written is left"


def test_a_video_of_somebody_elses_is_not_replaced_under_the_other_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said before the first frame is predicted."""
    monkeypatch.setattr(video, "CODECS", ((".mp4", "none"), video.CODECS[1]))
    (tmp_path / "x.avi").write_text("mine")
    with (
        pytest.raises(UserError, match=r"x\.avi: exists"),
        write_video(tmp_path / "x.mp4", 25.0, (64, 48)),
    ):
        raise ZeroDivisionError
    assert (tmp_path / "x.avi").read_text() == "mine"


def test_a_video_that_was_not_written_whole_is_no_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenCV says nothing when the disk is full."""
    (tmp_path / ".x.part.avi").symlink_to(tmp_path / "precious")
    (tmp_path / "precious").write_text("mine")
    whole, full = write_video(tmp_path / "x.avi", 25.0, (64, 48)), "disk full"
    with pytest.raises(MachineError, match=full), whole as (write, _):
        for _ in range(3):
            write(np.zeros((48, 64, 3), np.uint8), 0)
        write(np.zeros((9, 9, 3), np.uint8), 0)  # another size is passed over as well
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_number_of_a_camera_is_short() -> None:
    for number in ("²", "9" * 5000):
        with pytest.raises(UserError, match="no such video or camera"):
            video.open_capture(number)


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), write_video(tmp_path / "x.avi", 25, (64, 48)):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"gone\.mp4"):
        video.open_capture(str(tmp_path / "gone.mp4"))
