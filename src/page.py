"""Self-contained HTML pages: sortable tables, inline SVG plots, embedded pictures.

Everything is text that needs neither network nor library: one file that opens from disk, in light
and dark, on a phone. Whatever is not :class:`Html` is escaped; a content security policy lets only
this module's own script run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Callable, Mapping, Sequence

Scale = Callable[[float], float]  # value → place in the plot
Marks = dict[float, str]  # value → its label on an axis
MAX_POINTS = 400  # of a line: more would not show
LONG_TEXT = 30  # characters from which a cell breaks its lines
LONG_TABLE = 15  # rows from which a table scrolls by itself and has a filter
WIDTH, HEIGHT = 360, 220  # of a plot, in its own units; about the pixels of a phone
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 34  # margins of a plot


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
    """Return a number for reading; an empty text where it is not one."""
    if not math.isfinite(value):
        return ""
    if 0 < abs(value) < 10**-digits:
        return f"{value:.1e}" if abs(value) > 1e-12 else number(0.0, digits)
    whole = abs(value) >= 1000 or (abs(value) >= 10 and value == round(value))
    return f"{value:,.0f}" if whole else f"{value:,.{digits}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str) -> Html:
    """Return a table that its column heads sort.

    Args:
        header: names of the columns.
        rows: cells; numbers sort as numbers and stand to the right, None is an empty cell.
        caption: what the table shows, in a few words.
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


def picture(jpeg: bytes, caption: object, *, alt: str = "") -> Html:
    """Return a JPEG embedded in the page, above its caption."""
    data = base64.b64encode(jpeg).decode("ascii")
    return Html(
        f'<figure class="picture"><img loading="lazy" alt="{escape(alt or caption)}" '
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

    Args:
        series: name → (x, y) pairs in the order of x; pairs that are not finite are left out.
        title: what is shown.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        diagonal: draw y = x, where both axes are the same.
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
    """Return the map from numbers to ``start`` … ``stop`` and the marks, three to six of them."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(abs(high), 1e-9):
        low, high = low - 0.5 * abs(low) - 1e-6, high + 0.5 * abs(high) + 1e-6
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
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

    Args:
        title: of the page.
        sections: heading → its parts, escaped unless they are :class:`Html`; empty ones are left
            out.
        about: one line below the title.
        refresh: seconds after which the page loads itself again, 0 = never.
    """
    kept = {name: [p for p in parts if p] for name, parts in sections.items()}
    kept = {name: parts for name, parts in kept.items() if parts}
    anchors = {name: re.sub(r"\W+", "-", name.lower()) for name in kept}
    links = "".join(f'<a href="#{anchors[n]}">{escape(n)}</a>' for n in kept)
    body = "\n".join(
        f'<section id="{anchors[name]}"><h2>{escape(name)}</h2>\n{join(parts)}\n</section>'
        for name, parts in kept.items()
    )
    allowed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode("ascii")
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
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n"
        f"<body><header><h1>{escape(title)}</h1>{note(about) if about else ''}"
        f'<nav aria-label="sections">{links}</nav></header>\n<main>\n{body}\n</main>\n'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


STYLE = """
:root{--fg:#1c2024;--dim:#5a636d;--bg:#fff;--card:#f6f7f9;--rule:#d9dde2;--focus:#0b5fd0;
--c0:#0b5fd0;--c1:#b34700;--c2:#0a7a4b;--c3:#a3238e;--c4:#7a5c00;--c5:#006f86;--c6:#c02626;
--c7:#5b49c9;--shade:11,95,208}
@media (prefers-color-scheme:dark){:root{--fg:#e6e9ec;--dim:#a2abb5;--bg:#14171a;--card:#1d2125;
--rule:#363c43;--focus:#7db3ff;--c0:#7db3ff;--c1:#ffa066;--c2:#5fd6a0;--c3:#f08adf;--c4:#e3c04a;
--c5:#57cfe6;--c6:#ff8a8a;--c7:#b0a4ff;--shade:125,179,255}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:76rem;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Noto Sans CJK KR",sans-serif}
h1{font-size:1.5rem;margin:0}h2{font-size:1.2rem;margin:2.2rem 0 .6rem;padding-top:.6rem;
border-top:1px solid var(--rule)}h3{font-size:1rem;margin:1.4rem 0 .4rem}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1rem;margin-top:.6rem}a{color:var(--c0)}
.note,figcaption{color:var(--dim);font-size:.88rem}.note{margin:.4rem 0;max-width:46rem}
figure{margin:.8rem 0}p,figcaption,td div,dt,h1,li{overflow-wrap:anywhere}
.terms{display:flex;flex-wrap:wrap;gap:.6rem;margin:.6rem 0}.terms>div{display:flex;
flex-direction:column;background:var(--card);border:1px solid var(--rule);border-radius:8px;
padding:.5rem .9rem;min-width:9rem}
.terms dd{margin:0;font-size:1.35rem;font-variant-numeric:tabular-nums}
.terms dt{color:var(--dim);font-size:.85rem}
.scroll{overflow-x:auto;border:1px solid var(--rule);border-radius:8px}
.scroll.long{max-height:26rem;overflow-y:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem}caption{text-align:left;color:var(--dim);
padding:.4rem .6rem;font-size:.88rem}
th,td{padding:.25rem .6rem;text-align:left;border-top:1px solid var(--rule);vertical-align:top}
td{white-space:nowrap}td div{white-space:normal;width:max-content;max-width:36rem}
.n{text-align:right;font-variant-numeric:tabular-nums}
thead th{position:sticky;top:0;background:var(--card);padding:0;white-space:nowrap}
th button{all:unset;box-sizing:border-box;cursor:pointer;padding:.35rem .6rem;width:100%;
font-weight:600}
th.n button{text-align:right}
th button::after{content:" \\2195";opacity:.35}
th[aria-sort=ascending] button::after{content:" \\2191";opacity:1}
th[aria-sort=descending] button::after{content:" \\2193";opacity:1}
:focus-visible,th button:focus-visible{outline:2px solid var(--focus);outline-offset:-2px}
input{font:inherit;color:inherit;background:var(--card);border:1px solid var(--rule);
border-radius:8px;padding:.3rem .6rem;margin-bottom:.4rem;width:min(100%,18rem)}
.s{display:block;text-align:right;border-radius:4px;padding:0 .3rem;
font-variant-numeric:tabular-nums}
.s1{background:rgba(var(--shade),.08)}.s2{background:rgba(var(--shade),.16)}
.s3{background:rgba(var(--shade),.24)}.s4{background:rgba(var(--shade),.32)}
.s5{background:rgba(var(--shade),.4)}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));gap:1rem}
.plot{margin:0;max-width:30rem}.plot figcaption{color:var(--fg)}
svg{width:100%;height:auto;display:block;fill:none}
svg text{fill:var(--dim);font-size:11px;text-anchor:middle}svg .end{text-anchor:end}
svg .start{text-anchor:start}svg .name{fill:var(--fg)}
.grid{stroke:var(--rule)}.diagonal{stroke:var(--dim);stroke-dasharray:4 4}.line{stroke-width:2}
.plot ul{list-style:none;display:flex;flex-wrap:wrap;gap:.1rem .9rem;margin:.2rem 0;padding:0;
font-size:.85rem}
.plot i{display:inline-block;width:.8rem;height:.8rem;border-radius:3px;margin-right:.3rem;
background:currentColor;vertical-align:-1px}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,10rem),1fr));
gap:.8rem;margin:.8rem 0}
.gallery.pairs,.gallery.wide{grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr))}
.pair{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:.6rem;
display:grid;grid-template-columns:1fr 1fr;gap:.3rem .6rem;align-items:end}
.pair h3{grid-column:1/-1;margin:0}.picture{margin:0}
.picture img{width:100%;border-radius:6px;display:block;background:var(--card)}
""" + "".join(f".c{n}{{stroke:var(--c{n});color:var(--c{n})}}" for n in range(8)) + """
circle[class]{fill:currentColor;stroke:none}
@media (max-width:34rem){.gallery{grid-template-columns:1fr 1fr}
.gallery.pairs,.gallery.wide{grid-template-columns:1fr}}
@media print{.scroll.long{max-height:none}}
"""  # fmt: skip

SCRIPT = """
const value = cell => {
  const marked = cell.dataset.v ?? cell.querySelector("[data-v]")?.dataset.v;
  return marked === undefined ? cell.textContent.trim().toLowerCase() : Number(marked);
};
const order = (a, b) => a === "" || b === "" ? (a === "") - (b === "")
  : typeof a === typeof b ? (typeof a === "number" ? a - b : a.localeCompare(b))
  : typeof a === "number" ? -1 : 1;
document.addEventListener("click", event => {
  const head = event.target.closest("th button")?.parentElement;
  if (!head) return;
  const up = head.ariaSort !== "ascending", body = head.closest("table").tBodies[0];
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.ariaSort = up ? "ascending" : "descending";
  const keyed = [...body.rows].map(row => [value(row.cells[head.cellIndex]), row]);
  keyed.sort(([a], [b]) => a === "" || b === "" || up ? order(a, b) : order(b, a));
  body.append(...keyed.map(([, row]) => row));
});
document.addEventListener("input", event => {
  const words = event.target.value.toLowerCase();
  for (const row of event.target.closest("figure").querySelector("tbody").rows)
    row.hidden = !row.textContent.toLowerCase().includes(words);
});
"""
