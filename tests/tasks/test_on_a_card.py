"""Losses as a GPU meets them: fp16 around them, and a host that must not wait for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from src.losses.classification import LOSSES, build_loss
from src.losses.segmentation import TERMS, build_segmentation_loss
from src.losses.terms import _constants
from src.models.distilled import Student, show_features
from src.tasks.classification import Classification
from src.tasks.distillation import NAMES as SIZES
from src.tasks.distillation import Distillation
from src.tasks.segmentation import Segmentation

K, SIDE = 3, 32
FAKE_CARD = pytest.mark.skipif(
    not torch.cuda.is_available() and torch.__version__ < "2.7",
    reason="before torch 2.7 a fake CUDA tensor asks for the driver",
)
# What makes the host wait for numbers it has to know.
READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.is_nonzero.default,
}


class NoWaiting(TorchDispatchMode):
    """Refuses every operation for which the host waits for the device, uploads included."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        boolean = func is torch.ops.aten.index.Tensor and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        assert func not in READS and not boolean, f"the host waits: {func}"
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            assert out.device == args[0].device, "a tensor is copied between host and device"
        return out


class Net(nn.Module):
    """A net of one hidden map whose logits are its parameters' work."""

    def __init__(self, masks: bool) -> None:
        super().__init__()
        self.masks = masks
        self.backbone = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, K, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.forward_with_features(image)[0]

    def forward_with_features(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast(image.device.type, enabled=False):  # the loss alone shall differ
            maps = self.backbone(image)
            logits = self.head(maps)
        return logits if self.masks else logits.mean((2, 3)), [maps]


def make_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(4, 3, SIDE, SIDE, generator=generator),
        "mask": torch.randint(0, K, (4, SIDE, SIDE), generator=generator),
        "target": torch.tensor([0, 1, 2, 0]),
    }


def make_classification(name: str) -> tuple[nn.Module, Any]:
    return Net(masks=False), Classification(K, build_loss(name, label_smoothing=0.1))


def make_segmentation(name: str) -> tuple[nn.Module, Any]:
    criterion = build_segmentation_loss(name, rarity=[1, 0.5, 0.2])
    return Net(masks=True), Segmentation(tuple("abc"), criterion)


def make_distillation(kind: str) -> tuple[nn.Module, Any]:
    make = make_segmentation if kind == "masks" else make_classification
    net, inner = make("ce" if kind == "masks" else "cross_entropy")
    teacher = Net(kind == "masks").eval().requires_grad_(False)
    weights = {"kl": 0.3, "attention": 0.3, "similarity": 0.3, "feature": 0.3}
    if kind == "masks":
        weights["channel"] = 0.3
    return Student(net, None, len(SIZES)), Distillation(inner, teacher, show_features, weights)


CASES: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    **{name: (lambda name=name: make_classification(name)) for name in LOSSES},
    **{name: (lambda name=name: make_segmentation(name)) for name in sorted(TERMS)},
    "distilled masks": lambda: make_distillation("masks"),
    "distilled classes": lambda: make_distillation("classes"),
}


@contextmanager
def made_up_card() -> Iterator[None]:
    """Compute shapes alone, on a CUDA card that need not be there."""
    _constants.cache_clear()
    try:
        with FakeTensorMode():
            yield
    finally:
        _constants.cache_clear()


@FAKE_CARD
@pytest.mark.parametrize("case", CASES)
def test_no_loss_makes_the_host_wait(case: str) -> None:
    with made_up_card():
        with torch.device("cuda"):
            model, task = CASES[case]()
        if isinstance(task, Distillation):
            model._counted = (1, id(model.steps), model.steps._version)  # type: ignore[assignment,arg-type,union-attr]
        batch = {key: value.to("cuda") for key, value in make_batch().items()}
        task.loss(model, batch)  # constants are uploaded once
        with NoWaiting():
            terms = task.loss(model, batch)
        assert terms["loss"].device.type == "cuda"


@FAKE_CARD
def test_the_watch_sees_waiting() -> None:
    with FakeTensorMode():
        x = torch.rand(3, device="cuda")
        with NoWaiting():
            for wait in (
                lambda: x[x > 0],
                lambda: float(x.sum()),
                lambda: torch.ones(3).to(x.device),
                lambda: x.cpu(),
            ):
                with pytest.raises(AssertionError, match="host"):
                    wait()


@pytest.mark.parametrize("case", CASES)
def test_autocast_around_a_loss_changes_nothing(case: str) -> None:
    """Sums over features and over 256 x 256 pixels are more than fp16 can hold."""
    results = []
    for around in (False, True):
        torch.manual_seed(0)
        model, task = CASES[case]()
        batch = make_batch()
        batch["image"] = 4 * batch["image"].repeat(1, 1, 8, 8)
        batch["mask"] = batch["mask"].repeat(1, 8, 8)
        with torch.autocast("cpu", torch.float16, enabled=around):
            loss = task.loss(model, batch)["loss"]
        loss.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        results.append(torch.cat([loss.detach().view(1), *gradients]))
    assert torch.isfinite(results[0]).all() and torch.equal(*results)
