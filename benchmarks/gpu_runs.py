"""Whole runs of the GPU check: its tests, two folds to a submission, a training that is killed."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_report import NUM_CLASSES, Report, Setting
from benchmarks.kill_resume import make_weights
from benchmarks.timing import ROOT, num_cores
from src.data.dataset import default_num_workers
from src.engine import loop
from src.engine.runtime import default_precision, start_runtime
from src.losses.classification import build_loss
from src.models.classifier import build_classifier
from src.pipelines.run_folder import read_table
from src.runs import Run
from src.tasks.classification import Classification

GIB = 2.0**30


def machine(setting: Setting, report: Report) -> None:
    """Name the card and what it can do at most; check the precision chosen for it."""
    shm = shutil.disk_usage("/dev/shm").free / GIB if Path("/dev/shm").exists() else 0.0
    kind = setting.device
    report.fact(f"{num_cores()} cores, {default_num_workers(kind)} loader processes")
    report.fact(f"/dev/shm {shm:.1f} GiB free")
    chosen = default_precision(kind)
    if kind != "cuda":
        report.expect(chosen == "fp32", f"precision {chosen}")
        return
    card = torch.cuda.get_device_properties(0)
    report.fact(f"{card.name}, {card.total_memory / GIB:.0f} GiB, sm_{card.major}{card.minor}")
    report.fact(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    wanted = "bf16" if card.major >= 8 else "fp16"
    report.expect(chosen == wanted, f"precision {chosen}")
    dtype = torch.bfloat16 if chosen == "bf16" else torch.float16
    side = 8192
    a, b = (torch.randn(side, side, device="cuda", dtype=dtype) for _ in range(2))
    ms = milliseconds(lambda: a @ b, 10)
    report.fact(f"matrix product of {side}: {2 * side**3 / ms / 1e9:,.0f} TFLOP/s")
    ms = milliseconds(lambda: a.copy_(b), 50)
    report.fact(f"copy {2 * a.nbytes / ms / 1e6:,.0f} GB/s")


def milliseconds(function: Callable[[], object], times: int) -> float:
    """Return what one call costs the card."""
    for _ in range(3):
        function()
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    for _ in range(times):
        function()
    ended.record()
    ended.synchronize()
    return float(begun.elapsed_time(ended)) / times


def tests(setting: Setting, report: Report) -> None:
    """Run the tests that need a card: parity with the CPU, guards, short memory, losses."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/engine/test_gpu.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    report.expect(done.returncode == 0, (done.stdout.strip().splitlines() or ["nothing ran"])[-1])


def way(setting: Setting, report: Report) -> None:
    """Train two folds with everything switched on, blend, infer; compare OOF with fp32."""
    import infer_ensemble
    import optimize_weights
    import train_fold
    from src.pipelines.classification import train as folds

    output = setting.folder / "way"
    name, size, batch = setting.pick(("resnet50", 224, 64), ("test_resnet", 32, 12))
    weights = setting.folder / "pretrained.safetensors"
    make_weights(weights, name)
    place = ["--data_dir", str(setting.folder / "data"), "--output_dir", str(output)]
    used = memory_after_folds(folds)
    watch_syncs(setting)
    flags = (
        f"--model {name} --pretrained {weights} --config= --folds 2 --fold all --epochs 2 "
        f"--image_size {size} --batch_size {batch} --cache ram --device {setting.device} "
        "--head_start probe --norms frozen --mixup_alpha 0.4 --cutmix_alpha 1 --mix_off_epochs 1 "
        f"--ema_decay 0.9 --num_workers {setting.pick(8, 2)} "
        f"--precision {setting.pick('auto', 'bf16')}"
    )
    status = train_fold.main([*place, *flags.split()])
    runs = [Run(output / name / f"fold{fold}") for fold in range(2)]
    finished = [run.finished.exists() for run in runs]
    report.expect(status == 0 and all(finished), f"two folds trained, exit {status}")
    if setting.device == "cuda":  # it would have raised
        report.fact("no step from an epoch's third on made the host wait")
    losses = [float(row["train_loss"]) for run in runs for row in read_table(run.metrics)]
    report.expect(all(map(math.isfinite, losses)), f"train loss {losses[0]:.3f} → {losses[-1]:.3f}")
    if setting.device == "cuda":
        grown = (used[-1] - used[0]) / 1e6
        report.expect(
            abs(grown) <= 50, f"memory after fold 2 less that after fold 1: {grown:.0f} MB"
        )
    optimize_weights.main([*place, "--trials", "0", "--presets", ""])
    infer_ensemble.main([*place, "--tta_steps", "5", "--device", setting.device])
    lines = (output / "submission.csv").read_text(encoding="utf-8").splitlines()
    report.expect(len(lines) > 1, f"submission of {len(lines) - 1} rows")
    compare_oof(setting, runs[0], size, report)


def memory_after_folds(module: Any) -> list[int]:
    """Return a list that gets the bytes in use after each call of ``module.train_fold``."""
    used: list[int] = []
    train_fold = module.train_fold

    def train_and_note(*args: Any, **options: Any) -> None:
        train_fold(*args, **options)
        if torch.cuda.is_available():
            gc.collect()
            used.append(torch.cuda.memory_allocated())

    module.train_fold = train_and_note
    return used


def watch_syncs(setting: Setting) -> None:
    """Let torch raise wherever a training step from an epoch's third on waits for the card."""
    if setting.device != "cuda":
        return
    train_epoch = loop.train_epoch

    def watched(parts: Any, job: Any, save_when_due: Callable[[], None]) -> float:
        after_step = refuse_syncs(len(job.train_loader))

        def after() -> None:
            save_when_due()
            after_step()

        try:
            return train_epoch(parts, job, after)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    loop.train_epoch = watched


def refuse_syncs(steps: int) -> Callable[[], None]:
    """Return what to call after each step, so that torch raises where the host waits for the card.

    The first two steps of an epoch of ``steps`` are let off, for what is allocated once.
    """
    done = itertools.count(1)

    def after_step() -> None:
        place = next(done) % steps
        if place in (2, 0):
            torch.cuda.set_sync_debug_mode("error" if place == 2 else "default")

    return after_step


def compare_oof(setting: Setting, run: Run, size: int, report: Report) -> None:
    """Predict a fold's held-out rows again in fp32 and compare logits with its ``oof.npz``."""
    import numpy as np
    import yaml

    from src.data.canonical import ImageSource
    from src.data.dataset import EpochSampler, ImageDataset, make_loader
    from src.data.index import find_root, read_train
    from src.data.transforms import eval_transform
    from src.engine.predict import predict_logits
    from src.engine.weights import load_weights
    from src.views import first_views

    saved = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    name, pool = saved["resolved"]["timm_id"], saved["options"]["pool"]
    model = build_classifier(name, NUM_CLASSES, image_size=size, pool=pool)
    model.load_state_dict(load_weights(run.best))
    with np.load(run.oof) as stored:
        ids, before = stored["ids"], stored["logits"][0].astype(np.float32)
    table = read_train(find_root(str(setting.folder / "data"))).table.set_index("id")
    paths = table["image"].loc[ids].tolist()
    data = ImageDataset(
        ImageSource(find_root(str(setting.folder / "data")), paths, size),
        None,
        eval_transform(size),
    )
    loader = make_loader(data, EpochSampler(len(paths), 32), device_type=setting.device)
    after = np.empty((1, len(paths), NUM_CLASSES), np.float16)
    task = Classification(NUM_CLASSES, build_loss("cross_entropy"))
    runtime = start_runtime(setting.device, "fp32")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    predict_logits(runtime.place(model), loader, task, runtime, out=after, views=first_views(1))
    off, spread = np.abs(after[0] - before), float(before.std())
    report.expect(
        float(off.mean()) <= 0.05 * spread,
        f"OOF logits off fp32 by {off.mean():.4f}, at most {off.max():.3f}, spread {spread:.2f}",
    )


def resume(setting: Setting, report: Report) -> None:
    """Train twice undisturbed, once stopped by SIGTERM to the group; compare the three."""
    name, size = setting.pick(("resnet18", 128), ("test_resnet", 32))

    def start(folder: str) -> subprocess.Popen[bytes]:
        flags = (
            f"--model {name} --pretrained none --config= --folds 2 --fold 0 --epochs 12 "
            f"--image_size {size} --batch_size 16 --num_workers 2 --autotune off --cache none "
            f"--ema_decay 0.9 --lr 1e-3 --device {setting.device}"
        )
        place = [str(setting.folder / "small"), "--output_dir", str(setting.folder / folder)]
        command = [sys.executable, "train_fold.py", "--data_dir", *place, *flags.split()]
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True)

    runs = {key: Run(setting.folder / key / name / "fold0") for key in ("once", "twice", "killed")}
    running = {key: start(key) for key in runs}
    try:
        wait_for_rows(runs["killed"], 2, running["killed"])
        os.killpg(running["killed"].pid, signal.SIGTERM)
        status = running["killed"].wait(60)
        report.expect(status == 143, f"SIGTERM to the group in mid-run: exit status {status}")
        report.expect(runs["killed"].last.exists(), "state saved")
        running["killed"] = start("killed")
        statuses = [process.wait(90) for process in running.values()]
    finally:
        for process in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    report.expect(not any(statuses), f"three runs ended with {statuses}")
    scores = {key: float(read_table(run.metrics)[-1]["train_loss"]) for key, run in runs.items()}
    noise, off = (abs(scores[key] - scores["once"]) for key in ("twice", "killed"))
    limit = max(2e-2, 3 * noise) if setting.device == "cuda" else 0.0
    report.expect(
        off <= limit,
        f"last train loss: undisturbed {scores['once']:.4f}, again {scores['twice']:.4f}, "
        f"killed and resumed {scores['killed']:.4f}",
    )
    for key in ("twice", "killed"):
        report.fact(f"{count_equal(runs['once'], runs[key])} tensors bit-identical to {key}")


def wait_for_rows(run: Run, rows: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a run has validated so many epochs."""
    while len(read_table(run.metrics)) < rows:
        if process.poll() is not None:
            raise RuntimeError(f"{run.folder} ended with {process.returncode} before epoch {rows}")
        time.sleep(0.01)


def count_equal(run: Run, other: Run) -> str:
    """Return how many of the last state's weights are equal in both runs."""
    first, second = (torch.load(r.last, map_location="cpu")["model"] for r in (run, other))
    equal = sum(torch.equal(first[key], second[key]) for key in first)
    return f"{equal} of {len(first)}"
