from __future__ import annotations

import numpy as np
import pytest

from src.ensemble import blend
from src.ensemble.blend import (
    best_single,
    bootstrap_means,
    build_tables,
    convex,
    cross_fit,
    greedy,
    losses_of,
    make_parts,
    prior_weights,
    uniform_weights,
)
from src.ensemble.oof import load_oof
from src.ensemble.pool import solve_mixture
from src.metrics.classification import fit_temperature, softmax

MEMBERS = (("a", "identity"), ("a", "hflip"), ("b", "identity"))


def table_of(*columns):
    probs = np.array(columns).T
    floors = np.full((len(probs), 2), 1e-3)
    return np.log(np.hstack([probs, floors]))


def test_fixed_weights():
    np.testing.assert_allclose(uniform_weights(MEMBERS), [1 / 3, 1 / 3, 1 / 3, 0, 0])
    np.testing.assert_allclose(
        prior_weights(MEMBERS, {"a": 20, "b": 60}), [1 / 8, 1 / 8, 3 / 4, 0, 0]
    )
    # without a prior: as heavy as the others are on average
    np.testing.assert_allclose(prior_weights(MEMBERS, {"a": 20}), [1 / 4, 1 / 4, 1 / 2, 0, 0])
    np.testing.assert_allclose(prior_weights(MEMBERS, {}), [1 / 4, 1 / 4, 1 / 2, 0, 0])


def test_best_single_never_is_a_floor():
    table = table_of([0.5, 0.5], [0.6, 0.5])
    table[:, -1] = 0.0
    np.testing.assert_array_equal(best_single(table), [0, 1, 0, 0])


def test_greedy_by_hand():
    # first: member 0 (mean ln: .9 .1 → -1.204; .8 .1 → -1.263; .1 .9 → -1.204; tie → first)
    # second: 0+2 = (1, 1)/2 wins; third: none of (0,0,2) = (1.9,1.1)/3 beats it, nor do others
    table = table_of([0.9, 0.1], [0.8, 0.1], [0.1, 0.9])
    np.testing.assert_allclose(greedy(table), [0.5, 0, 0.5, 0, 0])


@pytest.mark.filterwarnings("error")
def test_greedy_leaves_out_who_is_surely_wrong_without_a_word():
    table = np.log(np.array([[0.5, 1.0, 0.5, 0.5], [0.5, 1e-60, 0.5, 0.5]]))
    np.testing.assert_allclose(greedy(table, steps=3), [1, 0, 0, 0])


def test_greedy_returns_its_best_prefix():
    # each is right where the other is wrong: best at weights 2/3 and 1/3, which 3 steps meet
    table = table_of([1.0, 1.0, 1e-9], [1e-9, 1e-9, 1.0])
    np.testing.assert_allclose(greedy(table, steps=4), [2 / 3, 1 / 3, 0, 0])


def test_losses_are_clipped_as_the_grader_clips():
    table = np.log([[1e-300, 0.5, 1, 1], [0.25, 0.5, 1, 1]])
    found = losses_of(table, np.array([1.0, 0, 0, 0]))
    np.testing.assert_allclose(found, [-np.log(1e-15), np.log(4)])


def test_convex_may_take_a_floor_or_leave_columns_out():
    table = table_of([0.9, 1e-6], [0.8, 1e-7])
    table[:, 3] = np.log(0.5)
    weights, solution = convex(table)
    assert weights[3] > 0.4 and solution.gap <= 1e-6
    weights, _ = convex(table, columns=np.array([True, True, False, False]))
    np.testing.assert_allclose(weights, [1, 0, 0, 0], atol=1e-6)


def test_convex_is_no_worse_than_every_other_method():
    rng = np.random.default_rng(0)
    table = np.log(rng.beta(2, 1, (300, 7)))
    best = losses_of(table, convex(table)[0]).mean()
    for weights in (greedy(table), best_single(table), np.full(7, 1 / 7)):
        assert best <= losses_of(table, weights).mean() + 1e-6


def test_cross_fit_scores_each_part_without_having_seen_it():
    table = table_of([0.9, 0.9, 0.1, 0.1], [0.1, 0.1, 0.9, 0.9])
    parts = np.array([0, 0, 1, 1])
    nested = cross_fit(best_single, table, parts)
    # without part 0 the second member looks best, and it is wrong on part 0; and vice versa
    np.testing.assert_allclose(nested, -np.log(0.1))


def test_parts_are_folds_or_a_hash_of_the_id():
    ids = np.array([f"{k}" for k in range(100)])
    np.testing.assert_array_equal(make_parts(np.array([3, 3, 7]), ids[:3]), [0, 0, 1])
    parts = make_parts(np.zeros(100), ids)
    assert set(parts) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(parts[:50], make_parts(np.zeros(50), ids[:50]))


def test_bootstrap_interval_matches_the_standard_error():
    losses = np.random.default_rng(0).exponential(size=(2000, 1))
    means = bootstrap_means(np.hstack([losses, losses + 1]))
    low, high = np.quantile(means[:, 0], [0.025, 0.975])
    assert (high - low) / 2 == pytest.approx(1.96 / np.sqrt(2000), rel=0.15)
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 1.0)  # the resamples are shared


def test_tables_hold_what_the_files_say(make_world):
    world = make_world()
    logits = world.logits(scale=2.0)
    world.save("m", logits)
    oof = load_oof(world.root, world.table)
    tables = build_tables(oof)
    order = np.argsort(world.folds, kind="stable")
    targets = world.targets[order]
    half = logits.astype(np.float16).astype(np.float64)[:, order]
    true = softmax(half)[:, np.arange(len(order)), targets]
    np.testing.assert_allclose(np.exp(tables.raw[:, :2].T), true, rtol=1e-4)
    temperature = fit_temperature(half[1], targets)
    assert tables.temperatures[1] == pytest.approx(temperature, rel=1e-3)
    true = softmax(half[1], temperature)[np.arange(len(order)), targets]
    np.testing.assert_allclose(np.exp(tables.calibrated[:, 1]), true, rtol=2e-3)
    np.testing.assert_allclose(np.exp(tables.raw[:, 2]), 1 / 4)
    np.testing.assert_allclose(np.exp(tables.raw[:, 3]), np.bincount(targets)[targets] / 300)
    assert solve_mixture(tables.raw).loss < -tables.raw[:, 0].mean()


def test_the_bootstrap_is_the_same_in_blocks_of_any_size(monkeypatch):
    losses = np.random.default_rng(0).gamma(1.0, 1.0, (50, 2))
    whole = bootstrap_means(losses)
    monkeypatch.setattr(blend, "_BOOTSTRAP_VALUES", 350)  # 7 resamplings at once, 6 in the end
    np.testing.assert_allclose(bootstrap_means(losses), whole, rtol=1e-12)


def test_bootstrap_draws_whole_groups():
    once = np.random.default_rng(0).exponential(size=(40, 2))
    rows, groups = np.repeat(once, 5, axis=0), np.repeat(np.char.mod("g%02d", np.arange(40)), 5)
    np.testing.assert_allclose(bootstrap_means(rows, groups), bootstrap_means(once), rtol=1e-12)
    assert bootstrap_means(rows).std() < 0.6 * bootstrap_means(rows, groups).std()
