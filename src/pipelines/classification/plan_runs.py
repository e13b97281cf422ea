"""Runs of a plan: a fold trained by its row, a probe fitted, what was damaged made again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.config import FoldConfig, InferConfig
from src.data.folds import Folds
from src.data.index import Index
from src.files import Json
from src.pipelines.classification.plan import Member
from src.pipelines.classification.plan_files import PLAN_AGAIN
from src.pipelines.run_folder import drop_damaged, finished, recover_finished
from src.reader import fill
from src.runs import Output, read_done
from src.script import UserError
from src.tool_config import PlanConfig
from src.views import view_names

if TYPE_CHECKING:
    from src.engine.runtime import Runtime


@dataclass(frozen=True)
class Place:
    """Data, options and device: what the steps of a plan work on."""

    config: PlanConfig
    output: Output
    base: Json
    index: Index
    folds: Folds
    test: Index
    runtime: Runtime

    @property
    def flags(self) -> Json:
        """What goes before the rows of plan.yaml."""
        rows_own = ["seed", "precision", *["pretrained"] * (self.config.pretrained == "auto")]
        return {key: value for key, value in self.base.items() if key not in rows_own}

    def row(self, name: str, fold: int) -> FoldConfig:
        """Return the options of a row of plan.yaml, as train_fold.py reads them."""
        own = {"config": str(self.output.plan), "model": name, "fold": str(fold)}
        return fill(FoldConfig, self.flags | own, row_by="model")

    def check_rows(self, names: Iterable[str]) -> None:
        """Refuse rows that could not be trained, and mend what finished folds have lost."""
        for name in names:
            self.check(name)
            self.mend(name)

    def check(self, name: str) -> None:
        """Refuse a row that has not begun and could not be trained, before anything is.

        Raises:
            UserError: no such weights, or an option that its backbone does not take.
        """
        from src.pipelines.classification.train import find_backbone

        if self.output.run(name, 0).folder.is_dir():
            return
        try:
            find_backbone(self.row(name, 0))
        except UserError as error:
            raise UserError(f"{self.output.plan}: {name}: {error}; {PLAN_AGAIN}") from None

    def mend(self, name: str) -> None:
        """Make again what finished folds of a member have lost; without weights, they begin anew.

        What a fold that is not finished has written of its OOF logits is taken away: no blend
        must use it.
        """
        from src.pipelines.classification.train import train_fold

        for fold in range(self.folds.num_folds):
            run, row = self.output.run(name, fold), self.row(name, fold)
            if not run.folder.is_dir():
                continue
            with run.hold():
                try:
                    read_done(run)
                except FileNotFoundError:
                    run.oof.unlink(missing_ok=True)
                    if lost := drop_damaged(run):
                        how = "goes on without" if run.has_state else "begun anew"
                        print(f"note: {run.folder}: {', '.join(lost)} damaged; {how}", flush=True)
                    continue
                except UserError as error:
                    print(f"note: {str(error).partition(';')[0]}; trained again", flush=True)
                    run.finished.unlink()
                    run.oof.unlink(missing_ok=True)
                    drop_damaged(run)
                    continue
                if not row.epochs or finished(run, row, self.folds.folds_hash):
                    continue  # a probe's files are looked at where it is fitted
                if recover_finished(run) is not None:
                    drop_damaged(run)
                    train_fold(row, self.output, run, self.index, self.folds, fold, self.runtime)

    def train_probe(self, name: str) -> None:
        """Fit the probe of every fold."""
        from src.engine.cpu import with_fastest_threads
        from src.pipelines.classification.probe import train_probes

        row = self.row(name, 0)
        with with_fastest_threads(self.runtime.device):
            train_probes(row, self.output, self.index, self.folds, self.test, self.runtime)

    def train(self, member: Member, fold: int, shorten: Callable[[int, int], int]) -> None:
        """Train a fold to its finished folder, and predict the test images once for all blends."""
        from src.pipelines.classification.infer import has_logits, hash_images, infer_fold
        from src.pipelines.classification.train import train_fold

        run, row = self.output.run(member.name, fold), self.row(member.name, fold)
        with run.hold():
            if not finished(run, row, self.folds.folds_hash):
                train_fold(
                    row, self.output, run, self.index, self.folds, fold, self.runtime, shorten
                )
            views = view_names(row.tta_steps, row.tta_scale)
            if not has_logits(run, hash_images(self.test), views):
                infer_fold(infer_options(self.config), run, self.test, views, None)


def infer_options(config: PlanConfig) -> InferConfig:
    """Return the options of inference."""
    # a plan's models are what to choose from
    return InferConfig(**config.shared(InferConfig) | {"models": ()})
