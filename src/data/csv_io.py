"""CSV reading and writing: encodings and separators detected, cells as text, formulas escaped.

Every cell is text ("001" stays "001", "NA" stays "NA"). Read: UTF-8 with or without BOM, UTF-16
with BOM, CP949 where that makes Korean; commas, semicolons, tabs or bars; any line ending; without
what spreadsheets leave behind (a line ``sep=;``, rows and unnamed columns of empty cells).
A ``.jsonl``, ``.json`` or ``.parquet`` file is the same table. Written: text that a spreadsheet
would run as a formula is quoted by an apostrophe, which reading takes off.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from src.classes import is_number
from src.data.files import IMAGE_ENDINGS, split_of_word
from src.data.json_tables import read_json_lines, read_json_table, read_parquet
from src.files import atomic_write, patiently, read_head, read_small, readable
from src.script import UserError

if TYPE_CHECKING:
    import pandas as pd

BRIEF_ROWS, BRIEF_COLUMNS = 100, 8
MAX_BYTES = 1 << 34  # of a table; no pipe or device is read
_NO_TABLES = (
    (b"version https://git-lfs", "is a Git LFS pointer: run git lfs pull"),
    (b"<!doctype html", "is a web page: download it again"),
    (b"<html", "is a web page: download it again"),
)

# What spreadsheets take for the start of a formula (OWASP, "CSV injection"; East Asian editions
# take the full-width forms too), and the apostrophe itself, so that the escape can be undone.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠'")


def escape_cell(cell: object) -> object:
    """Return text so that no spreadsheet runs it as a formula; numbers stay as they are."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def unescape_cell(cell: str) -> str:
    """Undo :func:`escape_cell`."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell


def write_csv(path: Path | str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV (UTF-8, commas, escaped cells) atomically."""
    text = _to_text([escape_cell(cell) for cell in row] for row in (columns, *rows))
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def _to_text(rows: Iterable[Sequence[object]], separator: str = ",") -> str:
    text = io.StringIO(newline="")
    plain = csv.writer(text, delimiter=separator, lineterminator="\n")
    quoted = csv.writer(
        text, delimiter=separator, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
    )
    for row in rows:
        has_return = any(isinstance(cell, str) and "\r" in cell for cell in row)
        (quoted if has_return else plain).writerow(row)  # the module forgets to quote \r
    return text.getvalue()


def read_text(path: Path | str) -> str:
    """Read a text file, its encoding told by BOM, else UTF-8, else CP949 if that is Korean.

    Raises:
        UserError: unreadable or in none of these encodings.
    """
    if Path(path).is_dir():
        raise UserError(
            f"{path} is a folder: if the table lies in it, put it in the folder's place"
        )
    try:
        with readable(path, "restore the file"):
            data = patiently(lambda: read_small(Path(path), MAX_BYTES))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}): restore the file") from error
    start = data[:132].lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    for magic, said in _NO_TABLES:
        if start.startswith(magic):
            raise UserError(f"{path} {said}")
    utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    for encoding in ("utf-16",) if utf16 else ("utf-8-sig", "cp949"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text and (encoding != "cp949" or _is_korean(text)):
            return text
    raise UserError(f"{path} is not text in UTF-8: save it as CSV in UTF-8")


def first_lines(path: Path) -> tuple[str, str]:
    """Return the first two lines of a file, at most 4096 bytes of each."""
    head = io.BytesIO(read_head(path, 8192))
    one, other = (head.readline(4096).decode("utf-8", "replace") for _ in range(2))
    return one, other


def _is_korean(text: str) -> bool:
    """Tell Korean from another language's 8-bit text that happens to be valid CP949.

    Two accented letters of Windows-1252 or -1250, or one and an ASCII letter, make one CP949
    character, but then a Chinese one, or one of the 8,822 rare syllables that KS X 1001 lacks, or
    a Latin letter follows it.
    """
    letters = [place for place, char in enumerate(text) if char > "\x7f" and char.isalpha()]
    korean = (place for place in letters if "가" <= text[place] <= "힣")
    usual = [place for place in korean if len(text[place].encode("euc-kr")) == 2]  # others 8: jamo
    mixed = sum(re.match("[A-Za-z]", text[place + 1 : place + 2]) is not None for place in usual)
    return len(usual) >= 0.8 * max(len(letters), 1) and mixed <= 0.5 * len(usual)


def refuse_duplicates(ids: Sequence[str], source: str) -> None:
    """Raise a UserError that names the id which ``source`` holds most often, if above once."""
    if len(set(ids)) < len(ids):
        key, count = Counter(ids).most_common(1)[0]
        raise UserError(
            f"{source} has id {key!r} {count} times: ids must be unique, so leave one line"
        )


# Lines that a spreadsheet leaves: empty cells alone; and the line that tells it the separator.
_EMPTY_LINES = re.compile(r'(?m)^[ \t]*(?:"")?[,;|\t](?:[ ,;|\t]|"")*(?=\r?$)')
_QUOTES = str.maketrans("'\"", "\"'")
_SEPARATOR_LINE = re.compile(r'\s*"?sep=(.)"?[ ,;|\t]*(?=[\r\n]|$)', re.IGNORECASE)


def read_csv(
    path: Path | str, *, unescape: bool = False, brief: bool = False, bare: bool = False
) -> pd.DataFrame:
    """Read a CSV whose first line names the columns (names are stripped, otherwise untouched).

    With ``unescape`` the file is one of ours (:func:`write_csv`); with ``brief`` cells of later
    columns than ``BRIEF_COLUMNS`` may be "" after ``BRIEF_ROWS`` rows. With ``bare`` two columns
    may lack the line of names, as in SIGNATE's samples: they are called id and label, and ``attrs``
    says ``bare``.

    Raises:
        UserError: no header, a column named twice, lines longer than the header, an open quote.
    """
    import pandas as pd

    if (kind := Path(path).suffix.lower()) in (".jsonl", ".json", ".parquet"):
        return _read_typed(path, kind)
    text = read_text(path)
    said = _SEPARATOR_LINE.match(text)
    text = text[said.end() :] if said else text
    text = text if unescape else _double_quotes(_drop_titles(_EMPTY_LINES.sub("", text)))
    first_line = next((line for line in text.splitlines() if line.strip()), "")
    separator = said[1] if said else max(",;\t", key=first_line.count)
    separator = separator if separator in first_line or "|" not in first_line else "|"
    names = _names_of_bare(text, separator) if bare else ""
    text = names + text
    header = _read_header(names or first_line, separator, path)
    text = _shorten(text, separator, len(header)) if brief else text

    def parse(text: str) -> pd.DataFrame:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # cells would be dropped
            return pd.read_csv(
                io.StringIO(text), sep=separator, header=0, names=header, dtype=str,
                na_filter=False, index_col=False, low_memory=False, on_bad_lines="error",
                skipinitialspace=not unescape and f'{separator} "' in text,
            )  # fmt: skip

    try:
        if "\r " in text:  # pandas 2 repeats a row there, or asks for all memory
            rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
            text = _to_text(rows, separator)
        try:
            table = parse(text)
        except (pd.errors.ParserWarning, pd.errors.ParserError):
            if '"' in text:
                raise
            ends = re.compile(rf"(?m)[ {re.escape(separator)}]+(?=\r?$)")
            table = parse(ends.sub("", text))  # empty cells behind the last column
    except (pd.errors.ParserWarning, csv.Error, ValueError) as error:  # ParserError is a ValueError
        reason = _explain(error, separator)
        raise UserError(f"{path} is not a well-formed CSV: {reason}") from error
    if unescape:
        return table.map(unescape_cell) if "'" in text else table
    if len(table) and _is_alike(header[0], str(table.iat[0, 0])):
        refuse_rows(header, separator, path)
    again = table[table[header[0]].eq(header[0])]  # of files put together
    if len(again):
        lines = again.index[again.eq(header).all(axis=1)]
        table = table.drop(index=lines).reset_index(drop=True)
    table.attrs["bare"] = bool(names)
    blank = [
        name for name in header
        if is_unnamed(name) and not table[name].str.strip().any()
    ]  # fmt: skip
    return table.drop(columns=blank) if len(blank) < len(header) else table


def read_own_columns(path: Path | str) -> dict[str, list[str]] | None:
    """Return name → cells of a table as :func:`write_csv` left it, without pandas.

    None where anything is unlike that: a program that edited it may have written other separators,
    which :func:`read_csv` knows.

    Raises:
        UserError: it is unreadable or no text.
    """
    text = read_text(path)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error:
        return None
    names = rows[0] if rows else []
    if len(rows) < 2 or len(names) < 2 or len({*names}) < len(names) or len({*map(len, rows)}) > 1:
        return None
    columns = dict(zip(names, map(list, zip(*rows[1:], strict=True)), strict=True))
    if "'" in text:
        return {name: [unescape_cell(cell) for cell in cells] for name, cells in columns.items()}
    return columns


def _read_typed(path: Path | str, kind: str) -> pd.DataFrame:
    if kind == ".parquet":
        return read_parquet(path)
    return (read_json_lines if kind == ".jsonl" else read_json_table)(read_text(path), path)


def _shorten(text: str, separator: str, num_columns: int) -> str:
    """Return a table whose later lines have their first cells alone, names put in again apart.

    As it is where a cell is quoted, or lines have other numbers of cells.
    """
    lines = text.split("\n")
    if '"' in text or any(
        line.count(separator) != num_columns - 1 for line in lines if line.strip()
    ):
        return text
    names = next(line for line in lines if line.strip())
    for place in range(BRIEF_ROWS + 1, len(lines)):
        if lines[place] != names:
            cells = lines[place].split(separator, BRIEF_COLUMNS)
            lines[place] = separator.join(cells[:BRIEF_COLUMNS])
    return "\n".join(lines)


def _explain(error: Exception, separator: str) -> str:
    reason = " ".join(str(error).split()).removeprefix("Error tokenizing data. ")
    if "Length of header" in reason:
        return "lines have more cells than the first line has names, so name every column"
    more = f"; a cell that holds {separator!r} needs quotation marks around it"
    return reason + more * ("Expected" in reason)


def _double_quotes(text: str) -> str:
    """Return a table whose names stand in single quotation marks with double ones."""
    names = text.lstrip().partition("\n")[0].strip()
    single = re.fullmatch(r"('[^'\"]*'[,;\t|])+'[^'\"]*'", names)
    return text.translate(_QUOTES) if single else text


def _drop_titles(text: str) -> str:
    """Return a table without a comment or title above its names: one cell, where the next has more.

    A first line of one cell and separators behind it is a title too.
    """
    while True:
        lines = [line for line in text.lstrip().split("\n", 8)[:8] if line.strip()][:2]
        if len(lines) < 2 or lines[0].startswith('"'):
            return text
        separators = [sum(map(line.count, ",;\t|")) for line in lines]
        lone = not re.search(r"[,;\t|]\s*[^,;\t|\s]", lines[0]) and lines[0][0] not in ",;\t|"
        comment = lines[0].startswith("#") and separators[0] != separators[1]
        if not comment and not (lone and re.search(r"[^,;\t|\s]\s*[,;\t|]\s*[^,;\t|\s]", lines[1])):
            return text
        text = text.lstrip().partition("\n")[2]


def is_unnamed(name: str) -> bool:
    """Tell whether a column has no name, or the one that pandas gives to row numbers."""
    return not name or re.fullmatch(r"Unnamed: [\d.]+(_level_\d+)?|level_0", name) is not None


def _read_header(line: str, separator: str, path: Path | str) -> list[str]:
    """Return the names of the columns, of which several may have none ("").

    Raises:
        UserError: there are none, a name twice, or the line is one of the rows.
    """
    cells = csv.reader([line], delimiter=separator, skipinitialspace=True)
    header = [name.strip() for name in next(cells, [])]
    if not header or not any(header):
        raise UserError(f"{path} is empty: its first line must name the columns")
    if _is_row(header):
        refuse_rows(header, separator, path)
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise UserError(
            f"{path} has two columns named {twice[0]!r}: rename or remove one, and "
            "leave one line of names if there are several"
        )
    return [
        name or ("" if place == header.index("") else f"Unnamed: {place}")
        for place, name in enumerate(header)
    ]


def refuse_rows(cells: Sequence[str], separator: str, path: Path | str) -> NoReturn:
    """Raise a UserError for a file whose first line holds the ``cells`` of a row, not names."""
    said = f"{path} has no line of column names: its first line is {separator.join(cells)[:60]!r}"
    if len(cells) > 2 and all(map(is_number, cells[1:])):
        raise UserError(
            f"{said}; write one above it: id, then the class of each of the {len(cells) - 1} "
            f"columns of numbers, set apart by {separator!r}"
        )
    image = next((place for place, cell in enumerate(cells) if _is_image(cell)), 0)
    names = ["split" if split_of_word(cell) else f"column{n}" for n, cell in enumerate(cells, 1)]
    names[image] = "image"
    free = [place for place, name in enumerate(names) if name.startswith("column")]
    for place in free[:1]:
        names[place] = "label"
    example = separator.join(names)
    raise UserError(f"{said}; write one above it, such as {example!r}")


def _names_of_bare(text: str, separator: str) -> str:
    """Return a line of names for a table of two columns that begins with a row, else ""."""
    lines = re.split(r"\r\n?|\n", text.lstrip(), maxsplit=2)[:2]
    rows = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    first, *second = ([cell.strip() for cell in cells] for cells in rows)
    alike = len(second) > 0 and second[0] != [] and _is_alike(first[0], second[0][0])
    bare = len(first) == 2 and (is_number(first[0]) or _is_row(first) or alike)
    return f"id{separator}label\n" if bare else ""


def _is_image(cell: str) -> bool:
    return Path(cell).suffix.lower() in IMAGE_ENDINGS


def _is_alike(name: str, cell: str) -> bool:
    """Tell whether what should be a name is an id as the cell is: ``TEST_0001``, ``TEST_0002``."""
    one, other = (re.sub("[0-9a-f]", "0", text) for text in (name, cell.strip()))
    return one == other and len(one) > 3 and re.search(r"\d", name) is not None and name != cell


def _is_row(cells: Sequence[str]) -> bool:
    """Tell whether what should be names of columns is an image's file, or an id and numbers."""
    if any(map(_is_image, cells)):
        return True
    if not re.search(r"\d", cells[0]):
        return False
    numbers = [cell for cell in cells[1:] if is_number(cell)]
    if not numbers or len(numbers) < len(cells) - 1:
        return False
    return len(set(numbers)) < len(numbers) or any("." in cell for cell in numbers)
