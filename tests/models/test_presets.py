"""The seven rows of configs/classify.yaml: sound values, and each one builds, trains and infers."""

import gc
import time
from pathlib import Path

import pytest
import torch

from src.config import FoldConfig
from src.losses.classification import build_loss
from src.models.classifier import build_classifier
from src.models.pretrained import check_timm_id, find_data_config
from src.reader import read_rows

COMMON, ROWS = read_rows(
    Path(__file__).resolve().parents[2] / "configs" / "classify.yaml", FoldConfig
)


def test_seven_rows_of_tagged_ids_with_sizes_that_fit() -> None:
    assert len(ROWS) == 7
    for row in ROWS.values():
        assert check_timm_id(row["timm_id"]) == row["timm_id"]
        config = find_data_config(row["timm_id"])
        assert not config.fixed_size or config.image_size == row["image_size"]
        assert row["batch_size"] % row["micro_batch_size"] == 0
        assert 2e-5 <= row["lr"] <= 3e-4
    assert sum(row["prior_weight"] for row in ROWS.values()) == 100


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ROWS)
def test_preset_builds_trains_one_step_and_infers(name: str) -> None:
    """Random weights at full resolution: one step on two images, then one image."""
    row, start = COMMON | ROWS[name], time.monotonic()
    torch.manual_seed(0)
    side = row["image_size"]
    model = build_classifier(
        row["timm_id"],
        396,
        image_size=side,
        gem_p=row.get("gem_p", 0.0),
        pool="gem",
        drop_rate=row["drop_rate"],
        drop_path_rate=row["drop_path_rate"],
    )
    # Plain SGD keeps no state: parameters and gradients alone are 1.6 GB of the largest.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    image = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    before = model.head.weight.clone()
    loss = build_loss("cross_entropy", label_smoothing=row["label_smoothing"])(
        model(image), torch.tensor([3, 395])
    )
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()
    assert 4.0 < loss.item() < 8.0  # log 396 = 5.98
    assert not torch.equal(model.head.weight, before)
    with torch.inference_mode():
        logits = model.eval()(image[:1])
    assert logits.shape == (1, 396)
    assert torch.isfinite(logits).all()
    print(f"\n{name}: {time.monotonic() - start:.1f} s, loss {loss.item():.3f}")
    del model, optimizer, loss
    gc.collect()
