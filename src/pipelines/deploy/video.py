"""Prediction on a video or camera: overlays to a file, frames/s, latency percentiles.

A live source does not wait: a thread keeps its newest frame only, so that a model slower than the
camera drops frames instead of falling behind. What is written keeps the source's speed: the last
picture stands for the frames that were dropped.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from src.metrics.classification import Array
from src.pipelines.deploy.model import ImageModel, open_model
from src.runs import own_file, refuse_file
from src.script import MachineError, UserError, counted
from src.tool_config import PredictConfig

Read = Callable[[], Array | None]  # the next frame (H, W, 3) uint8 BGR; None = there is no more
Clock = Callable[[], float]  # seconds

PERCENTILES = (50, 95, 99)
FRAMES_PER_SECOND = 30.0  # of a source that does not say
NO_FRAME = "no frame of it can be read; is it damaged, or another program's camera?"
CODECS = ((".mp4", "mp4v"), (".avi", "MJPG"))  # what a headless OpenCV can write, best first


@dataclass(frozen=True)
class Frame:
    """One frame that is predicted."""

    pixels: Array  # (H, W, 3) uint8 BGR
    arrived: float  # when it was read, s
    skipped: int = 0  # frames before it that came while the model was busy


@dataclass
class Timing:
    """Seconds of every predicted frame: in the network, and from its arrival to its picture."""

    network: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    dropped: int = 0
    seconds: float = 0.0

    def lines(self) -> list[str]:
        """Return what was measured, for people."""
        number = len(self.whole)
        if not number:
            return ["no frame"]
        rate = f"{number / self.seconds:.1f} frames/s" if self.seconds > 0 else ""
        frames = f"{counted(number, 'frame')} in {self.seconds:.1f} s"
        said = [f"{frames}: {rate}, {self.dropped} dropped"]
        for name, values in (("network", self.network), ("arrival to picture", self.whole)):
            found = np.percentile(1e3 * np.array(values), PERCENTILES)
            shown = " · ".join(f"p{p} {v:.1f}" for p, v in zip(PERCENTILES, found, strict=True))
            said.append(f"  {name}, ms: {shown}")
        return said


def predict_video(config: PredictConfig) -> list[str]:
    """Predict the frames of ``config.video``, write their overlays; return lines that say so.

    Raises:
        UserError: no such video, camera or model, or no codec to write with.
    """
    path = Path(config.output or "predicted.mp4")
    if path.suffix not in (".mp4", ".avi"):
        raise UserError(f"--output {path}: a video is written to a name ending in .mp4 or .avi")
    refuse_file(path)
    model = open_model(Path(config.model or config.run), config.device)
    capture = open_capture(config.video)
    is_live = config.live or config.video.isdigit() or "://" in config.video
    rate = capture.get(cv2.CAP_PROP_FPS)
    rate = rate if 1 <= rate <= 1000 else FRAMES_PER_SECOND
    size = tuple(int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    if not all(size):
        raise UserError(f"{config.video}: {NO_FRAME}")
    model.probs(np.zeros((size[1], size[0], 3), np.uint8))  # the first call of all is slow
    print(f"{config.video}: {size[0]}x{size[1]}, {rate:.3g} frames/s; {model.engine}", flush=True)
    number, ended = 0, False
    with write_video(path, rate, size) as (write, written):

        def read() -> Array | None:
            nonlocal number, ended
            found, pixels = capture.read()
            number, ended = number + found, not found
            return pixels if found else None

        if is_live:
            with newest_frames(pace(read, rate) if config.live else read) as frames:
                timing = run_video(frames, model, write, most=config.frames)
        else:
            timing = run_video(every_frame(read), model, write, most=config.frames)
        if not timing.whole:
            raise UserError(f"{config.video}: {NO_FRAME}")
    said = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))  # about; 0 or less of a camera
    capture.release()
    lines = [*timing.lines(), f"{written} written"]
    if ended and number < 0.95 * said:
        lines.append(f"note: {number} of about {said} frames could be read: the rest is damaged")
    return lines


def open_capture(video: str) -> cv2.VideoCapture:
    """Open a video file, a stream's address, or a camera by its number.

    Raises:
        UserError: it cannot be opened.
    """
    camera = re.fullmatch("[0-9]{1,4}", video)
    capture = cv2.VideoCapture(int(video) if camera else video)
    if not capture.isOpened():
        raise UserError(f"--video {video}: no such video or camera, or no codec for it; name "
                        "a file that OpenCV reads, or the number of a camera")  # fmt: skip
    return capture


def pace(
    read: Read, rate: float, clock: Clock = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Read:  # fmt: skip
    """Hand a file's frames out at ``rate`` a second, as a camera would."""
    began, number = clock(), 0

    def wait_and_read() -> Array | None:
        nonlocal number
        number += 1
        sleep(max(0.0, began + number / rate - clock()))
        return read()

    return wait_and_read


def every_frame(read: Read, clock: Clock = time.perf_counter) -> Iterator[Frame]:
    """Yield all frames, each when the one before it is done."""
    while (pixels := read()) is not None:
        yield Frame(pixels, clock())


@contextmanager
def newest_frames(read: Read, clock: Clock = time.perf_counter) -> Iterator[Iterator[Frame]]:
    """Yield an iterator that gives the newest frame each time; older ones are dropped.

    A thread reads meanwhile: a camera's own queue would hand out old frames.
    """
    changed = threading.Condition()
    waiting: list[tuple[Array, float]] = []
    ended, skipped = False, 0

    def keep_newest() -> None:
        nonlocal ended, skipped
        while not ended:
            pixels = read()
            with changed:
                if pixels is None:
                    ended = True
                else:
                    skipped += len(waiting)
                    waiting[:] = [(pixels, clock())]
                changed.notify_all()

    def take() -> Iterator[Frame]:
        nonlocal skipped
        while True:
            with changed:
                changed.wait_for(lambda: waiting or ended)
                if not waiting:
                    return
                (pixels, arrived), missed, skipped = waiting.pop(), skipped, 0
            yield Frame(pixels, arrived, missed)

    thread = threading.Thread(target=keep_newest, daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        ended = True
        thread.join(timeout=5)  # until its last frame came; a camera that hangs is left behind


def run_video(
    frames: Iterator[Frame],
    model: ImageModel,
    write: Callable[[Array, int], None],
    *,
    most: int = 0,
    clock: Clock = time.perf_counter,
) -> Timing:
    """Predict frames until they end, ``most`` (0 = all) are done, or Ctrl-C.

    ``write`` takes a picture (H, W, 3) uint8 RGB and the number of frames skipped before it.
    """
    timing, began = Timing(), clock()
    try:
        for frame in islice(frames, most or None):
            image = cv2.cvtColor(frame.pixels, cv2.COLOR_BGR2RGB)
            start = clock()
            probs = model.probs(image)
            timing.network.append(clock() - start)
            write(model.draw(image, probs), frame.skipped)
            timing.whole.append(clock() - frame.arrived)
            timing.dropped += frame.skipped
    except KeyboardInterrupt:
        print("interrupted: what was predicted is kept", flush=True)
    timing.seconds = clock() - began
    return timing


@contextmanager
def write_video(
    path: Path, rate: float, size: Sequence[int]
) -> Iterator[tuple[Callable[[Array, int], None], Path]]:
    """Yield ``write(picture, skipped)`` and the file's name; it stands there when all is written.

    Where this OpenCV has no MPEG-4, the file is Motion JPEG and its name ends in ``.avi``.

    Raises:
        UserError: neither can be written, or somebody else's file stands there.
    """
    for suffix, codec in CODECS[path.suffix == ".avi" :]:
        path = path.with_suffix(suffix)
        refuse_file(path)
        part = path.with_name(f".{path.stem}.part{suffix}")  # the ending chooses the container
        part.unlink(missing_ok=True)
        writer = cv2.VideoWriter(str(part), cv2.VideoWriter.fourcc(*codec), rate, tuple(size))
        if writer.isOpened():
            break
    else:
        raise UserError(f"{path}: this OpenCV writes neither MPEG-4 nor Motion JPEG; pip install "
                        "opencv-python-headless")  # fmt: skip
    last: list[Array] = []
    number = 0

    def write(picture: Array, skipped: int) -> None:
        nonlocal number
        for _ in range(skipped if last else 0):
            writer.write(last[0])
        last[:] = [cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)]
        writer.write(last[0])
        number += 1 + (skipped if number else 0)

    try:
        yield write, path
        writer.release()
        held = int(cv2.VideoCapture(str(part)).get(cv2.CAP_PROP_FRAME_COUNT))
        if number and held < number:  # OpenCV says nothing of a full disk
            raise MachineError(f"{path}: could not be written whole; is the disk full?")
        with own_file(path):
            part.replace(path)
    finally:
        writer.release()
        part.unlink(missing_ok=True)
