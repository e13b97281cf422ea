"""Aligned text tables for the terminal."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return an aligned table: text to the left, numbers to the right (Korean is double width)."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(header, *cells, strict=True)]
    right = [
        bool(cells) and all(re.fullmatch(r"[-+]?[\d.,]*", row[j]) for row in cells)
        for j in range(len(header))
    ]
    lines = [
        "  ".join(_pad(cell, width, r) for cell, width, r in zip(line, widths, right, strict=True))
        for line in (list(header), *cells)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.5f}"
    return str(value)


def _width(text: str) -> int:
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space
