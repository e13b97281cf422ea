"""Order and loader: pure in (seed, epoch), exact from any step, with any number of processes."""

import multiprocessing
import os
import shutil
import signal
import sys
import time
import warnings
from itertools import chain
from types import SimpleNamespace

import pytest
import torch

from src.data import dataset as loader_module
from src.data.dataset import (
    EpochSampler,
    cap_workers,
    collate,
    default_num_workers,
    fit_workers,
    make_loader,
)
from src.script import MachineError, UserError
from tests.data.layout import refused


class Numbers(torch.utils.data.Dataset):
    """Samples that tell their key; misbehaves at row ``bad``."""

    def __init__(self, size=11, bad=None, harm=None):
        self.size, self.bad, self.harm = size, bad, harm

    def name(self, row):
        return f"photo{row}.jpg"

    def __len__(self):
        return self.size

    def __getitem__(self, key):
        return self.sample(key, self.read(key[1]))

    def read(self, row):
        if row == self.bad:
            self.harm(self.name(row))
        return row

    def sample(self, key, row):
        epoch = key[0]
        image = torch.full((3, 2, 2), 10 * epoch + row, dtype=torch.uint8)
        return {"image": image, "index": torch.tensor(row), "target": torch.tensor(row % 3)}


def rows(sampler):
    return [[row for _, row in keys] for keys in sampler]


def equal(left, right):
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        for a, b in zip(left, right, strict=True)
    )


def test_each_epoch_has_every_row_once_in_an_order_of_its_own():
    sampler = EpochSampler(11, 4, seed=5, shuffle=True)
    orders = []
    for epoch in (0, 1, 0):
        sampler.start(epoch)
        batches = list(sampler)
        assert [len(batch) for batch in batches] == [4, 4, 3] and len(sampler) == 3
        assert all(key[0] == epoch for batch in batches for key in batch)
        orders.append(list(chain(*rows(sampler))))
        assert sorted(orders[-1]) == list(range(11))
    assert orders[0] == orders[2] != orders[1]
    assert EpochSampler(11, 4, seed=6, shuffle=True).order(0).tolist() != orders[0]


def test_validation_keeps_the_order_and_every_row():
    assert rows(EpochSampler(5, 2)) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "sizes"),
    [(9, 4, [4, 4]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 1, [1, 1, 1])],
)
def test_a_lone_last_row_is_not_trained_on(num_rows, batch_size, sizes):
    sampler = EpochSampler(num_rows, batch_size, shuffle=True)
    assert [len(batch) for batch in sampler] == sizes and len(sampler) == len(sizes)


@pytest.mark.parametrize(("num_rows", "steps"), [(9, 2), (10, 3), (12, 3), (3, 1)])
def test_a_last_batch_is_filled_with_the_first_rows(num_rows, steps):
    filled = EpochSampler(num_rows, 4, shuffle=True, fill=True)
    plain = EpochSampler(num_rows, 4, shuffle=True)
    assert len(filled) == len(plain) == steps
    order = plain.order(0).tolist()
    expected = [*order, *order][: 4 * steps] if num_rows >= 4 else order
    assert list(chain(*rows(filled))) == expected
    assert filled.rows(0, steps - 1).tolist() == rows(filled)[-1]
    parts = [EpochSampler(13, 8, shuffle=True, fill=True, rank=r, world_size=2) for r in (0, 1)]
    assert [len(batch) for part in parts for batch in rows(part)] == [4] * 4


def test_resuming_gives_the_rest():
    sampler = EpochSampler(11, 3, seed=1, shuffle=True)
    sampler.start(7)
    whole = list(sampler)
    sampler.start(7, 2)
    assert list(sampler) == whole[2:]
    sampler.start(7, 4)
    assert list(sampler) == []


def test_processes_share_each_training_batch():
    alone = rows(EpochSampler(21, 8, seed=2, shuffle=True))
    parts = [
        EpochSampler(21, 8, seed=2, shuffle=True, rank=rank, world_size=3) for rank in range(3)
    ]
    together = [sorted(chain(*shares)) for shares in zip(*map(rows, parts), strict=True)]
    assert together == [sorted(batch) for batch in alone][: len(together)]
    # Every process takes the same number of steps, or the others would wait forever.
    assert {len(part) for part in parts} == {2} and min(map(len, rows(parts[2]))) >= 2


@pytest.mark.parametrize(("num_rows", "steps"), [(21, 4), (20, 4), (2, 1), (18, 3)])
def test_processes_share_the_held_out_rows_in_blocks(num_rows, steps):
    parts = [EpochSampler(num_rows, 8, rank=rank, world_size=3) for rank in range(3)]
    assert [len(rows(part)) for part in parts] == [len(part) for part in parts] == [steps] * 3
    assert list(chain(*chain(*map(rows, parts)))) == list(range(num_rows))
    assert max(len(batch) for part in parts for batch in rows(part)) <= 8 // 3


def test_too_few_rows_for_the_processes_is_one_line():
    refused(
        r"5 rows in batches of 8 for 3 processes.*--batch_size",
        EpochSampler,
        5,
        8,
        shuffle=True,
        world_size=3,
    )
    refused("batches of 3 for 2 processes", EpochSampler, 50, 3, shuffle=True, world_size=2)
    assert len(EpochSampler(1, 1, shuffle=True)) == 1


def test_a_process_without_rows_makes_an_empty_batch():
    sampler = EpochSampler(1, 2, rank=1, world_size=2)
    assert list(make_loader(Numbers(), sampler)) == [{}]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_do_not_depend_on_processes(num_workers):
    sampler = EpochSampler(11, 4, seed=5, shuffle=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "This DataLoader will create")  # where there is one core
        loader = make_loader(Numbers(), sampler, num_workers=num_workers)
        for epoch, step in ((0, 0), (1, 0), (1, 2), (0, 1)):  # persistent processes start again
            sampler.start(epoch, step)
            expected = [collate([Numbers()[key] for key in keys]) for keys in sampler]
            assert equal(list(loader), expected)
    assert len(loader) == 3


def test_stopping_early_leaves_the_next_epoch_whole():
    sampler = EpochSampler(12, 2, seed=5, shuffle=True)
    loader = make_loader(Numbers(12), sampler, num_workers=2)
    next(iter(loader))
    sampler.start(1)
    assert [batch["index"].tolist() for batch in loader] == rows(sampler)


def raise_user_error(name):
    raise UserError(f"{name} is damaged: restore the file")


def kill_self(name):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_file_surfaces_as_one_line(num_workers):
    data = Numbers(bad=3, harm=raise_user_error)
    loader = make_loader(data, EpochSampler(11, 2), num_workers=num_workers)
    others = {*multiprocessing.active_children()}
    with pytest.raises(UserError) as caught:
        list(loader)
    assert str(caught.value) == "photo3.jpg is damaged: restore the file"
    assert others.issuperset(multiprocessing.active_children()), "its processes have ended"
    with pytest.raises(UserError, match=r"photo3\.jpg is damaged"):
        list(loader)  # with new ones


@pytest.mark.slow  # torch looks after its processes every five seconds
def test_a_killed_process_is_reported_with_the_place():
    loader = make_loader(Numbers(bad=1, harm=kill_self), EpochSampler(4, 2), num_workers=1)
    with pytest.raises(MachineError, match=r"while reading photo0\.jpg.*memory.*--num_workers"):
        list(loader)


def test_images_of_several_sizes_are_refused():
    samples = [{"image": torch.zeros(3, side, 4, dtype=torch.uint8)} for side in (4, 5)]
    assert isinstance(collate(samples), UserError)


def test_processes_beyond_two_a_core_are_not_started(monkeypatch, capsys):
    monkeypatch.setattr("src.data.dataset.available_cores", lambda: 1)
    loaders = [make_loader(Numbers(), EpochSampler(11, 2), num_workers=399) for _ in range(2)]
    assert [loader.num_workers for loader in loaders] == [2, 2]
    assert capsys.readouterr().out == "note: --num_workers 399: 2 are started, two for each core\n"
    assert make_loader(Numbers(), EpochSampler(11, 2), num_workers=1).num_workers == 1
    cap_workers.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes are spawned")
def test_number_of_processes(monkeypatch):
    monkeypatch.setattr(loader_module, "available_cores", lambda: 4)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert default_num_workers("mps") == default_num_workers("cpu") == 0
    assert default_num_workers("cuda") == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # two cards on four cores: 1 + 1 each
    assert default_num_workers("cuda") == 1
    monkeypatch.setattr(loader_module, "available_cores", lambda: 64)
    assert default_num_workers("cuda") == 16


def test_no_more_processes_than_shared_memory_and_batches_allow(monkeypatch, capsys):
    data, order = Numbers(100), EpochSampler(100, 2)  # a batch of 2 × (12 + 8 + 8) bytes
    free = [10**9]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    assert fit_workers(3, data, order) == 3
    assert fit_workers(3, data, EpochSampler(4, 2)) == 2
    assert not capsys.readouterr().out
    free[0] = 56 * 7  # two in use and on their way, two a process
    assert fit_workers(5, data, order) == 2 and "/dev/shm" in capsys.readouterr().out
    free[0] = 56 * 3
    assert fit_workers(5, data, order) == 0


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="POSIX signals")
@pytest.mark.parametrize(("context", "processes"), [("fork", 2), ("spawn", 1)])
def test_signals_to_the_group_leave_processes_alive(monkeypatch, context, processes):
    monkeypatch.setattr(loader_module, "CONTEXT", context)
    loader = make_loader(Numbers(40), EpochSampler(40, 2), num_workers=processes)
    batches = iter(loader)
    seen = [next(batches)["index"].tolist()]
    workers = list(loader._iterator._workers)
    for signum in (signal.SIGTERM, signal.SIGINT):
        for worker in workers:
            os.kill(worker.pid, signum)
    seen += [batch["index"].tolist() for batch in batches]
    assert seen == rows(EpochSampler(40, 2)) and all(worker.is_alive() for worker in workers)


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="POSIX signals")
def test_a_death_is_noticed_where_its_batch_is_waited_for(monkeypatch):
    loader = make_loader(Numbers(40), EpochSampler(40, 2), num_workers=2)
    batches = iter(loader)
    next(batches)
    victim = loader._iterator._workers[0]
    victim.kill()
    victim.join(10)
    time.sleep(0.1)  # torch's handler of SIGCHLD would raise here
    with pytest.raises(MachineError, match="memory"):
        list(batches)


@pytest.mark.parametrize(
    ("signum", "word"),
    [(signal.SIGKILL, "memory"), (signal.SIGBUS, "/dev/shm"), (signal.SIGSEGV, "SIGSEGV")],
)
def test_a_death_is_explained_by_its_signal(signum, word):
    loader = make_loader(Numbers(), EpochSampler(4, 2))
    loader._iterator = SimpleNamespace(_workers=[SimpleNamespace(exitcode=-signum)])
    text = loader._explain(RuntimeError("exited unexpectedly"), [(0, 3)])
    assert word in text and "photo3.jpg" in text and "--num_workers" in text
    full = loader._explain(RuntimeError("unable to mmap: No space left on device"), [])
    assert "/dev/shm" in full


def short_of_memory(_):
    raise RuntimeError("Couldn't open shared file mapping: <torch_1_2_3>, error code: <1455>")


def test_short_shared_memory_of_windows_is_one_line():
    loader = make_loader(Numbers(8, 4, short_of_memory), EpochSampler(8, 2), num_workers=1)
    with pytest.raises(MachineError, match=r"too little memory: .* --num_workers"):
        list(loader)
