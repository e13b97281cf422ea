from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.losses.classification import build_loss
from src.losses.segmentation import build_segmentation_loss
from src.models.distilled import Student, build_student, show_features
from src.tasks.classification import Classification
from src.tasks.distillation import NAMES, Distillation
from src.tasks.segmentation import Segmentation

CLASSES = ("a", "b", "c")


class Net(nn.Module):
    """A mask net of one hidden map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.head = nn.Conv2d(width, len(CLASSES), 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.forward_with_features(image)[0]

    def forward_with_features(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = self.backbone(image.float() / 255)
        return nn.functional.interpolate(self.head(maps), image.shape[-2:]), [maps]


def batch() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "image": torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8),
        "mask": torch.randint(0, 3, (4, 8, 8)),
        "target": torch.tensor([0, 1, 2, 0]),
    }


def pair(weights: dict[str, float], **options: Any) -> tuple[Student, Distillation]:
    torch.manual_seed(0)
    teacher = Net(6).eval().requires_grad_(False)
    student = build_student(Net(4), teacher, project="feature" in weights, num_terms=len(NAMES))
    inner = Segmentation(CLASSES, build_segmentation_loss("ce"))
    return student, Distillation(inner, teacher, show_features, weights, **options)


def test_a_weight_is_the_share_of_the_task_loss() -> None:
    student, task = pair({"kl": 0.3, "attention": 0.2})
    with torch.no_grad():
        terms = task.loss(student, batch())
    # at the first step every term is exactly its own running size
    assert float(terms["loss"]) == pytest.approx(1.5 * float(terms["task"]), rel=1e-5)
    assert float(terms["kl_size"]) > 0 and float(terms["attention_size"]) > 0


def test_the_gradient_is_that_of_the_normalised_sum() -> None:
    student, task = pair({"similarity": 0.5})
    task.loss(student, batch())["loss"].backward()
    mixed = student.backbone.weight.grad.clone()  # type: ignore[union-attr]
    student.zero_grad()
    terms = pair({"similarity": 0.5})[1]
    logits, deepest, _ = student(batch()["image"], features=True)
    own = terms.inner.criterion(logits, batch()["mask"])["loss"]
    from src.losses.distillation import similarity_loss

    other = similarity_loss(deepest, show_features(task.teacher, batch()["image"])[1])
    (own + 0.5 * own.detach() / other.detach() * other).backward()
    torch.testing.assert_close(student.backbone.weight.grad, mixed)


def test_shares_are_measured_at_the_first_step_and_then_kept() -> None:
    student, task = pair({"kl": 0.3, "channel": 0.3, "feature": 0.1}, share_every=3)
    first = task.loss(student, batch())
    shares = [float(first[f"{name}_share"]) for name in ("task", "kl", "channel", "feature")]
    assert sum(shares) == pytest.approx(1.0, abs=1e-5)
    with torch.no_grad():
        student.network.head.weight.mul_(3)  # type: ignore[union-attr,operator]
    assert float(task.loss(student, batch())["task_share"]) == pytest.approx(shares[0])


def test_sizes_live_in_the_checkpoint() -> None:
    student, task = pair({"kl": 0.3})
    for _ in range(3):
        task.loss(student, batch())
    twin, _ = pair({"kl": 0.3})
    twin.load_state_dict(student.state_dict())
    assert int(twin.steps) == 3
    ours, theirs = (task.loss(model, batch())["loss"].item() for model in (student, twin))
    assert ours == theirs


def test_the_teacher_is_never_changed() -> None:
    student, task = pair({"kl": 0.3, "feature": 0.3})
    before = {k: v.clone() for k, v in task.teacher.state_dict().items()}
    task.loss(student, batch())["loss"].backward()
    assert all(p.grad is None for p in task.teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in task.teacher.state_dict().items())
    assert student.projector is not None and student.projector.weight.grad is not None


def test_void_pixels_teach_nothing() -> None:
    student, task = pair({"kl": 1.0})
    data = batch() | {"mask": torch.full((4, 8, 8), 255)}
    assert float(task.loss(student, data)["kl_size"]) == 0.0


@pytest.mark.parametrize("timm_id", ["test_resnet", "test_vit", "test_convnext"])
def test_classifiers_are_taught_too(timm_id: str) -> None:
    from src.models.classifier import build_classifier

    size = 160 if timm_id == "test_vit" else 64
    nets = [build_classifier(timm_id, 3, image_size=size) for _ in range(2)]
    teacher = nets[1].eval().requires_grad_(False)
    weights = {"kl": 0.3, "attention": 0.3, "similarity": 0.3, "feature": 0.3}
    student = build_student(nets[0], teacher, project=True, num_terms=len(NAMES), size=size)
    task = Distillation(
        Classification(3, build_loss("cross_entropy")), teacher, show_features, weights
    )
    data = {"image": torch.randint(0, 256, (4, 3, size, size)).float()}
    data["target"] = batch()["target"]
    terms = task.loss(student.eval(), data)
    terms["loss"].backward()
    assert torch.isfinite(terms["loss"])
    torch.testing.assert_close(
        show_features(nets[0], data["image"])[0], nets[0](data["image"]), atol=1e-4, rtol=1e-3
    )
    assert task.predict(student, data).shape == (4, 3)
