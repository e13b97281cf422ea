"""Threads of a CPU that other programs use, too."""

import pytest
import torch

from src.engine import cpu


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Play a machine on which so many cores are free: each further thread is waited for."""
    free = {"cores": 8}

    def seconds_with(threads: int) -> float:
        return 1 / threads if threads <= free["cores"] else 10.0 * threads

    monkeypatch.setattr(cpu, "seconds_with", seconds_with)
    return free


@pytest.mark.parametrize(("free", "used"), [(8, 8), (5, 4), (2, 2), (0, 1)])
def test_as_many_threads_as_are_fastest(threads: dict[str, int], free: int, used: int) -> None:
    usual, threads["cores"] = torch.get_num_threads(), free
    with cpu.with_threads(0):
        cpu.use_threads(8)
        assert torch.get_num_threads() == used
        cpu.use_threads(0)
        assert torch.get_num_threads() == used, "0 leaves them as they are"
    assert torch.get_num_threads() == usual


def test_fastest_threads_for_a_block_on_a_cpu_alone(threads: dict[str, int]) -> None:
    threads["cores"] = 0
    with cpu.with_threads(4):
        with cpu.with_fastest_threads(torch.device("cpu")):
            assert torch.get_num_threads() == 1
        with cpu.with_fastest_threads(torch.device("cuda")):
            assert torch.get_num_threads() == 4
        assert torch.get_num_threads() == 4


def test_seconds_are_those_of_a_convolution() -> None:
    usual = torch.get_num_threads()
    assert 0 < cpu.seconds_with(1) < 5
    assert torch.get_num_threads() == usual
