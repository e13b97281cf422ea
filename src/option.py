"""Declaration of an option: its default, help, bounds and group, as metadata of a dataclass field.

Every number has a least and a greatest value, hence is finite; a config refuses any other however
it is made. Whole numbers have a step of 1, all others none.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, TypeVar

from src.script import UserError, quote

GROUPS = (  # headings of --help, in their order
    "data and output", "model", "loss", "schedule", "optimizer", "augmentation",
    "validation and inference", "ensemble", "distillation", "comparison", "hardware", "run",
)  # fmt: skip
AnyClass = TypeVar("AnyClass", bound=type)


def option(
    default: object,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    also: float | None = None,
    form: str = "",
    group: str = "",
    first: bool = False,
) -> Any:
    """Declare an option as the field of a config; its annotation gives type and choices.

    Args:
        default: value where neither file nor flag says otherwise.
        help: text of ``--help``.
        least: smallest value; ``above`` instead where it is excluded.
        most: greatest value; ``below`` instead where it is excluded.
        above: number that a value must exceed.
        below: number that a value must not reach.
        also: one value outside the bounds that is accepted, as in "0 = off".
        form: regular expression that a text must match as a whole.
        group: heading of ``--help`` it stands under; empty = the class's.
        first: whether ``--help`` shows it at the top.
    """
    given = {"least": least, "above": above, "most": most, "below": below, "also": also}
    limits = {name: bound for name, bound in given.items() if bound is not None}
    metadata = {"help": help, "limits": limits, "form": form, "group": group, "first": first}
    return dataclasses.field(default=default, metadata=metadata)


def defaults(**values: object) -> Callable[[AnyClass], AnyClass]:
    """Give inherited options other defaults; stands below ``@dataclass``.

    Type, help, bounds and group stay as they were declared.
    """

    def change(config_class: AnyClass) -> AnyClass:
        inherited = {
            entry.name: entry
            for base in reversed(config_class.__mro__[1:])
            if dataclasses.is_dataclass(base)
            for entry in dataclasses.fields(base)
        }
        for name, value in values.items():
            entry = inherited[name]
            config_class.__annotations__[name] = entry.type
            again = dataclasses.field(default=value, metadata=entry.metadata)
            setattr(config_class, name, again)
        return config_class

    return change


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What every config is: options whose values lie within their bounds."""

    def __init_subclass__(cls, group: str = "") -> None:
        """Put the options that a class declares into its ``group`` of ``--help``."""
        for entry in vars(cls).values():
            if isinstance(entry, dataclasses.Field) and not entry.metadata["group"]:
                entry.metadata = MappingProxyType({**entry.metadata, "group": group})

    def __post_init__(self) -> None:
        """Check the value of every option.

        Raises:
            UserError: naming the option, its value and what it may be.
        """
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            for item in value if isinstance(value, tuple) else (value,):
                check_value(entry, item)

    def shared(self, config_class: type[Options]) -> dict[str, Any]:
        """Return the options that ``config_class`` has as well, name → value."""
        names = {entry.name for entry in dataclasses.fields(config_class)}
        own = (entry.name for entry in dataclasses.fields(self))
        return {name: getattr(self, name) for name in own if name in names}


def check_value(entry: dataclasses.Field[Any], value: Any) -> None:
    """Refuse a ``value`` that the option ``entry`` does not allow."""
    limits, form = entry.metadata["limits"], entry.metadata["form"]
    if form and not re.fullmatch(form, value):
        raise UserError(f"--{entry.name} {value[:60]}: expected {entry.metadata['help']}")
    if not lies_within(limits, value):
        raise UserError(f"--{entry.name} {quote(value)}: {describe_limits(limits)}")


def lies_within(limits: dict[str, float], value: Any) -> bool:
    """Tell whether the bounds of an option allow ``value``."""
    return (
        not limits
        or value == limits.get("also")
        or (
            limits.get("least", value) <= value <= limits.get("most", value)
            and value > limits.get("above", float("-inf"))
            and value < limits.get("below", float("inf"))
        )
    )


def describe_limits(limits: dict[str, float]) -> str:
    """Return the bounds of an option in words: ``at least 0, below 1``."""
    words = {"least": "at least", "most": "at most", "also": "or"}
    return ", ".join(f"{words.get(name, name)} {bound}" for name, bound in limits.items())
