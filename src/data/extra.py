"""External training images: added to the rows that every fold trains on, held out in none.

They come from a second data folder of any form that the first may have, from a folder of class
folders or from one table of images, with the same class names.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from src.classes import SEPARATOR
from src.data.folds import EXTRA_SPLIT
from src.data.index import Index, read_extra
from src.data.rows import COLUMNS, make_columns
from src.script import UserError


def add_extra(index: Index, folder: Path | str, *, allow_outside: bool = False) -> Index:
    """Return the index with the images of ``folder`` behind its own; their ids begin ``extra/``.

    Images of other classes are left out, with a note; groups are never those of the first folder.

    Raises:
        UserError: no data set there, the data themselves, or no image of a known class.
    """
    extra = read_extra(folder, "--extra_train", allow_outside=allow_outside, several=index.several)
    root = extra.root.resolve()
    if root == index.root.resolve():
        raise UserError(f"--extra_train {folder}: is the data folder itself; name another one")
    if extra.several and not index.several:
        raise UserError(
            f"--extra_train {folder}: has several labels an image, and the data have one class each"
        )
    columns, known = extra.columns, set(index.classes)
    names = [text.split(SEPARATOR) if index.several else [text] for text in columns["target"]]
    kept = [row for row, found in enumerate(names) if known.issuperset({*found} - {""})]
    if not kept:
        theirs, ours = (", ".join(names[:3]) for names in (extra.classes, index.classes))
        raise UserError(
            f"--extra_train {folder}: no image is of a class of the data ({theirs} there, {ours} "
            "here): name its classes as the data do"
        )
    rows = {name: [column[row] for row in kept] for name, column in columns.items()}
    added = make_columns(
        [f"extra/{name}" for name in rows["id"]],
        [name if name[0] == "/" else f"{root.as_posix()}/{name}" for name in rows["image"]],
        rows["target"],
        [group and f"extra/{group}" for group in rows["group"]],
        split=EXTRA_SPLIT,
    )
    whole = {name: index.columns[name] + added[name] for name in COLUMNS}
    if len(set(whole["id"])) < len(whole["id"]):
        raise UserError("ids of the data begin with extra/ too: rename that folder")
    lost = len(extra) - len(kept)
    notes = [f"{len(kept)} extra images are trained on in every fold, and held out in none"]
    notes += [f"extra: {note}" for note in extra.notes]
    if lost:
        notes.append(f"extra: {lost} images are of classes that the data have not: left out")
    return replace(index, columns=whole, notes=(*index.notes, *notes))
