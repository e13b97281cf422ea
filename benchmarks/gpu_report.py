"""Settings and results of one step of the GPU check, kept on disk while it runs.

A step that crashes or is stopped at its time limit leaves what it had measured so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.files import read_json, write_json

NUM_CLASSES = 10


@dataclass(frozen=True)
class Setting:
    """Where a step runs.

    Attributes:
        device: ``cuda``, or ``cpu`` to try the script itself.
        tiny: nets, images and counts so small that a CPU runs all steps in a few minutes.
        folder: has ``data`` (a competition), ``small`` (a smaller one) and ``large`` (photographs
            of 1080p); a step writes below it too.
        nets: networks that the steps about speed are restricted to; none = all of theirs.
    """

    device: str
    tiny: bool
    folder: Path
    nets: tuple[str, ...] = ()

    def wants(self, net: str) -> bool:
        """Tell whether a step about speed measures ``net``."""
        return self.tiny or not self.nets or net in self.nets

    def pick(self, full: Any, tiny: Any) -> Any:
        """Return what belongs to this size of the check."""
        return tiny if self.tiny else full


@dataclass
class Report:
    """What a step found, rewritten to ``path`` at every entry.

    Attributes:
        path: JSON file.
        facts: measured, to be read.
        failures: expectations that were not met.
        tables: title → rows; the first row is the header.
    """

    path: Path
    facts: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)

    def fact(self, text: str) -> None:
        """Note something measured."""
        self.facts.append(text)
        self._save()

    def expect(self, met: bool, text: str) -> None:
        """Note ``text`` as a fact, or as a failure where it was not met."""
        (self.facts if met else self.failures).append(text)
        self._save()

    def row(self, title: str, header: Sequence[str], cells: Sequence[object]) -> None:
        """Add a row to the table of that title."""
        rows = self.tables.setdefault(title, [list(header)])
        rows.append([str(cell) for cell in cells])
        self._save()

    def _save(self) -> None:
        content = {"facts": self.facts, "failures": self.failures, "tables": self.tables}
        write_json(self.path, content)


def read_report(path: Path) -> Report:
    """Return what a step left, nothing where it left nothing."""
    return Report(path, **read_json(path)) if path.exists() else Report(path)
