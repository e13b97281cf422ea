"""Losses, networks, steps and the main job on a Mac's GPU that is not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.kill_resume import MODEL
from src.engine import runtime
from src.engine.predict import predict_view, predict_views
from src.engine.runtime import Alone, Runtime
from src.losses import classification, distillation, segmentation
from src.losses.terms import _constants
from src.models.classifier import POOLS, build_classifier
from src.models.distilled import Student, show_features
from src.models.micro.registry import build_micro
from src.models.segmenter import build_segmenter
from src.tasks.classification import Classification, MultiLabel
from src.tasks.distillation import NAMES, Distillation
from src.tasks.segmentation import Segmentation
from src.views import VIEWS
from tests.engine.mac import playing_mac
from tests.scripts.conftest import Place, call, fresh, template

__all__ = ["call", "fresh", "template"]  # fixtures
GPU = Runtime(Alone(torch.device("mps")))
K = 3
CROSS_ENTROPY = Classification(K, classification.build_loss("cross_entropy"))


@pytest.fixture(autouse=True)
def mac() -> Iterator[None]:
    with playing_mac():
        yield
    _constants.cache_clear()


def learn(net: nn.Module, task: Any, side: int = 64, *labels: int) -> None:
    """Compute a loss, its gradients and the predictions of all views."""
    net = GPU.place(net)
    batch = GPU.upload({
        "image": torch.arange(4 * 3 * side * side).view(4, 3, side, side).to(torch.uint8),
        "mask": torch.arange(4 * side * side).view(4, side, side).remainder(K).to(torch.uint8),
        "target": torch.arange(4).remainder(2).view(4, *(1 for _ in labels)).repeat(1, *labels),
        "index": torch.arange(4),
    })  # fmt: skip
    terms = task.loss(net.train(), batch)
    terms["loss"].backward()
    with torch.inference_mode():
        outputs = predict_views(partial(predict_view, net.eval(), task, GPU), batch, VIEWS[:2])
    learned = [p.grad for p in net.parameters() if p.grad is not None]
    assert {x.device.type for x in (*terms.values(), *outputs, *learned)} == {"mps"}


def small(pool: str = "avg") -> Any:
    return build_classifier("test_resnet", K, image_size=64, pool=pool)


def masks(loss: str = "ce") -> Segmentation:
    criterion = segmentation.build_segmentation_loss(loss, rarity=[1.0] * K)
    return Segmentation(("background", "a", "b"), criterion)


class Pixels(nn.Conv2d):
    """The smallest net for masks."""

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, H, W)."""
        return super().forward(image.float())


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x.double(), lambda x: x.sum(dtype=torch.float64), lambda x: x.numpy(),
        lambda x: torch.zeros(2, dtype=torch.float64, device=x.device),
        lambda x: torch.ones(2, dtype=torch.float64).to("mps"), lambda x: x + torch.ones(4),
        lambda x: nn.functional.adaptive_avg_pool2d(x[None, None], 3), lambda _: torch.cuda.Event(),
        lambda x: nn.functional.batch_norm(x.T[None, None], None, None, training=True),
        lambda x: x.T.sort(), lambda x: torch.ops.aten.silu_backward(x.T, x),
    ],
)  # fmt: skip
def test_what_a_mac_refuses_is_refused(use: Callable[[Tensor], object]) -> None:
    x = torch.ones(4, 4, device="mps")[:, :2].repeat(1, 2).contiguous()
    assert (x + 1).cpu().numpy().sum() == 32
    with pytest.raises((TypeError, RuntimeError, AssertionError)):
        use(x)


@pytest.mark.parametrize("loss", classification.LOSSES)
def test_losses_of_classes(loss: str) -> None:
    learn(small(), Classification(K, classification.build_loss(loss, label_smoothing=0.1)))


@pytest.mark.parametrize("loss", classification.LABEL_LOSSES)
def test_losses_of_labels(loss: str) -> None:
    learn(small(), MultiLabel(K, classification.build_loss(loss, several=True)), 64, K)


@pytest.mark.parametrize("loss", [*segmentation.TERMS, "ce + protocol"])
def test_losses_of_masks(loss: str) -> None:
    learn(Pixels(3, K, 1), masks(loss))


def test_a_single_image_is_sorted() -> None:
    """Its probabilities by pixel are a view of those by class, which MPS sorted wrongly."""
    image = torch.ones(1, 3, 8, 8, device="mps")
    target = torch.zeros(1, 8, 8, dtype=torch.int64, device="mps")
    GPU.place(net := Pixels(3, K, 1))
    masks("lovasz").criterion(net(image), target)["loss"].backward()


@pytest.mark.parametrize("pool", POOLS)
def test_poolings(pool: str) -> None:
    learn(small(pool), CROSS_ENTROPY)


@pytest.mark.parametrize(
    ("arch", "encoder"),
    [("deeplabv3plus", "resnet18"), ("segformer", "mit_b0"), ("unet", "tu-convnext_atto"),
     ("fpn", "tu-convnext_atto"), ("fpn", "tu-test_resnet"), ("segformer", "resnet18"),
     ("segformer", "tu-test_efficientnet")],
)  # fmt: skip
def test_segmenters(arch: str, encoder: str) -> None:
    """Maps from a transformer, or gradients of one's decoder, have its layout: wrong gradients."""
    learn(build_segmenter(arch, encoder, K), masks())


def test_teaching() -> None:
    weights = dict.fromkeys(distillation.TERMS, 0.5)
    teacher = GPU.place(build_micro("lcnet", K)).eval()
    student = Student(build_micro("lcnet", K), None, len(NAMES))
    learn(student, Distillation(masks(), teacher, show_features, weights))


def test_maps_of_uneven_sizes() -> None:
    teacher, student = (torch.ones(2, 4, side, side, device="mps") for side in (12, 9))
    assert distillation.attention_loss(student, teacher).device.type == "mps"


def test_photographs_become_predictions(fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "join_processes", lambda **_: GPU.accelerator)
    answer = fresh.train("--device", "mps", "--epochs", "2", "--checkpoint_minutes", "0")
    assert answer.status == 0, answer.err
    config = (fresh.output / MODEL / "fold0" / "config.yaml").read_text(encoding="utf-8")
    assert "device: mps" in config
