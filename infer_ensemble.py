"""Answer the test images: python infer_ensemble.py --tta_steps 5.

Checkpoints, weights.json and test images in, submission.csv out, with a prediction of its score.
A stopped run goes on with the first model and fold that has not finished.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from src.config import PlaceConfig, knob
from src.reader import parse
from src.runs import Output, Run, UserError, hold, read_json, run_script, sweep, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from src.data.index import Index
    from src.ensemble.pool import Blend
    from src.ensemble.shift import Shift
    from src.ensemble.store import TestRun
    from src.ensemble.submission import Columns
    from src.ensemble.unseen import Answers
    from src.ensemble.weights import Weights

VIEWS = ("identity", "hflip", "vflip", "both", "rot90")


@dataclass(frozen=True, kw_only=True)
class InferConfig(PlaceConfig):
    """``infer_ensemble.py``: checkpoints + weights.json + test images → submission.csv."""

    tta_steps: int = knob(5, "views an image is shown in at most (1 … 5)")
    tta_adaptive: bool = knob(False, "more than one view only where a model is unsure")
    output: str = knob("", "the submission; empty = submission.csv in --output_dir")
    models: tuple[str, ...] = knob((), "models to use; none = all that weights.json gives weight")
    prior_correction: Literal["off", "on"] = knob(
        "off", "adapt to the test set's class frequencies (some competitions forbid it)"
    )
    alias_policy: Literal["split", "first", "both_equal_renormalised"] = knob(
        "split", "where the mass of a class with several names goes"
    )
    device: Literal["auto", "cuda", "mps", "xpu", "cpu"] = knob("auto", "where to compute")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = knob("auto", "arithmetic of the network")
    num_workers: int = knob(-1, "loader processes; -1 = chosen by device and cores")
    infer_batch_size: int = knob(0, "rows at once; 0 = by resolution")


def main(argv: list[str]) -> int:
    """Infer, pool, report and write the submission."""
    config = parse(InferConfig, argv, prog="infer_ensemble.py", description=__doc__ or "")
    if not 1 <= config.tta_steps <= len(VIEWS):
        raise UserError(f"--tta_steps {config.tta_steps}: from 1 to {len(VIEWS)}")
    output = Output(Path(config.output_dir))
    if not output.weights.exists():
        raise UserError(f"{output.weights} does not exist; run optimize_weights.py first")
    from src.engine.interrupt import Interrupted

    try:
        with hold(output.root / ".infer.lock", f"inference into {output.root}"):
            written = (output.submission, output.prediction, output.root / "test_log_probs.npy")
            sweep(output.root, *(path.name for path in written))
            infer(config, output)
    except Interrupted as stop:
        print(f"{stop}; finished folds are kept, the same command goes on from here")
        return stop.status
    return 0


def infer(config: InferConfig, output: Output) -> None:
    """Check everything that can be checked before any network runs, then run them."""
    from tqdm import tqdm

    from src.data.index import find_root, read_test
    from src.ensemble.unseen import Unseen, save_answers
    from src.ensemble.weights import read_weights, restrict

    weights = read_weights(output.weights)
    blend, moved = restrict(weights.blend, models=config.models, views=VIEWS[: config.tta_steps])
    if moved > 0:
        print(f"note: {moved:.0%} of the weight moved to other members than it was fitted for")
    root = find_root(config.data_dir)
    index = read_test(root, allow_outside=config.allow_outside)
    id_column, columns = sample_columns(config, root, weights)
    for note in (*index.notes, *columns.notes):
        print(f"note: {note}")
    runs = infer_models(config, output, weights, blend, index)
    first = next(iter(runs.values()))[0]
    unseen = Unseen(
        runs=runs,
        blend=blend,
        columns=source_columns(weights),
        num_rows=first.logits.shape[1],
    )
    with tqdm(total=unseen.num_rows, desc="pool", leave=False, disable=None) as bar:
        answers = save_answers(output.root / "test_log_probs.npy", unseen, progress=bar.update)
    ids = index.table["id"].tolist()
    shift = find_shift(answers, weights)
    corrected = config.prior_correction == "on" and shift.significant
    describe(output.prediction, weights, answers, shift, ids, corrected=corrected)
    path = Path(config.output) if config.output else output.submission
    submit(path, id_column, ids, columns, answers, shift if corrected else None)


def sample_columns(config: InferConfig, root: Path, weights: Weights) -> tuple[str, Columns]:
    """Return the id column's name and how classes become the sample's columns."""
    from src.data.sample import read_sample_submission
    from src.ensemble.submission import match_columns

    sample = read_sample_submission(root)
    names = ["ID", *weights.source_classes] if sample is None else list(sample.columns)
    columns = match_columns(
        names[1:],
        weights.classes,
        alias_groups=weights.alias_groups,
        policy=config.alias_policy,
    )
    return names[0], columns


def source_columns(weights: Weights) -> tuple[int, ...]:
    """Return for each column of the logits its class after merging aliases."""
    from src.ensemble.aliases import merge_classes

    return merge_classes(weights.source_classes, weights.alias_groups).columns


def infer_models(
    config: InferConfig, output: Output, weights: Weights, blend: Blend, index: Index
) -> dict[str, list[TestRun]]:
    """Return the test logits of every model and fold, inferring those that are not there yet."""
    from src.ensemble.store import has_test_run, hash_ids, open_test_run
    from src.ensemble.weights import num_views, used_models

    ids_hash = hash_ids(index.table["id"].tolist())
    threshold = weights.adaptive_threshold if config.tta_adaptive else None
    runs: dict[str, list[TestRun]] = {}
    for model in used_models(blend):
        views = num_views(blend, model, VIEWS)
        for run in finished_runs(output, model, weights):
            config_hash = read_json(run.finished)["config_hash"]
            if not has_test_run(
                run.folder,
                ids_hash=ids_hash,
                config_hash=config_hash,
                num_views=views,
                threshold=threshold,
            ):
                with run.hold():
                    infer_fold(config, run, index, views, threshold)
            opened = open_test_run(
                run.folder,
                num_rows=len(index.table),
                ids_hash=ids_hash,
                classes=weights.source_classes,
                num_views=views,
            )
            runs.setdefault(model, []).append(opened)
    return runs


def finished_runs(output: Output, model: str, weights: Weights) -> list[Run]:
    """Return the finished folds of a model, all trained as weights.json knows them."""
    runs = [
        Run(path.parent)
        for path in sorted(output.run(model, "*").folder.parent.glob("fold*/finished.json"))
    ]
    if not runs:
        raise UserError(
            f"{output.weights} gives {model} weight, but {output.root / model} has no finished "
            f"fold; train it, leave it out with --models, or run optimize_weights.py again"
        )
    known = set(weights.config_hashes.get(model, {}).values())
    for run in runs:
        config_hash = read_json(run.finished).get("config_hash")
        if config_hash not in known:
            raise UserError(
                f"{run.folder} was trained otherwise than {output.weights} knows; run "
                f"optimize_weights.py again"
            )
    return runs


def infer_fold(
    config: InferConfig, run: Run, index: Index, views: int, threshold: float | None
) -> None:
    """Write ``test_logits.npy`` and ``test.json`` of one fold of one model.

    Args:
        config: device, precision, workers, batch size.
        run: its finished folder.
        index: test images.
        views: how many views, from the first.
        threshold: from which confidence of the first view (largest softmax probability) the other
            views need not be computed and repeat its logits; None = compute all.
    """
    import numpy as np

    from src.data.canonical import ImageSource
    from src.data.dataset import ImageDataset
    from src.data.loader import EpochSampler, default_num_workers, make_loader
    from src.data.transforms import eval_transform
    from src.engine.checkpoint import load_weights
    from src.engine.interrupt import catch_signals
    from src.engine.predict import default_batch_size, predict_logits
    from src.engine.runtime import start_runtime
    from src.engine.tta import first_views
    from src.ensemble.store import save_test_info
    from src.models.classifier import build_classifier
    from src.runs import atomic_array
    from src.tasks.classification import Classification

    saved = read_config(run)
    knobs, resolved, trained_on = saved["knobs"], saved["resolved"], saved["runtime"]
    runtime = start_runtime(config.device, config.precision)
    if config.precision == "auto" and runtime.device.type == trained_on["device"].split(":")[0]:
        runtime = runtime.with_choice(trained_on["precision"], trained_on["channels_last"])
    classes, size = resolved["classes"], resolved["image_size"]
    model = build_classifier(
        resolved["timm_id"],
        len(classes),
        image_size=size,
        pool=knobs["pool"],
        gem_p=knobs["gem_p"],
    )
    try:
        model.load_state_dict(load_weights(run.best))
    except RuntimeError:
        raise UserError(f"{run.best}: weights of another network; train this fold again") from None
    source = ImageSource(index.root, index.table["image"].tolist(), size)
    batch_size = config.infer_batch_size or default_batch_size(size, runtime.device)
    device = runtime.device.type
    loader = make_loader(
        ImageDataset(source, None, eval_transform(size)),
        EpochSampler(len(source), batch_size),
        num_workers=default_num_workers(device) if config.num_workers < 0 else config.num_workers,
        device_type=device,
    )
    shape = (views, len(source), len(classes))
    with catch_signals() as pause, atomic_array(run.test_logits, shape, np.float16) as logits:
        predict_logits(
            runtime.place(model),
            loader,
            Classification(len(classes), lambda logits, target: logits.sum()),
            runtime,
            out=logits,
            views=first_views(views),
            go_on=None if threshold is None else unsure_below(threshold),
            pause=pause,
            label=str(run.folder),
        )
    save_test_info(
        run.test_info,
        ids=index.table["id"].tolist(),
        views=VIEWS[:views],
        classes=classes,
        config_hash=read_json(run.finished)["config_hash"],
        threshold=threshold,
    )


def read_config(run: Run) -> dict[str, Any]:
    """Read a run's ``config.yaml``; no objects are constructed.

    Raises:
        UserError: missing or damaged.
    """
    import yaml

    try:
        saved = yaml.safe_load(run.config.read_text(encoding="utf-8"))
        if {"knobs", "resolved", "runtime"} <= saved.keys():
            return saved
        reason = "it lacks a block"
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
    raise UserError(f"{run.config}: cannot be used ({reason}); train this fold again")


def unsure_below(threshold: float) -> Callable[[Tensor], Tensor]:
    """Return the test whether the largest softmax probability is below ``threshold``."""
    return lambda logits: logits.softmax(-1).amax(-1) < threshold


def find_shift(answers: Answers, weights: Weights) -> Shift:
    """Estimate the test rows' class frequencies from an even sample of the answers."""
    from src.ensemble.shift import MAX_VALUES, estimate_shift

    num_rows, num_classes = answers.log_probs.shape
    step = -(-num_rows * num_classes // MAX_VALUES)
    return estimate_shift(answers.log_probs[:: max(step, 1)], weights.summary.prior)


def describe(
    prediction: Path,
    weights: Weights,
    answers: Answers,
    shift: Shift,
    ids: list[str],
    *,
    corrected: bool,
) -> None:
    """Print how sure the answers are, where the models disagree and which score to expect.

    The expected score is kept in ``prediction``.
    """
    from src.ensemble import calibration, report
    from src.ensemble.shift import correct

    tally = calibration.TestTally.empty()
    for rows, log_probs in answers.blocks():
        posterior = correct(log_probs, shift) if shift.significant else log_probs
        tally.add(posterior if corrected else log_probs, posterior, answers.gain[rows])
    print(f"\n{report.test_bins_table(tally.bins)}\n")
    print(f"{report.agreement_table(answers)}\n")
    print(f"{report.least_certain_table(answers, ids, weights.classes)}\n")
    print("\n".join(report.shift_lines(shift, weights.classes, corrected=corrected)))
    lines = report.score_lines(weights.summary, shift, tally, corrected=corrected)
    print("\n" + "\n".join(lines))
    by_class = calibration.loss_by_class(weights.summary, shift, tally, corrected=corrected)
    by_confidence = calibration.loss_by_confidence(weights.summary, tally)
    estimates = {"by_confidence": asdict(by_confidence), "by_class": asdict(by_class)}
    write_json(prediction, {"oof_log_loss": weights.summary.loss, **estimates})


def submit(
    path: Path,
    id_column: str,
    ids: list[str],
    columns: Columns,
    answers: Answers,
    shift: Shift | None,
) -> None:
    """Write the submission and prove it by reading it back."""
    from src.ensemble.shift import correct
    from src.ensemble.submission import write_submission

    def answer(rows: slice) -> Any:
        log_probs = answers.log_probs[rows]
        return log_probs if shift is None else correct(log_probs, shift)

    write_submission(path, id_column, ids, columns, answer)
    print(f"\n{path}: {len(ids)} rows × {len(columns.names)} columns, read back and sound")


if __name__ == "__main__":
    run_script(main)
