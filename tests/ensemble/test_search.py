from __future__ import annotations

import numpy as np
import pytest

from src.ensemble.search import Structure, mend_journal, search_structures, whole

MEMBERS = (("a", "identity"), ("a", "hflip"), ("b", "identity"))
GOAL = Structure("log", "before", ("a", "b"), ("identity",))


def distance(structure: Structure) -> float:
    """Count in how many ways a structure is not the goal."""
    same = [structure.pool == "log", structure.order == "before"]
    same += [structure.models == GOAL.models, structure.views == GOAL.views]
    return float(len(same) - sum(same))


def run(path, **changes):
    options = {"journal": path, "name": "x", "trials": 40, "timeout": 60.0}
    return search_structures(distance, whole(MEMBERS), **(options | changes))


def test_finds_the_best_structure_and_resumes(tmp_path):
    path = tmp_path / "study.journal"
    best, value, trials = run(path, trials=3)
    assert trials == 3
    scored = []

    def counted(structure):
        scored.append(structure)
        return distance(structure)

    best, value, trials = search_structures(
        counted, whole(MEMBERS), journal=path, name="x", trials=40, timeout=60.0
    )
    assert best == GOAL and value == 0.0 and 35 <= trials <= 40  # empty subsets are pruned
    assert len(set(scored)) == len(scored) <= 37  # the first three are not scored again
    assert run(path)[0] == GOAL  # all done: nothing is scored
    assert run(path, name="other data", trials=1)[0] == whole(MEMBERS)  # the first try


def test_no_time_means_the_start(tmp_path):
    best, value, trials = run(tmp_path / "study.journal", timeout=0.0, trials=0)
    assert (best, value, trials) == (whole(MEMBERS), 3.0, 0)


def test_a_torn_journal_is_mended(tmp_path):
    path = tmp_path / "study.journal"
    run(path, trials=4)
    whole_lines = path.read_bytes()
    path.write_bytes(whole_lines + b'{"op_code": 4, "worker')
    path.with_name("study.journal.lock").symlink_to(path)  # left by a killed process
    mend_journal(path)
    assert path.read_bytes() == whole_lines
    path.write_bytes(whole_lines + b'{"op_code": 4, "worker')
    assert run(path, trials=6)[2] >= 4


def test_columns():
    structure = Structure("linear", "after", ("a",), ("identity", "hflip"))
    np.testing.assert_array_equal(structure.columns(MEMBERS), [1, 1, 0])
    np.testing.assert_array_equal(GOAL.columns(MEMBERS), [1, 0, 1])


@pytest.mark.parametrize("num", [1])
def test_one_model_and_one_view_are_not_searched(tmp_path, num):
    start = whole([("only", "identity")] * num)
    best, *_ = search_structures(
        lambda s: 0.0, start, journal=tmp_path / "j", name="x", trials=4, timeout=10.0
    )
    assert best.models == ("only",) and best.views == ("identity",)
