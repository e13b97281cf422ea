from math import log, sqrt

import pytest
import torch

from src.losses.distillation import (
    attention_loss,
    channel_loss,
    divide_by_size,
    feature_loss,
    gradient_shares,
    kl_loss,
    running_size,
    similarity_loss,
)

KL = 0.75 * log(1.5) + 0.25 * log(0.5)  # of (3/4, 1/4) against (1/2, 1/2)


def test_kl_by_hand_for_rows_pixels_and_one_channel():
    student, teacher = torch.zeros(1, 2), torch.tensor([[log(3), 0.0]])
    assert kl_loss(student, teacher, 1.0).item() == pytest.approx(KL)
    maps = [x.reshape(1, 2, 1, 1).expand(2, 2, 3, 5) for x in (student, teacher)]
    assert kl_loss(*maps, 1.0).item() == pytest.approx(KL)  # per pixel: size does not matter
    one = kl_loss(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), log(3)), 1.0)
    assert one.item() == pytest.approx(KL)


def test_kl_scales_with_the_squared_temperature():
    student, teacher = torch.zeros(1, 2), torch.tensor([[2 * log(3), 0.0]])
    assert kl_loss(student, teacher, 2.0).item() == pytest.approx(4 * KL)


def test_kl_agrees_with_torch_on_reshaped_maps():
    student, teacher = torch.randn(2, 2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    flat = [x.movedim(1, -1).reshape(-1, 5) / 3 for x in (student, teacher)]
    expected = 9 * torch.nn.functional.kl_div(
        flat[0].log_softmax(1), flat[1].softmax(1), reduction="batchmean"
    )
    assert kl_loss(student, teacher, 3.0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_kl_leaves_void_out():
    student = torch.zeros(1, 2, 1, 2, requires_grad=True)
    teacher = torch.tensor([[log(3), 50.0], [0.0, 0.0]]).reshape(1, 2, 1, 2)
    loss = kl_loss(student, teacher, 1.0, torch.tensor([[[True, False]]]))
    assert loss.item() == pytest.approx(KL)
    loss.backward()
    assert not student.grad[..., 1].any()
    assert kl_loss(student, teacher, 1.0, torch.zeros(1, 1, 2, dtype=torch.bool)).item() == 0


def test_attention_is_two_at_most_at_any_resolution():
    student, teacher = torch.zeros(1, 3, 2, 2), torch.zeros(1, 5, 2, 2)
    student[..., 0, 0], teacher[..., 1, 1] = 1, 4
    assert attention_loss(student, teacher).item() == pytest.approx(2)
    large = [x.repeat_interleave(8, 2).repeat_interleave(8, 3) for x in (student, teacher)]
    assert attention_loss(*large).item() == pytest.approx(2)
    assert attention_loss(student, 3 * student).item() == pytest.approx(0, abs=1e-6)


def test_similarity_by_hand():
    student, teacher = torch.eye(2).reshape(2, 2, 1, 1), torch.ones(2, 1, 3, 3)
    expected = (2 * (1 - 1 / sqrt(2)) ** 2 + 2 * 0.5) / 4
    assert similarity_loss(student, teacher).item() == pytest.approx(expected)


def test_channel_by_hand():
    student, teacher = torch.zeros(2, 3, 1, 2), torch.tensor([log(3), 0.0]).expand(2, 3, 1, 2)
    assert channel_loss(student, teacher, 1.0).item() == pytest.approx(KL)
    with pytest.raises(AssertionError, match="projector"):
        channel_loss(student[:, :2], teacher)


def test_feature_error_counts_in_the_teachers_variance():
    teacher = torch.tensor([0.0, 2.0]).reshape(1, 1, 1, 2)
    assert feature_loss(torch.ones(1, 1, 1, 2), teacher).item() == pytest.approx(1)
    assert feature_loss(10 * teacher, 10 * teacher).item() == 0


@pytest.mark.parametrize("term", [attention_loss, channel_loss, feature_loss, kl_loss])
def test_a_larger_teacher_is_shrunk_and_gets_no_gradient(term):
    student = torch.randn(2, 3, 4, 4, requires_grad=True)
    teacher = student.detach().repeat_interleave(2, 2).repeat_interleave(2, 3).requires_grad_()
    loss = term(student, teacher)
    assert loss.item() == pytest.approx(0, abs=1e-5)
    (loss + student.sum()).backward()
    assert teacher.grad is None


def test_running_size_by_hand():
    size = torch.tensor(-1.0)
    for value, expected in ((4.0, 4.0), (-2.0, 3.0), (float("nan"), 3.0), (float("inf"), 3.0)):
        size = running_size(size, torch.tensor(value), momentum=0.5)
        assert size.item() == expected
    assert divide_by_size(torch.tensor(6.0), size).item() == 2
    assert divide_by_size(torch.tensor(0.0), torch.tensor(0.0)).item() == 0
    assert running_size(torch.tensor(-1.0), torch.tensor(float("nan"))).item() == -1
    assert divide_by_size(torch.tensor(6.0), torch.tensor(-1.0)).item() == 6


def test_gradient_shares():
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    shares = gradient_shares({"a": 3 * x.sum(), "b": x.sum(), "c": torch.tensor(1.0)}, [x])
    assert {k: v.item() for k, v in shares.items()} == pytest.approx({"a": 0.75, "b": 0.25, "c": 0})
    none = gradient_shares({"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, [x])
    assert {k: v.item() for k, v in none.items()} == {"a": 0.0, "b": 0.0}
