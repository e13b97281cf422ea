"""The README stays short; files, tests and options that it and the documents name are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
NOT_OURS = {"deterministic", "rdzv_endpoint"}  # not offered, torchrun's
NO_TESTS = {"test_logits", "test_resnet", "test_label", "test_set", "test_images", "test_table"}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = [
    path
    for place in ("*.py", "src/**/*.py", "scripts/*.py", "benchmarks/*.py")
    for path in ROOT.glob(place)
]
TESTS = {path: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")}


@cache
def options() -> set[str]:
    """Return the words of every option: fields that a config declares, flags of other parsers."""
    found = {"help"}
    for path in CODE:
        source = path.read_text(encoding="utf-8")
        found |= set(re.findall(r'"--(\w+)"', source))
        found |= {
            ast.unparse(node.target)
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.AnnAssign)
            and node.value
            and ast.unparse(node.value).startswith("option(")
        }
    return found


def test_it_is_read_in_one_go() -> None:
    assert len(TEXT.splitlines()) <= 180


def test_its_presets_are_those_of_the_config() -> None:
    text = (ROOT / "configs" / "classify.yaml").read_text(encoding="utf-8")
    models = yaml.safe_load(text)["models"]
    row = r"^\| `(\w+)` \| `(\S+)` \| (\d+) \| AdamW ([^,\s]+)(?:, layer decay (\S+))? \|$"
    shown = {
        name: (timm_id, int(size), float(lr), float(decay or 1))
        for name, timm_id, size, lr, decay in re.findall(row, TEXT, re.M)
    }
    keys = ("timm_id", "image_size", "lr", "layer_decay")
    assert shown == {
        name: tuple(float(m[k]) if k == "lr" else m[k] for k in keys) for name, m in models.items()
    }


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_what_it_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    places = "src|docs|configs|benchmarks|scripts|tests|notebooks"
    paths = re.findall(rf"`((?:{places})/[\w./]*\w\.\w+)(?:::\w+)?`", text)
    paths += re.findall(r"(?:python |^)((?:scripts/|benchmarks/)?\w+\.(?:py|sh))\b", text, re.M)
    assert not [path for path in paths if path != "SCRIPT.py" and not (ROOT / path).is_file()]
    every = "".join(TESTS.values())
    for path, name in re.findall(r"`(tests/[\w/]+\.py)?(?:::)?(test_\w+)`", text):
        source = TESTS[ROOT / path] if path else every
        assert f"def {name}(" in source or name in NO_TESTS, (path, name)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_option_that_it_names_exists(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    own = [line for line in lines if not re.search(r"\b(torchrun|ray|docker) ", line)]
    named = set(re.findall(r"(?<![\w-])--([a-z]\w+)", "\n".join(own)))
    assert named - options() <= NOT_OURS


@pytest.mark.parametrize("path", PAGES)
def test_commands_hold_no_quotation_mark_that_windows_leaves_in(path: Path) -> None:
    """Its cmd.exe hands 'a*' over with the quotation marks; "a*" is a* in every shell."""
    lines = path.read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if re.search(r"\bpython \S+\.py", line)]
    assert not [line for line in commands if re.search(r" '[^']+'", line)]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_link_leads_to_a_page_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s:]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link
