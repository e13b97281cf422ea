from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from src.ensemble.pool import Blend
from src.ensemble.predictions import has_test_run, hash_ids, open_test_run, save_test_info
from src.ensemble.test_predictions import (
    EnsemblePredictor,
    average_temperature,
    averaging_gain,
    expected_gain,
    pool_lines,
    save_predictions,
)
from src.metrics.classification import softmax
from src.metrics.contest import find_metric
from src.metrics.decisions import Decision
from src.script import UserError

IDS = ["1", "2", "3"]
CLASSES = ["x", "y", "z"]


def write_run(folder, logits, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "test_logits.npy", logits.astype(np.float16))
    info = {
        "ids_hash": hash_ids(IDS),
        "views": ["identity", "hflip"],
        "classes": CLASSES,
        "trained": "c",
    }
    kept = np.load(folder / "test_logits.npy")
    save_test_info(folder / "test.json", logits=kept, **(info | changes))


def open_run(folder, **changes):
    wanted = {
        "num_rows": 3,
        "ids_hash": hash_ids(IDS),
        "classes": CLASSES,
        "views": ("identity", "hflip"),
    }
    return open_test_run(folder, **(wanted | changes))


def predictor(tmp_path, pool="linear", columns=(0, 1, 2)):
    rng = np.random.default_rng(0)
    logits = {}
    for model, folds in (("a", 3), ("b", 1)):
        for fold in range(folds):
            values = rng.standard_normal((2, 3, 3)).astype(np.float16)
            write_run(tmp_path / model / f"fold{fold}", values)
            logits[model, fold] = values.astype(np.float64)
    blend = Blend(
        pool,
        (("a", "identity"), ("a", "hflip"), ("b", "hflip")),
        np.array([0.5, 0.3, 0.2]), np.array([1.0, 2.0, 1.0]), 0.5, (0.1, 0.0),
        np.full(max(columns) + 1, 1 / (max(columns) + 1)),
    )  # fmt: skip
    runs = {
        "a": [open_run(tmp_path / "a" / f"fold{s}") for s in range(3)],
        "b": [open_run(tmp_path / "b" / "fold0")],
    }
    return EnsemblePredictor(runs, blend, columns, 3), logits


@pytest.mark.parametrize("pool", ["linear", "log"])
def test_every_fold_repeats_the_recipe_and_the_average_is_of_logarithms(tmp_path, pool):
    what, logits = predictor(tmp_path, pool)
    folds = []
    for fold in range(3):
        members = [
            softmax(logits["a", fold][0]),
            softmax(logits["a", fold][1], 2.0),
            softmax(logits["b", 0][1]),
        ]
        if pool == "linear":
            mix = 0.5 * members[0] + 0.3 * members[1] + 0.2 * members[2]
        else:
            mix = members[0] ** 0.5 * members[1] ** 0.3 * members[2] ** 0.2
        folds.append(0.9 * softmax(np.log(mix), 0.5) + 0.1 / 3)
    expected = softmax(np.mean(np.log(folds), axis=0))
    predictions = what.predict(slice(0, 3))
    np.testing.assert_allclose(np.exp(predictions.log_probs), expected, rtol=1e-4)
    # the gain is the same for every label
    for label in range(3):
        gain = predictions.log_probs[:, label] - np.log(folds)[:, :, label].mean(axis=0)
        np.testing.assert_allclose(gain, predictions.averaging.gain, atol=1e-5)
    assert (predictions.averaging.gain >= 0).all()
    for own, found in ((folds, "fold_entropy"), ([expected], "entropy")):
        entropies = -(np.array(own) * np.log(own)).sum(axis=2).mean(axis=0)
        np.testing.assert_allclose(getattr(predictions.averaging, found), entropies, rtol=1e-4)
    votes = 0.5 * np.array([softmax(logits["a", s][0]) for s in range(3)]).sum(0)
    votes += 0.3 * np.array([softmax(logits["a", s][1], 2.0) for s in range(3)]).sum(0)
    np.testing.assert_array_equal(predictions.choices["a"], votes.argmax(1))


def test_temperature_of_the_average_undoes_the_noise_of_single_folds(tmp_path):
    rng = np.random.default_rng(0)
    num_rows, noise = 4000, 0.6
    signal = 2 * rng.standard_normal((num_rows, 3))
    probs = softmax(signal)
    targets = (rng.random((num_rows, 1)) > probs.cumsum(axis=1)).sum(axis=1)
    runs = []
    for fold in range(4):
        logits = (signal + noise * rng.standard_normal(signal.shape)).astype(np.float16)[None]
        folder = tmp_path / "a" / f"fold{fold}"
        write_run(folder, logits, views=["identity"])
        runs.append(
            open_test_run(
                folder, num_rows=num_rows, ids_hash=hash_ids(IDS), classes=CLASSES,
                views=["identity"],
            )
        )  # fmt: skip
    # each fold alone is best at 1 + noise² / signal² = 1.09
    blend = Blend(
        "linear", (("a", "identity"),), np.ones(1), np.ones(1), 1.09, (0.0, 0.0), np.full(3, 1 / 3)
    )
    what = EnsemblePredictor({"a": runs}, blend, (0, 1, 2), num_rows)
    found = average_temperature(what)
    # (4 + 0.36 / 4) / (4 + 0.36)
    assert found == pytest.approx(0.938, abs=0.005)

    def loss(temperature):
        prediction = replace(what, temperature=temperature).predict(slice(0, num_rows))
        return -prediction.log_probs[np.arange(num_rows), targets].mean()

    assert loss(found) < loss(1.0) and loss(found) < loss(0.85)
    alone = EnsemblePredictor({"a": runs[:1]}, blend, (0, 1, 2), num_rows)
    assert average_temperature(alone) == 1.0


def test_images_of_a_line_are_pooled_by_their_geometric_mean() -> None:
    probs = np.array([[0.5, 0.5], [0.9, 0.1], [0.5, 0.5], [0.2, 0.8]], dtype=np.float32)
    found = np.exp(pool_lines(np.log(probs), ["b", "a", "a", "c"]))
    root = np.sqrt([0.45, 0.05])
    np.testing.assert_allclose(found, [[0.5, 0.5], root / root.sum(), [0.2, 0.8]], rtol=1e-5)
    pairs = np.log(np.array([[0.1, 0.9], [0.4, 0.6], [0.9, 0.1], [0.4, 0.6]], dtype=np.float32))
    found = np.exp(pool_lines(pairs, ["a", "a"]))  # two images, two labels each
    np.testing.assert_allclose(found, [[0.5, 0.5], [0.4, 0.6]], rtol=1e-5)


def test_saved_answers_are_the_answers(tmp_path, monkeypatch):
    what, _ = predictor(tmp_path, columns=(0, 1, 0))
    monkeypatch.setattr("src.ensemble.test_predictions._BLOCK_VALUES", 4)  # two rows a block
    steps = []
    predictions = save_predictions(tmp_path / "predictions.npy", what, progress=steps.append)
    direct = what.predict(slice(0, 3))
    np.testing.assert_array_equal(np.load(tmp_path / "predictions.npy"), direct.log_probs)
    for name in ("gain", "fold_entropy", "entropy"):
        saved, whole = (getattr(x.averaging, name) for x in (predictions, direct))
        np.testing.assert_allclose(saved, whole, rtol=1e-12)
    np.testing.assert_array_equal(predictions.choices["b"], direct.choices["b"])
    assert steps == [2, 1] and predictions.log_probs.shape == (3, 2)
    blocks = list(predictions.blocks())
    np.testing.assert_array_equal(np.concatenate(blocks), direct.log_probs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids_hash": "x"}, "other test images"),
        ({"classes": ["x", "z", "y"]}, "other classes"),
        ({"num_rows": 4}, "not whole"),
        ({"views": ("identity", "hflip", "vflip")}, "not whole"),
    ],
)
def test_foreign_test_logits_are_refused(tmp_path, changes, message):
    write_run(tmp_path, np.zeros((2, 3, 3)))
    open_run(tmp_path)
    with pytest.raises(UserError, match=message):
        open_run(tmp_path, **changes)


def test_without_sidecar_or_damaged_the_logits_do_not_count(tmp_path):
    wanted = {
        "ids_hash": hash_ids(IDS),
        "trained": "c",
        "views": ("identity", "hflip"),
        "threshold": None,
    }
    assert not has_test_run(tmp_path, **wanted)
    write_run(tmp_path, np.zeros((2, 3, 3)))
    assert has_test_run(tmp_path, **wanted)
    assert has_test_run(tmp_path, **(wanted | {"threshold": 0.9}))  # all views are there
    assert not has_test_run(tmp_path, **(wanted | {"views": ("identity", "hflip", "vflip")}))
    assert not has_test_run(tmp_path, **(wanted | {"trained": "d"}))
    assert not has_test_run(tmp_path, **(wanted | {"ids_hash": hash_ids(["1", "23"])}))
    write_run(tmp_path, np.zeros((2, 3, 3)), threshold=0.9)
    assert has_test_run(tmp_path, **(wanted | {"threshold": 0.9}))
    assert not has_test_run(tmp_path, **wanted)
    path = tmp_path / "test_logits.npy"
    path.write_bytes(path.read_bytes()[:100])
    assert not has_test_run(tmp_path, **(wanted | {"threshold": 0.9}))
    with pytest.raises(UserError, match="not whole"):
        open_run(tmp_path)
    (tmp_path / "test.json").write_text(json.dumps([1]), encoding="utf-8")
    assert not has_test_run(tmp_path, **wanted)


def test_pickled_logits_are_refused(tmp_path):
    write_run(tmp_path, np.zeros((2, 3, 3)))
    np.save(tmp_path / "test_logits.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="not whole"):
        open_run(tmp_path)


def test_values_that_are_not_finite_are_refused(tmp_path):
    what, _ = predictor(tmp_path)
    write_run(tmp_path / "b" / "fold0", np.full((2, 3, 3), np.nan))
    what.runs["b"][0] = open_run(tmp_path / "b" / "fold0")
    with pytest.raises(UserError, match="not finite"):
        what.predict(slice(0, 3))


def folds_of(num_rows: int, num_classes: int, noise: float, num_folds: int = 3):
    """Return what noisy folds say of rows, their mean, and the truth behind both."""
    rng = np.random.default_rng(0)
    signal = 2 * rng.standard_normal((num_rows, num_classes))
    shape = (num_folds, num_rows, num_classes)
    folds = np.log(softmax(signal + noise * rng.standard_normal(shape)))
    mean = folds.mean(axis=0)
    return folds, np.log(softmax(mean)), softmax(signal)


def test_what_averaging_gains_in_accuracy_is_its_expectation_under_the_average() -> None:
    folds, whole, _ = folds_of(3000, 4, 1.0)
    metric = find_metric("accuracy", tuple("abcd"))
    probs, every = np.exp(whole), np.arange(3000)
    alone = [probs[every, fold.argmax(axis=1)].mean() for fold in folds]
    exact = probs.max(axis=1).mean() - np.mean(alone)
    assert exact > 0.03
    assert expected_gain(folds, whole, metric, Decision("argmax")) == pytest.approx(exact, abs=3e-3)
    same = np.stack([whole, whole])
    assert expected_gain(same, whole, metric, Decision("argmax")) == 0.0


def test_the_gain_is_about_what_true_labels_show() -> None:
    rng = np.random.default_rng(1)
    for name, rule in (("macro_f1", "argmax"), ("auc", "none")):
        folds, whole, truth = folds_of(4000, 4, 0.7)
        labels = (rng.random((4000, 1)) > truth.cumsum(axis=1)).sum(axis=1)
        metric, decision = find_metric(name, tuple("abcd")), Decision(rule)
        alone = np.mean([metric.measure(decision.apply(fold), labels) for fold in folds])
        true = metric.measure(decision.apply(whole), labels) - alone
        assert true > 0.005
        assert expected_gain(folds, whole, metric, decision) == pytest.approx(true, rel=0.4)


def test_pairs_of_labels_gain_as_images_do_and_a_loss_falls() -> None:
    folds, whole, _ = folds_of(1200, 2, 1.0)  # 400 images of three labels
    rule = Decision("labels", slopes=(1.0,) * 3, offsets=(0.0,) * 3, cuts=(0.5,) * 3)
    f1 = find_metric("f1_samples", tuple("xyz"), several=True)
    assert expected_gain(folds, whole, f1, rule) > 0.005
    loss = find_metric("log_loss", tuple("xyz"), several=True)
    assert expected_gain(folds, whole, loss, replace(rule, cuts=())) < -0.005


def test_the_gain_of_a_predictor_is_of_an_even_choice_of_its_rows(tmp_path) -> None:
    metric = find_metric("accuracy", tuple("xyz"))
    whole, _ = predictor(tmp_path)
    folds, mean = whole.predict_folds(slice(0, 3))[0], whole.predict(slice(0, 3)).log_probs
    expected = expected_gain(folds, mean, metric, Decision("argmax"))
    assert averaging_gain(whole, metric, Decision("argmax")) == expected
    single = replace(whole, runs={name: runs[:1] for name, runs in whole.runs.items()})
    assert averaging_gain(single, metric, Decision("argmax")) == 0.0
