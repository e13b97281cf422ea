"""Ensemble trained within a time budget: python scripts/plan.py --hours 9 --data_dir input.

Surveys the backbones at hand, plans what fills the hours, trains it, and after every fold writes
weights.json and submission.csv anew. Started again after any stop, it goes on: time already spent
counts. output/plan.yaml says what is trained, output/history.csv what it came to.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.script import one_line_errors

with one_line_errors():
    from src.config import BlendConfig, FoldConfig
    from src.data.folds import Folds
    from src.data.index import Index, find_root, read_test
    from src.engine.interrupt import stoppable
    from src.ensemble.weights import read_forecast
    from src.files import Json, describe_file, hold, sweep, write_json
    from src.pipelines.classification import plan
    from src.pipelines.classification.follow import (
        Clock,
        Follower,
        Steps,
        Train,
        calibrated_losses,
    )
    from src.pipelines.classification.plan import Candidate, Member, Work
    from src.pipelines.classification.plan_files import (
        PLAN_AGAIN,
        add_history,
        keep_begun,
        last_seconds,
        read_plan,
        read_survey,
    )
    from src.pipelines.classification.plan_runs import Place, infer_options
    from src.pipelines.classification.prepare import (
        find_aliases,
        form_asked_for,
        prepare_data,
        read_index,
    )
    from src.pipelines.run_folder import copy_plan
    from src.reader import field_types, parse
    from src.runs import Output
    from src.script import UserError, counted, format_table, run_script
    from src.tool_config import PlanConfig, TabularConfig

if TYPE_CHECKING:
    from src.engine.runtime import Runtime

SURVEY_SHARE = 0.07  # of the hours
MAX_CELLS = 500_000  # rows × classes: boosting takes a minute or so, which plans of
ENOUGH_S = 900.0  # so many seconds have; of fewer rows × classes where there are fewer
OF_ROWS = "an option of its row in plan.yaml, which stays as it began until its folder is deleted"
SHORT_HOURS = 2.0  # below, three folds; from here on, five


@stoppable()
def main(argv: list[str]) -> int:
    """Survey, plan, train and submit, as ``argv`` asks."""
    started = time.monotonic()  # imports count, too
    config = parse(PlanConfig, argv, prog="scripts/plan.py", description=__doc__ or "")
    if config.pretrained == "none":
        raise UserError(
            "--pretrained none: a plan rests on pretrained nets, name a file of weights; "
            "train_fold.py trains from random ones"
        )
    if config.pretrained != "auto" and len(config.models) != 1:
        raise UserError(f"--pretrained {config.pretrained}: name the one model with --models")
    find_root(config.data_dir)  # refuses what is not there before any second is counted
    output = Output(Path(config.output_dir))
    output.root.mkdir(parents=True, exist_ok=True)
    with hold(output.plan_lock, f"the plan of {output.root}"):
        sweep(output.root, *(p.name for p in (output.plan, output.survey, output.history)))
        if config.resume_from:
            copy_plan(config.resume_from, output)
        earlier = last_seconds(output.history)
        clock = Clock(output.plan_state, config.hours, began=started, earlier=earlier)
        if is_over(config, output, clock):
            return 0
        with clock.beating(), own_remedy():
            follow(config, output, clock)
    return 0


@contextlib.contextmanager
def own_remedy() -> Iterator[None]:
    """Say of a row of ``plan.yaml`` what a single run says of its command."""
    try:
        yield
    except UserError as error:
        raise UserError(reword(str(error))) from None


def reword(said: str) -> str:
    """Return a message of a run in words of a plan: options it does not take are keys of a row."""
    said = re.sub(r"pass (--accept_changes or )?another --name", "pass what it began with", said)
    said = said.replace(" (with --accept_changes)", "").replace("--config ", "")
    of_rows = field_types(FoldConfig).keys() - field_types(PlanConfig).keys()

    def key(match: re.Match[str]) -> str:
        return "set " * bool(match[1]) + match[2] if match[2] in of_rows else match[0]

    found = re.sub(r"(pass )?--(\w+)", key, said)
    return found if found == said or PLAN_AGAIN in said else f"{found}; {OF_ROWS}"


def follow(config: PlanConfig, output: Output, clock: Clock) -> None:
    """Prepare, survey and plan; then train to the deadline."""
    from src.pipelines.classification.plan_cards import start_cards

    base = fold_flags(config)
    usual_folds = 3 if config.hours < SHORT_HOURS else 5
    index, folds, test = read_data(FoldConfig(**base), output, usual_folds)
    runtime, cards = start_cards(config)
    work = cards.share(plan.size_of_work(folds, len(test.table)))
    found, runtime = survey_data(
        config, output, index, folds, runtime, clock, work, cards.threads_each
    )
    probes = plan.pick_probes(found, work, clock.left(), config.seed)
    left = clock.left() - sum(probe.tail_s for probe in probes)
    ranked = plan.rank(found, work, left)
    place = Place(config, output, base, index, folds, test, runtime)
    common = plan.COMMON | {"precision": runtime.precision, "autotune": "off", "compile": "off"}
    common["channels_last"] = "on" if runtime.channels_last else "off"
    kept = read_plan(output.plan, output, place.flags)
    if kept is None:
        members = [*probes, *plan.first_members(ranked, work, left, config.seed)]
        planned = {member.name: dict(member.options) for member in members}
        kept = common, keep_begun(output, common, planned, place.flags)
    common, rows = kept
    known = [plan.known_member(name, row, found, work) for name, row in rows.items()]
    probes, members = [m for m in known if not m.epochs], [m for m in known if m.epochs]

    def keep(members: Sequence[Member]) -> str:
        runs = {m.name: [output.run(m.name, k) for k in range(folds.num_folds)] for m in members}
        done = {n: sum(run.finished.exists() for run in own) for n, own in runs.items()}
        head = plan.describe(members, work, clock.hours, clock.spent(), done)
        plan.write_plan(output.plan, members, common, head)
        return head

    print(keep(known), flush=True)
    if config.dry_run or is_over(config, output, clock):  # what came before may have taken it all
        return

    def after(models: Sequence[str], loss: float, forecast: float) -> None:
        add_history(output.history, clock.spent(), models, loss, forecast)
        with clock.lock:
            clock.state["submission"] = describe_submission(output, test)

    place.check_rows(rows)
    with cards.training(place, work, members) as (here, elsewhere, work):
        for probe in list(probes) if clock.left() > 0 else ():
            place.train_probe(probe.name)
        if clock.left() > 0:
            train_tables(place, clock.left())
        follower = Follower(
            members, probes, ranked, work, clock, make_steps(place, here, elsewhere),
            seed=config.seed, keep=keep, after=after,
        )  # fmt: skip
        if clock.left() > 0:
            follower.submit(final=False)
        follower.run()
    if "submission" not in clock.state:
        raise UserError(too_short(config, output))
    print(f"{output.submission} stands after {clock.spent() / 60:.1f} minutes", flush=True)


def read_data(config: FoldConfig, output: Output, usual_folds: int) -> tuple[Index, Folds, Index]:
    """Return training images, folds and test images.

    Raises:
        UserError: one of them, or the sample submission, is not as it must be: better now than
            at the first submission.
    """
    test = read_test(find_root(config.data_dir), allow_outside=config.allow_outside)
    index = read_index(config)
    form_asked_for(config, index, test.line_ids)
    return *prepare_data(config, output, index, usual_folds=usual_folds), test


def too_short(config: PlanConfig, output: Output) -> str:
    """Return what is said where the hours end before anything can be submitted, or measured."""
    if output.submission.is_file():
        return (
            f"--hours {config.hours:g}: spent, so nothing can be measured again; "
            f"{output.submission} stays as it is; pass more, and the plan goes on"
        )
    return (
        f"--hours {config.hours:g}: over before a first submission could be made; "
        "pass more, and the plan goes on"
    )


def train_tables(place: Place, seconds: float) -> None:
    """Train a member on further columns of train.csv and test.csv, where there are any."""
    from src.data.metadata import read_metadata
    from src.pipelines.classification.tabular import train_tabular

    index = place.index
    try:
        columns = read_metadata(index, place.test).columns
    except UserError:  # no such tables
        return
    if not columns:
        return
    if len(index) * len(index.classes) > MAX_CELLS * min(1.0, seconds / ENOUGH_S):
        print(f"note: columns {', '.join(columns)}: scripts/train_tabular.py takes its time here")
        return
    options = place.config.shared(TabularConfig) | {"models": (), "dry_run": False}
    train_tabular(TabularConfig(**options), (index, place.folds))


def describe_submission(output: Output, test: Index) -> Json:
    """Return what names a submission and the images it is of."""
    from src.pipelines.classification.infer import hash_images

    return {**describe_file(output.submission), "test": hash_images(test)}


def is_over(config: PlanConfig, output: Output, clock: Clock) -> bool:
    """Tell whether the hours are spent and the submission stands; say so."""
    over = clock.left() <= 0 and stands(config, output, clock)
    if over:
        print(f"the {config.hours:g} hours are spent; pass more --hours to go on")
    return over


def stands(config: PlanConfig, output: Output, clock: Clock) -> bool:
    """Tell whether there is a submission, the one that was written last, of today's test images."""
    if not (output.submission.is_file() and output.prediction.is_file()):
        return False  # a kill while the next one is written leaves no forecast
    test = read_test(find_root(config.data_dir), allow_outside=config.allow_outside)
    now = describe_submission(output, test)
    written = clock.state.get("submission", now)
    return bool(written | {"test": written.get("test", now["test"])} == now)


def make_steps(place: Place, here: Train, elsewhere: Sequence[Train]) -> Steps:
    """Return what a plan does."""
    config, output = place.config, place.output
    return Steps(
        train=here,
        probe=place.train_probe,
        submit=lambda models, final: submit(config, output, models, final=final),
        is_finished=lambda name, fold: output.run(name, fold).finished.exists(),
        losses=lambda name, fold: calibrated_losses(output.run(name, fold).oof),
        say=lambda line: print(line, flush=True),
        elsewhere=elsewhere,
    )


def fold_flags(config: PlanConfig) -> Json:
    """Return what the plan's options say to every training."""
    flags = config.shared(FoldConfig) | {"config": "", "model": "plan"}
    del flags["dry_run"]
    return flags


def survey_data(
    config: PlanConfig,
    output: Output,
    index: Index,
    folds: Folds,
    runtime: Runtime,
    clock: Clock,
    work: Work,
    threads: int = 0,
) -> tuple[list[Candidate], Runtime]:
    """Return the candidates and the runtime they were measured in; what was measured is kept."""
    from src.pipelines.classification import survey
    from src.pipelines.classification.train import ClassData

    asked = {"models": list(config.models), "sizes": list(config.sizes)}
    kept = read_survey(output.survey, asked, clock.hours)
    if kept is not None:
        precision, channels_last, found = kept
        return found, runtime.with_choice(precision, channels_last)
    if clock.left() <= 0:
        raise UserError(too_short(config, output))
    backbones = survey.find_backbones(config.models)
    data = ClassData(index, folds, find_aliases(FoldConfig(aliases=config.aliases), index), 0)
    runtime = survey.settle(data, backbones[0], runtime, config, threads)
    found = survey.survey(
        data, backbones, config.sizes, runtime, pretrained=config.pretrained, seed=config.seed,
        seconds=SURVEY_SHARE * clock.hours * 3600,
        expected=lambda candidate: plan.expected_in(candidate, work, clock.left()),
        affordable=lambda candidate: plan.has_cheap_probe(candidate, work, clock.left()),
        trainable=lambda candidate: bool(plan.first_members([candidate], work, clock.left(), 0)),
        threads=threads,
    )  # fmt: skip
    heads = ["backbone", "px", "probe", "accuracy", "train img/s", "infer img/s", "min/epoch"]
    print("\n" + format_table(heads, survey.survey_table(found, int((folds.fold >= 0).sum()))))
    content = {"precision": runtime.precision, "channels_last": runtime.channels_last}
    content |= {
        "candidates": [asdict(seen) for seen in found],
        "asked": asked,
        "hours": clock.hours,
    }
    wanted = survey.sizes_of(backbones[0], config.sizes)
    write_json(output.survey, content | {"ended_early": len(found) < len(wanted)})
    return found, runtime


def submit(
    config: PlanConfig, output: Output, models: Sequence[str], *, final: bool
) -> tuple[float, float]:
    """Blend and write the submission; what the two scripts print goes to a log."""
    import infer_ensemble
    import optimize_weights
    from src.pipelines.classification.tabular import tabular_members

    models = [*models, *tabular_members(output)]
    blend = BlendConfig(
        data_dir=config.data_dir, output_dir=config.output_dir, models=tuple(models), presets="",
        aliases=config.aliases, trials=60 if final else 4, seed=config.seed,
    )  # fmt: skip
    output.logs.mkdir(parents=True, exist_ok=True)
    path = output.logs / "plan_blend.log"
    with (
        hold(output.blend_lock, str(output.weights), wait=True),
        hold(output.infer_lock, f"inference into {output.root}", wait=True),
        path.open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
    ):
        # by name: the clock may be writing its own file in this moment
        written = [output.weights, output.suggested_aliases]
        written += [output.submission, output.prediction, output.test_log_probs]
        sweep(output.root, *(path.name for path in written))
        optimize_weights.optimize(blend, output, {})
        infer_ensemble.infer(infer_options(config), output)
    expected, said = read_forecast(output.prediction), ""
    loss, forecast = expected["oof_log_loss"], expected["test_log_loss"]["value"]
    if "metric" in expected:
        said = f"; {expected['metric']}: nested {expected['oof']:.4f}"
    blended = counted(len(models), "model")
    print(f"submission of {blended}: nested {loss:.4f}, forecast {forecast:.4f}{said}")
    return float(loss), float(forecast)


if __name__ == "__main__":
    run_script(main)
