"""Pages: what is escaped, what sorts, what is drawn; and in a browser where there is one."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from src.page import (
    Html,
    escape,
    interval_plot,
    line_plot,
    number,
    page,
    percent,
    picture,
    shaded,
    table,
)
from tests.browser import show

HOSTILE = "<script>x=1</script>\"'&\x00\u202e\udcff가"


def test_whatever_is_not_html_is_escaped() -> None:
    shown = escape(HOSTILE)
    assert shown == "&lt;script&gt;x=1&lt;/script&gt;&quot;&#x27;&amp;\ufffd\ufffd\ufffd가"
    assert escape(Html("<b>")) == "<b>"
    everywhere = page(HOSTILE, {HOSTILE: [
        table([HOSTILE], [[HOSTILE]], caption=HOSTILE), picture(b"x", HOSTILE),
        line_plot({HOSTILE: [(0, 1), (1, 2)], "b": []}, title=HOSTILE, x_label=HOSTILE,
                  y_label=HOSTILE),
        interval_plot([(HOSTILE, 1, 0, 2)], title=HOSTILE, x_label=HOSTILE), HOSTILE,
    ]}, about=HOSTILE)  # fmt: skip
    assert "<script>x" not in everywhere and "\x00" not in everywhere
    everywhere.encode("utf-8")  # no lone surrogate is left
    assert everywhere.count("<script>") == 1


def test_numbers_are_shown_for_reading_and_sorted_by_value() -> None:
    assert [number(v) for v in (0.12345, -0.0, 1e-6, 12.3456, 122.8611, 1234.5, float("nan"))] == [
        "0.1235", "0.0000", "1.0e-06", "12.346", "122.86", "1,234", ""
    ]  # fmt: skip
    html = table(["a", "b"], [["x", 0.5], ["y", None], ["z", 12345]], caption="c")
    assert '<td class="n" data-v="0.5">0.5000</td>' in html and "<td></td>" in html
    assert 'data-v="12345">12,345<' in html
    assert html.count('<th scope="col" class="n">') == 1, "only the head above numbers"
    assert 'data-v="0.25"' in percent(0.25) and "25.0%" in percent(0.25)
    assert "s5" in shaded(2.0, 1.0, 2.0) and "s0" in shaded(1.0, 1.0, 2.0)
    assert shaded(1.0, 1.0, 1.0) and not shaded(float("nan"), 0, 1)


def test_long_tables_scroll_and_can_be_filtered() -> None:
    assert "search" not in table(["a"], [["x"]] * 15, caption="c")
    assert 'type="search"' in table(["a"], [["x"]] * 16, caption="c")


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_a_line_is_drawn_where_its_numbers_are(scale: float) -> None:
    points = [(0.0, 0.0), (5.0, 2.0 * scale), (10.0, 1.0 * scale), (11.0, float("nan"))]
    html = line_plot({"a": points}, title="t", x_label="x", y_label="y")
    circles = [
        tuple(map(float, found)) for found in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', html)
    ]
    assert len(circles) == 3, "what is not finite is left out"
    (x0, y0), (x1, y1), (x2, y2) = circles
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2), "equal steps"
    assert y0 > y2 > y1 and (y0 - y2) == pytest.approx((y0 - y1) / 2, abs=0.2)
    assert 3 <= len(re.findall(r'class="end"', html)) <= 7, "marks of the vertical axis"
    ElementTree.fromstring(re.search("<svg.*</svg>", html, re.DOTALL)[0])  # well-formed


@pytest.mark.parametrize("points", [[(1.0, 5.0)], [(0.0, 0.0)], [(1.0, 5.0), (2.0, 5.0)]])
def test_a_constant_is_drawn_too(points: list[tuple[float, float]]) -> None:
    html = line_plot({"a": points}, title="t", x_label="x", y_label="y")
    assert html.count("<circle") == len(points) and "nan" not in html
    assert "nothing to plot" in line_plot({"a": []}, title="t", x_label="x", y_label="y")


@pytest.mark.parametrize("points", [[(1, 0.0), (2, 0.0)], [(1, 3), (2, 4)]])
def test_whole_numbers_have_whole_marks(points: list[tuple[float, float]]) -> None:
    """Marks of a score that was 0 throughout were so long that they left the plot."""
    html = line_plot({"a": points}, title="t", x_label="x", y_label="y")
    marks = re.findall(r"<text[^>]*>([-\d.]+)</text>", html)
    assert marks and all(mark.lstrip("-").isdigit() for mark in marks), marks


def test_a_page_asks_the_network_for_nothing() -> None:
    html = page("t", {"A b": [Html("<p>x</p>")], "empty": []})
    assert "default-src 'none'" in html and not re.search(r"(src|href)=\"(?!#|data:)", html)
    assert '<a href="#a-b">' in html and '<section id="a-b">' in html and "empty" not in html


def test_a_browser_sorts_filters_and_complains_about_nothing(tmp_path: Path) -> None:
    rows = [
        [f"name{n}", v, shaded(float(-n), -20, 0)] for n, v in enumerate([3, None, 20, 100] * 5)
    ]
    path = tmp_path / "page.html"
    path.write_text(page("t", {"A": [table(["n", "v", "s"], rows, caption="c")]}), "utf-8")
    html, console = show(path)
    assert not console and "name0" in html
    press = (
        "const heads = [...document.querySelectorAll('th button')]; const seen = [];"
        "const column = n => [...document.querySelectorAll('tbody tr')].map("
        "row => row.cells[n].textContent).join(' ');"
        "for (const n of [1, 1, 2, 0]) { heads[n].click(); seen.push(column(n)); }"
        "const box = document.querySelector('input'); box.value = 'NAME1';"
        "box.dispatchEvent(new Event('input', {bubbles: true}));"
        "seen.push([...document.querySelectorAll('tbody tr')].filter(r => !r.hidden).length);"
        "seen.push(document.documentElement.scrollWidth <= innerWidth);"
        "document.body.insertAdjacentHTML('beforeend',"
        "'<pre id=seen>' + seen.join('\\n') + '</pre>');"
    )
    html, console = show(path, do=press)
    assert not console
    seen = re.search('<pre id="seen">(.*?)</pre>', html, re.DOTALL)[1].split("\n")
    up = " ".join(["3"] * 5 + ["20"] * 5 + ["100"] * 5)
    assert seen[0].strip() == up, "as numbers, empty cells last"
    assert seen[1].split() == up.split()[::-1], "the second press turns it round"
    assert seen[2].split()[0] == "-19"
    assert seen[3].split()[0] == "name0"
    assert seen[4] == "11", "name1 and name10 to name19"
    assert seen[5] == "true", "no wider than a phone"
    assert re.search(r'<th scope="col"[^>]*aria-sort="ascending"', html)
