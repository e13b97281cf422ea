"""A distillation in, the weights and temperature that score best on the held-out images out.

Each trial is a short training of the taught student. Trials are kept in a journal, so a killed
search goes on; one that lags behind the median of the others at the same epoch is stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from src.config import config_hash
from src.engine.runtime import Runtime
from src.ensemble.search import mend_journal
from src.files import hold
from src.mask_config import DistillConfig
from src.runs import Output
from src.tracks.folder import fold_of
from src.tracks.roles import Field, role_config, train_fresh, weights_of, with_weights

WEIGHTS = (0.05, 1.0)  # log-uniform
TEMPERATURES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)


@dataclass(frozen=True)
class Watched:
    """A task that reports the monitored score of every validation.

    Attributes:
        inner: what the scores are of.
        task: the task itself.
        report: called with each score; may raise to stop the trial.
    """

    task: Any
    report: Callable[[float], None]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def meter(self) -> Any:
        """Return the task's meter, which reports when it is computed."""
        return WatchedMeter(self.task.meter(), self.task.monitor, self.report)


@dataclass(frozen=True)
class WatchedMeter:
    """A meter that reports what it computes."""

    meter: Any
    monitor: str
    report: Callable[[float], None]

    def update(self, prediction: Any, batch: Mapping[str, Any]) -> None:
        """Count a batch."""
        self.meter.update(prediction, batch)

    def compute(self) -> dict[str, float]:
        """Return the scores and report the monitored one."""
        scores = self.meter.compute()
        self.report(scores[self.monitor])
        return scores


def tune(
    config: DistillConfig, field: Field, output: Output, runtime: Runtime, name: str
) -> DistillConfig:
    """Search the weights of the active terms and the temperature; return the best config.

    Args:
        config: of the distillation; ``tune`` is the number of trials in all.
        field: segmentation or classification.
        output: folder of the track.
        runtime: device.
        name: first part of the runs' names.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    terms = tuple(weights_of(config)) or field.terms
    epochs = config.tune_epochs or max(1, config.epochs // 4)
    short = replace(config, epochs=epochs, valid_ema_only=True)
    journal = output.trials(name)
    journal.parent.mkdir(parents=True, exist_ok=True)
    with hold(journal.with_suffix(".held"), str(journal)):
        mend_journal(journal)
        study = optuna.create_study(
            study_name=f"{'+'.join(terms)} {config_hash(role_config(with_weights(short, {}), ''))}",
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal))),
            direction="minimize" if field.task.lower_is_better else "maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
            load_if_exists=True,
        )
        done = sum(trial.state.is_finished() for trial in study.trials)
        study.sampler = optuna.samplers.TPESampler(seed=config.seed + done)

        def objective(trial: Any) -> float:
            return run_trial(trial, short, terms, field, output, runtime, name)

        if done < config.tune:
            study.optimize(objective, n_trials=config.tune - done)
    best = study.best_params
    print(f"search: {len(study.trials)} trials, best {study.best_value:.4f} with {best}")
    weights = {term: best[term] for term in terms}
    return replace(with_weights(config, weights), temperature=best["temperature"])


def run_trial(
    trial: Any, short: DistillConfig, terms: tuple[str, ...], field: Field, output: Output,
    runtime: Runtime, name: str,
) -> float:  # fmt: skip
    """Train one trial and return its best score."""
    import optuna

    weights = {term: trial.suggest_float(term, *WEIGHTS, log=True) for term in terms}
    temperature = trial.suggest_categorical("temperature", TEMPERATURES)
    own = role_config(replace(with_weights(short, weights), temperature=temperature), "trial")
    run = output.run(f"{name}-trial{trial.number}", fold_of(own.fold))
    count = 0

    def report(score: float) -> None:
        nonlocal count
        trial.report(score, count)
        count += 1
        if trial.should_prune():
            raise optuna.TrialPruned

    try:
        with run.hold():
            done = train_fresh(
                own, "trial", field, output, runtime, name, run, lambda task: Watched(task, report)
            )
    finally:  # the scores stay; a trial's weights are never used again
        for path in (run.last, run.previous, run.best):
            path.unlink(missing_ok=True)
    return float(done["score"])
