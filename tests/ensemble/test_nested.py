from __future__ import annotations

import numpy as np
import pytest

import src.ensemble.search as panel_module
from src.ensemble.blend import build_tables, convex
from src.ensemble.oof import load_oof
from src.ensemble.pool import MAX_LOSS, true_losses
from src.ensemble.search import Structure, build_panel, fit_blend, full_structure
from src.metrics.classification import log_loss


@pytest.fixture
def oof(make_world):
    world = make_world(num_rows=600, num_classes=12)
    world.save("strong", world.logits(signal=3.0, scale=2.0))
    world.save("weak", world.logits(signal=2.0, scale=0.5))
    return load_oof(world.root, world.table)


def structures(oof):
    start = full_structure(oof.members)
    return [start, Structure("log", "before", start.models, start.views)]


@pytest.mark.parametrize("number", [0, 1])
def test_a_thinned_panel_stays_close_to_the_full_score(oof, monkeypatch, number):
    tables = build_tables(oof)
    structure = structures(oof)[number]
    exact = build_panel(oof, tables).score(structure)
    monkeypatch.setattr(panel_module, "_PANEL_VALUES", 4 * 600 * 9)
    assert build_panel(oof, tables).score(structure) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("pool", ["linear", "log"])
def test_a_structure_of_views_that_its_models_lack_is_the_worst(oof, pool):
    panel = build_panel(oof, build_tables(oof))
    assert panel.score(Structure(pool, "after", ("weak",), ("hflip@1.25",))) == MAX_LOSS


@pytest.mark.parametrize("number", [0, 1])
def test_panel_score_is_the_full_nested_loss(oof, number):
    structure = structures(oof)[number]
    panel = build_panel(oof, build_tables(oof))
    fitted = fit_blend(panel, structure)
    assert panel.score(structure) == pytest.approx(fitted.nested_losses.mean(), abs=2e-5)
    assert fitted.loss < fitted.nested_losses.mean()


@pytest.mark.parametrize("number", [0, 1])
def test_the_blend_gives_the_fitted_loss_again(oof, number):
    fitted = fit_blend(build_panel(oof, build_tables(oof)), structures(oof)[number])
    blend, rows = fitted.blend, np.arange(600)
    used = [oof.read(blend.members[m], rows, float(blend.temperatures[m])) for m in blend.used]
    predictions = blend.predict(np.stack(used))
    assert true_losses(predictions, oof.targets).mean() == pytest.approx(fitted.loss, abs=1e-6)
    assert log_loss(np.exp(predictions), oof.targets) == pytest.approx(fitted.loss, abs=1e-5)


def test_weights_are_the_convex_ones_and_temperature_is_after_pooling(oof):
    tables = build_tables(oof)
    fitted = fit_blend(build_panel(oof, tables), full_structure(oof.members))
    weights, mixture = convex(tables.raw[:, :-2])
    np.testing.assert_allclose(fitted.blend.weights, weights, atol=1e-4)
    assert fitted.loss < mixture.loss and fitted.blend.temperature != 1.0
    assert (fitted.blend.temperatures == 1.0).all()


def test_a_part_has_no_say_in_its_own_nested_losses(make_world):
    """Rows of fold 0 with other labels change what fold 0 scores, not how it is answered."""
    nested = []
    for harm in (False, True):
        world = make_world(num_rows=300)
        logits = world.logits(signal=2.0)
        other = world.logits(signal=2.5)
        if harm:
            own = world.folds == 0  # the class frequencies, which all rows share, stay
            world.targets[own] = np.roll(world.targets[own], 1)
        world.save("a", logits)
        world.save("b", other)
        oof = load_oof(world.root, world.table)
        nested.append(
            fit_blend(build_panel(oof, build_tables(oof)), full_structure(oof.members)).nested
        )
    np.testing.assert_allclose(nested[0][:100], nested[1][:100], atol=1e-3)


def test_a_thinned_panel_lumps_classes_without_changing_linear_pools(oof, monkeypatch):
    tables = build_tables(oof)
    structure = Structure("linear", "after", ("strong", "weak"), ("identity", "hflip"))
    exact = build_panel(oof, tables).score(structure)
    monkeypatch.setattr(panel_module, "_PANEL_VALUES", 4 * 600 * 9)
    small = build_panel(oof, tables)
    assert small.raw.shape == (600, 4, 9) and small.num_rest == 4  # of 12 classes
    mass = np.exp(small.raw) @ np.r_[np.ones(8), 4]
    np.testing.assert_allclose(mass, 1.0, rtol=1e-4)
    np.testing.assert_allclose(small.raw[:, :, 0], tables.raw[:, :4], rtol=1e-4, atol=1e-5)
    assert small.score(structure) == pytest.approx(exact, abs=2e-3)  # temperature sees means
    monkeypatch.setattr(panel_module, "_PANEL_VALUES", 1)
    assert len(build_panel(oof, tables).rows) == 600  # never under 1000 rows while there are any
