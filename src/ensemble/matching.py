"""Columns of a sample submission matched to classes: by name, alias, or a guess without doubt."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import numpy as np

from src.classes import is_number, join_groups, nfc
from src.ensemble.submission import MIN_UNSEEN, Columns
from src.metrics.classification import Array
from src.script import UserError


def match_columns(
    names: Sequence[str],
    classes: Sequence[str],
    *,
    alias_groups: Sequence[Sequence[str]] = (),
    policy: str = "split",
    floor: float = 0.0,
    source: str = "sample_submission.csv",
) -> Columns:
    """Match the sample's columns to classes by name (in NFC), aliases included.

    A name that is no class may differ in case, blanks and words such as ``prob_`` or ``is_``, or
    say ``target`` alone, where that leaves no doubt. Where every class has its column, another
    column is a class without training images.

    Args:
        names: J class columns of the sample.
        classes: K classes of the predictions; merged ones carry one name of their group.
        alias_groups: names that mean the same.
        policy: where the mass of a group with several columns goes: ``split`` evenly, all to its
            ``first`` column, or ``both_equal_renormalised``: whole to each, rows then renormalised.
        floor: mass that the blend's learned floor spreads over all classes evenly.
        source: the sample's name, for messages.

    Raises:
        UserError: a column that is no class, or a column twice.
    """
    if len({nfc(name) for name in names}) < len(names):
        twice = next(n for n in names if [nfc(m) for m in names].count(nfc(n)) > 1)
        raise UserError(f"{source}: column {twice!r} occurs twice; keep one")
    group_of = {name: group for group in join_groups(alias_groups) for name in group}
    place = {nfc(name): k for k, name in enumerate(classes)}
    exact = [
        next((place[n] for n in (nfc(name), *group_of.get(nfc(name), ())) if n in place), None)
        for name in names
    ]
    found, notes = _guess_rest(names, classes, exact, source)
    lacking = [name for k, name in enumerate(classes) if k not in found]
    unseen = [name for name, k in zip(names, found, strict=True) if k is None]
    _refuse_strangers(names, classes, unseen, lacking, source)
    taken = np.array([-1 if k is None else k for k in found], dtype=np.int64)
    shares = _share_out(names, taken, len(classes), policy, group_of)
    if unseen:
        mass = max(floor * len(unseen) / (len(classes) + len(unseen)), MIN_UNSEEN)
        shares[taken < 0] = mass / len(unseen)
        are = "is" if len(unseen) == 1 else "are"
        notes.append(
            f"{source}: {_listed(unseen)} {are} no class with training images: every row "
            f"gets {mass / len(unseen):.2g} there{'' if floor else ', or what the floor learns'}"
        )
    if lacking:
        notes.append(
            f"{source} asks for {len(classes) - len(lacking)} of {len(classes)} classes: each "
            f"column holds its own probability, and what is left for {_listed(lacking)} is not "
            "spread over them (rows sum to less than 1)"
        )
    return Columns(tuple(names), taken, shares, not lacking, tuple(notes))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")


def _refuse_strangers(
    names: Sequence[str],
    classes: Sequence[str],
    unseen: Sequence[str],
    lacking: Sequence[str],
    source: str,
) -> None:
    """Raise a UserError where a column may be a class that has none under another name."""
    if len(unseen) == len(names):
        asked, remedy = f"first: {names[0]!r}", ""
        if len(names) == 1:
            asked = f"asks for {names[0]!r} alone"
            remedy = (
                "; if it is the label, pass --metric accuracy; if it is the probability of one "
                f"class, write the line `{classes[-1]},{names[0]}` (with that class) into "
                "aliases.csv beside it and run optimize_weights.py again"
            )
        elif len(names) <= len(classes):
            remedy = (
                "; if they are the classes by other names, write a line for each into aliases.csv "
                f"beside it, such as `{classes[0]},{names[0]}` (with the class that it is), and "
                "run optimize_weights.py again"
            )
        raise UserError(
            f"{source}: no column is a class ({asked}): a submission here has one column of "
            f"probabilities for each class; write the sample with its ids and the columns "
            f"{', '.join(classes[:3])}{', …' if len(classes) > 3 else ''}{remedy}"
        )
    if unseen and lacking and all(map(is_number, (*unseen, *lacking))):
        raise UserError(
            f"{source}: column {unseen[0]!r} matches no class, and class {lacking[0]} has no "
            "column: if the two count from different numbers, write the labels in train.csv as the "
            "columns are numbered, else remove the column from the sample"
        )
    if unseen and lacking:
        plain = [nfc(name) for name in lacking]
        close = difflib.get_close_matches(nfc(unseen[0]), plain, n=1, cutoff=0)
        raise UserError(
            f"{source}: column {unseen[0]!r} matches no class (nearest without a column: "
            f"{', '.join(close)}); if they are one, write the line `{close[0]},{nfc(unseen[0])}` "
            "into aliases.csv beside it and run optimize_weights.py again, else remove the "
            "column from the sample"
        )


# Words around a class's name in a column, and columns that mean the positive one of two classes.
_AROUND = frozenset(
    (
        *("p", "pr", "prob", "probs", "proba", "probability", "pred", "prediction", "predicted"),
        *("score", "is", "has", "class", "label", "target", "of", "y", "vote", "votes"),
    )
)
_POSITIVE = {frozenset({"0", "1"}): "1", frozenset({"0.0", "1.0"}): "1.0"} | {
    frozenset({no, yes}): yes
    for no, yes in (
        *(("no", "yes"), ("false", "true"), ("negative", "positive"), ("neg", "pos"), ("n", "y")),
        *(("f", "t"), ("normal", "abnormal"), ("benign", "malignant"), ("healthy", "sick")),
    )
}


def _guess_rest(
    names: Sequence[str], classes: Sequence[str], exact: Sequence[int | None], source: str
) -> tuple[list[int | None], list[str]]:
    """Find the classes of columns that have none by name, and say what was taken for what."""
    found = list(exact)
    loose: dict[tuple[str, ...], list[int]] = {}
    for k, name in enumerate(classes):
        if k not in exact:
            loose.setdefault(_words(name), []).append(k)
    taken = []
    shared = [{*_words(name)} for name in names]  # diagnosis_0, diagnosis_1
    around = _AROUND.union(set.intersection(*shared) if len(shared) > 1 else ())
    for place, name in enumerate(names):
        words = _words(name)
        if len(words) == 1 and (match := re.fullmatch(r"([^\W\d]+)(\d+)", words[0])):
            words = (match[1], match[2]) if match[1] in _AROUND else words  # class0
        inner = tuple(word for word in words if word not in around)
        near = next((loose[form] for form in (words, inner) if form and form in loose), [])
        if found[place] is None and len(near) == 1 and near[0] not in found:
            found[place] = near[0]
            taken.append(f"column {name!r} is taken for class {classes[near[0]]!r}")
    lacking = {*range(len(classes))} - {*found}
    if None in found and lacking and any(re.search(r"\d$", classes[k]) for k in lacking):
        found, taken = list(exact), []  # numbers that begin elsewhere: Class1 may be class 0
    more = len(taken) - 3
    shown = taken if more < 3 else [*taken[:2], f"{taken[2]}, and {more} others likewise"]
    notes = [f"{source}: {said}" for said in shown]
    positive = positive_class(classes)
    if found == [None] and positive is not None:
        found[0] = positive
        notes.append(
            f"{source}: its one column {names[0]!r} is taken for the probability of the positive "
            f"class, {classes[positive]!r}; for the other one write the line "
            f"`{classes[1 - positive]},{names[0]}` into aliases.csv beside it"
        )
    return found, notes


def positive_class(classes: Sequence[str]) -> int | None:
    """Return the number of the class of two that a 1 means, None where their names do not say."""
    plain = {name.casefold(): k for k, name in enumerate(classes)}
    name = _POSITIVE.get(frozenset(plain)) if len(classes) == 2 else None
    return None if name is None else plain[name]


def _words(name: str) -> tuple[str, ...]:
    if re.fullmatch(r"\d+\.0+", name.strip()):  # 3.0 is 3
        name = name.partition(".")[0]
    words = re.findall(r"[^\W_]+", nfc(name).casefold())
    return tuple(str(int(word)) if word.isdecimal() else word for word in words)


def _share_out(
    names: Sequence[str],
    taken: Array,
    num_classes: int,
    policy: str,
    group_of: dict[str, tuple[str, ...]],
) -> Array:
    """Return (J,) the part of its class's mass that each column gets under ``policy``."""
    counts = np.bincount(taken[taken >= 0], minlength=num_classes)
    if policy == "split":
        return 1.0 / np.maximum(counts[taken], 1)
    shares = np.ones(len(taken))
    if policy == "first":
        for k in np.flatnonzero(counts > 1):
            rivals = np.flatnonzero(taken == k).tolist()
            ranks = [group_of[nfc(names[j])].index(nfc(names[j])) for j in rivals]
            shares[rivals] = 0.0
            shares[rivals[int(np.argmin(ranks))]] = 1.0
    return shares
