from __future__ import annotations

import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from src.ensemble.search import Structure, affordable_trials, full_structure, search_structures

MEMBERS = (("a", "identity"), ("a", "hflip"), ("b", "identity"))
GOAL = Structure("log", "before", ("a", "b"), ("identity",))


def distance(structure: Structure) -> float:
    """Count in how many ways a structure is not the goal."""
    same = [structure.pool == "log", structure.order == "before"]
    same += [structure.models == GOAL.models, structure.views == GOAL.views]
    return float(len(same) - sum(same))


def run(path, score=distance, **changes):
    options = {"journal": path, "name": "x", "trials": 40}
    return search_structures(score, MEMBERS, **(options | changes))


def test_finds_the_best_structure_and_scores_none_twice(tmp_path):
    path = tmp_path / "study.journal"
    assert run(path, trials=1) == (full_structure(MEMBERS), 3.0)  # the first try
    scored = []

    def counted(structure):
        scored.append(structure)
        return distance(structure)

    assert run(path, counted) == (GOAL, 0.0)
    assert len(set(scored)) == len(scored) and full_structure(MEMBERS) not in scored
    assert [(s.pool, s.order) for s in scored[:3]] == [
        ("linear", "before"), ("log", "after"), ("log", "before"),
    ]  # fmt: skip
    assert all(s.models == ("a", "b") for s in scored[:3])
    scored.clear()
    assert run(path, counted) == (GOAL, 0.0) and not scored
    run(path, counted, name="other data", trials=1)
    assert scored == [full_structure(MEMBERS)]


def rugged(structure: Structure) -> float:
    """Score with neither pattern nor ties, so that another path ends elsewhere."""
    return zlib.crc32(repr(structure).encode()) / 2**32


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 11, 12])
def test_a_search_stopped_anywhere_takes_the_same_path(tmp_path, stop):
    members = [(m, v) for m in "abcd" for v in ("identity", "hflip", "vflip")]
    options = {"name": "x", "trials": 20}

    def path_of(journal, scored, fail_at=-1):
        def score(structure):
            if len(scored) == fail_at:
                raise KeyboardInterrupt
            scored.append(structure)
            return rugged(structure)

        return search_structures(score, members, journal=journal, **options)

    first, before, after = [], [], []
    expected = path_of(tmp_path / "a", first)
    with pytest.raises(KeyboardInterrupt):
        path_of(tmp_path / "b", before, stop)
    assert path_of(tmp_path / "b", after) == expected
    assert before + after == first and len(after) == len(first) - stop
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_number_of_trials_falls_with_the_size_of_the_panel():
    def panel(*shape):
        return SimpleNamespace(raw=np.empty(shape, np.float32))

    assert affordable_trials(panel(33137, 35, 28)) == 20
    assert affordable_trials(panel(1000, 10, 10)) > 1000
    assert affordable_trials(panel(40_000, 70, 40)) == 8


def test_columns():
    structure = Structure("linear", "after", ("a",), ("identity", "hflip"))
    np.testing.assert_array_equal(structure.columns(MEMBERS), [1, 1, 0])
    np.testing.assert_array_equal(GOAL.columns(MEMBERS), [1, 0, 1])


@pytest.mark.parametrize("num", [1])
def test_one_model_and_one_view_are_not_searched(tmp_path, num):
    members = [("only", "identity")] * num
    best, *_ = search_structures(lambda s: 0.0, members, journal=tmp_path / "j", name="x", trials=4)
    assert best.models == ("only",) and best.views == ("identity",)


def test_a_structure_that_no_member_fits_is_not_scored():
    members = (("probe", "identity"), ("net", "identity"), ("net", "identity@1.25"))
    scored = []

    def count(structure):
        assert structure.columns(members).any()
        scored.append((structure.models, structure.views))
        return 0.0

    search_structures(count, members, journal=None, name="", trials=60)
    assert (("probe",), ("identity",)) in scored and (("net",), ("identity@1.25",)) in scored
