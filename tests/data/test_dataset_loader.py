"""Order and loader: pure in (seed, epoch), exact from any step, with any number of processes."""

import os
import signal
import warnings
from itertools import chain

import pytest
import torch

from src.data.dataset import EpochSampler, cap_workers, collate, default_num_workers, make_loader
from src.script import UserError


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


def test_resuming_gives_the_rest():
    sampler = EpochSampler(11, 3, seed=1, shuffle=True)
    sampler.start(7)
    whole = list(sampler)
    sampler.start(7, 2)
    assert list(sampler) == whole[2:]
    sampler.start(7, 4)
    assert list(sampler) == []


@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_share_each_batch(shuffle):
    alone = rows(EpochSampler(21, 8, seed=2, shuffle=shuffle))
    parts = [
        EpochSampler(21, 8, seed=2, shuffle=shuffle, rank=rank, world_size=3) for rank in range(3)
    ]
    assert [len(part) for part in parts] == [len(rows(part)) for part in parts]
    together = [sorted(chain(*shares)) for shares in zip(*map(rows, parts), strict=False)]
    assert together == [sorted(batch) for batch in alone][: len(together)]
    # In training every process takes the same number of steps, or the others would wait forever.
    if shuffle:
        assert {len(part) for part in parts} == {2} and min(map(len, rows(parts[2]))) >= 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_do_not_depend_on_processes(num_workers):
    sampler = EpochSampler(11, 4, seed=5, shuffle=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
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
    with pytest.raises(UserError) as caught:
        list(loader)
    assert str(caught.value) == "photo3.jpg is damaged: restore the file"


def test_a_killed_process_is_reported_with_the_place():
    loader = make_loader(Numbers(bad=0, harm=kill_self), EpochSampler(4, 2), num_workers=1)
    with pytest.raises(UserError, match=r"died while reading photo0\.jpg.*--num_workers 0"):
        list(loader)


def test_images_of_several_sizes_are_refused():
    samples = [{"image": torch.zeros(3, side, 4, dtype=torch.uint8)} for side in (4, 5)]
    assert isinstance(collate(samples), UserError)


def test_number_of_processes():
    assert default_num_workers("mps") == 0
    assert 0 <= default_num_workers("cuda") <= 8


def test_processes_beyond_two_a_core_are_not_started(monkeypatch, capsys):
    monkeypatch.setattr("src.data.dataset.available_cores", lambda: 1)
    loaders = [make_loader(Numbers(), EpochSampler(11, 2), num_workers=399) for _ in range(2)]
    assert [loader.num_workers for loader in loaders] == [2, 2]
    assert capsys.readouterr().out == "note: --num_workers 399: 2 are started, two for each core\n"
    assert make_loader(Numbers(), EpochSampler(11, 2), num_workers=1).num_workers == 1
    cap_workers.cache_clear()
