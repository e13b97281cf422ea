"""fit() under kills: the disk stands still at the n-th change, for every n."""

from __future__ import annotations

import itertools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

CHANGES = ("replace", "link", "fsync", "unlink")


class Killed(BaseException):
    """What SIGKILL is to a process: from here on, nothing is changed on the disk any more."""


def kill_before(change: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything from the ``change``-th change of the disk on fail, clean-up included."""
    count = itertools.count(1)

    def trap(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(count) >= change:
                raise Killed
            return function(*args, **kwargs)

        return call

    kept = getattr(pathlib, "_normal_accessor", None)  # in Python 3.10 Path holds its own of them
    for name in CHANGES:
        if hasattr(kept, name):
            monkeypatch.setattr(kept, name, trap(getattr(os, name)))
        monkeypatch.setattr(os, name, trap(getattr(os, name)))


def test_killed_between_any_two_writes_it_ends_bit_identical(train: Any, monkeypatch: Any) -> None:
    options = {"epochs": 1, "batch_size": 16, "micro_batch_size": 9, "checkpoint_minutes": 0.0}
    whole, _ = train("whole/fold0", **options)
    expected = torch.load(whole.last, weights_only=True)
    kills = 0
    for change in itertools.count(1):
        with monkeypatch.context() as disk:
            kill_before(change, disk)
            try:
                train(f"cut{change}/fold0", **options)
                break  # it makes no such change any more
            except Killed:
                kills += 1
        run, _ = train(f"cut{change}/fold0", **options)
        for name in ("best", "metrics"):
            assert getattr(run, name).read_bytes() == getattr(whole, name).read_bytes(), change
        found = torch.load(run.last, weights_only=True)
        for part in ("model", "ema"):
            for key, value in expected[part].items():
                assert torch.equal(found[part][key], value), (change, part, key)
        assert found["state"] == expected["state"]
    assert kills > 15  # saves, best weights and metrics all have several windows
