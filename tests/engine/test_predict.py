"""predict(): each row once, in any batch, also where memory is short."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from src.engine.predict import predict_logits, predict_view
from src.engine.runtime import start_runtime
from src.losses.classification import build_loss
from src.script import UserError
from src.tasks.classification import Classification
from src.views import VIEWS
from tests.engine.conftest import CLASSES, SIDE, TinyLoader, TinyNet


class Hungry(Classification):
    """Memory is out for more than ``limit`` rows at once."""

    limit = 99
    error: BaseException = RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")

    def predict(self, model: Any, batch: Any) -> Any:
        if len(batch["image"]) > self.limit:
            raise self.error
        return super().predict(model, batch)


def logits(**traits: Any) -> np.ndarray:
    """Return (2, 12, 3) logits of two views, predicted with a ``Hungry`` of these traits."""
    task = type("Task", (Hungry,), traits)(CLASSES, build_loss("cross_entropy"))
    out = np.full((2, 12, CLASSES), np.nan, np.float16)
    loader = TinyLoader(12, 5, shuffle=False)
    predict_logits(TinyNet(), loader, task, start_runtime("cpu"), out=out, views=VIEWS[:2])
    return out


@pytest.mark.parametrize("error", [Hungry.error, MemoryError(), torch.OutOfMemoryError("x")])
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_short_memory_changes_nothing_but_the_batch(limit: int, error: BaseException) -> None:
    expected = logits()
    assert np.isfinite(expected).all()
    found = logits(limit=limit, error=error)
    np.testing.assert_allclose(found.astype(float), expected.astype(float), atol=2e-3)


def test_no_memory_for_one_image_is_one_line() -> None:
    with pytest.raises(UserError, match="single image: lower --image_size"):
        logits(limit=0)


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        logits(limit=2, error=RuntimeError("shape"))


def test_a_lost_row_is_noticed() -> None:
    task = Classification(CLASSES, build_loss("cross_entropy"))
    out = np.zeros((1, 13, CLASSES), np.float16)
    with pytest.raises(AssertionError, match="1 of 13 rows"):
        predict_logits(
            TinyNet(), TinyLoader(12, 5, shuffle=False), task, start_runtime("cpu"),
            out=out, views=VIEWS[:1],
        )  # fmt: skip


@pytest.mark.parametrize("limit", [2, 5, 99])
def test_further_views_only_of_the_rows_that_want_them(limit: int) -> None:
    """As where every row gets every view; the other rows repeat their first."""
    loader, runtime = TinyLoader(12, 5, shuffle=False), start_runtime("cpu")
    net = TinyNet()
    task = type("Task", (Hungry,), {"limit": limit})(CLASSES, build_loss("cross_entropy"))
    full, some = (np.full((5, 12, CLASSES), np.nan, np.float16) for _ in range(2))
    predict_logits(net, loader, task, runtime, out=full, views=VIEWS)
    middle = float(np.median(full[0, :, 0]))
    predict_logits(
        net, loader, task, runtime, out=some, views=VIEWS, is_unsure=lambda x: x[:, 0] < middle
    )
    wanted = full[0, :, 0] < middle
    assert 0 < wanted.sum() < 12
    np.testing.assert_allclose(some[:, wanted], full[:, wanted], atol=2e-3)
    assert (some[:, ~wanted] == some[:1, ~wanted]).all()
    assert np.abs(full - full[:1]).max() > 0.01  # the views do differ


def test_predictions_of_a_compiled_network_are_eager() -> None:
    model, counter = TinyNet().eval(), CompileCounter()
    model.compile(backend=counter)
    task = Classification(CLASSES, build_loss("cross_entropy"))
    runtime = start_runtime("cpu").with_choice("fp32", channels_last=False, compiled=True)
    for rows in (2, 3):
        batch = {"image": torch.zeros(rows, 3, SIDE, SIDE, dtype=torch.uint8)}
        assert predict_view(model, task, runtime, batch, VIEWS[0]).shape == (rows, CLASSES)
    assert counter.frame_count == 0
    model(batch["image"])
    assert counter.frame_count == 1
