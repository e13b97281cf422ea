"""Self-contained HTML pages: sortable tables, inline SVG plots, embedded pictures.

Everything is text that needs neither network nor library: one file that opens from disk, in light
and dark, on a phone. Whatever is not :class:`Html` is escaped; a content security policy lets only
this module's own script run. Its style and script are ``page.css`` and ``page.js``.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Scale = Callable[[float], float]  # value → place in the plot
Marks = dict[float, str]  # value → its label on an axis
MAX_POINTS = 400  # of a line: more would not show
LONG_TEXT = 30  # characters from which a cell breaks its lines
LONG_TABLE = 15  # rows from which a table scrolls by itself and has a filter
WIDTH, HEIGHT = 360, 220  # of a plot, in its own units; about the pixels of a phone
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 10, 34  # margins of a plot


class Html(str):
    """Text that is HTML already and is not escaped again."""

    __slots__ = ()


def escape(value: object) -> Html:
    """Return ``value`` as HTML text: markup, control and direction characters cannot act."""
    if isinstance(value, Html):
        return value
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return Html(html.escape(text))


def join(parts: Sequence[object]) -> Html:
    """Return the parts one after the other, each escaped unless it is HTML."""
    return Html("\n".join(map(escape, parts)))


def number(value: float, digits: int = 4) -> str:
    """Return a number for reading, from ten on with fewer decimals; empty where it is not one."""
    if not math.isfinite(value):
        return ""
    if 0 < abs(value) < 10**-digits:
        return f"{value:.1e}" if abs(value) > 1e-12 else number(0.0, digits)
    whole = abs(value) >= 1000 or (abs(value) >= 10 and value == round(value))
    decimals = max(digits - sum(abs(value) >= power for power in (10, 100)), 0)
    return f"{value:,.0f}" if whole else f"{value + 0.0:,.{decimals}f}"  # no -0.0000


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str) -> Html:
    """Return a table that its column heads sort.

    Numbers sort as numbers and stand to the right, None is an empty cell.
    """
    if not rows:
        return note("nothing to show")
    head = "".join(
        f'<th scope="col"{_right(column)}><button type="button">{escape(name)}</button></th>'
        for name, column in zip(header, zip(*rows, strict=True), strict=True)
    )
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    long = len(rows) > LONG_TABLE
    label = escape(caption)
    filtered = (
        f'<input type="search" aria-label="filter: {label}" placeholder="filter {len(rows)} rows">'
    )
    return Html(
        f'<figure class="table">{filtered if long else ""}'
        f'<div class="scroll{" long" if long else ""}" role="region" tabindex="0" '
        f'aria-label="{label}"><table><caption>{label}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div></figure>"
    )


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "<td></td>"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        long = not isinstance(value, Html) and len(str(value)) > LONG_TEXT
        return f"<td><div>{escape(value)}</div></td>" if long else f"<td>{escape(value)}</td>"
    shown = f"{value:,}" if isinstance(value, int) else number(value)
    return f'<td class="n" data-v="{value!r}">{shown}</td>'


def _right(column: Sequence[object]) -> str:
    """Return the class of a head above numbers."""
    marked = [isinstance(v, (int, float)) or "data-v" in str(v) for v in column if v is not None]
    return ' class="n"' if marked and all(marked) else ""


def shaded(value: float, low: float, high: float) -> Html:
    """Return a number for a cell, the darker the nearer to ``high``."""
    if not math.isfinite(value):
        return Html("")
    share = 0.0 if high <= low else (value - low) / (high - low)
    step = min(max(round(share * 5), 0), 5)
    return Html(f'<span class="s s{step}" data-v="{value!r}">{number(value)}</span>')


def percent(share: float) -> Html:
    """Return a share as a cell in percent, which sorts as a number."""
    return Html(f'<span class="s" data-v="{share!r}">{share:.1%}</span>')


def note(text: object) -> Html:
    """Return a line in small type."""
    return Html(f'<p class="note">{escape(text)}</p>')


def terms(pairs: Sequence[tuple[str, object]]) -> Html:
    """Return large values, each above its name."""
    cells = "".join(f"<div><dd>{escape(v)}</dd><dt>{escape(k)}</dt></div>" for k, v in pairs)
    return Html(f'<dl class="terms">{cells}</dl>')


def picture(jpeg: bytes, caption: object) -> Html:
    """Return a JPEG embedded in the page, above its caption."""
    data = base64.b64encode(jpeg).decode("ascii")
    return Html(
        f'<figure class="picture"><img decoding="async" alt="{escape(caption)}" '
        f'src="data:image/jpeg;base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def gallery(pictures: Sequence[Html], *, kind: str = "") -> Html:
    """Return pictures side by side; ``kind`` "pairs" keeps two and two together."""
    return Html(f'<div class="gallery {escape(kind)}">{join(pictures)}</div>')


def plots(figures: Sequence[Html]) -> Html:
    """Return plots side by side where there is room."""
    return Html(f'<div class="plots">{join(figures)}</div>')


def line_plot(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    diagonal: bool = False,
) -> Html:
    """Return lines with points over numbers.

    ``series`` are name → (x, y) pairs in the order of x; pairs that are not finite are left out.
    ``diagonal`` draws y = x, where both axes are the same.
    """
    kept = {name: _thin([p for p in points if all(map(math.isfinite, p))])
            for name, points in series.items()}  # fmt: skip
    flat = [point for points in kept.values() for point in points]
    if not flat:
        return note(f"{title}: nothing to plot")
    if diagonal:
        flat = [*flat, (0.0, 0.0), (1.0, 1.0)]
    x, x_marks = _axis([p[0] for p in flat], LEFT, WIDTH - RIGHT)
    y, y_marks = _axis([p[1] for p in flat], HEIGHT - BOTTOM, TOP)
    parts = _frame(x, x_marks, y, y_marks, x_label, y_label)
    if diagonal:
        parts.append(_line([(x(0), y(0)), (x(1), y(1))], "diagonal"))
    for place, (name, points) in enumerate(kept.items()):
        colour = f"c{place % 8}"
        drawn = [(x(a), y(b)) for a, b in points]
        parts.append(_line(drawn, f"line {colour}"))
        for (a, b), (left, top) in zip(points, drawn, strict=True):
            label = escape(f"{name}: {a:.4g}, {b:.4g}")
            parts.append(f'<circle class="{colour}" cx="{left:.1f}" cy="{top:.1f}" r="2.5">'
                         f"<title>{label}</title></circle>")  # fmt: skip
    return _figure(title, parts, HEIGHT, list(kept) if len(kept) > 1 or diagonal else [])


def interval_plot(
    rows: Sequence[tuple[str, float, float, float]], *, title: str, x_label: str
) -> Html:
    """Return values with intervals, one line each: (name, value, low, high)."""
    rows = [row for row in rows if math.isfinite(row[1])]
    if not rows:
        return note(f"{title}: nothing to plot")
    step, left = 30, 12
    height = TOP + step * len(rows) + BOTTOM
    x, marks = _axis([v for row in rows for v in row[1:] if math.isfinite(v)], left, WIDTH - left)
    parts = [_grid(x(mark), x(mark), TOP, height - BOTTOM) for mark in marks]
    parts += [_text(x(mark), height - BOTTOM + 13, text) for mark, text in marks.items()]
    parts.append(_text(WIDTH / 2, height - 4, x_label))
    for place, (name, value, low, high) in enumerate(rows):
        top = TOP + step * place + 22
        parts.append(_text(left, top - 9, f"{name}  {number(value)}", "start name"))
        if math.isfinite(low) and math.isfinite(high):
            parts.append(_line([(x(low), top), (x(high), top)], "line c0"))
        parts.append(f'<circle class="c0" cx="{x(value):.1f}" cy="{top}" r="4"/>')
    return _figure(title, parts, height, [])


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    step = -(-len(points) // MAX_POINTS) if points else 1
    return list(points[::step])


def _axis(values: Sequence[float], start: float, stop: float) -> tuple[Scale, Marks]:
    """Return the map from numbers to ``start`` … ``stop`` and its marks, six at most."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(abs(high), 1e-9):
        low, high = low - 0.5 * abs(low) - 1e-6, high + 0.5 * abs(high) + 1e-6
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    if all(float(value).is_integer() for value in values):
        step = max(step, 1.0)  # there is no epoch 1.5
    pad = 0.04 * (high - low)
    low, high = low - pad, high + pad
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step), math.floor(high / step)
    marks = {n * step: f"{n * step:.{digits}f}" for n in range(first, last + 1)}
    return (lambda value: start + (value - low) / (high - low) * (stop - start)), marks


def _frame(
    x: Scale, x_marks: Marks, y: Scale, y_marks: Marks, x_label: str, y_label: str
) -> list[str]:
    parts = [_grid(LEFT, WIDTH - RIGHT, y(mark), y(mark)) for mark in y_marks]
    parts += [_text(LEFT - 5, y(mark) + 4, text, "end") for mark, text in y_marks.items()]
    parts += [_text(x(mark), HEIGHT - BOTTOM + 14, text) for mark, text in x_marks.items()]
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 4, x_label))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text transform="translate(11 {middle:.0f}) rotate(-90)">{escape(y_label)}'
                 "</text>")  # fmt: skip
    return parts


def _grid(left: float, right: float, top: float, bottom: float) -> str:
    return f'<path class="grid" d="M{left:.1f} {top:.1f}L{right:.1f} {bottom:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _line(points: Sequence[tuple[float, float]], kind: str) -> str:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="{kind}" d="M{path}"/>' if points else ""


def _figure(title: str, parts: Sequence[str], height: float, names: Sequence[str]) -> Html:
    """Return a plot with its title and, where there are several lines, what each is."""
    keys = "".join(f'<li><i class="c{n % 8}"></i>{escape(name)}</li>'
                   for n, name in enumerate(names))  # fmt: skip
    return Html(
        f'<figure class="plot"><figcaption>{escape(title)}</figcaption><svg role="img" '
        f'aria-label="{escape(title)}" viewBox="0 0 {WIDTH} {height:.0f}">{"".join(parts)}</svg>'
        f"{f'<ul>{keys}</ul>' if keys else ''}</figure>"
    )


def page(
    title: str, sections: Mapping[str, Sequence[object]], *, about: str = "", refresh: int = 0
) -> str:
    """Return the whole page.

    ``sections`` are heading → its parts, escaped unless they are :class:`Html`; empty ones are left
    out. ``about`` is one line below the title. After ``refresh`` seconds the page loads itself
    again, 0 = never.
    """
    kept = {name: [p for p in parts if p] for name, parts in sections.items()}
    kept = {name: parts for name, parts in kept.items() if parts}
    anchors = {name: re.sub(r"\W+", "-", name.lower()) for name in kept}
    links = "".join(f'<a href="#{anchors[n]}">{escape(n)}</a>' for n in kept)
    body = "\n".join(
        f'<section id="{anchors[name]}"><h2>{escape(name)}</h2>\n{join(parts)}\n</section>'
        for name, parts in kept.items()
    )
    style, script = (
        "\n" + Path(__file__).with_suffix(kind).read_text(encoding="utf-8")
        for kind in (".css", ".js")
    )
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{allowed}'"
    )
    again = f'<meta http-equiv="refresh" content="{refresh}">\n' if refresh else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"{again}"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style></head>\n"
        f"<body><header><h1>{escape(title)}</h1>{note(about) if about else ''}"
        f'<nav aria-label="sections">{links}</nav></header>\n<main>\n{body}\n</main>\n'
        f"<script>{script}</script></body></html>\n"
    )
