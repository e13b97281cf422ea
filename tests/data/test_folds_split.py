import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from src.data.folds import assign_folds, merge_groups
from src.script import UserError
from tests.data.layout import refused


def test_without_groups_it_is_scikit_learns_stratified_k_fold():
    targets = ["a"] * 20 + ["b"] * 11 + ["rare"] * 2
    found = assign_folds(targets, 5, seed=3)
    labels = np.unique(targets, return_inverse=True)[1]
    with pytest.warns(UserWarning, match="least populated"):
        splits = list(StratifiedKFold(5, shuffle=True, random_state=3).split(labels, labels))
    for number, (_, rows) in enumerate(splits):
        assert (np.flatnonzero(found == number) == rows).all()


def test_seed_decides_and_nothing_else():
    targets, groups = ["a", "b"] * 30, [f"g{row // 3}" for row in range(60)]
    for names in (None, groups):
        first = assign_folds(targets, 3, 1, names)
        assert (first == assign_folds(targets, 3, 1, names)).all()
        assert (first != assign_folds(targets, 3, 2, names)).any()


def test_all_classes_smaller_than_folds():
    found = assign_folds(["a", "a", "b", "b", "c"], 3, 0)
    assert sorted(np.bincount(found)) == [1, 2, 2]
    assert found[0] != found[1] and found[2] != found[3]


def test_one_class_and_no_class():
    assert sorted(np.bincount(assign_folds([""] * 9, 3, 0))) == [3, 3, 3]
    groups = ["x"] * 3 + [""] * 6
    found = assign_folds([""] * 9, 3, 0, groups)
    assert sorted(np.bincount(found)) == [3, 3, 3] and len(set(found[:3])) == 1


@pytest.mark.parametrize(
    ("count", "groups", "message"),
    [(2, None, r"images \(2\)"), (4, ["a", "a", "b", "b"], r"groups \(2\)")],
)
def test_too_many_folds(count, groups, message):
    refused(
        f"--folds 3 is more than there are {message}",
        assign_folds,
        ["a", "b"] * (count // 2),
        3,
        0,
        groups,
    )


def test_no_image_at_all_is_no_matter_of_folds() -> None:
    refused(r"no image can be read: quarantine\.csv", assign_folds, [], 3, seed=0)


def imbalance(targets, folds, num_folds):
    """Mean over classes of the standard deviation of a class's shares over the folds."""
    shares = [
        np.bincount(folds[targets == c], minlength=num_folds) / (targets == c).sum()
        for c in np.unique(targets)
    ]
    return np.mean(np.std(shares, axis=1))


def test_groups_are_spread_as_evenly_as_scikit_learn_does():
    ours, theirs = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        groups = rng.integers(0, 150, 600)
        targets = (groups + rng.integers(0, 3, 600)) % 8
        folds = assign_folds(targets.astype(str).tolist(), 5, seed, groups.astype(str).tolist())
        ours.append(imbalance(targets, folds, 5))
        splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        for number, (_, rows) in enumerate(splitter.split(targets, targets, groups)):
            folds[rows] = number
        theirs.append(imbalance(targets, folds, 5))
    assert np.mean(ours) <= 1.2 * np.mean(theirs), (ours, theirs)


def test_a_rare_class_counts_as_much_as_a_frequent_one():
    # Dealt by size: 6 A; 2 A + 2 B go to the other fold. Of A + B the A is one of 9 and the B one
    # of 3, so that B decides: 6/81 among the A's against 2/81 + 2/9.
    targets, groups = list("AAAAAAAABBAB"), ["x"] * 6 + ["y"] * 4 + ["z"] * 2
    folds = assign_folds(targets, 2, 0, groups)
    assert folds[-1] == folds[0] != folds[6]


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["", "", "", "g", "h", "0", "1"])),
        min_size=2,
        max_size=40,
    ),
    st.integers(2, 6),
    st.integers(0, 5),
)
def test_any_assignment_is_whole_fair_and_keeps_groups(rows, num_folds, seed):
    targets, groups = map(list, zip(*rows, strict=True))
    alone = groups.count("")
    if alone + len(set(groups) - {""}) < num_folds:
        with pytest.raises(UserError):
            assign_folds(targets, num_folds, seed, groups)
        return
    found = assign_folds(targets, num_folds, seed, groups)
    assert set(found) == set(range(num_folds))  # no fold is empty
    for name in set(groups) - {""}:
        assert len({f for f, g in zip(found, groups, strict=True) if g == name}) == 1
    if alone == len(groups):
        for name in set(targets):
            counts = np.bincount(found[np.array(targets) == name], minlength=num_folds)
            assert counts.max() - counts.min() <= 1


def test_merge_groups_by_hand():
    groups = ["p", "p", "q", "", "", "", ""]
    assert merge_groups(groups, []) == groups
    merged = merge_groups(groups, [(1, 2), (3, 4), (4, 5)])
    assert merged == ["p", "p", "p", "duplicates-3", "duplicates-3", "duplicates-3", ""]


def test_merged_names_do_not_meet_the_users_own():
    merged = merge_groups(["duplicates-1", "", "", ""], [(1, 2)])
    assert merged[0] != merged[1] == merged[2] != merged[3] == ""


@given(
    st.lists(st.sampled_from(["", "", "a", "b", "duplicates-0"]), min_size=1, max_size=12),
    st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=4), max_size=6),
)
def test_merge_groups_is_the_transitive_closure(groups, linked):
    linked = [[row % len(groups) for row in rows] for rows in linked]
    merged = merge_groups(groups, linked)
    together = np.eye(len(groups), dtype=bool)
    for name in set(groups) - {""}:
        rows = np.flatnonzero(np.array(groups) == name)
        together[np.ix_(rows, rows)] = True
    for rows in linked:
        together[np.ix_(rows, rows)] = True
    for _ in groups:
        together = together @ together
    for one in range(len(groups)):
        for other in range(len(groups)):
            same = one == other or (merged[one] != "" and merged[one] == merged[other])
            assert same == together[one, other]
