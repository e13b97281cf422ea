"""Where a data set lies below the folder that was named, and what its tables are called."""

from __future__ import annotations

import re
from pathlib import Path

from src.classes import nfc
from src.data.files import Scanner, find_entry, is_litter
from src.files import readable
from src.script import UserError

# Tables of labels beside train.csv, and inside the folder of training images.
LABEL_TABLES = (
    *("train_labels", "trainlabels", "labels", "training", "train_df", "train_data", "train_set"),
    *("training_set", "train_info", "train_metadata", "training_labels"),
)
SPLITS = {
    "train": ("train", "training", "학습", "훈련"),
    "valid": ("val", "valid", "validation", "dev", "검증"),
    "test": ("test", "testing", "테스트", "시험"),
}
# Words of a folder's name that say nothing of their own.
_FILL = frozenset({
    *("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "jpg", "jpeg"),
    *("png", "set", "data", "dataset", "dir", "folder", "files", "seg", "class", "classes", "all"),
    *("raw", "full", "original", "stage", "이미지", "사진"),
})  # fmt: skip
INNER_TABLES = ("_classes", "metadata", "train", *LABEL_TABLES)
_MAX_FOLDERS = 100  # more are classes or scenes, no places where a data set was unpacked


def find_table(folder: Path, *stems: str) -> Path | None:
    """Return the first table (.csv, .tsv) with one of the ``stems`` that lies in ``folder``."""
    return find_entry(folder, *(stem + ending for stem in stems for ending in (".csv", ".tsv")))


def find_split(root: Path, split: str) -> Path | None:
    """Return the folder of ``train``, ``valid`` or ``test`` images that lies in ``root``, if any.

    It is called so, or so with words that say nothing (``train_images``, ``test1``,
    ``Training_Set``), or as a folder of another split but for that word (``flowers_test``).
    """
    exact = find_entry(root, *SPLITS[split])
    if exact is not None and exact.is_dir():
        return exact
    named = {child: _read_name(child.name) for child in _subfolders(root)}
    fits = [
        child for child, (said, rest) in named.items()
        if said == split
        and (not rest or any(other != (said, rest) and other[0] and other[1] == rest
                             for other in named.values()))
    ]  # fmt: skip
    return fits[0] if len(fits) == 1 else None


def _read_name(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the split that a folder's name says ("" none or several), and its other words."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[^\W\d])(?=\d)", " ", nfc(name)).casefold()
    words = [word for word in re.findall(r"[^\W_]+", spaced) if not word.isdigit()]
    found = [split for word in words for split, names in SPLITS.items() if word in names]
    known = {word for names in SPLITS.values() for word in names} | _FILL
    rest = tuple(word for word in words if word not in known)
    return (found[0] if len(found) == 1 else ""), rest


def find_root(data_dir: Path | str) -> Path:
    """Return the data set's folder: ``data_dir``, or the one up to three folders below it.

    Raises:
        UserError: none or several; says what was looked for.
    """
    folder = Path(data_dir)
    if folder.is_file():
        raise UserError(
            f"data folder {folder} is a file: pass its folder, --data_dir {folder.parent}"
        )
    if not folder.is_dir():
        raise UserError(f"data folder {folder} is missing: unpack the data there, or --data_dir")
    level = [folder]
    for _ in range(4):
        found = [place for place in level if _is_data_set(place)]
        if len(found) == 1:
            return _enter_splits(found[0])
        if found:
            names = ", ".join(place.relative_to(folder).as_posix() for place in found)
            raise UserError(
                f"{folder} holds several data sets ({names}): pass --data_dir {found[0]}"
            )
        level = [child for place in level for child in _subfolders(place)]
        if len(level) > _MAX_FOLDERS:
            break
    raise UserError(
        f"no data set in {folder}: looked there and in folders below for train/, train.csv, test/ "
        f"and test.csv; {name_tables(folder)}{name_classes(folder)}unpack the data there, or pass "
        "--data_dir"
    )


def _subfolders(folder: Path) -> list[Path]:
    with readable(f"folder {folder}"):
        children = sorted(folder.iterdir())
    return [child for child in children if not is_litter(child.name) and child.is_dir()]


def _is_data_set(folder: Path) -> bool:
    if find_split(folder, "train") is not None or find_split(folder, "test") is not None:
        return True
    return find_table(folder, "train", *LABEL_TABLES, "test") is not None


def _enter_splits(folder: Path) -> Path:
    """Return ``train/`` itself where all it holds are splits: an archive unpacked one too deep."""
    inner = find_split(folder, "train")
    if inner is None or find_table(folder, "train", "test"):
        return folder
    names = [_read_name(child.name) for child in _subfolders(inner)]
    splits = {split for split, _ in names}
    whole = "train" in splits and len(splits) > 1 and not any(not s or rest for s, rest in names)
    return inner if whole else folder


def name_tables(folder: Path) -> str:
    """Return the remedy for what may be the train table or folder but is not called or kept so."""
    return _name_kinds(folder) or _name_others(folder)


def _name_others(folder: Path) -> str:
    """Return the remedy for tables in ``folder``, or a folder below it, of other names, or ""."""
    tables = [
        path.relative_to(folder).as_posix()
        for place in (folder, *_subfolders(folder)[:_MAX_FOLDERS])
        for path in sorted(place.iterdir())
        if path.suffix.lower() in (".csv", ".tsv") and not is_litter(path.name)
        and not re.search("test|sample|submission|aliases", path.name.casefold())
    ]  # fmt: skip
    if not tables:
        return ""
    shown = ", ".join(tables[:3]) + (", …" if len(tables) > 3 else "")
    return f"if {shown} has the labels, move it to {folder / 'train.csv'}, else "


def _name_kinds(folder: Path) -> str:
    """Return the remedy for a packed train folder, or a table of another kind than CSV, or ""."""
    endings = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar", ".csv.zip", ".csv.gz")
    path = find_entry(folder, *(f"train{ending}" for ending in endings))
    if path is not None:
        return f"unpack {path.name} there, else "
    path = find_entry(folder, "train.txt", "train.lst", "train.list")
    if path is not None:
        return f"write {path.name} as train.csv, with a first line image,label, else "
    others = (".xlsx", ".xls", ".ods", ".parquet", ".json", ".jsonl", ".feather", ".pkl", ".db")
    path = find_entry(folder, *(f"train{ending}" for ending in others))
    return "" if path is None else f"save {path.name} as train.csv, else "


def name_classes(folder: Path) -> str:
    """Return the remedy for class folders that lie in ``folder`` instead of train/, or ""."""
    names = [child.name for child in _subfolders(folder)]
    scanner = Scanner(folder)
    found = [name for name in names if not name.startswith("test") and scanner.holds(name)]
    if len(found) < 2:
        return ""
    shown = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
    return f"if the folders {shown} are classes, move them into {folder / 'train'}, else "
