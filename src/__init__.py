"""Competition vision toolkit; as a library: load_run, load_ensemble, train, FoldConfig.

The names below are imported when they are first used, so that ``import src`` costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

if sys.version_info < (3, 10):  # noqa: UP036 (macOS's own python3 is older, and may start a script)
    sys.exit(
        "error: Python 3.10 or newer is needed: python3.12 scripts/setup.py makes a .venv of it"
    )

_HOMES = {
    "FoldConfig": "src.config",
    "load_ensemble": "src.pipelines.library",
    "load_run": "src.pipelines.library",
    "train": "src.pipelines.classification.train_folds",
}
__all__ = ["FoldConfig", "load_ensemble", "load_run", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
