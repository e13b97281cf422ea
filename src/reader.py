"""Config reader: dataclass defaults < YAML ``train:`` block < the model's YAML row < flags; specs.

A frozen dataclass and the words of the command line go in, a filled instance comes out; the field,
the YAML key and the flag are the same word.

Specs: ``"ce + 0.5 focal(gamma=3)"`` → weighted functions of a table. A term is
``[weight] name[(option=value, ...)]``. Its options are the parameters of the function that the
table has under its name: ``gamma: Annotated[float, {"least": 0, "most": 100}] = 2.0`` declares
type, bounds and default in one place; ``bool`` and ``Literal`` declare themselves.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import re
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from src.files import is_of_the_system, patiently, read_small
from src.option import GROUPS, describe_limits, lies_within
from src.script import UserError, brief, nearest, quote

Config = TypeVar("Config")
ROOT = Path(__file__).resolve().parents[1]
MAX_YAML_BYTES = 1_000_000
MAX_TEXT_BYTES = 4096  # of a path on Linux
BLOCKS = ("train", "models")


@functools.cache
def field_types(config_class: Any) -> dict[str, Any]:
    """Return field name → resolved annotation."""
    hints = typing.get_type_hints(config_class)  # of class variables too, which nobody may set
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


def coerce(name: str, value: object, kind: Any) -> Any:
    """Return ``value`` as annotation ``kind`` says; "1e-4" is a float where a float is due.

    Raises:
        UserError: naming ``name``, the value and what was expected.
    """
    origin = typing.get_origin(kind)
    if origin is Literal:
        # YAML 1.1 reads a bare on/off as a boolean
        if isinstance(value, bool) and {"on", "off"} <= set(typing.get_args(kind)):
            value = "on" if value else "off"
        if value not in typing.get_args(kind):
            choices = ", ".join(str(choice) or "empty" for choice in typing.get_args(kind))
            raise UserError(f"{name}: {quote(value)} is none of {choices}")
        return value
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(coerce(name, item, typing.get_args(kind)[0]) for item in items)
    return coerce_plain(name, value, kind)


def coerce_plain(name: str, value: object, kind: type) -> Any:
    """Coerce to bool, int, float or str without guessing: 1.5 is no int, "maybe" no bool."""
    expected = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
    try:
        if not isinstance(value, (bool, int, float, str)):
            raise ValueError
        text = str(value).strip()
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "on": True}.get(text.lower()) or {
                "false": False, "0": False, "no": False, "off": False
            }[text.lower()]  # fmt: skip
        if kind is str:
            value = str(value)
            if "\0" in value or len(value.encode()) > MAX_TEXT_BYTES:  # only UTF-8 can be encoded
                raise ValueError
            return value
        if isinstance(value, bool):
            raise ValueError
        number = float(text)
        if kind is int and number != int(number):
            raise ValueError
        if number != number:
            raise ValueError
        return int(text) if kind is int and text.lstrip("+-").isdigit() else kind(number)
    except (ValueError, KeyError, OverflowError):
        raise UserError(f"{name}: {quote(value)} is not {expected}") from None


def plain(key: object) -> str:
    """Return a YAML key as text, whatever it is."""
    return key if isinstance(key, str) else quote(key)


def check_keys(where: str, keys: Sequence[str], config_class: type) -> None:
    """Refuse keys that are no field of ``config_class``, naming the nearest."""
    names = list(field_types(config_class))
    for key in keys:
        if key not in names:
            hint = nearest(plain(key), names)
            raise UserError(f"{where}: unknown key {quote(key)}{hint}")


def shipped(path: Path) -> Path:
    """Return ``path``, or the project's own file of that name if only that one exists.

    So a script that is called from another folder finds its presets.
    """
    beside = ROOT / path
    try:
        return beside if beside.is_file() and not path.exists() else path
    except OSError:  # a name too long: whoever opens it says so
        return path


def read_yaml(path: Path, flag: str = "config") -> dict[str, Any]:
    """Read a YAML mapping safely: no objects are constructed, and a regular file of 1 MB at most.

    Raises:
        UserError: naming ``flag``, which named the file.
    """
    import yaml

    path = shipped(path)
    try:
        data = patiently(lambda: read_small(path, MAX_YAML_BYTES))
        content = yaml.load(data.decode("utf-8-sig"), _strict_loader())
    except FileNotFoundError:
        raise UserError(f"--{flag} {path}: no such file") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        if is_of_the_system(error):
            raise
        raise UserError(f"--{flag} {path}: cannot be read as YAML ({brief(error, 200)})") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UserError(f"--{flag} {path}: expected a mapping with `train:` and `models:`")
    return content


@functools.cache
def _strict_loader() -> Any:
    """Return YAML's safe loader that takes no key twice, which would silently lose the first."""
    import yaml

    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if key.tag == "tag:yaml.org,2002:str"]
            doubled = Counter(keys).most_common(1)
            if doubled and doubled[0][1] > 1:
                raise yaml.YAMLError(f"{quote(doubled[0][0])} is there twice")
            return super().construct_mapping(node, deep)

    return Strict


def read_rows(path: Path, config_class: type, flag: str = "config") -> tuple[dict, dict]:
    """Return the ``train:`` block and the ``models:`` rows of a config file, keys checked."""
    content = read_yaml(path, flag)
    for key in content:
        if key not in BLOCKS:
            raise UserError(f"{path}: unknown block {quote(key)}{nearest(plain(key), BLOCKS)}")
    common, rows = (content.get(block) or {} for block in BLOCKS)
    if not isinstance(rows, dict):
        raise UserError(f"{path}: models: expected a mapping of names to options")
    for where, block in [
        ("train", common),
        *((f"models: {plain(name)}", r) for name, r in rows.items()),
    ]:
        if not isinstance(block or {}, dict):
            raise UserError(f"{path}: {where}: expected a mapping of options")
        check_keys(f"{path}: {where}", list(block or {}), config_class)
    return common, {plain(name): row or {} for name, row in rows.items()}


def build_parser(config_class: type, prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with one flag an option, grouped, the most used ones at the top."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"python {prog} [--option value ...]",
        description=description,
        epilog="In brackets: the default. Dashes may stand for underscores.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=partial(argparse.HelpFormatter, max_help_position=34, width=100),
    )
    declared = dataclasses.fields(config_class)
    folders = ("data_dir", "output_dir")  # what everybody names stands first
    entries = sorted(
        declared, key=lambda e: (GROUPS.index(e.metadata["group"]), e.name not in folders)
    )
    headings = ["most used", *dict.fromkeys(entry.metadata["group"] for entry in entries)]
    groups = {heading: parser.add_argument_group(heading) for heading in headings}
    for entry in entries:
        kind = field_types(config_class)[entry.name]
        heading = "most used" if entry.metadata["first"] else entry.metadata["group"]
        nargs = "+" if typing.get_origin(kind) is tuple else "?" if kind is bool else None
        extra = {"const": True} if kind is bool else {}
        default = "" if nargs == "+" else str(entry.default)
        default = default.lower() if kind is bool else default
        text = f"{entry.metadata['help']} [{default}]" if default else entry.metadata["help"]
        groups[heading].add_argument(
            f"--{entry.name}", nargs=nargs, metavar=_metavar(kind), help=text.replace("%", "%%"),
            **extra,  # type: ignore[arg-type]
        )  # fmt: skip
    return parser


def _metavar(kind: Any) -> str:
    """Return what ``--help`` shows for a value: its choices, or its type."""
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(map(str, typing.get_args(kind))) + "}"
    if typing.get_origin(kind) is tuple:
        return _metavar(typing.get_args(kind)[0])
    return {bool: "true|false", int: "N", float: "X", str: "TEXT"}[kind]


def parse(
    config_class: type[Config],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    row_by: str = "",
    rows_only: bool = False,
) -> Config:
    """Read flags, and the YAML file they name, into ``config_class``.

    The dataclass's field ``config`` holds the path of the YAML file, and its field ``row_by`` picks
    the row there (``model``); with ``rows_only`` that must name a row, if anything.

    Raises:
        UserError: unknown flag, key or value, naming the nearest; a package that a flag needs.
    """
    parser = build_parser(config_class, prog, description)
    parser.error = partial(_refuse, parser)  # type: ignore[assignment,method-assign]
    flags, rest = parser.parse_known_args([_underscored(word) for word in argv])
    if rest:
        word = rest[0].split("=")[0]
        names = [f"--{name}" for name in field_types(config_class)]  # type: ignore[arg-type]
        meant = "--" + word.lstrip("-").replace("-", "_")
        raise UserError(f"unknown flag {word}{nearest(meant, names)}")
    config = fill(config_class, vars(flags), row_by=row_by, rows_only=rows_only)
    for name in ("wandb", "mlflow"):
        if getattr(config, name, False) and importlib.util.find_spec(name) is None:
            raise UserError(f"--{name}: no such package here; pip install {name}, or drop the flag")
    return config


def _underscored(word: str) -> str:
    """Return ``--batch-size=8`` as ``--batch_size=8``."""
    flag, equals, value = word.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}" if flag.startswith("--") else word


def _refuse(parser: argparse.ArgumentParser, message: str) -> typing.NoReturn:
    raise UserError(f"{message}; see python {parser.prog} --help")


def fill(
    config_class: type[Config],
    flags: Mapping[str, object],
    *,
    row_by: str = "",
    rows_only: bool = False,
) -> Config:
    """Lay ``flags`` over the YAML row over the YAML block over the defaults."""
    kinds = field_types(config_class)  # type: ignore[arg-type]
    values: dict[str, object] = {}
    if "config" in kinds:
        default = next(f.default for f in dataclasses.fields(config_class) if f.name == "config")  # type: ignore[arg-type]
        path = coerce("config", flags.get("config", default), str)
        if path:
            common, rows = read_rows(Path(path), config_class)
            values |= common
            row = str(flags.get(row_by, values.get(row_by, "")))
            if rows_only and row and row not in rows:
                raise UserError(
                    f"--{row_by} {row}: no such row{nearest(row, list(rows))}; {path} has "
                    f"{', '.join(rows) or 'none'}"
                )
            values |= rows.get(row, {})
        elif rows_only and flags.get(row_by):
            raise UserError(f"--{row_by} {flags[row_by]}: a row of --config, which is empty")
    values |= flags
    filled = {name: coerce(name, value, kinds[name]) for name, value in values.items()}
    return config_class(**filled)


Result = TypeVar("Result")
_PLUS = re.compile(r"\+(?![^()]*\))")  # outside parentheses
_TERM = re.compile(
    r"(?:(?P<weight>[^\s()*]+)(?:\s*\*\s*|\s+))?(?P<name>\w+)\s*(?:\((?P<options>[^()]*)\))?"
)


def build_terms(
    flag: str,
    spec: str,
    table: Mapping[str, Callable[..., Result]],
    *,
    example: str,
    most: float = 1000.0,
) -> list[tuple[str, float, Callable[..., Result]]]:
    """Return (name, weight, function with the options that are given bound) of each term.

    ``spec`` has terms joined by ``+``; a weight is above 0, at most ``most``, and 1 where none is
    written. ``flag`` and ``example``, a spec, are for messages.

    Raises:
        UserError: what cannot be read, an unknown name or option, a value out of bounds, a name
            twice, or no term at all.
    """
    found: dict[str, tuple[str, float, Callable[..., Result]]] = {}
    for text in filter(None, map(str.strip, _PLUS.split(spec))):
        parts = _TERM.fullmatch(text)
        if parts is None:
            raise UserError(f"{flag} {quote(spec)}: write it as {example!r}")
        name, limits = parts["name"], {"above": 0, "most": most}
        if name not in table:
            raise UserError(
                f"{flag}: {quote(name)} is unknown{nearest(name, table)}; choose from "
                f"{', '.join(table)}"
            )
        if name in found:
            raise UserError(f"{flag}: {name} stands twice in it")
        weight = coerce(f"{flag}: weight of {name}", parts["weight"] or "1", float)
        if not lies_within(limits, weight):
            raise UserError(f"{flag}: weight {weight} of {name}: {describe_limits(limits)}")
        options = _options(f"{flag}: {name}", parts["options"] or "", table[name])
        found[name] = (name, weight, partial(table[name], **options))
    if not found:
        raise UserError(f"{flag} {quote(spec)}: has no terms; write for instance {example!r}")
    return list(found.values())


def _options(where: str, text: str, function: Callable[..., object]) -> dict[str, object]:
    """Return the values of ``gamma=3, per_image=true`` as ``function`` declares them."""
    hints = typing.get_type_hints(getattr(function, "func", function), include_extras=True)
    known = {name: hint for name, hint in hints.items() if _is_option(hint)}
    found: dict[str, object] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or name in found:
            raise UserError(f"{where}: {quote(part)}: write each option once, as in (name=value)")
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"{where} has no option {quote(name)}{nearest(name, known)}; {has}")
        kind, *limits = typing.get_args(known[name]) if _is_number(known[name]) else [known[name]]
        found[name] = coerce(f"{where}: {name}", value, kind)
        if limits and not lies_within(limits[0], found[name]):
            raise UserError(f"{where}: {name} {value[:60]}: {describe_limits(limits[0])}")
    return found


def _is_number(hint: object) -> bool:
    return typing.get_origin(hint) is Annotated


def _is_option(hint: object) -> bool:
    return hint is bool or typing.get_origin(hint) is Literal or _is_number(hint)
