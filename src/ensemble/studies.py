"""Optuna studies that several processes or machines share (``--storage``).

Trials of all of them count together and each learns from the others', so that, unlike a search of
one process, a shared one does not repeat itself to the same end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from src.script import UserError, one_line

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.pruners import BasePruner
    from optuna.storages import JournalStorage

Direction = Literal["minimize", "maximize"]


def open_study(
    storage: str, name: str, *, direction: Direction = "minimize", pruner: BasePruner | None = None
) -> Study:
    """Return the study ``name`` of a storage, made if absent.

    Args:
        storage: URL of a database (``mysql://…``, ``sqlite:///…``), or a file on a shared disk.
        name: of the study; another name shares nothing.
        direction: ``minimize`` or ``maximize``.
        pruner: of Optuna.

    Raises:
        UserError: the storage cannot be reached, or its driver is not installed.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    # without a seed, with which all would try the same
    sampler = optuna.samplers.TPESampler(multivariate=True, constant_liar=True)
    try:
        return optuna.create_study(
            storage=_backend(storage), study_name=name, sampler=sampler, pruner=pruner,
            direction=direction, load_if_exists=True,
        )  # fmt: skip
    except (SQLAlchemyError, ImportError) as error:
        reason = one_line(error).partition("(Background")[0].strip()
        raise UserError(f"--storage {storage}: cannot be opened ({reason[:200]})") from None


def ask_until(study: Study, trials: int) -> Iterator[Trial]:
    """Yield new trials until ``trials`` of all processes are over."""
    from optuna.trial import TrialState

    over = (TrialState.COMPLETE, TrialState.PRUNED)
    while len(study.get_trials(deepcopy=False, states=over)) < trials:
        yield study.ask()


def _backend(storage: str) -> str | JournalStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    if "://" in storage:
        return storage
    Path(storage).parent.mkdir(parents=True, exist_ok=True)
    # the default lock is a symbolic link, which Windows makes for administrators alone
    lock = JournalFileOpenLock(storage) if os.name == "nt" else None
    return JournalStorage(JournalFileBackend(storage, lock_obj=lock))
