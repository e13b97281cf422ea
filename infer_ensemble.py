"""Predict the test images and write the submission: python infer_ensemble.py --tta_steps 5.

Checkpoints, weights.json and test images in, submission.csv out, with a prediction of its score.
A stopped run goes on with the first model and fold that has not finished.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from src.config import InferConfig
from src.engine.interrupt import stoppable
from src.files import HALF_WRITTEN, describe_file, hold, sweep
from src.reader import parse
from src.runs import Output, own_file, refuse_file
from src.script import UserError, counted, run_script
from src.views import view_names

if TYPE_CHECKING:
    from src.data.index import Index
    from src.ensemble.calibration import Shift
    from src.ensemble.submission import Form
    from src.ensemble.weights import Weights
    from src.metrics.classification import Array


@stoppable("finished folds are kept, the same command goes on from here")
def main(argv: list[str]) -> int:
    """Infer, pool, report and write the submission."""
    config = parse(InferConfig, argv, prog="infer_ensemble.py", description=__doc__ or "")
    output = Output(Path(config.output_dir))
    if not output.weights.exists():
        raise UserError(f"{output.weights} does not exist; run optimize_weights.py first")
    with hold(output.infer_lock, f"inference into {output.root}"):
        written = (output.submission, output.prediction, output.test_log_probs)
        sweep(output.root, *(path.name for path in written))
        infer(config, output)
    return 0


def infer(config: InferConfig, output: Output) -> None:
    """Check everything that can be checked before any network runs, then run them."""
    from tqdm import tqdm

    from src.data.index import find_root, read_test
    from src.ensemble import report, test_predictions
    from src.ensemble.calibration import find_shift
    from src.ensemble.weights import read_weights, restrict, used_models

    path = Path(config.output) if config.output else output.submission
    refuse_file(path, ours=path == output.submission)
    weights = read_weights(output.weights)
    if weights.labels and config.prior_correction == "on":
        raise UserError("--prior_correction: not for several labels an image (docs/metrics.md)")
    blend, moved = restrict(weights.blend, models=config.models, views=view_names(config.tta_steps))
    if moved >= 0.005:  # below, the line would say 0 %
        said = "moved to other members than it was fitted for, and the forecast is of those"
        print(f"note: {moved:.0%} of the weight {said}")
    root = find_root(config.data_dir)
    index = read_test(root, allow_outside=config.allow_outside)
    ids = index.line_ids
    form = sample_form(config, index, weights, ids)
    for note in (*index.notes, *form.notes):
        print(f"note: {note}")
    from src.pipelines.classification.infer import infer_models  # torch, once all this holds

    runs = infer_models(config, output, weights, blend, index)
    first = next(iter(runs.values()))[0]
    num_rows = first.logits.shape[1]
    predictor = test_predictions.EnsemblePredictor(runs, blend, weights.columns, num_rows)
    temperature = test_predictions.average_temperature(predictor)
    predictor = replace(predictor, temperature=temperature)
    if predictor.num_folds > 1:
        print(f"average of {predictor.num_folds} folds: temperature {temperature:.3f}")
    with tqdm(total=predictor.num_rows, desc="pool", leave=False, disable=None) as bar:
        predictions = test_predictions.save_predictions(
            output.test_log_probs, predictor, progress=bar.update
        )
    about: dict[str, object] = {"average_temperature": temperature}
    about |= {"weights": describe_file(output.weights)["crc32"]}
    about |= {"models": list(used_models(blend))}
    shift = None if weights.labels else find_shift(predictions.log_probs, weights.summary)
    corrected = shift is not None and shift.significant and config.prior_correction == "on"
    log_probs = predictions.log_probs
    if index.lines:
        log_probs = test_predictions.pool_lines(log_probs, index.lines)
    with own_file(path, ours=path == output.submission), set_aside(output.prediction):
        submit(path, form, ids, weights, log_probs, shift if corrected else None)
    about |= {"submission": hash_file(path)}
    report.report_forecast(
        output.prediction, weights, predictor, predictions, shift, index.columns["id"], about,
        corrected=corrected,
    )  # fmt: skip
    rows = counted(len(ids), "row")
    print(f"\n{path}: {rows} × {form}, read back and sound ({about['submission']})")


def sample_form(config: InferConfig, index: Index, weights: Weights, ids: list[str]) -> Form:
    """Return the form of the submission that the sample asks for."""
    from src.pipelines.classification.prepare import read_form

    contest = weights.contest
    metric, ordinal = (contest.metric, contest.ordinal) if contest else ("log_loss", ())
    return read_form(
        index.root, weights.labels or weights.classes, several=bool(weights.labels), metric=metric,
        ordinal=ordinal, ids=ids, id_name=index.id_name, source_classes=weights.source_classes,
        alias_groups=weights.alias_groups, policy=config.alias_policy,
        floor=weights.blend.floors[0],
    )  # fmt: skip


def submit(
    path: Path,
    form: Form,
    ids: list[str],
    weights: Weights,
    log_probs: Array,
    shift: Shift | None,
) -> None:
    """Write the submission of log probabilities (N, K), and prove it by reading it back."""
    from src.ensemble.calibration import correct
    from src.ensemble.submission import write_form, write_labels
    from src.metrics.decisions import Decision

    decision = weights.contest.decision if weights.contest else Decision("none")
    if weights.labels:
        write_labels(path, form, ids, log_probs, decision)
        return
    if decision.rule == "prior" and shift is not None:
        print("note: the decision divides by class frequencies, so the correction is left out")
        shift = None

    def prediction(rows: slice) -> Array:
        return log_probs[rows] if shift is None else correct(log_probs[rows], shift)

    write_form(path, form, ids, prediction, decision)


@contextmanager
def set_aside(forecast: Path) -> Iterator[None]:
    """Take the forecast of an earlier submission away while the next one is written.

    After a kill there is none, which is told, and none of another submission; an error in the
    block puts it back.
    """
    aside = forecast.with_name(f".{forecast.name}.{os.getpid()}{HALF_WRITTEN}")
    if forecast.exists():
        forecast.replace(aside)
    try:
        yield
    except BaseException:
        if aside.exists():
            aside.replace(forecast)
        raise
    aside.unlink(missing_ok=True)


def hash_file(path: Path) -> str:
    """Return the first 12 hex digits of a file's SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:12]


if __name__ == "__main__":
    run_script(main)
