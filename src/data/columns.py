"""Column detection of a CSV by names and cells: image, id, group; and checks of class names."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from src.classes import is_number, nfc
from src.data.files import IMAGE_ENDINGS
from src.script import UserError, counted, nearest

if TYPE_CHECKING:
    import pandas as pd


# Column names as competitions use them, most telling first.
IMAGE_NAMES = (
    *("img_path", "image_path", "file_path", "path", "image", "img", "file_name", "file"),
    *("image_name", "img_name", "picture", "photo", "이미지", "이미지경로", "파일명", "경로"),
)
ID_NAMES = ("id", "image_id", "img_id", "test_id", "row_id", "index", "아이디", "번호")
LABEL_NAMES = (
    *("label", "target", "class", "class_name", "label_name", "category", "labels", "diagnosis"),
    *("dx", "class_id", "category_id", "label_id", "class_label", "라벨", "레이블", "클래스"),
    *("정답", "분류", "y"),
)
GROUP_NAMES = (
    *("group", "group_id", "groups", "patient_id", "patient", "subject_id", "subject"),
    *("그룹", "환자"),
)
RUN_NAMES = ("encodedpixels", "rle", "rle_mask", "mask_rle", "rles", "segmentation")
_PIXELS = 64  # columns of numbers that no table of files has
FOLDER_NAMES = ("folder", "directory", "dir", "subfolder", "subdir", "folder_name", "dir_name")
# Names that are a label's unless another column has one of them too.
OFTEN_LABELS = frozenset({
    *("species", "breed", "disease", "emotion", "expression", "finding", "variety", "cultivar"),
    *("genus", "sign", "kind", "material", "quality", "grade", "severity", "품종", "종류", "상태"),
})  # fmt: skip
# Words of a column's name that say what several images are of: they must share a fold.
SUBJECTS = frozenset({
    *("group", "patient", "subject", "person", "participant", "case", "lesion", "donor"),
    *("specimen", "survey", "observation"),
    *("slide", "study", "exam", "visit", "animal", "individual", "identity", "household", "house"),
    *("home", "building", "property", "session", "video", "clip", "sequence", "seq"),
    *("scene", "site", "recording", "track", "drive", "trip", "route", "flight", "burst"),
    *("event", "location"),
    *("place", "camera", "station", "plot", "field", "farm", "tree", "plant", "object", "item"),
    *("product", "instance", "owner", "user", "author", "photographer", "vehicle"),
    *("환자", "그룹", "피험자", "장소", "영상"),
})  # fmt: skip
MASK_WORDS = frozenset({"mask", "masks", "segmentation", "annotation", "annot", "seg", "gt"})


class Wanted(NamedTuple):
    """The columns of ``train.csv`` that the user named; None for those to be found."""

    image: str | None = None
    label: str | None = None
    group: str | None = None


def image_column(
    table: pd.DataFrame,
    wanted: str | None,
    path: Path,
    finds: Callable[[str], bool] = lambda _: False,
) -> str:
    """Return the wanted column, else one whose cells look like image files, by name, or are files.

    ``wanted`` is the column that the user named; ``finds`` tells whether a cell means an image that
    is there.

    Raises:
        UserError: there is none; names the flag.
    """
    if not wanted:
        head = table.head(100)
        looks = [name for name in table.columns if head[name].map(looks_like_image).mean() > 0.5]
        looks = [name for name in looks if not MASK_WORDS & set(words_of(name))] or looks
        if looks:
            found = pick_name(looks, IMAGE_NAMES) or looks[0]
            if any(map(finds, head[found].head(20))):
                return found
            other = _column_of_files(table, finds)  # those are on the web, or of the originals
            sure = other is not None and not numbers_rows(table[other])
            return (other if sure or "://" in head[found].iat[0] else None) or found
    name = pick_column(table, wanted, (*IMAGE_NAMES, *ID_NAMES), path, "--image_column")
    if not wanted and (name is None or not any(map(finds, table[name].head(20)))):
        name = _column_of_files(table, finds) or name
    if name is None and len(table.columns) == 1 and " " in table.columns[0]:
        raise UserError(
            f"{path}: the columns are not set apart by commas, semicolons, tabs or bars: save it "
            "as CSV"
        )
    if name is None:
        last = table.iloc[:5, -_PIXELS:].to_numpy().ravel().tolist()
        many = len(table.columns) >= _PIXELS and all(map(is_number, last))
        if many or max(len(cell.split()) for cell in table.iloc[0]) >= _PIXELS:
            raise UserError(
                f"{path} seems to hold the pixels themselves: write each row as an image file, and "
                "a table of the files and labels"
            )
        raise UserError(
            f"{path} has no known image column among {shown_names(table.columns)}: "
            "name it with --image_column"
        )
    return name


def _column_of_files(table: pd.DataFrame, finds: Callable[[str], bool]) -> str | None:
    """Return the column of the most different cells whose first ones all are images."""
    head = table.head(20)
    least = max(len(table) / 2, 3)
    fits = [name for name in table.columns if table[name].nunique() >= least]
    fits = [name for name in fits if all(map(finds, head[name]))]
    return max(
        fits, key=lambda name: (not numbers_rows(table[name]), table[name].nunique()), default=None
    )


def shown_names(names: Iterable[str]) -> str:
    """Return the names of columns, of which there may be many, for a message."""
    said = list(map(str, names))
    first = ", ".join(said[:12])
    return first if len(said) <= 12 else f"{first}, … ({len(said)} in all)"


def looks_like_image(cell: str) -> bool:
    """Tell whether a cell ends as the name of an image file does."""
    name = cell.strip().partition("?")[0] if "://" in cell else cell.strip()
    return posixpath.splitext(name)[1].lower() in IMAGE_ENDINGS


def words_of(name: str) -> list[str]:
    """Return the words of a name in lower case: ``patientId`` is patient, id."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", nfc(name))
    return re.findall(r"[^\W\d_]+", spaced.casefold())


def pick_column(
    table: pd.DataFrame, wanted: str | None, usual: Sequence[str], path: Path | str, flag: str
) -> str | None:
    """Return the column ``wanted`` by the user, else the first with a ``usual`` name, else None.

    Names are compared in NFC without regard to case, spaces, ``-`` and ``_``.

    Raises:
        UserError: the wanted column is missing.
    """
    if wanted:
        if wanted in table.columns:
            return wanted
        raise UserError(f"{path} has no column {wanted!r}{nearest(wanted, table.columns)}: {flag}")
    return pick_name(table.columns, usual)


def pick_name(names: Iterable[str], usual: Sequence[str]) -> str | None:
    """Return the first of ``names`` that is a ``usual`` one, as :func:`pick_column` compares."""
    known = {plain(name): name for name in reversed([*names])}
    return next((known[plain(name)] for name in usual if plain(name) in known), None)


def plain(name: str) -> str:
    """Return a name as names are compared."""
    return nfc(name).casefold().translate(str.maketrans("", "", " _-"))


_NO = frozenset({"0", "0.0", "0,0", "false", "no"})
_YES = frozenset({"1", "1.0", "1,0", "true", "yes"})
_SIGNS = frozenset({"1", "-1", "1.0", "-1.0"})


def numbers_rows(cells: pd.Series) -> bool:
    """Tell whether a column of three rows or more counts them, from 0 or from 1."""
    count = len(cells)
    if count < 3 or cells.iloc[0] not in ("0", "1"):
        return False
    start = int(cells.iloc[0])
    return cells.tolist() == [str(number) for number in range(start, start + count)]


def says_yes(cell: str) -> bool:
    """Tell whether a cell says yes."""
    return cell.strip().casefold() in _YES


def says_no(cell: str) -> bool:
    """Tell whether a cell says no."""
    return cell.strip().casefold() in _NO


def is_hot(table: pd.DataFrame, names: Sequence[str]) -> bool:
    """Tell whether columns hold nothing but yes and no, or nothing but 1 and -1."""
    cells = [set(table[name].str.strip().str.casefold()) for name in names]
    return bool(cells) and all(found <= _NO | _YES or found <= _SIGNS for found in cells)


def names_subject(name: str) -> bool:
    """Tell whether a column's name says what several images are of."""
    return not SUBJECTS.isdisjoint(words_of(name))


def find_group(
    table: pd.DataFrame, labels: Sequence[str], others: Sequence[str | None]
) -> tuple[str | None, list[str]]:
    """Return the column whose rows must share a fold, if any is sure, and notes on the others.

    It is named like a subject (patient, house, video), its values repeat and are many, and most
    classes come with several of them. Of several that nest, the one with the fewest values.
    ``others`` are columns that are taken.
    """
    rest = [name for name in table.columns if name not in others]
    repeats = [name for name in rest if repeats_much(table[name])]
    sure = [name for name in repeats if names_subject(name) and splits_classes(table[name], labels)]
    sure.sort(key=lambda name: table[name].nunique())
    taken = sure[0] if sure else None
    finer = [name for name in sure[1:] if table.groupby(name)[sure[0]].nunique().max() == 1]
    named = [name for name in rest if pick_name([name], GROUP_NAMES) and not table[name].is_unique]
    left = [name for name in rest if name in (*repeats, *named) and name not in (taken, *finer)]
    notes = [
        f"column {name} has {table[name].nunique()} values in {len(table)} rows: if the rows of "
        f"one belong together, pass --group_column {name}"
        for name in left
        if name in sure
        or name in named
        or (_is_text(table[name]) and not _renames(table[name], labels))
    ]
    return taken, notes[:3]


def _renames(cells: Iterable[str], labels: Sequence[str]) -> bool:
    """Tell whether cells are the classes by other names."""
    cells = [*cells]
    return len({*zip(cells, labels, strict=True)}) == len({*cells}) == len({*labels})


def repeats_much(cells: Iterable[str]) -> bool:
    """Tell whether values are many, and some of them repeat."""
    number, rows = len({*cells}), len([*cells])
    return number < rows and (number >= 20 or (number >= 4 and 8 * number >= rows))


def _is_text(cells: pd.Series) -> bool:
    return not any(map(is_number, cells.head(20).str.strip()))


def follows(cells: Sequence[str], labels: Sequence[str]) -> bool:
    """Tell whether values are kinds of classes: each class has one, so no fold could share it."""
    pairs = {*zip(cells, labels, strict=True)}
    return len({*cells}) > 1 and len(pairs) == len({*labels})


def splits_classes(cells: Iterable[str], labels: Sequence[str]) -> bool:
    """Tell whether most classes have several values, so that folds can share a class out."""
    values: dict[str, set[str]] = defaultdict(set)
    for value, label in zip(cells, labels, strict=True):
        values[label].add(value)
    return 2 * sum(len(found) > 1 for found in values.values()) > len(values)


_NOTHING = frozenset({"nan", "none", "null", "na", "n/a", "#n/a", "<na>", "nil", "-", "?", "."})


def says_nothing(cell: str) -> bool:
    """Tell whether a cell says that its value is missing, as programs and people write it."""
    return cell.strip().casefold() in _NOTHING


def check_labels(targets: Sequence[str], where: Path) -> list[str]:
    """Return notes on class names that look like one class, several, or a measurement.

    Raises:
        UserError: the labels are numbers that hardly ever repeat.
    """
    classes = set(targets)
    notes = _check_numbers(classes, len(targets), where)
    remedy = "trained as different classes; if they are one, join them in aliases.csv"
    notes += find_twins(classes, "case", str.casefold, remedy)
    notes += find_twins(
        classes, "how a number is written", lambda c: float(c) if is_number(c) else c, remedy
    )
    lost = sorted(
        name for name in classes if says_nothing(name) or (name == "-1" and len(classes) > 2)
    )
    if lost:
        count = sum(name in lost for name in targets)
        notes.append(
            f"{counted(count, 'label is', 'labels are')} {', '.join(map(repr, lost))}, trained as "
            "a class of that name; if they say that the label is missing, remove their rows"
        )
    several = made_of_others(classes)
    if several:
        notes.append(
            f"{counted(len(several), 'label')} made of other labels, such as {several[0]!r}: each "
            "combination is trained as a class of its own; if an image has several labels, pass "
            "what the contest counts: --metric f1_samples, mean_auc or map"
        )
    return notes


def made_of_others(classes: set[str]) -> list[str]:
    """Return the class names that consist of other class names, such as ``rust scab``."""
    return sorted(
        name for name in classes
        if len(words := re.split(r"[\s,;|+/&]+", name)) > 1 and classes.issuperset(words)
    )  # fmt: skip


def _check_numbers(classes: set[str], num_rows: int, where: Path) -> list[str]:
    if not all(map(is_number, classes)) or not any("." in name for name in classes):
        return []
    said = f"labels are {len(classes)} different numbers in {num_rows} rows"
    if len(classes) > 5 and 2 * len(classes) > num_rows:
        raise UserError(
            f"{where}: {said}: that is a measurement, and classes are learned here; name a column "
            "of classes with --label_column, or sort the numbers into a few classes"
        )
    if all(float(name) % 1 == 0 for name in classes):  # 0.0 and 1.0 are classes of a data frame
        return []
    return [f"{said} with decimals: each is trained as a class, not as a measurement"]


def find_twins(names: set[str], kind: str, key: Callable[[str], object], end: str) -> list[str]:
    """Return a note on the sets of names that have one key, or nothing."""
    sets = defaultdict(list)
    for name in sorted(names):
        sets[key(name)].append(name)
    twins = [same for same in sets.values() if len(same) > 1]
    if not twins:
        return []
    first = ", ".join(map(repr, twins[0][:4]))
    return [
        f"{counted(len(twins), 'set')} of labels that differ in {kind} only, first {first}: {end}"
    ]
