r"""Gain of distillation: students alone and taught, seeds side by side on one card.

    python benchmarks/teaching.py --out output/teaching --jobs 4 --seconds 500 -- \
        --model camvid_long --data_dir input/camvid
    python benchmarks/teaching.py --out output/teaching --seconds 0 -- ...      (compares again)

What follows ``--`` are options of ``train_distill.py``. Each run is a process: three teachers,
students alone, students taught by the teachers' mean or by the first one. Batches are augmented on
the device (``device_batches.py``), teachers run as CUDA graphs; loop, losses and scores are the
toolkit's. ``results.jsonl`` gets a line a finished run, and at the end the gain of each arm over
the students alone, with intervals over seeds and images. What is finished is not run again.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import infer_segmentation
import train_distill
from benchmarks.device_batches import DeviceBatches
from benchmarks.gpu_check import run_process, stop_all
from benchmarks.timing import num_cores
from src.data.dataset import EpochSampler
from src.data.masks import mask_dataset
from src.data.transforms import eval_transform
from src.engine.weights import load_weights
from src.mask_config import DistillConfig
from src.metrics.counts import class_iou
from src.models.distilled import Student, show_features
from src.pipelines.distillation import role_config, with_weights
from src.pipelines.segmentation import train as masks
from src.pipelines.segmentation.report import load_held_out
from src.reader import parse
from src.runs import Output, Run, read_done
from src.tasks.distillation import NAMES, Distillation

TEACHERS = 3
LATEST = 15.0  # seconds before the end at which what still runs is stopped


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
        terms: of the distillation, at the options' weights; none = alone.
        teachers: how many teach, by the mean of their logits.
    """

    terms: tuple[str, ...] = ()
    teachers: int = 0


ARMS = {
    "teacher": Arm(),
    "student": Arm(),
    "three": Arm(("kl", "channel"), TEACHERS),
    "three_kl": Arm(("kl",), TEACHERS),
    "three_channel": Arm(("channel",), TEACHERS),
    "one": Arm(("kl", "channel"), 1),
    "one_channel": Arm(("channel",), 1),
}


@dataclass(frozen=True)
class Job:
    """One run: an arm and a seed."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.arm}-{self.seed}"

    @property
    def needs(self) -> list[Job]:
        """Return the runs that must be finished before."""
        return [Job("teacher", number) for number in range(ARMS[self.arm].teachers)]


def plan(first: int, more: int) -> list[Job]:
    """Return the runs by their worth: all arms with ``first`` seeds, two arms with ``more``."""
    teachers = [Job("teacher", number) for number in range(TEACHERS)]
    arms = ("student", "three_channel", "one_channel", "three", "three_kl", "one")
    base = [Job(arm, seed) for arm in arms for seed in range(first)]
    extra = (Job(arm, seed) for seed in range(first, more) for arm in ("student", "three_channel"))
    return [*teachers, *base, *extra]


def main() -> int:
    """Run what there is time for, then compare."""
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    rest = sys.argv[cut + 1 :]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of runs")
    parser.add_argument("--jobs", type=int, default=4, help="runs side by side")
    parser.add_argument("--seconds", type=float, default=500.0, help="what is left then is stopped")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of every arm")
    parser.add_argument("--more_seeds", type=int, default=6, help="seeds of two arms")
    parser.add_argument("--test", action="store_true", help="predict the test split, too")
    parser.add_argument("--one", nargs=2, metavar=("ARM", "SEED"), help="run this and end")
    options = parser.parse_args(sys.argv[1:cut])
    if options.one:
        run_one(Job(options.one[0], int(options.one[1])), options, rest)
        return 0
    (options.out / "logs").mkdir(parents=True, exist_ok=True)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop_all)
    run_all(options, rest)
    report(options.out)
    return 0


def run_all(options: argparse.Namespace, rest: list[str]) -> None:
    """Run what is not finished, so many side by side, each a process, until the time is over."""
    deadline = time.monotonic() + options.seconds - LATEST
    jobs = plan(options.seeds, options.more_seeds)
    jobs = [job for job in jobs if not run_of(options.out, job).finished.is_file()]
    started: dict[Job, Future[None]] = {}

    def run(job: Job) -> None:
        for need in job.needs:  # teachers are the first to start
            if need in started:
                started[need].result()
        left, begun = deadline - time.monotonic(), time.monotonic()
        if left <= 0 or not all(run_of(options.out, n).finished.is_file() for n in job.needs):
            return
        own = ["--out", str(options.out), "--one", job.arm, str(job.seed), "--"]
        own[:0] = ["--test"] if options.test else []
        log = options.out / "logs" / f"{job.name}.log"
        command = [sys.executable, __file__, *own, *rest]
        trouble = run_process(command, log, left, max(1, num_cores() // options.jobs))
        if trouble:
            print(f"{job.name}: {trouble}", flush=True)
        else:
            note(options.out, job, time.monotonic() - begun)

    with ThreadPoolExecutor(options.jobs) as pool:
        for job in jobs:
            started[job] = pool.submit(run, job)
        for future in started.values():
            future.result()


def run_of(out: Path, job: Job) -> Run:
    """Return a job's run."""
    return Output(out).track("distill").run(job.name, 0)


def note(out: Path, job: Job, seconds: float) -> None:
    """Append a finished run to ``results.jsonl``."""
    done = read_done(run_of(out, job))
    scores = done["scores"]
    keys = ("pooled_mean_iou", "pooled_pixel_accuracy", "pooled_mean_accuracy")
    line: dict[str, Any] = {"run": job.name, "seconds": round(seconds, 1)}
    line |= {"best": done["score"], "best_epoch": done["best_epoch"]}
    line |= {key: scores[key] for key in keys if key in scores}
    line["history"] = [
        {key: round(value, 5) for key, value in row.items()} for row in done["history"]
    ]
    write_line(out, line)


def write_line(out: Path, line: dict[str, Any]) -> None:
    """Append a line to ``results.jsonl`` and print its beginning."""
    text = json.dumps(line)
    with (out / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(text + "\n")
    print(text[:300], flush=True)


def masks_of(out: Path, job: Job) -> Path:
    """Return the folder of a run's masks of the test split."""
    return out / "masks" / job.name / "masks"


def run_one(job: Job, options: argparse.Namespace, rest: list[str]) -> None:
    """Train a run, and predict the test split if asked."""
    words = [*rest, "--seed", str(job.seed), "--output_dir", str(options.out)]
    words += ["--autotune", "off"]  # it would time batches that the host makes
    config = parse(
        DistillConfig, words, prog="teaching.py", description="", row_by="model", rows_only=True
    )
    run = run_of(options.out, job)
    with run.hold():
        train(job, config, options.out)
    if options.test and job.arm != "teacher":
        folder = masks_of(options.out, job).parent
        place = ["--data_dir", config.data_dir, "--output", str(folder), "--worst", "0"]
        infer_segmentation.main(
            ["--runs", str(run.folder), *place, "--split", "test", "--device", config.device,
             "--output_dir", str(options.out)]
        )  # fmt: skip


def train(job: Job, config: DistillConfig, out: Path) -> None:
    """Train a run with batches made on the device."""
    masks.train_loader = device_loader  # type: ignore[assignment]
    arm, base = ARMS[job.arm], "teacher" if job.arm == "teacher" else "student"
    weights = {term: getattr(config, f"weight_{term}") for term in arm.terms}
    config = with_weights(config, weights)
    own = role_config(config, "distilled" if arm.teachers else base)
    output = Output(out).track("distill")
    field = train_distill.segmentation_field(config, output)
    torch.manual_seed(job.seed)
    model, task = field.build(base, True), field.task
    if arm.teachers:
        runtime = train_distill.own_runtime(own)
        teacher = runtime.place(load_mean(field, out, job))
        model = Student(model, None, len(NAMES))
        show = show_graphed if runtime.device.type == "cuda" else show_mean
        task = Distillation(task, teacher, show, weights, own.temperature, own.share_every)  # type: ignore[assignment,arg-type]
    field.train(own, run_of(out, job), model, task, base)


def device_loader(config: Any, data: Any, runtime: Any, output: Any) -> Any:
    """Stand in for ``train_loader``."""
    assert data.crop == data.size, "crops are of the images' size here"
    plain = eval_transform()
    rows = data.split.train
    dataset = mask_dataset(data.index, rows, plain, size=data.size, cache="none")
    order = EpochSampler(len(rows), config.batch_size, seed=config.seed, shuffle=True, fill=True)
    return DeviceBatches(dataset, order, config, runtime.device)


def load_mean(field: Any, out: Path, job: Job) -> nn.Module:
    """Load the teachers of a run, frozen."""
    nets = []
    for need in job.needs:
        net = field.build("teacher", False)
        net.load_state_dict(load_weights(run_of(out, need).best))
        nets.append(net)
    return nn.ModuleList(nets).eval().requires_grad_(False)


def show_mean(teachers: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of the teachers' logits, and the first one's deepest map."""
    shown = [show_features(net, image) for net in teachers]
    return torch.stack([logits for logits, _ in shown]).mean(0), shown[0][1]


GRAPHS: dict[Any, Any] = {}  # shape → (graph, its image, what it shows), or None where it failed


def show_graphed(teachers: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """Do what :func:`show_mean` does by replaying a CUDA graph, one a shape of the batch."""
    key = (*image.shape, image.stride())
    if key not in GRAPHS:
        try:
            GRAPHS[key] = capture(teachers, image)
        except RuntimeError as error:
            print(f"note: teachers without a graph: {str(error)[:200]}", flush=True)
            GRAPHS[key] = None
    if GRAPHS[key] is None:
        return show_mean(teachers, image)
    graph, static, shown = GRAPHS[key]
    static.copy_(image)
    graph.replay()
    return shown


def capture(teachers: Any, image: Tensor) -> Any:
    """Record the teachers' forward pass; refuse a record that computes anything else."""
    static, stream = image.clone(), torch.cuda.Stream()
    uncached = torch.autocast("cuda", torch.get_autocast_dtype("cuda"), cache_enabled=False,
                              enabled=torch.is_autocast_enabled("cuda"))  # fmt: skip
    with torch.no_grad(), uncached:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                plain = show_mean(teachers, static)[0].clone()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            shown = show_mean(teachers, static)
        graph.replay()
        off = float((shown[0] - plain).abs().max())
    if not off <= 0.05 * float(plain.abs().max()):
        raise RuntimeError(f"the graph's logits are off by {off:.3g}")
    print(f"teachers as a graph of {tuple(image.shape)}, off by {off:.2g}", flush=True)
    return graph, static, shown


def report(out: Path) -> None:
    """Write each arm's gain over the students alone, seeds paired."""
    seeds = {}
    for arm in ARMS:
        jobs = [Job(arm, seed) for seed in range(100)]
        seeds[arm] = [job.seed for job in jobs if run_of(out, job).finished.is_file()]
    for arm, found in seeds.items():
        both = sorted(set(found) & set(seeds["student"]))
        if arm != "student" and len(both) > 1:
            write_line(out, {"arm": arm, **gain(out, arm, both)})


def gain(out: Path, arm: str, seeds: list[int], repeats: int = 4000) -> dict[str, Any]:
    """Return the gain in pooled mean IoU with 95 % intervals.

    Over seeds and images: both are resampled, seeds in pairs. Over images: they alone. ``t``: from
    Student's distribution with the seeds' degrees of freedom and the error of both, which is the
    one to believe where seeds are few.
    """
    found = {}
    for name in ("student", arm):
        runs = [load_held_out(run_of(out, Job(name, seed))) for seed in seeds]
        assert len({tuple(ids) for _, ids, _ in runs}) == 1, "runs held out different images"
        found[name] = [counts.sort() for counts, _, _ in runs]
    n = len(found[arm][0])
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(n, np.full(n, 1 / n), repeats)
    weights = np.concatenate([np.ones((1, n), np.int64), drawn])  # the first: as it is
    scores = {name: np.stack([np.nanmean(class_iou(counts, weights), 1) for counts in runs])
              for name, runs in found.items()}  # fmt: skip
    off = scores[arm] - scores["student"]  # (seeds, 1 + repeats)
    picked = rng.integers(len(seeds), size=(len(seeds), repeats))
    over = {"images": off[:, 1:].mean(0), "seeds_and_images":
            np.take_along_axis(off[:, 1:], picked, 0).mean(0)}  # fmt: skip
    answer: dict[str, Any] = {"seeds": seeds, "gain": round(float(off[:, 0].mean()), 5)}
    answer["by_seed"] = off[:, 0].round(5).tolist()
    spread = off[:, 0].std(ddof=1)
    answer["std"] = round(float(spread), 5)
    error = np.hypot(spread / len(seeds) ** 0.5, off[:, 1:].mean(0).std())
    reach = float(student_t.ppf(0.975, len(seeds) - 1) * error)
    answer["t"] = [round(answer["gain"] - reach, 5), round(answer["gain"] + reach, 5)]
    for name, values in over.items():
        answer[name] = np.percentile(values, [2.5, 97.5]).round(5).tolist()
    answer["students"] = scores["student"][:, 0].round(5).tolist()
    answer["arm_scores"] = scores[arm][:, 0].round(5).tolist()
    return answer


if __name__ == "__main__":
    sys.exit(main())
