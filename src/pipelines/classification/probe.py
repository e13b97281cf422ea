"""Linear probes of all folds from one pass over the features: an ensemble's cheapest member.

Writes what ``train_fold.py --epochs 0 --head_start probe`` would write for every fold, and the test
logits, but embeds each image once instead of once a fold.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from src.config import FoldConfig, config_hash
from src.data.folds import Folds
from src.data.index import Index
from src.engine.runtime import Runtime
from src.engine.weights import run_identity, save_weights
from src.models.classifier import Classifier, build_classifier
from src.models.convolutions import fold_norms
from src.models.probe import fit_probe
from src.pipelines.classification.infer import write_test_logits
from src.pipelines.classification.prepare import find_aliases
from src.pipelines.classification.survey import embed
from src.pipelines.classification.train import ClassData, choose_task, find_backbone
from src.pipelines.classification.wise_ft import pick_rows, set_head
from src.pipelines.run_folder import describe_training, finish_run, finished, write_config
from src.runs import Output, Run
from src.tasks.classification import Classification
from src.views import first_views, view_names


def train_probes(
    config: FoldConfig, output: Output, index: Index, folds: Folds, test: Index, runtime: Runtime
) -> None:
    """Fit a linear head for every fold and write each fold's finished folder.

    ``config`` has the options of the row, with ``epochs`` 0.

    Raises:
        UserError: no weights, or an image that cannot be decoded.
        Interrupted: a signal asked to stop; nothing is kept of this pass.
    """
    runs = {fold: output.run(config.name or config.model, fold) for fold in range(folds.num_folds)}
    waiting = [fold for fold, run in runs.items() if not finished(run, config, folds.folds_hash)]
    if not waiting:
        return
    timm_id, size, weights = find_backbone(config)
    data = ClassData(index, folds, find_aliases(config, index), size)
    model = build_classifier(
        timm_id, len(data.classes), image_size=size, pool=config.pool, gem_p=config.gem_p,
        weights=weights,
    )  # fmt: skip
    folded, views = fold_norms(model, size), first_views(config.tta_steps)
    known = folds.train_rows(None)  # all that any fold trains on or holds out
    features = embed(folded, index, known, size, runtime, views)
    unseen = embed(folded, test, np.arange(len(test.table)), size, runtime, views)
    place = np.full(len(index.table), -1)
    place[known] = np.arange(len(known))
    about = {"timm_id": timm_id, "weights": str(weights)}
    task = choose_task(config, data)
    for fold in waiting:
        with runs[fold].hold():
            identity = run_identity(config, runs[fold], folds.folds_hash)
            write_config(runs[fold], config, about | data.describe(fold), runtime, identity)
            score = fit_fold(config, runs[fold], data, fold, model, task, features, place)
            done = describe_training(config, folds.folds_hash, task.monitor)
            done |= {"score": score, "best_epoch": 0, "epochs": 0}
            finish_run(runs[fold], done, keep_last=False)
            names = view_names(config.tta_steps)
            with write_test_logits(runs[fold], test, names, data.classes) as logits:
                logits[:] = classify(model, unseen).clip(-6e4, 6e4)
            print(f"{runs[fold].folder}: linear probe, {done['monitor']} {score}", flush=True)


def fit_fold(
    config: FoldConfig,
    run: Run,
    data: ClassData,
    fold: int,
    model: Classifier,
    task: Classification,
    features: Tensor,
    place: np.ndarray,
) -> float:
    """Fit the head without a fold, write weights and OOF logits, and return the score."""
    num_classes = len(data.classes)
    rows = pick_rows(data.folds.train_rows(fold), config.seed)
    assert (place[rows] >= 0).all()
    targets = torch.as_tensor(data.targets(rows))
    views = features[:, place[rows]].mean(0)
    probe = fit_probe(views, targets, num_classes, model.level_widths)
    set_head(model, probe)
    held = data.folds.valid_rows(fold)
    logits = classify(model, features[:, place[held]])
    meter = task.meter()
    meter.update(torch.from_numpy(logits[0]), {"target": torch.as_tensor(data.targets(held))})
    identity = run_identity(config, run, data.folds.folds_hash)
    save_weights(run.best, model.state_dict(), {"kind": "probe", "run": identity})
    data.save_oof(run, fold, logits, view_names(config.tta_steps), config_hash(config))
    return round(meter.compute()[task.monitor], 6)


@torch.inference_mode()
def classify(model: Classifier, features: Tensor) -> np.ndarray:
    """Return the logits (V, N, K) of features (V, N, D)."""
    device = model.head.weight.device
    return model.eval().classify(features.to(device)).cpu().numpy()
