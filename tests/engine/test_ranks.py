"""Two processes on gloo: they agree, share held-out rows and gradients, leave nothing behind."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import socket
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from src.config import EngineConfig, FoldConfig
from src.data.dataset import EpochSampler
from src.engine import runtime as runtime_module
from src.engine.checkpoint import prepare_parts, resume, save_state
from src.engine.interrupt import Interrupted, Pause
from src.engine.loop import fit
from src.engine.predict import evaluate, predict_logits, update_batch_norm
from src.engine.runtime import Runtime, start_runtime
from src.losses.classification import build_loss
from src.pipelines import run_folder
from src.pipelines.classification.train import learn
from src.pipelines.run_folder import write_config
from src.runs import Run
from src.script import MachineError, UserError
from src.tasks.classification import Classification
from src.tasks.segmentation import Segmentation
from src.views import VIEWS
from tests.engine.conftest import CLASSES, SIDE, TinyLoader, TinyNet

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")
ROWS, BATCH = 11, 6  # of two processes: blocks of 6 and 5 rows in batches of 3
TASK = Classification(CLASSES, build_loss("cross_entropy"))
EVERYTHING = next(iter(TinyLoader(ROWS, ROWS, shuffle=False)))


class Held:
    """A loader of the rows of one process."""

    def __init__(self, rank: int, world_size: int = 2) -> None:
        self.batch_sampler = EpochSampler(ROWS, BATCH, rank=rank, world_size=world_size)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for keys in self.batch_sampler:
            rows = [row for _, row in keys]
            yield {key: value[rows] for key, value in EVERYTHING.items()} if rows else {}


def net(seed: int = 0) -> TinyNet:
    """Return a net whose running statistics depend on ``seed``."""
    model = TinyNet(drop=0.0)
    torch.manual_seed(seed)
    model.backbone[1].running_mean.normal_()
    return model


def they_agree(runtime: Runtime, folder: Path) -> None:
    assert runtime.agree((7, 3)[runtime.rank]) == 7
    assert runtime.from_main({"rank": runtime.rank}) == {"rank": 0}
    assert runtime.gather(runtime.rank) == [0, 1]


def they_stop_together(runtime: Runtime, folder: Path) -> None:
    pause, seen = Pause(runtime.agree), []
    with pytest.raises(Interrupted, match="SIGTERM"):
        for batch in pause.between(range(9)):
            seen.append(batch)
            if runtime.rank == 1 and batch == 4:
                pause.signum = 15
    assert seen == [0, 1, 2, 3, 4]


def one_fails_and_both_stop(runtime: Runtime, folder: Path) -> None:
    def batches() -> Iterator[int]:
        yield 0
        if runtime.rank == 1:
            raise UserError("photo.jpg is damaged")
        yield 1

    kind, text = ((MachineError, "another process"), (UserError, "photo"))[runtime.rank]
    with pytest.raises(kind, match=text):
        list(Pause(runtime.agree).between(batches()))


def a_net_without_epochs_stops_together(runtime: Runtime, folder: Path) -> None:
    """Its probe alone is scored, and there a file may be damaged, too."""

    class Damaged(Held):
        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            if runtime.rank == 1:
                raise UserError("photo.jpg is damaged")
            yield from super().__iter__()

    config, valid = FoldConfig(epochs=0, head_start="probe"), Damaged(runtime.rank)
    kind, text = ((MachineError, "failed; it says why"), (UserError, "photo"))[runtime.rank]
    with pytest.raises(kind, match=text):
        learn(config, Run(folder), net(), TASK, valid, valid, runtime, identity="", probe=True)


def scores_are_those_of_one_process(runtime: Runtime, folder: Path) -> None:
    model = net(runtime.rank)
    runtime.share_buffers(model)
    assert torch.equal(model.backbone[1].running_mean, net(0).backbone[1].running_mean)
    found = evaluate(model, Held(runtime.rank), TASK, runtime, num_rows=ROWS)
    out = np.zeros((2, ROWS, CLASSES), np.float16)
    predict_logits(model, Held(runtime.rank), TASK, runtime, out=out, views=VIEWS[:2])
    meter, alone = TASK.meter(), np.zeros_like(out)
    with torch.inference_mode():
        for batch in (batch for rank in range(2) for batch in Held(rank)):
            meter.update(model(batch["image"]), batch)
            for view in range(2):
                logits = model(VIEWS[view].apply(batch["image"]))
                alone[view, batch["index"].numpy()] = logits.numpy().astype(np.float16)
    assert found == meter.compute() and np.array_equal(out, alone) and alone.all()


def mask_scores_are_those_of_one_process(runtime: Runtime, folder: Path) -> None:
    for classes in (("background", "lane"), ("background", "a", "b")):
        task = Segmentation(classes, lambda *_: {})
        rng = torch.Generator().manual_seed(0)
        mask = torch.randint(0, len(classes), (ROWS, SIDE, SIDE), generator=rng)
        logits = torch.randn((ROWS, task.num_outputs, SIDE, SIDE), generator=rng)
        own, alone = task.meter(), task.meter()
        for rank in range(2):
            for keys in EpochSampler(ROWS, BATCH, rank=rank, world_size=2):
                rows = torch.tensor([row for _, row in keys])
                for meter in (alone, own) if rank == runtime.rank else (alone,):
                    meter.update(logits[rows], {"mask": mask[rows], "index": rows})
        own.merge_states(runtime.gather(own.state()))
        assert own.compute() == alone.compute()


def gradients_are_shared_and_nets_are_freed(runtime: Runtime, folder: Path) -> None:
    model = net()
    wrapped = runtime.wrap_ddp(model)
    before = model.backbone[1].running_mean.clone()
    rows = slice(0, 4) if runtime.rank == 0 else slice(4, 8)
    wrapped(EVERYTHING["image"][rows]).square().mean().backward()
    gradients = runtime.gather(model.head.weight.grad.tolist())
    assert gradients[0] == gradients[1]
    means = runtime.gather(model.backbone[1].running_mean.tolist())
    assert means[0] != means[1] and before.tolist() not in means
    watched = weakref.ref(model)
    del model, wrapped
    gc.collect()
    assert watched() is None


def norms_measured_anew_are_one(runtime: Runtime, folder: Path) -> None:
    model = net()
    batch = {key: value[runtime.rank :: 2] for key, value in EVERYTHING.items()}

    class Once(list):
        batch_sampler: Any = EpochSampler(ROWS, ROWS, shuffle=True)

    update_batch_norm(model, Once([batch]), runtime, 1)
    means = runtime.gather(model.backbone[1].running_mean.tolist())
    assert means[0] == means[1]


def a_different_start_is_refused(runtime: Runtime, folder: Path) -> None:
    config = EngineConfig(epochs=1, device="cpu")
    run = Run(folder / f"machine{runtime.rank}")
    parts = prepare_parts(net(), config, runtime, 4)
    if runtime.rank == 1:
        parts.state.step = 3
        save_state(run, parts.pack(config))
        parts.state.step = 0
    with pytest.raises(UserError, match=r"steps 0, 3.*--output_dir"):
        resume(parts, run, config)


def an_output_folder_of_ones_own_is_refused(runtime: Runtime, folder: Path) -> None:
    """Before the first epoch: without the first process's weights the last one is lost."""
    run_folder.LISTED_S = 0.0
    for name in ("shared", f"machine{runtime.rank}"):
        run = Run(folder / name / "fold0")
        run.folder.mkdir(parents=True, exist_ok=True)
        refused = pytest.raises(UserError, match=r"not every process.*one --output_dir")
        with nullcontext() if name == "shared" else refused:
            write_config(run, EngineConfig(), {}, runtime, "mine")


@dataclass(frozen=True)
class Poisoned(Classification):
    """One row has no finite loss."""

    def loss(self, model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        terms = super().loss(model, batch)
        return {"loss": terms["loss"] * (torch.nan if 7 in batch["index"] else 1.0)}


def a_loss_that_is_not_finite_names_the_rows_of_all(runtime: Runtime, folder: Path) -> None:
    loader, run = Held(runtime.rank), Run(folder / "run")
    loader.batch_sampler = EpochSampler(
        ROWS, BATCH, shuffle=True, rank=runtime.rank, world_size=2
    )  # fmt: skip
    with pytest.raises(UserError, match="not finite"):
        fit(
            net(), Poisoned(CLASSES, TASK.criterion), loader, None, run=run, runtime=runtime,
            config=EngineConfig(epochs=1, batch_size=BATCH, device="cpu"),
            names=[f"id{row}" for row in range(ROWS)],
        )  # fmt: skip
    runtime.agree(0)
    assert "id7" in json.loads(run.nonfinite.read_text())["ids"]


def child(check: Callable[..., None], rank: int, port: int, folder: Path) -> None:
    """Be one of two processes; whatever is raised goes to a file."""
    try:
        torch.set_num_threads(1)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        from accelerate.state import AcceleratorState, PartialState

        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState._reset_state()
        device = "cpu" if torch.accelerator.is_available() else "auto"
        runtime = start_runtime(device).with_choice("fp32", False)
        assert runtime.num_processes == 2 and runtime.rank == rank
        check(runtime, folder)
        runtime.agree(0)
    except BaseException:
        (folder / f"error{rank}").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize(
    "check",
    [
        they_agree,
        they_stop_together,
        one_fails_and_both_stop,
        a_net_without_epochs_stops_together,
        scores_are_those_of_one_process,
        mask_scores_are_those_of_one_process,
        gradients_are_shared_and_nets_are_freed,
        norms_measured_anew_are_one,
        a_different_start_is_refused,
        an_output_folder_of_ones_own_is_refused,
        a_loss_that_is_not_finite_names_the_rows_of_all,
    ],
    ids=lambda check: check.__name__,
)
def test_two_processes(check: Callable[..., None], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=child, args=(check, rank, port, tmp_path)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        process.kill()
    errors = [path.read_text() for path in sorted(tmp_path.glob("error*"))]
    assert not errors and [process.exitcode for process in both] == [0, 0], "\n".join(errors)


def child_of_no_launcher(names: dict[str, str], said: Path) -> None:
    """Write down how many processes there are, or why that is not known."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ |= names
    try:
        said.write_text(f"{start_runtime('cpu').num_processes}")
        assert {name: os.environ[name] for name in names} == names
    except Exception as error:
        said.write_text(str(error))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"LOCAL_RANK": "0"}, "1"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "1"),  # of a cluster's container
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "1"),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "RANK is not: start this with torchrun"),
    ],
)
def test_what_a_launcher_left_behind(names: dict[str, str], said: str, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    alone = fork.Process(target=child_of_no_launcher, args=(names, tmp_path / "said"))
    alone.start()
    alone.join(60)
    alone.kill()
    found = (tmp_path / "said").read_text()
    assert found == said if len(said) == 1 else said in found


def test_a_device_that_processes_cannot_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them would train the whole fold, in the same folder: Accelerate has none on MPS."""
    alone = SimpleNamespace(num_processes=1, device=torch.device("mps"))
    monkeypatch.setattr(runtime_module, "Accelerator", lambda **_: alone)
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"on mps: leave torchrun out"):
        start_runtime()
