"""Location of a data set below the folder that was named, and names of its tables."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from src.classes import nfc
from src.data.columns import ID_NAMES, IMAGE_NAMES, looks_like_image, pick_name
from src.data.files import SPLIT_OF, SPLITS, Scanner, below, find_entry, is_litter
from src.files import read_head, readable
from src.script import UserError

TABLE_ENDINGS = (".csv", ".tsv", ".jsonl")
ANNOTATION_ENDINGS = (".json", ".parquet")
_PACKED = re.compile(r".*\.(zip|tar|tar\.\w+|tgz|7z|rar|gz)(\.\d+)?", re.IGNORECASE)
_OTHER_TABLES = re.compile(
    r".*(train|label|annot|metadata).*\.(xlsx|xls|ods|json|feather|pkl|db|mat)", re.IGNORECASE
)
_SHARDS = re.compile(
    r".*(\.(parquet|arrow|bson|h5|hdf5|npz|npy|tfrec|tfrecords?|lmdb|mdb|pickle|p)|-idx\d-ubyte|_batch(_\d)?)",
    re.IGNORECASE,
)
# Tables of labels beside train.csv, and inside the folder of training images.
LABEL_TABLES = (
    *("train_labels", "trainlabels", "labels", "training", "train_df", "train_data", "train_set"),
    *("training_set", "train_info", "train_metadata", "training_labels"),
)
_SAMPLES = (
    *("sample_submission", "samplesubmission", "sample-submission", "sample submission"),
    *("submission_sample", "submission_format", "sample_submit", "submission_example"),
    *("sample_sub", "samplesub"),
)
# Words of a folder's name that say nothing of their own.
FILL = frozenset({
    *("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "jpg", "jpeg"),
    *("png", "set", "data", "dataset", "dir", "folder", "files", "seg", "class", "classes", "all"),
    *("raw", "full", "original", "stage", "final", "이미지", "사진"),
})  # fmt: skip
# Words of a table's name that say nothing beside a split's.
_TABLE_FILL = frozenset({
    *("label", "labels", "info", "metadata", "meta", "df", "table", "list", "annotation"),
    *("annotations", "csv", "v", "ver", "version", "gt", "id", "ids", "master"),
})  # fmt: skip
_OTHER_ANNOTATIONS = frozenset({"captions", "keypoints", "panoptic", "bboxes", "bbox"})
INNER_TABLES = ("_classes", "metadata", "train", *LABEL_TABLES)
_MAX_FOLDERS = 100  # more are classes or scenes, no places where a data set was unpacked
_MAX_FILES = 20  # more JSON files in a folder are one an image


def find_table(folder: Path, *stems: str) -> Path | None:
    """Return the first table with one of the ``stems`` that lies in ``folder``."""
    return find_entry(folder, *(stem + ending for stem in stems for ending in TABLE_ENDINGS))


def find_annotations(root: Path, split: str) -> Path | None:
    """Return the JSON or Parquet table of the images of ``train``, ``valid`` or ``test``, if any.

    It lies in ``root``, in a folder such as ``annotations/`` there, or, called ``metadata`` or the
    like, in the split's own; its name says the split, or nothing.
    """
    found = _annotations_here(root).get(split)
    own = None if found else find_split(root, split)
    if own is None:
        return found
    names = ("metadata", "annotations", "labels")
    inner = (own / f"{name}{ending}" for name in names for ending in ANNOTATION_ENDINGS)
    return next(filter(_holds_table, inner), None)


class _Fit(NamedTuple):
    """A file that may be a split's table; sorted, the likeliest comes first."""

    strange: int  # words of its name that say something else
    unsaid: bool  # whether the name says no split
    path: Path


def _annotations_here(root: Path) -> dict[str, Path]:
    """Return split → table as :func:`find_annotations` does, but of no split's own folder."""
    places = [root]
    for _ in range(2):
        deeper = [child for place in places for child in _subfolders(place)]
        places += [child for child in deeper if child not in places and _is_fill(child.name)]
    fits: dict[str, list[_Fit]] = {}
    for place in places:
        here: dict[str, list[_Fit]] = {}
        for path in _entries(place):
            if path.suffix.lower() not in ANNOTATION_ENDINGS:
                continue
            said, rest = read_name(path.stem)
            more = len({*rest} - _TABLE_FILL)
            if (said or not more) and not _OTHER_ANNOTATIONS.intersection(rest):
                here.setdefault(said or "train", []).append(_Fit(more, not said, path))
        for split, paths in here.items():
            fits.setdefault(split, []).extend(sorted(paths)[:_MAX_FILES])
    found = {}
    for split, paths in fits.items():
        best = [
            fit for fit in sorted(paths)
            if _holds_table(fit.path, sure=not fit.unsaid, strange=fit.strange > 0)
        ]  # fmt: skip
        if len(best) == 1 or (best and best[0][:2] != best[1][:2]):  # no two are as likely
            found[split] = best[0].path
    return found


def _is_called_table(path: Path) -> bool:
    return path.suffix.lower() in (*TABLE_ENDINGS, *ANNOTATION_ENDINGS)


def _is_fill(name: str) -> bool:
    """Tell whether a folder's name says no split and that annotations lie there."""
    said, rest = read_name(name)
    return not said and bool(rest) and _TABLE_FILL.issuperset(rest)


def _holds_table(path: Path, *, sure: bool = False, strange: bool = False) -> bool:
    """Tell by its beginning whether a JSON file holds a table of images; of Parquet by its place.

    One of a ``strange`` name must be COCO; one whose name is ``sure`` to mean the split may have
    ids for images. A Parquet file beside no images has them within.
    """
    if not path.is_file():
        return False
    if path.suffix.lower() == ".parquet":
        scanner = Scanner(path.parent)
        return not strange and any(map(scanner.holds, ["", *scanner.subfolders("")]))
    head = read_head(path, 1 << 16)
    wide = head[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = head.decode("utf-16" if wide else "utf-8-sig", "ignore").lstrip()
    coco = re.search(r'"(images|annotations|categories)"\s*:\s*\[', text)
    if coco or strange:
        return coco is not None
    if re.match(r"\[\s*\{|\{.*\}\r?\n\{|version https://git-lfs", text):
        return sure or any(map(looks_like_image, re.findall(r'"([^"]+\.\w+)"', text)))
    key = re.match(r'\{\s*"([^"]+)"\s*:\s*(\{\s*"0"\s*:)?(\[)?(["\d])?', text)
    if key is None:
        return False
    column = key[2] or (key[3] and pick_name([key[1]], (*IMAGE_NAMES, *ID_NAMES)))
    return bool(column or (sure and key[4])) or looks_like_image(key[1])


def find_split_table(folder: Path, split: str) -> Path | None:
    """Return the table of ``train`` or ``test`` images that lies in ``folder``, if any.

    It has a usual name, or is the one table whose name says the split and nothing else
    (``train_v2``, ``stage_2_train``).
    """
    return find_table(folder, split, *(LABEL_TABLES if split == "train" else ())) or _lone(
        path for path in tables(folder)
        if (name := read_name(path.stem))[0] == split and _TABLE_FILL.issuperset(name[1])
    )  # fmt: skip


def _lone(paths: Iterable[Path]) -> Path | None:
    """Return the one of ``paths``; None where there are none, or several."""
    found = [*paths]
    return found[0] if len(found) == 1 else None


def tables(folder: Path) -> list[Path]:
    """Return the tables that lie in ``folder``, sorted."""
    return [p for p in _entries(folder) if p.suffix.lower() in TABLE_ENDINGS and p.is_file()]


def _entries(folder: Path) -> list[Path]:
    """Return what lies in ``folder``, sorted, without hidden entries and those of a system."""
    with readable(f"folder {folder}"):
        found = sorted(folder.iterdir(), key=attrgetter("name"))  # paths compare slowly
        return [path for path in found if not is_litter(path.name)]


def find_sample(root: Path) -> Path | None:
    """Return the sample submission's path, which may lie in ``test/`` too, None without one."""
    found = find_table(root, *_SAMPLES) or _lone(
        path for path in tables(root)
        if "submi" in (name := path.stem.casefold())
        and any(word in name for word in ("sample", "example", "format", "template"))
    )  # fmt: skip
    test = None if found else _split_here(root, "test")
    return found or (find_table(test, *_SAMPLES) if test else None)


def find_split(root: Path, split: str) -> Path | None:
    """Return the folder of ``train``, ``valid`` or ``test`` images that lies in ``root``, if any.

    It is called so, or so with words that say nothing (``train_images``, ``test1``,
    ``Training_Set``), or as a folder of another split but for that word (``flowers_test``). Where
    tables lie in ``root`` and no such folder, it may be up to three folders below.
    """
    found = _split_here(root, split)
    holds_tables = found is None and (find_sample(root) or _lists_images(root))
    level = [root] if holds_tables else []
    for _ in range(3):
        level = [
            child for place in level for child in _subfolders(place)
            if not read_name(child.name)[0]
        ]  # fmt: skip
        inner = [path for place in level[:_MAX_FOLDERS] if (path := _split_here(place, split))]
        if inner:
            return _lone(inner)
    return found


def _lists_images(folder: Path) -> bool:
    """Tell whether a table of training labels or of test images lies in ``folder``."""
    splits = {"train", "test"}
    return any(find_split_table(folder, split) for split in splits) or not splits.isdisjoint(
        _annotations_here(folder)
    )


def _split_here(root: Path, split: str) -> Path | None:
    children = _subfolders(root)
    exact = {nfc(child.name).casefold(): child for child in children[::-1]}
    found = next((exact[name] for name in SPLITS[split] if name in exact), None)
    named = {} if found else {child: read_name(child.name) for child in children}
    return found or _lone(
        child for child, (said, rest) in named.items()
        if said == split
        and not _is_called_table(child)
        and (not rest or any(other != (said, rest) and other[0] and other[1] == rest
                             for other in named.values()))
    )  # fmt: skip


@lru_cache(maxsize=1 << 16)  # the same names are asked about for each split
def read_name(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the split that a folder's name says ("" none or several), and its other words."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[^\W\d])(?=\d)", " ", nfc(name)).casefold()
    words = [word for word in re.findall(r"[^\W_]+", spaced) if not word.isdigit()]
    found = [SPLIT_OF[word] for word in words if word in SPLIT_OF]
    rest = tuple(word for word in words if word not in SPLIT_OF and word not in FILL)
    return (found[0] if len(found) == 1 else ""), rest


def find_root(data_dir: Path | str, flag: str = "--data_dir") -> Path:
    """Return the data set's folder: ``data_dir``, or the one up to three folders below it.

    ``flag`` is the option that named it.

    Raises:
        UserError: none or several; says what was looked for.
    """
    folder = Path(data_dir)
    if folder.is_file():
        raise UserError(f"data folder {folder} is a file: pass its folder, {flag} {folder.parent}")
    if not folder.is_dir():
        raise UserError(f"data folder {folder} is missing: unpack the data there, or pass {flag}")
    level = [folder]
    for _ in range(4):
        found = [
            place for place in level
            if find_split(place, "train") or find_split(place, "test") or _lists_images(place)
        ]  # fmt: skip
        _refuse_tables_apart(folder, found)
        if len(found) == 1:
            return _enter_splits(found[0])
        if found:
            _refuse_splits_in_classes(folder, found)
            names = ", ".join(below(folder, place) for place in found)
            raise UserError(f"{folder} holds several data sets ({names}): pass {flag} {found[0]}")
        level = [child for place in level for child in _subfolders(place)]
        if len(level) > _MAX_FOLDERS:
            break
    whole = _whole(folder.absolute())
    if whole is not None:
        raise UserError(f"no data set in {folder}, it is a part of one: pass {flag} {whole}")
    from src.data.sources.places import describe

    seen, remedy = describe(folder), name_tables(folder)
    if remedy.startswith("unpack"):  # said once
        seen = seen.partition("; unpack")[0]
    raise UserError(
        f"no data set in {folder}: looked there and in folders below for train/, train.csv, test/ "
        f"and test.csv, found {seen}; {remedy}{name_classes(folder)}"
        f"unpack the data there, or pass {flag}"
    )


def _whole(folder: Path) -> Path | None:
    """Return the data set that ``folder``, a split or one class of it, is a part of."""
    for split in (folder, folder.parent):
        root, name = split.parent, read_name(split.name)[0]
        if name and find_split(root, name) == split:
            others = [find_split(root, other) for other in SPLITS if other != name]
            if any(others) or _lists_images(root):  # not just anything called train
                return root
    return None


def _refuse_tables_apart(folder: Path, found: list[Path]) -> None:
    """Raise a UserError where the one place of tables has no images, which lie elsewhere."""
    place, *more = [place for place in found if tables(place)] or [folder]
    if more or place == folder or Scanner(place).holds_any() or shards(place) or archives(place):
        return
    if Scanner(folder).holds_any():
        raise UserError(
            f"the tables lie in {place} and the images elsewhere: move the tables to {folder}"
        )


def _refuse_splits_in_classes(folder: Path, found: list[Path]) -> None:
    """Raise a UserError where each of the places is a class with its own train and test images."""
    inner = [find_split(place, "train") for place in found]
    if all(path and Scanner(path).holds("") and not tables(path.parent) for path in inner):
        name, names = found[0].name, _shown([place.name for place in found])
        raise UserError(
            f"{folder}: the splits lie in the folders of the classes ({names}): move them to "
            f"{folder / 'train' / name}, {folder / 'test' / name} and so on"
        )


def _subfolders(folder: Path) -> list[Path]:
    return [folder / name for name in Scanner(folder).subfolders("")]


def _enter_splits(folder: Path) -> Path:
    """Return ``train/`` itself where all it holds are splits: an archive unpacked one too deep."""
    inner = find_split(folder, "train")
    if inner is None or inner.parent != folder:
        return folder
    names = [read_name(child.name) for child in _subfolders(inner)]
    splits = {split for split, _ in names}
    whole = "train" in splits and len(splits) > 1 and not any(not s or rest for s, rest in names)
    return inner if whole and not (find_sample(folder) or _lists_images(folder)) else folder


def name_tables(folder: Path) -> str:
    """Return the remedy for what may be the train table or folder but is not called or kept so."""
    return name_folders(folder, "train") or _name_kinds(folder) or _name_others(folder)


def name_folders(folder: Path, split: str) -> str:
    """Return the remedy for a folder, there or one below, called as a table of ``split``, or ""."""
    found = [
        path for place in _near(folder) for path in _subfolders(place)
        if _is_called_table(path)
        and (read_name(path.stem)[0] or "train") == split
        and not re.search("submission|aliases", path.name.casefold())
    ]  # fmt: skip
    if not found:
        return ""
    said = f"the folder {below(folder, found[0])}"
    return f"if the table lies in {said}, put it in the folder's place, else "


def _name_others(folder: Path) -> str:
    """Return the remedy for tables in ``folder``, or a folder below it, of other names, or ""."""
    found = [
        below(folder, path) for place in _near(folder) for path in tables(place)
        if not re.search("test|sample|submission|aliases", path.name.casefold())
        and (place == folder or read_name(place.name)[0] != "test")
    ]  # fmt: skip
    if not found:
        return ""
    path = folder / f"train{Path(found[0]).suffix.lower()}"
    return f"if {_shown(found)} has the labels, move it to {path}, else "


def _name_kinds(folder: Path) -> str:
    """Return the remedy for packed data, or a table of another kind than CSV, or ""."""
    packed = archives(folder)
    train = [name for name in packed if "train" in name.casefold()]
    if train:
        return f"unpack {_shown(train)} there, else "
    named = (f"{stem}.txt" for stem in LABEL_TABLES)
    lists = find_entry(folder, "train.txt", "train.lst", "train.list", *named)
    if lists is not None:
        return f"write {lists.name} as train.csv, with a first line image,label, else "
    inside = shards(folder)
    if inside:
        how = " (docs/forms.md shows how)" * inside[0].endswith((".npz", ".npy", ".pickle", ".p"))
        return (
            f"write the images of {_shown(inside)} below {folder / 'train'}/ and the labels as "
            f"train.csv{how}, else "
        )
    others = _named_as(folder, _OTHER_TABLES)
    if others:
        said = f"{_shown(others)} as train.csv in {folder}"
        sheet = not others[0].casefold().endswith("json")
        return (
            f"save {said}, else " if sheet else f"write the labels of {said} (image,label), else "
        )
    return f"unpack {_shown(packed)} there, else " if packed else ""


def archives(folder: Path) -> list[str]:
    """Return the names of the packed files that lie in ``folder``, sorted."""
    return [path.name for path in _entries(folder) if _PACKED.fullmatch(path.name)]


def _shown(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def shards(folder: Path, split: str = "train") -> list[str]:
    """Return the names of files below ``folder`` that hold many images, of ``split`` if any."""
    found = _named_as(folder, _SHARDS)
    return [name for name in found if split in name.casefold()] or found


def _named_as(folder: Path, form: re.Pattern[str]) -> list[str]:
    """Return the files in ``folder`` and the folders in it whose paths below it are such."""
    return [
        name for place in _near(folder) for path in _entries(place)
        if form.fullmatch(name := below(folder, path)) and path.is_file()
    ]  # fmt: skip


def _near(folder: Path) -> list[Path]:
    """Return ``folder`` and the folders in it."""
    return [folder, *_subfolders(folder)[:_MAX_FOLDERS]]


def name_classes(folder: Path) -> str:
    """Return the remedy for class folders that lie below ``folder`` but not in train/, or ""."""
    level, lone = [folder], None
    for _ in range(5):
        deeper = []
        for place in level[:_MAX_FOLDERS]:
            scanner = Scanner(place)
            names = [child.name for child in _subfolders(place)]
            names = [name for name in names if read_name(name)[0] != "test"]
            found = [name for name in names if scanner.holds(name)]
            if len(found) > 1:
                inner = "" if place == folder else f"{below(folder, place)}/"
                what = f"the folders {inner}{_shown(found)} are classes"
                return f"if {what}, move them into {folder / 'train'}{_test_lists(folder)}, else "
            lone = lone or (place / found[0] if found else None)
            deeper += [place / name for name in names if name not in found]
        level = deeper
    if lone is None:
        return ""
    return (  # images side by side, perhaps Abyssinian_1.jpg
        f"if the files of {lone} are named by their classes (cat_1.jpg), rename it to "
        f"{folder / 'train'}, else "
    )


def _test_lists(folder: Path) -> str:
    """Return what to do with images that a list such as ``meta/test.txt`` names, or ""."""
    patterns = ("*test*.txt", "*/*test*.txt", "*/*/*test*.txt")
    found = sorted(below(folder, path) for pattern in patterns for path in folder.glob(pattern))
    return f" (those that {found[0]} says are for the test into {folder / 'test'})" if found else ""
