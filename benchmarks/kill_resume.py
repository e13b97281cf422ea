"""Kill training, blending and inference with SIGKILL, start them again, compare every bit.

    python benchmarks/kill_resume.py --kills 50         at random times
    python benchmarks/kill_resume.py --every_write      before each fsync, rename, link, unlink
    python benchmarks/kill_resume.py --plan --kills 20  scripts/plan.py, at random times

A tiny competition is made up, trained on two folds (accumulation, EMA, mixup, dropout, early
stopping), blended and answered once without harm. Then the same commands are killed and repeated
until they end, each attempt with another number of loader processes and another cache. Weights,
OOF logits, metrics, folds and submission must be those of the first time; the exit status says so.
A plan depends on the clock: after each kill its submission must be valid once there is one, the
next start must go on, and the hours must be kept.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fingerprint import fingerprint, half_written
from benchmarks.timing import ROOT

# Imported once by a server from which every attempt is forked: a start takes no five seconds.
PRELOADED = (
    *("torch", "timm", "optuna", "sklearn.model_selection", "torch.utils.tensorboard"),
    *("src.engine.loop", "src.engine.autotune", "src.data.transforms"),
    *("src.data.audit", "src.data.cache", "src.data.dataset", "src.data.folds"),
    *("src.models.classifier", "src.models.pretrained", "src.losses.classification"),
    *("src.tasks.classification", "src.ensemble.submission", "src.ensemble.blend"),
    *("src.ensemble.test_predictions", "src.ensemble.search", "src.ensemble.report"),
    *("train_fold", "optimize_weights", "infer_ensemble"),
)
MODEL = "test_resnet"
LEARNED = (
    f"--model {MODEL} --pretrained none --autotune off --folds 2 --image_size 32 --epochs 5 "
    "--batch_size 12 --micro_batch_size 5 --lr 2e-3 --ema_decay 0.9 --patience 2 --drop_rate 0.2 "
    "--mixup_alpha 0.4 --cutmix_alpha 1 --mix_off_epochs 1 --label_smoothing 0.05 --tta_steps 2"
)

WEIGHTS = "pretrained.safetensors"


def make_competition(folder: Path, *, num_images: int = 44, side: int = 32) -> None:
    """Write images of two classes (dark and bright on one side), test images, and the tables."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    for row in range(num_images):
        image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        image[:, : side // 2] //= 1 + row % 2
        place = folder / "train" / ("evening", "noon")[row % 2] / f"{row:03d}.png"
        if row >= num_images - 12:
            place = folder / "test" / f"{row:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place), image)
    names = sorted(path.name for path in (folder / "test").iterdir())
    ids = [name.removesuffix(".png") for name in names]
    tables = {
        "test.csv": ["ID,img_path", *(f"{i},./test/{n}" for i, n in zip(ids, names, strict=True))],
        "sample_submission.csv": ["ID,evening,noon", *(f"{i},0.5,0.5" for i in ids)],
    }
    for name, lines in tables.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_weights(path: Path, name: str = MODEL) -> None:
    """Write weights that pass for pretrained, so that the head begins as a linear probe."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(1)
    save_file(timm.create_model(name).state_dict(), path)


def commands(data: Path, output: Path, rng: random.Random) -> list[list[str]]:
    """Return the scripts and flags of the whole way, loader processes and cache drawn anew."""
    weights = ["--pretrained", str(data.parent / WEIGHTS), "--head_start", "probe"]
    weights += ["--norms", "frozen", "--head_lr_mult", "1"]
    place = ["--data_dir", str(data), "--output_dir", str(output)]
    loaders = ["--device", "cpu", "--num_workers", str(rng.choice((0, 2)))]
    often = ["--checkpoint_minutes", "0", "--cache", rng.choice(("none", "ram", "disk"))]
    train = ["train_fold", *place, *LEARNED.split(), *weights, *loaders, *often, "--config", ""]
    return [
        [*train, "--fold", "0"],
        [*train, "--fold", "1"],
        ["optimize_weights", *place, "--presets", ""],
        ["infer_ensemble", *place, *loaders, "--tta_steps", "2"],
    ]


def set_traps(kill_at: int) -> None:
    """Make this process kill itself just before its ``kill_at``-th change of the disk."""
    calls = 0

    def trap(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in ("replace", "link", "fsync", "unlink", "posix_fallocate"):
        setattr(os, name, trap(getattr(os, name)))


def run_child(command: list[str], log: Path, kill_at: int) -> None:
    """Run one script in this process, which was forked for it."""
    import importlib

    import torch

    multiprocessing.set_start_method(None, force=True)  # loaders start theirs as they always do
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    if kill_at:
        set_traps(kill_at)
    script, *argv = command
    sys.argv = [f"{script}.py", *argv]
    from src.script import run_script

    run_script(importlib.import_module(script).main)


class Server:
    """Forks a process for each attempt."""

    def __init__(self, log: Path) -> None:
        os.environ["PYTHONPATH"] = str(ROOT)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self.log = log
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(PRELOADED))

    def attempt(self, command: list[str], *, seconds: float = 300.0, kill_at: int = 0) -> bool:
        """Run ``command``; return whether it ended well, False if it was killed.

        Args:
            command: script and flags.
            seconds: time after which it is killed.
            kill_at: number of the write at which it kills itself; 0 = never.
        """
        child = self.context.Process(target=run_child, args=(command, self.log, kill_at))
        child.start()
        child.join(seconds)
        child.kill()
        child.join()
        if child.exitcode not in (0, -signal.SIGKILL):
            tail = self.log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise RuntimeError(f"{' '.join(command)}: exit status {child.exitcode}\n{tail}")
        return child.exitcode == 0


class Bench:
    """One competition, what an unharmed run makes of it, and what harm came to."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.data = folder / "data"
        make_competition(self.data)
        make_weights(folder / WEIGHTS)
        self.server = Server(folder / "log.txt")
        self.server.attempt(["train_fold", "--help"])  # the server's own start is not timed
        self.kills = self.torn = self.rounds = 0
        self.wrong: list[str] = []
        self.seconds: list[float] = []
        self.snapshots = [folder / "whole0"]  # before each phase, and after the last
        self.snapshots[0].mkdir()
        for phase in range(4):
            output = folder / f"whole{phase + 1}"
            shutil.copytree(self.snapshots[-1], output)
            started = time.monotonic()
            assert self.attempt(output, phase), "the unharmed run took too long"
            self.seconds.append(time.monotonic() - started)
            self.snapshots.append(output)

    def attempt(self, output: Path, phase: int, **harm: Any) -> bool:
        """Start one script once; return whether it came to its end."""
        command = commands(self.data, output, self.rng)[phase]
        return self.server.attempt(command, **harm)

    def count_kill(self, output: Path) -> None:
        """Note a kill, and whether it hit while a file was being written."""
        self.kills += 1
        self.torn += bool(half_written(output))

    def compare(self, output: Path, phases: int) -> None:
        """Note what differs from an unharmed run after so many phases."""
        expected, found = fingerprint(self.snapshots[phases]), fingerprint(output)
        wrong = [k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k)]
        self.rounds += 1
        wrong += half_written(output, cache=False)
        if wrong:
            self.wrong.append(f"{output.name}: {', '.join(sorted(wrong))}")
        shutil.rmtree(output)

    def at_random(self, kills: int) -> None:
        """Kill ``kills`` times at random moments, over as many rounds as that takes."""
        while self.kills < kills:
            output = self.folder / f"round{self.rounds}"
            for phase, seconds in enumerate(self.seconds):
                while self.kills < kills and not self.attempt(
                    output, phase, seconds=self.rng.uniform(0.05, 1.1) * seconds
                ):
                    self.count_kill(output)
                self.attempt(output, phase)
            self.compare(output, len(self.seconds))

    def at_every_write(self, phase: int, *, first: int = 1, stride: int = 1) -> None:
        """Kill one script between all, or every ``stride``-th, of its changes of the disk."""
        for place in range(first, 10_000, stride):
            output = self.folder / f"phase{phase}-write{place}"
            shutil.copytree(self.snapshots[phase], output)
            ended = self.attempt(output, phase, kill_at=place)
            if not ended:
                self.count_kill(output)
                self.attempt(output, phase)
            self.compare(output, phase + 1)
            if ended:  # it makes no such write any more
                break


PLAN_S = 72.0  # the hours of a plan
GRACE_S = 15.0  # what the last blend and one epoch are slower than those before
LOST_S = 2.5  # with each kill: the clock is saved every other second


def plan_command(data: Path, output: Path, *, seconds: float = PLAN_S, seed: int = 0) -> list[str]:
    """Return scripts/plan.py with one tiny backbone."""
    place = ["--data_dir", str(data), "--output_dir", str(output), "--device", "cpu"]
    weights = ["--models", MODEL, "--pretrained", str(data.parent / WEIGHTS), "--sizes", "32"]
    flags = ["--folds", "2", "--num_workers", "0", "--seed", str(seed)]
    return ["scripts.plan", *place, *weights, *flags, "--hours", f"{seconds / 3600:.6f}"]


def is_valid(submission: Path) -> bool:
    """Tell whether a submission has the competition's rows, and probabilities in them."""
    try:
        rows = [line.split(",") for line in submission.read_text(encoding="utf-8").splitlines()]
        numbers = [[float(cell) for cell in row[1:]] for row in rows[1:]]
    except (OSError, ValueError):
        return False
    if rows[:1] != [["ID", "evening", "noon"]] or len(rows) != 13:
        return False
    inside = all(0 <= cell <= 1 for row in numbers for cell in row)
    return inside and all(abs(sum(row) - 1) < 1e-3 for row in numbers)


def kill_plans(folder: Path, kills: int, rng: random.Random) -> tuple[int, int, list[str]]:
    """Kill plans until each is over; return (kills, plans, what went wrong)."""
    data, server = folder / "data", Server(folder / "log.txt")
    make_competition(data)
    make_weights(folder / WEIGHTS)
    server.attempt(["train_fold", "--help"])
    done, plans, wrong = 0, 0, []
    while done < kills:
        output = folder / f"plan{plans}"
        command, plans, used, before = plan_command(data, output), plans + 1, 0.0, done
        while True:
            begun, first = time.monotonic(), (output / "history.csv").exists()
            limit = rng.uniform(0.3, 12.0) if done < kills else 3 * PLAN_S
            ended = server.attempt(command, seconds=limit)
            used += time.monotonic() - begun
            if first and not is_valid(output / "submission.csv"):
                wrong.append(f"{output.name}, kill {done}: no valid submission")
            if ended:
                break
            done += 1
        if not is_valid(output / "submission.csv") or half_written(output, cache=False):
            wrong.append(f"{output.name}: ended without a valid submission, or not tidy")
        late = used - PLAN_S - GRACE_S - LOST_S * (done - before)
        if late > 0:
            wrong.append(f"{output.name}: {late:.0f} s late")
    return done, plans, wrong


def main() -> int:
    """Parse the flags, do the harm, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="kills at random times")
    parser.add_argument("--every_write", action="store_true", help="kill before each write instead")
    parser.add_argument("--stride", type=int, default=1, help="with --every_write: each n-th")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--plan", action="store_true", help="kill scripts/plan.py instead")
    flags = parser.parse_args()
    started = time.monotonic()
    if flags.plan:
        with tempfile.TemporaryDirectory() as folder:
            rng = random.Random(flags.seed)
            kills, plans, wrong = kill_plans(Path(folder), flags.kills, rng)
        print(f"{kills} kills of {plans} plans, {time.monotonic() - started:.0f} s")
        print("\n".join(wrong) or "every submission valid, every plan ended within its hours")
        return bool(wrong)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), flags.seed)
        if flags.every_write:
            for phase in (0, 2, 3):
                bench.at_every_write(phase, stride=flags.stride)
        else:
            bench.at_random(flags.kills)
    print(
        f"{bench.kills} kills in {bench.rounds} rounds, {time.monotonic() - started:.0f} s; "
        f"{bench.torn} found a half-written file; unharmed: "
        f"{', '.join(f'{s:.1f} s' for s in bench.seconds)}"
    )
    if not bench.wrong:
        print("weights, optimizer, OOF, metrics, folds, blend and submission: bit-identical")
    for line in bench.wrong:
        print(f"DIFFERENT {line}")
    return bool(bench.wrong)


if __name__ == "__main__":
    sys.exit(main())
