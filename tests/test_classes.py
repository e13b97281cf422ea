"""Class names: alias groups join, merge and partition the classes."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from src.classes import join_groups, merge_classes


def test_groups_join_through_shared_names():
    assert join_groups([("a", "b"), ("c", "d"), ("d", "a")]) == [("a", "b", "c", "d")]
    assert join_groups([]) == []


def test_the_name_said_first_leads():
    merged = merge_classes(["a", "b", "c"], [("c", "a")])
    assert merged.trained == ("b", "c") and merged.trained_of == (1, 0, 1)


def test_decomposed_names_are_the_same():
    name = "디_올뉴니로"
    merged = merge_classes([name, "x"], [(unicodedata.normalize("NFD", name), "x")])
    assert merged.trained == (name,) and merged.trained_of == (0, 0)


def test_chains_join_to_one_set():
    aliases = merge_classes("abcde", [("c", "b"), ("d", "e"), ("e", "b")])
    assert aliases.trained == ("a", "c") and aliases.trained_of == (0, 1, 1, 1, 1)
    assert aliases.members() == (("a",), ("c", "b", "d", "e"))


PAIRS = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef")), max_size=8)


@given(PAIRS)
def test_any_pairs_partition_the_classes(pairs):
    classes = tuple("abcdefgh")
    aliases = merge_classes(classes, pairs)
    members = aliases.members()
    assert sorted(name for names in members for name in names) == list(classes)
    assert tuple(names[0] for names in members) == aliases.trained
    assert list(aliases.trained) == [name for name in classes if name in aliases.trained]
    for one, other in pairs:
        assert aliases.targets([one]) == aliases.targets([other])
    named = {name for pair in pairs for name in pair}
    joined = len(classes) - len(aliases.trained)
    assert joined <= len(pairs) and all((name,) in members for name in set(classes) - named)


@given(
    st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=7, unique=True),
    st.lists(st.tuples(st.sampled_from("abcdefghi"), st.sampled_from("abcdefghi")), max_size=6),
)
def test_merging_keeps_every_class_exactly_once(classes, pairs):
    merged = merge_classes(classes, pairs)
    assert len(merged.trained_of) == len(classes)
    assert set(merged.trained_of) == set(range(len(merged.trained)))
    assert set(merged.trained) <= set(classes)
    for one, other in pairs:
        if one in classes and other in classes:
            column = dict(zip(classes, merged.trained_of, strict=True))
            assert column[one] == column[other]
