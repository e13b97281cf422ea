"""Losses, networks and views on a card that is not there.

The tensors are PyTorch's fake ones: they say that they are on CUDA and have shapes alone. Tensors
of two devices are refused, and so is a number that the host would have to wait for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.torch_version import TorchVersion

from src.config import EngineConfig
from src.data.transforms import mix
from src.engine.checkpoint import Ema, prepare_parts
from src.engine.loop import add_terms
from src.engine.predict import predict_view, predict_views
from src.engine.runtime import Alone, Runtime
from src.engine.step import LossGuard, train_step
from src.losses import classification, distillation, segmentation
from src.losses.terms import _constants
from src.models.classifier import POOLS, build_classifier
from src.models.distilled import Student, show_features
from src.models.micro.registry import MICRO_NETS, build_micro
from src.models.segmenter import ARCHITECTURES, build_segmenter
from src.pipelines.classification.heatmaps import grad_cam
from src.runs import Run
from src.tasks.classification import Classification, MultiLabel
from src.tasks.distillation import NAMES, Distillation
from src.tasks.segmentation import Segmentation
from src.views import VIEWS, View

pytestmark = pytest.mark.skipif(
    not torch.version.cuda or TorchVersion(torch.__version__) < (2, 14),
    reason="fake convolutions on CUDA abort the process in torch 2.6; seen with 2.14 for CUDA",
)

CARD = Runtime(Alone(torch.device("cuda")))
K, SIDE = 3, 64
CLASSES = ("background", "a", "b")
CROSS_ENTROPY = Classification(K, classification.build_loss("cross_entropy"))
FAKE = FakeTensorMode()


@pytest.fixture(autouse=True)
def apart() -> Iterator[None]:
    """Keep constants on the card from the other tests."""
    yield
    _constants.cache_clear()


def on_card(net: Any) -> Any:
    """Put other tensors of the same shapes into a network: a fake one cannot be moved."""
    for module in net.modules():
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                if value is not None:
                    moved = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                    is_learned = isinstance(value, nn.Parameter)
                    table[name] = nn.Parameter(moved, value.requires_grad) if is_learned else moved
    return net


def batch(side: int = SIDE, *labels: int) -> dict[str, Tensor]:
    return {
        "image": torch.zeros(4, 3, side, side, dtype=torch.uint8, device="cuda"),
        "mask": torch.zeros(4, side, side, dtype=torch.uint8, device="cuda"),
        "target": torch.zeros((4, *labels), dtype=torch.int64, device="cuda"),
        "index": torch.arange(4),
    }


def try_on_card(
    net: nn.Module, task: Any, side: int = SIDE, *labels: int, views: Sequence[View] = VIEWS[:1]
) -> None:
    """Compute a training loss, and a prediction by more rows than there are."""
    with FAKE:
        net, shown = on_card(net), batch(side, *labels)
        terms = task.loss(net.train(), shown)
        one_view = partial(predict_view, net.eval(), task, CARD, pad_to=6)
        with torch.inference_mode():
            outputs = predict_views(one_view, shown, views)
    assert {value.device.type for value in (*terms.values(), *outputs)} == {"cuda"}
    assert {len(output) for output in outputs} == {4}


def small(pool: str = "gem", timm_id: str = "test_resnet", side: int = SIDE) -> Any:
    return build_classifier(timm_id, K, image_size=side, pool=pool)


def masks(loss: str, num_classes: int = K) -> Segmentation:
    criterion = segmentation.build_segmentation_loss(loss, rarity=[1.0] * num_classes)
    return Segmentation(CLASSES[:num_classes], criterion)


class Pixels(nn.Conv2d):
    """The smallest net for masks."""

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, H, W)."""
        return super().forward(image.float())


def test_two_devices_and_a_wait_are_seen() -> None:
    with FAKE:
        there, here = torch.zeros(2, device="cuda"), torch.zeros(2)
        with pytest.raises(RuntimeError, match="device"):
            _ = there + here
        with pytest.raises(DataDependentOutputException):
            float(there.sum())


@pytest.mark.parametrize("loss", classification.LOSSES)
def test_losses_of_classes(loss: str) -> None:
    criterion = classification.build_loss(loss, label_smoothing=0.1)
    try_on_card(small(), Classification(K, criterion))


@pytest.mark.parametrize("loss", classification.LABEL_LOSSES)
def test_losses_of_labels(loss: str) -> None:
    task = MultiLabel(K, classification.build_loss(loss, several=True))
    try_on_card(small("avg"), task, SIDE, K)


@pytest.mark.parametrize("loss", [*segmentation.TERMS, "ce + protocol"])
def test_losses_of_masks(loss: str) -> None:
    try_on_card(Pixels(3, K, 1), masks(loss))


def test_one_logit_and_all_views_by_windows() -> None:
    task = replace(masks("bce + dice", 2), window=(48, 40))
    try_on_card(Pixels(3, 1, 1), task, views=VIEWS)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("timm_id", "side"), [("test_resnet", SIDE), ("test_vit", 160)])
def test_classifiers(pool: str, timm_id: str, side: int) -> None:
    try_on_card(small(pool, timm_id, side), CROSS_ENTROPY, side)


@pytest.mark.parametrize("name", {spec.build: name for name, spec in MICRO_NETS.items()}.values())
def test_micro_nets(name: str) -> None:
    """One of each family."""
    try_on_card(build_micro(name, K), masks("ce"))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_segmenters(arch: str) -> None:
    encoder = "resnet18" if arch == "deeplabv3plus" else "tu-test_resnet"
    try_on_card(build_segmenter(arch, encoder, K), masks("ce"))


@pytest.mark.parametrize("kind", ["classes", "masks"])
def test_teaching(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """But for the count of steps, which the host reads once."""
    monkeypatch.setattr(Student, "count_step", lambda *_: True)
    monkeypatch.setattr(
        torch.autograd, "grad", lambda _, inputs, **__: [torch.zeros_like(x) for x in inputs]
    )
    task: Any = CROSS_ENTROPY if kind == "classes" else masks("ce")
    make = small if kind == "classes" else lambda: build_micro("lcnet", K)
    terms = [t for t in distillation.TERMS if kind == "masks" or t != "channel"]
    teacher, student = make().eval(), Student(make(), None, len(NAMES))
    with FAKE:
        on_card(teacher)
    weights = dict.fromkeys(terms, 0.5)
    try_on_card(student, Distillation(task, teacher, show_features, weights))


@pytest.mark.parametrize("options", [{"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}])
def test_mixing_and_heat_maps(monkeypatch: pytest.MonkeyPatch, options: dict[str, float]) -> None:
    monkeypatch.setattr(torch.autograd, "grad", lambda _, x: [torch.zeros_like(x)])
    net = small("stages")
    with FAKE:
        shown = batch()
        mixed = mix(shown["image"], shown["target"], num_classes=K, seed=0, step=0, **options)
        heat = grad_cam(on_card(net), shown["image"][0], 1)
    assert {value.device.type for value in (*mixed, heat)} == {"cuda"}


def test_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two steps by micro-batches, clipped, watched and averaged; gradients of zeros."""
    monkeypatch.setattr(Runtime, "place", lambda _, model: model)
    monkeypatch.setattr(Tensor, "backward", lambda _: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda: None))
    config = EngineConfig(ema_decay=0, batch_size=4, micro_batch_size=2, grow_micro_batch=False)
    net, sums = small(), dict[str, Tensor]()
    average = Ema(net, decay=0.9)

    def leave_zeros(**_: object) -> None:
        for param in net.parameters():
            param.grad = torch.zeros_like(param)

    with FAKE:
        on_card(average.module)
        on_card(net)
        parts = prepare_parts(net, config, CARD)
        guard = LossGuard(Run(tmp_path), CARD, [], 0)
        monkeypatch.setattr(parts.optimizer, "zero_grad", leave_zeros)
        for number in range(2):
            terms = train_step(parts, CROSS_ENTROPY, batch(), guard, epoch=0, seed=0, clip=1.0)
            assert terms is not None
            add_terms(sums, terms, 4, CARD)
            average.update(net, step=number)
    assert len(guard.pending) == 2 and sums["loss"].device.type == "cuda"
