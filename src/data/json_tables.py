"""Tables of images in JSON and Parquet: COCO annotations of whole images, records, file → label.

Every form becomes the table that a CSV would be, all cells text: a line an image, or a line an
annotation where an image has several. The format of COCO: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.data.columns import ID_NAMES, IMAGE_NAMES, LABEL_NAMES, pick_name
from src.script import UserError, counted

if TYPE_CHECKING:
    import pandas as pd


def read_json_lines(text: str, path: Path | str) -> pd.DataFrame:
    """Return the table of a file with one JSON object a line.

    Raises:
        UserError: a line is none.
    """
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            rows.append(dict(json.loads(line).items()))
        except (ValueError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: no JSON object ({error}): mend it") from error
    return _to_table(rows, path)


def read_json_table(text: str, path: Path | str) -> pd.DataFrame:
    """Return the table of a JSON file; ``attrs["notes"]`` says what was left out.

    Objects in a list, or one a line; COCO's ``images``, ``annotations`` and ``categories``; image →
    label, or image → object; columns as pandas writes them.

    Raises:
        UserError: no JSON, or none of these.
    """
    lines = [line for line in text.splitlines()[:2] if line.strip()]
    if len(lines) == 2 and all(line.startswith("{") and line.endswith("}") for line in lines):
        return read_json_lines(text, path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): restore the file") from error
    if isinstance(content, list):
        return _to_table(content, path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds no table of images: write the labels as CSV (image,label)")
    if "images" in content or "annotations" in content:
        return _read_coco(content, path)
    return _to_table(_to_rows(content), path)


def read_parquet(path: Path | str) -> pd.DataFrame:
    """Return the table of a Parquet file.

    Raises:
        UserError: pyarrow is not there, the file cannot be read, or it holds the images themselves.
    """
    import pandas as pd

    try:
        rows = pd.read_parquet(path).map(lambda cell: getattr(cell, "tolist", lambda: cell)())
    except ImportError as error:
        raise UserError(
            f"{path} needs the package pyarrow: pip install pyarrow, or save the table as CSV"
        ) from error
    except (OSError, ValueError) as error:  # pyarrow's errors are either
        raise UserError(f"{path} cannot be read ({error}): restore the file") from error
    rows = rows.astype(object)
    found = rows.where(rows.notna(), None).to_dict("records")
    if any(isinstance(cell, bytes | dict) for row in found[:1] for cell in row.values()):
        raise UserError(
            f"{path} holds the images themselves: write them as files below train/, and a table of "
            "the files and labels"
        )
    return _to_table(found, path)


def _read_coco(content: Mapping[str, Any], path: Path | str) -> pd.DataFrame:
    """Join annotations, and the names of their categories, to the images."""
    images, found, kinds = (
        _to_table(content.get(key) or [], f"{path}: {key}")
        for key in ("images", "annotations", "categories")
    )
    key = pick_name(images.columns, ("id", "image_id"))
    link = pick_name(found.columns, ("image_id",))
    notes = []
    if key is not None:
        images = images.drop_duplicates()
        twice = images[images[key].duplicated(keep=False)]
        if len(twice):
            raise UserError(
                f"{path}: {len(twice)} images share ids with others, first {twice[key].iat[0]!r}: "
                "give each an id of its own, in its annotations too (merged files often share ids)"
            )
    if len(images) and len(found):
        if key is None or link is None or (images[key] == "").any():
            lacking = "annotations have no image_id" if key and not link else "images have no id"
            raise UserError(f"{path}: its {lacking}: restore the file")
        found = found.drop(columns=[n for n in found if n != link and n in {*images, "id", key}])
        found = found.rename(columns={link: key})
        lone = found[~found[key].isin(images[key])]
        if len(lone) == len(found):
            raise UserError(
                f"{path}: no annotation is of an image that it lists (first image_id "
                f"{lone[key].iat[0]!r}, ids like {images[key].iat[0]!r}): restore the file"
            )
        if len(lone):
            notes = [
                f"{Path(path).name}: {counted(len(lone), 'annotation is', 'annotations are')} of "
                f"images that it does not list (first {lone[key].iat[0]!r}): left out"
            ]
        found = found.loc[:, [*(found != "").any()]]  # no column of segmentations that are empty
        again = [key, "category_id"]
        found = found.drop_duplicates(again if "category_id" in found else None)
        images = images.merge(found, on=key, how="left").fillna("")
    table = images if len(images) else found
    number = pick_name(kinds.columns, ("id", "category_id"))
    name = pick_name(kinds.columns, ("name", "category_name", "scientificName"))
    if number and name and "category_id" in table:
        kinds = kinds[[number, name]].drop_duplicates()
        twice = kinds[kinds[number].duplicated()]
        if len(twice):
            raise UserError(
                f"{path}: category {twice[number].iat[0]!r} has several names, one of them "
                f"{twice[name].iat[0]!r}: give each category an id of its own, in the annotations "
                "too (merged files often share ids)"
            )
        names = dict(zip(kinds[number], kinds[name], strict=True))
        table["category_name"] = table["category_id"].map(names).fillna("")
    table.attrs["notes"] = notes
    return table


def _to_rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of image → label, of image → object, or of name → column."""
    values = list(content.values())
    first = values[0]
    if all(isinstance(value, dict) for value in values):
        if not all(map(str.isdecimal, first)):
            return [{"image": image, **row} for image, row in content.items()]
        return [{name: cells.get(row) for name, cells in content.items()} for row in first]
    known = pick_name(content, (*IMAGE_NAMES, *ID_NAMES)) and pick_name(content, LABEL_NAMES)
    if known and all(isinstance(value, list) and len(value) == len(first) for value in values):
        return [dict(zip(content, cells, strict=True)) for cells in zip(*values, strict=True)]
    return [{"image": image, "label": label} for image, label in content.items()]


def _to_table(rows: Sequence[Any], path: Path | str) -> pd.DataFrame:
    """Return the table of JSON objects, every cell as text, "" where one lacks it."""
    import pandas as pd

    odd = [row for row in rows if not isinstance(row, dict)] if isinstance(rows, list) else [rows]
    if odd:
        raise UserError(f"{path}: {odd[0]!r:.40} is no JSON object: write the labels as CSV")
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name.strip(): [_as_text(row.get(name), name) for row in rows] for name in names}
    return pd.DataFrame(columns or {"": []}, dtype=str)


def _as_text(cell: object, name: str) -> str:
    if isinstance(cell, str):
        return cell
    if name == "segmentation":  # polygons, which are long
        return "1" if cell else ""
    if isinstance(cell, float) and cell.is_integer() and name.casefold().endswith("id"):
        cell = int(cell)  # 1.0 for 1
    if type(cell) in (int, float):  # json takes ten times as long
        return str(cell)
    return "" if cell is None else json.dumps(cell, ensure_ascii=False, default=str).strip('"')
