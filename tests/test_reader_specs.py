"""Specs of losses and augmentations: what is read, what is refused and how it is said."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

import pytest

from src.reader import build_terms
from src.script import UserError


def power(
    x: float,
    gamma: Annotated[float, {"least": 0, "most": 9}] = 2.0,
    radius: Annotated[int, {"least": 1, "most": 9}] = 1,
    negative: bool = False,
    unit: Literal["px", "share"] = "px",
    hidden: float = 0.0,
) -> Any:
    return x, gamma, radius, negative, unit, hidden


TABLE = {"power": power, "cube": partial(power, gamma=3.0), "none": lambda x: x}


def read(spec: str, **how: Any) -> list[tuple[str, float, Any]]:
    return [(n, w, f(7)) for n, w, f in build_terms("--x", spec, TABLE, example="cube", **how)]


def test_weights_and_options_of_every_kind() -> None:
    assert read("power") == [("power", 1.0, (7, 2.0, 1, False, "px", 0.0))]
    assert read(" cube ( radius = 2 ) ") == [("cube", 1.0, (7, 3.0, 2, False, "px", 0.0))]
    every = "0.5 power(gamma=+1e+0, radius=9, negative=yes, unit=share) + 2*none + 3 * cube"
    assert read(every) == [
        ("power", 0.5, (7, 1.0, 9, True, "share", 0.0)), ("none", 2.0, 7),
        ("cube", 3.0, (7, 3.0, 1, False, "px", 0.0)),
    ]  # fmt: skip
    assert read("cube(gamma=4)")[0][2][1] == 4.0  # over what the table binds


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "has no terms; write for instance 'cube'"),
        ("+", "has no terms"),
        ("cub", r"'cub' is unknown \(did you mean cube\?\); choose from power, cube, none"),
        ("cube + cube", "cube stands twice"),
        ("0 cube", "weight 0.0 of cube: above 0, at most 2"),
        ("3 cube", "weight 3.0 of cube: above 0, at most 2"),
        ("nan cube", "weight of cube: 'nan' is not a number"),
        ("x cube", "weight of cube: 'x' is not a number"),
        ("cube(gamma=9.1)", "cube: gamma 9.1: at least 0, at most 9"),
        ("cube(gamma=inf)", "gamma inf"),
        ("cube(gamma=nan)", "'nan' is not a number"),
        ("cube(gamma=1, gamma=2)", "each option once"),
        ("cube(2)", r"as in \(name=value\)"),
        ("cube(radius=1.5)", "radius: '1.5' is not a whole number"),
        ("cube(unit=m)", "'m' is none of px, share"),
        ("cube(hidden=1)", "no option 'hidden'; it has gamma, radius, negative, unit"),
        ("none(x=1)", "no option 'x'; it has none"),
        ("cube(gamma=1", "write it as 'cube'"),
        ("cube gamma=1", "write it as 'cube'"),
        ("cube(power(gamma=1))", "write it as 'cube'"),
        ("1 2 cube", "write it as 'cube'"),
        ("9" * 5000, "is unknown"),
        ("cube(gamma=" + "9" * 5000 + ")", "gamma"),
    ],
)
def test_mistakes_are_one_line_that_names_the_option(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(spec, most=2)
    assert str(error.value).startswith("--x") and len(str(error.value)) < 400
