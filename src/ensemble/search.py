"""Optuna around the exact solve: how to pool, what to leave out, where to calibrate.

The weights themselves are a convex problem and need no search; what is searched is everything that
is not convex. The journal keeps each finished trial, so a stopped search goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from src.ensemble.pool import Member
from src.files import atomic_write

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Structure:
    """What the convex solve takes for granted.

    Attributes:
        pool: "linear" or "log".
        order: "after" applies one temperature after pooling; "before" also calibrates each
            member on its own first.
        models: those that may have weight.
        views: those that may have weight.
    """

    pool: str
    order: str
    models: tuple[str, ...]
    views: tuple[str, ...]

    def columns(self, members: Sequence[Member]) -> Array:
        """Return (M,) bool: which members may have weight."""
        return np.array([m in self.models and v in self.views for m, v in members])


def whole(members: Sequence[Member]) -> Structure:
    """Return the structure the search starts from: linear, everything in, calibrated after."""
    models = tuple(dict.fromkeys(model for model, _ in members))
    views = tuple(dict.fromkeys(view for _, view in members))
    return Structure(pool="linear", order="after", models=models, views=views)


def search_structures(
    score: Callable[[Structure], float],
    start: Structure,
    *,
    journal: Path,
    name: str,
    trials: int,
    timeout: float,
    seed: int = 0,
) -> tuple[Structure, float, int]:
    """Search pool, order, models and views; return the best, its score, and the trials.

    Args:
        score: nested log loss of a structure, nats.
        start: the first one tried; its models and views span the search.
        journal: file that keeps the trials; made if absent.
        name: of the study; another name (other data) starts afresh in the same file.
        trials: in all, those of earlier runs included.
        timeout: seconds after which no further trial starts.
        seed: of the sampler.
    """
    optuna = _quiet_optuna()
    journal.parent.mkdir(parents=True, exist_ok=True)
    mend_journal(journal)
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(journal))
    )
    study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
    done = sum(trial.state.is_finished() for trial in study.trials)
    study.sampler = optuna.samplers.TPESampler(seed=seed + done, multivariate=True)
    if not study.trials:
        study.enqueue_trial(_to_params(start))
    known: dict[Structure, float] = {}

    def objective(trial: Any) -> float:
        structure = _suggest(trial, start)
        if not structure.models or not structure.views:
            raise optuna.TrialPruned
        if structure not in known:
            known[structure] = score(structure)
        return known[structure]

    if trials > done:
        study.optimize(objective, n_trials=trials - done, timeout=timeout)
    finished = [trial for trial in study.trials if trial.state.is_finished()]
    if not any(trial.state == optuna.trial.TrialState.COMPLETE for trial in finished):
        return start, score(start), len(finished)  # no time for one trial
    best = _from_params(study.best_params, start)
    return best, float(study.best_value), len(finished)


def mend_journal(path: Path) -> None:
    """Cut a half-written last line, and free the lock of a killed process.

    The caller keeps other processes off the journal.
    """
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        with atomic_write(path) as file:
            file.write(content[: content.rfind(b"\n") + 1])


def _suggest(trial: Any, start: Structure) -> Structure:
    for key, choices in _choices(start).items():
        trial.suggest_categorical(key, choices)
    return _from_params(trial.params, start)


def _choices(start: Structure) -> dict[str, list[Any]]:
    choices: dict[str, list[Any]] = {
        "pool": ["linear", "log"],
        "order": ["after", "before"],
    }
    for kind, names in (("model", start.models), ("view", start.views)):
        if len(names) > 1:
            choices |= {f"{kind} {name}": [True, False] for name in names}
    return choices


def _to_params(structure: Structure) -> dict[str, Any]:
    params = dict.fromkeys(_choices(structure), True)
    return params | {
        "pool": structure.pool,
        "order": structure.order,
    }


def _from_params(params: dict[str, Any], start: Structure) -> Structure:
    return Structure(
        pool=params["pool"],
        order=params["order"],
        models=tuple(m for m in start.models if params.get(f"model {m}", True)),
        views=tuple(v for v in start.views if params.get(f"view {v}", True)),
    )


def _quiet_optuna() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
