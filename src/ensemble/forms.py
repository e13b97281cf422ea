"""Submission forms, recognised from the sample: class columns, labels, top-K lists, long form.

Columns of probabilities; one label an image, as a name or a number; a list of the likeliest
classes in one cell; 0 and 1 in a column for each class; and the long form, one line for each image
and class. Of several labels an image each column is the probability of its own label, or 1 where it
is given; a cell holds the names or numbers of the labels that are given, written as the sample
writes them: ``a b``, ``a|b``, ``[1, 4]``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from src.classes import is_number, join_groups, nfc, split_lines
from src.ensemble.matching import match_columns, positive_class
from src.ensemble.submission import MIN_UNSEEN, Columns, Form, join_cell
from src.script import UserError

# How a sample may write the names of all classes in another way.
_CHANGES: tuple[Callable[[str], str], ...] = (
    str.lower, str.upper, str.title, str.capitalize, lambda name: name.replace(" ", "_"),
    lambda name: name.replace("_", " "), lambda name: name.lower().replace(" ", "_"),
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """What the sample submission says."""

    header: tuple[str, ...]  # its columns, the ids' first
    cells: tuple[str, ...] = ()  # (N,) text of the second column
    keys: tuple[str, ...] = ()  # (N,) text of the first column
    name: str = "sample_submission.csv"  # the file's, for messages
    order: tuple[str, ...] = ()  # (K,) classes in the order that the user gave, if any
    codes: Mapping[str, str] = field(default_factory=dict)  # class → its number in a file beside
    codes_name: str = ""  # that file's


def find_form(
    sample: Sample | None,
    classes: Sequence[str],
    *,
    holds: str = "probabilities",
    ids: Sequence[str] = (),
    source_classes: Sequence[str] = (),
    alias_groups: Sequence[Sequence[str]] = (),
    policy: str = "split",
    floor: float = 0.0,
) -> Form:
    """Recognise the form that a sample asks for.

    Args:
        sample: None where there is none.
        classes: K class names; merged ones carry one name of their group.
        holds: what the metric scores: ``probabilities``, ``labels`` or ``top``.
        ids: test ids, for the long form.
        source_classes: columns where there is no sample; empty = ``classes``.
        alias_groups: names that mean the same.
        policy: see ``match_columns``, as ``floor``.
        floor: mass of the learned floor.

    Raises:
        UserError: the sample names what is no class.
    """

    def match(names: Sequence[str]) -> Columns:
        source = sample.name if sample else "sample_submission.csv"
        return match_columns(
            names, classes, alias_groups=alias_groups, policy=policy, floor=floor, source=source
        )

    if sample is None:
        if holds == "probabilities":
            names = list(source_classes or classes)
            columns = match(names)
            return Form("columns", ("ID", *names), columns, notes=columns.notes)
        kind = "labels" if holds == "labels" else "lists"
        return Form(kind, ("ID", "label"), names=tuple(classes))
    header = sample.header
    known = known_names(classes, alias_groups)
    long = split_lines(sample.keys, ids) if len(header) == 2 else None
    if long is not None:
        names, places = long
        columns = match(names)
        said = f"{sample.name} has one line for each of {len(names)} classes of an image"
        notes = (said, *columns.notes)
        return Form("long", header, columns, places=np.array(places), keys=sample.keys, notes=notes)
    asks_labels = len(header) == 2 and nfc(header[1]) not in known and _says_labels(sample, known)
    if len(header) == 2 and (holds != "probabilities" or asks_labels):
        return _label_form(sample, classes, known, holds)
    try:
        columns = match(header[1:])
        if len(header) == 2 and nfc(header[1]) not in known:  # the positive class, by a guess
            _refuse_cells(sample, classes)
    except UserError:
        numbers = len(classes) > 2 or {nfc(cell).strip() for cell in sample.cells} <= known.keys()
        if len(header) == 2 and numbers and _says_labels(sample, known, numbers=True):
            return _label_form(sample, classes, known, holds)
        _refuse_cells(sample, classes)
        raise
    if holds == "labels":
        said = f"{sample.name}: 1 in the column of the decided class, 0 in the others"
        return Form("hot", header, columns, places=columns.classes, notes=(said, *columns.notes))
    return Form("columns", header, columns, notes=columns.notes)


def known_names(classes: Sequence[str], alias_groups: Sequence[Sequence[str]]) -> dict[str, int]:
    """Return every name of a class, in NFC → its number."""
    known = {nfc(name): k for k, name in enumerate(classes)}
    for group in join_groups(alias_groups):
        number = next((known[nfc(name)] for name in group if nfc(name) in known), None)
        if number is not None:
            known |= {nfc(name): number for name in group}
    return known


def _says_labels(sample: Sample, known: dict[str, int], *, numbers: bool = False) -> bool:
    """Tell whether the cells are names of classes; ``numbers``, whole numbers are taken for such.

    Else numbers may be probabilities.
    """
    cells = {nfc(cell).strip() for cell in sample.cells}
    words = {word for cell in cells for word in cell.split()}
    if numbers:
        return all(re.fullmatch(r"\d+", word) or word in known for word in words)
    named = cells <= known.keys() or words <= known.keys()
    return bool(words) and named and not all(map(is_number, words))


def _label_form(sample: Sample, classes: Sequence[str], known: dict[str, int], holds: str) -> Form:
    """Return the form of one label, or a list of labels, in the second column."""
    cells = {nfc(cell).strip() for cell in sample.cells} - {""}
    words, separator, around = split_cells(cells, classes, known)
    if separator == "|" and not any("|" in cell for cell in cells):
        separator = " "
    several = known.keys() & words or all(map(str.isdecimal, known.keys() | words))
    lists = holds == "top" or (not cells <= known.keys() and words != cells and bool(several))
    scored = next((cell for cell in cells if lists and re.search(r" 0?\.\d+$| 1\.0+$", cell)), "")
    if scored or any(re.fullmatch(r"\S+ [01]?\.\d+", cell) for cell in cells):
        raise UserError(
            f"{sample.name} asks for a class and its probability in one cell "
            f"({scored or min(cells)!r}), which is not written here: write the sample with a class "
            "a cell and add the probabilities afterwards"
        )
    names, notes = written_names(words if lists else cells, classes, known, sample)
    odd = next((name for name in names if lists and separator in name), None)
    if odd is not None:
        raise UserError(
            f"{sample.name} asks for lists of classes with {separator!r} between, but class "
            f"{odd!r} holds it: write the classes as numbers in the sample (0, 1, …)"
        )
    if holds == "probabilities":
        notes.append(
            f"{sample.name} asks for the {'likeliest classes' if lists else 'label'}, which "
            "the metric does not score: say what the contest counts with --metric, as in --metric "
            f"{'map@5' if lists else 'accuracy'}"
        )
    form = Form("labels", sample.header, names=tuple(names), notes=tuple(notes))
    return replace(form, kind="lists", separator=separator, around=around) if lists else form


def split_cells(
    cells: Iterable[str], classes: Sequence[str], known: Mapping[str, int]
) -> tuple[set[str], str, tuple[str, str, str]]:
    """Return the words of cells of several classes, what separates them, and what is around.

    ``cells`` are those of the sample, not empty: ``a b``, ``a|b``, ``[1, 4]``, ``['a', 'b']``.
    ``known`` has every name of a class.
    """
    brackets = next(
        (cell[0] + cell[-1] for cell in cells if re.fullmatch(r"\[.*\]|\{.*\}", cell)), ""
    )
    texts = [cell[1:-1] if brackets else cell for cell in cells]
    quote = next((text[0] for text in texts if brackets and text[:1] in ("'", '"')), "")
    whole = {text for text in texts if text in known}
    rest = [text for text in texts if text not in whole]
    found = (
        match[0] for mark in "|;,+/&" for text in rest
        if (match := re.search(rf"\s*{re.escape(mark)}\s*", text))
        and (mark in "|;," or known.keys() >= {*text.split(match[0])})
    )  # fmt: skip
    separator = next(found, " ")
    if separator == " " and (brackets or any(" " in name for name in classes)):
        separator = ", " if brackets else "|"
    parts = (text.split() if separator == " " else text.split(separator) for text in rest)
    words = {nfc(part.strip().strip("'\"")) for found in parts for part in found} - {""}
    return words | whole, separator, (brackets[:1], brackets[1:], quote)


def _refuse_cells(sample: Sample, classes: Sequence[str]) -> None:
    """Raise a UserError where the cells of the one column are words, or measurements."""
    cells = [cell.strip() for cell in sample.cells if cell.strip()]
    if len(sample.header) > 2:
        return
    word = next((cell for cell in cells if not is_number(cell.replace(",", "."))), "")
    if word:
        raise UserError(
            f"{sample.name}: column {sample.header[1]!r} holds words that are no class, such as "
            f"{word[:40]!r}: if they are labels, say what the contest counts: --metric accuracy "
            "(one label), f1_samples (several) or map@5 (the likeliest five)"
        )
    if len(classes) > 2 and all(map(is_number, classes)):
        raise UserError(
            f"{sample.name} asks for a number, {sample.header[1]!r}, and classes are predicted "
            "here, no measurements: if the labels are grades, pass --metric qwk, which writes them"
        )


def written_names(
    words: set[str], classes: Sequence[str], known: dict[str, int], sample: Sample
) -> tuple[list[str], list[str]]:
    """Return how the sample writes each class, and what was assumed."""
    if words <= known.keys():
        told = f"{sample.name} shows no label" if not words else ""
        apart = any(cell != nfc(cell) for cell in sample.cells)  # letters and accents, as on a Mac
        names = [unicodedata.normalize("NFD", name) for name in classes] if apart else [*classes]
        return names, [f"{told}: the classes' names are written"] if told else []
    numeric = all(map(is_number, words))
    for change in _CHANGES:
        names = [change(nfc(name)) for name in classes]
        if words <= {*names} and len({*names}) == len(names):
            notes = [f"{sample.name} writes {min(words)!r} and the like: so are the classes' names"]
            return names, notes
    said = (_numbers_of if numeric else _yes_and_no)(words, classes, sample)
    if said:
        return said
    met = {name.casefold() for name in known}
    strange = sorted(words - known.keys())
    if len(strange) < len(words) and not any(name.casefold() in met for name in strange):
        more = " …" if len(strange) > 5 else ""
        return list(classes), [
            f"{sample.name}: {', '.join(strange[:5])}{more}: no class with training images, so "
            "never written"
        ]
    if len(words) == 1:  # a filler in every row
        notes = [f"{sample.name}: {next(iter(words))!r} is no class: the names are written"]
        return list(classes), notes
    odd = max(words, key=float) if numeric else min(words - known.keys())
    raise UserError(
        f"{sample.name}: {odd!r} in column {sample.header[1]!r} is no class (they are "
        f"{', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}): write it in the sample as "
        "the images' labels are written"
    )


def _yes_and_no(
    words: set[str], classes: Sequence[str], sample: Sample
) -> tuple[list[str], list[str]] | None:
    """Return the two classes as no and yes, written as the sample's ``words`` are, and notes."""
    first, positive = min(words), positive_class(classes)
    change = next((c for c in (str.lower, str.upper) if c(first) == first), str.capitalize)
    for pair in (("false", "true"), ("no", "yes")):
        names = [change(pair[k == positive]) for k in range(len(classes))]
        if positive is not None and words <= {*names}:
            return names, [f"{sample.name} has {first!r}: {names[positive]} is {classes[positive]}"]
    return None


def _numbers_of(
    words: set[str], classes: Sequence[str], sample: Sample
) -> tuple[list[str], list[str]] | None:
    """Return the number of each class that the sample's ``words``, numbers, mean, and notes."""
    if all(map(is_number, classes)):  # 3 for a class that is called 3.0
        values = [float(name) for name in classes]
        if len(set(values)) == len(values) and all(value % 1 == 0 for value in values):
            width = max(map(len, words)) if any(re.match(r"0\d", word) for word in words) else 0
            names = [str(int(value)).zfill(width) for value in values]
            strange = sorted(words - {*names}, key=float)
            if len(words) > 1 and words == {str(int(value) - 1) for value in values}:
                raise UserError(
                    f"{sample.name} counts labels from {min(words, key=float)}, and the images' "
                    f"begin with {names[0]}: number them alike in train.csv and the sample"
                )
            said = f"{sample.name}: {', '.join(strange[:5])}: no class with training images"
            return names, [f"{said}, so never written"] if strange and len(words) > 1 else []
    for names, said in _numbers_said(classes, sample):
        if words <= {*names} and len({*names}) == len(classes):
            shown = f"{said}, such as {names[-1]} = {classes[-1]}"
            return names, [f"{sample.name} has numbers: {shown}"]
    if all(re.fullmatch(r"\d+", word) for word in words):
        positive = positive_class(classes)  # abnormal comes before normal by name
        order = sample.order or (classes if positive != 0 else classes[::-1])
        first = 1 if max(map(int, words)) == len(classes) and "0" not in words else 0
        if max(map(int, words)) < len(classes) + first:
            said = ", ".join(f"{k + first} = {name}" for k, name in enumerate(order[:3]))
            more = ", …" if len(classes) > 3 else ""
            how = "in the order of --ordinal" if sample.order else "by name"
            notes = [f"{sample.name} has numbers: classes are numbered {how}, {said}{more}"]
            if len(words) == 1:  # a filler, perhaps
                notes[0] += f"; if names are asked for, write {classes[0]} for {min(words)} there"
            return [str(order.index(name) + first) for name in classes], notes
    return None


def _numbers_said(classes: Sequence[str], sample: Sample) -> Iterator[tuple[list[str], str]]:
    """Yield the numbers of the classes that a file beside, or their own names, say; and who."""
    if sample.codes:
        for more in (0, 1):  # a list counts from 0, a sample may from 1
            numbers = [int(sample.codes[name]) + more for name in classes]
            yield [*map(str, numbers)], f"those of the classes in {sample.codes_name}"
    digits = [re.findall(r"\d+", name) for name in classes]
    for form in (str, int):  # class_10, before class_2 by name, is 10; 007_cat is 007 or 7
        yield (
            [str(form(found[0])) for found in digits if len(found) == 1],
            "those in the classes' names",
        )


def find_label_form(
    sample: Sample | None, labels: Sequence[str], *, holds: str, ids: Sequence[str] = ()
) -> Form:
    """Recognise the form that a sample of several labels an image asks for.

    ``holds`` is what the metric scores, probabilities or labels; ``ids`` are the test's, for the
    long form.

    Raises:
        UserError: the sample names what is no label.
    """
    kind = "marks" if holds == "labels" else "shares"
    if sample is None:
        header = ("ID", *labels)
        return Form(kind, header, _match(labels, labels, "")[0])
    long = split_lines(sample.keys, ids) if len(sample.header) == 2 else None
    if long is not None:
        names, places = long
        columns, notes = _match(names, labels, sample.name)
        said = f"{sample.name} has one line for each of {len(names)} labels of an image"
        return Form(
            f"long {kind}", sample.header, columns, places=np.array(places), keys=sample.keys,
            notes=(said, *notes),
        )  # fmt: skip
    known = known_names(labels, ())
    if len(sample.header) == 2 and nfc(sample.header[1]) not in known:
        return _cell_form(sample, labels, known, holds)
    columns, notes = _match(sample.header[1:], labels, sample.name)
    if kind == "marks":
        notes = (f"{sample.name}: 1 in the columns of the labels that are given", *notes)
    return Form(kind, sample.header, columns, notes=notes)


def _match(
    names: Sequence[str], labels: Sequence[str], source: str
) -> tuple[Columns, tuple[str, ...]]:
    """Match columns to labels; return them with what deserves saying."""
    columns = match_columns(names, labels, source=source)
    lacking = [label for k, label in enumerate(labels) if k not in columns.classes]
    taken = columns.notes[: -1 if lacking else None]  # the last is about rows that sum to 1
    unseen = [name for name, k in zip(names, columns.classes, strict=True) if k < 0]
    if unseen:
        taken = (
            *taken[:-1],
            f"{source}: {', '.join(unseen[:5])}: no image has this label; every row gets "
            f"{MIN_UNSEEN:g} there, or 0",
        )
    if lacking:
        taken = (*taken, f"{source} does not ask for {', '.join(lacking[:5])}")
    return columns, taken


def _cell_form(sample: Sample, labels: Sequence[str], known: dict[str, int], holds: str) -> Form:
    cells = {nfc(cell).strip() for cell in sample.cells} - {""}
    words, separator, around = split_cells(cells, labels, known)
    names, notes = written_names(words, labels, known, sample)
    if any(separator in name for name in names):
        odd = next(name for name in names if separator in name)
        raise UserError(
            f"{sample.name}: {odd!r} holds {separator!r}, which stands between labels: write the "
            "labels as numbers in the sample (0, 1, …)"
        )
    form = Form("sets", sample.header, names=tuple(names), separator=separator, around=around)
    shown = join_cell(form, (names[0], names[-1]))
    notes.append(f"{sample.name}: column {sample.header[1]!r} gets the labels as {shown}")
    if holds == "probabilities":
        notes.append(
            f"{sample.name} asks for labels, which the metric does not score: those of probability "
            "one half and more are written; say what the contest counts: --metric f1_samples"
        )
    return replace(form, notes=tuple(notes))
