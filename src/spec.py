"""Specs of losses and augmentations: ``"ce + 0.5 focal(gamma=3)"`` → weighted functions of a table.

A term is ``[weight] name[(option=value, ...)]``. Its options are the parameters of the function
that the table has under its name: ``gamma: Annotated[float, {"least": 0, "most": 100}] = 2.0``
declares type, bounds and default in one place; ``bool`` and ``Literal`` declare themselves.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Literal, TypeVar

from src.option import describe_limits, lies_within
from src.reader import coerce
from src.script import UserError, nearest, quote

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

    Args:
        flag: option the spec was given by, for messages.
        spec: terms joined by ``+``.
        table: name → function.
        example: a spec, for messages.
        most: greatest weight; a weight is above 0, and 1 where none is written.

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
