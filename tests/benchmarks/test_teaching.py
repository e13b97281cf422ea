import numpy as np
import pytest
import torch

from benchmarks import device_batches, teaching
from benchmarks.device_batches import augment, change_colors
from benchmarks.teaching import Job, plan
from src.data.transforms import PAD_COLOR
from src.mask_config import SegmentationConfig


def pixels() -> torch.Tensor:
    """Return an image of a ramp and a mask of its columns, (1, 4, 4, 6)."""
    ramp = torch.arange(24, dtype=torch.uint8).reshape(1, 1, 4, 6) * 10
    columns = torch.arange(6, dtype=torch.uint8).expand(1, 1, 4, 6)
    return torch.cat([ramp, ramp, ramp, columns], 1)


class Drawn:
    """A generator that draws what it is told."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def uniform(self, _low: float, _high: float, size: object) -> np.ndarray:
        return np.full(size, self.values.pop(0))  # type: ignore[arg-type, call-overload]

    random = lambda self, size: np.full(size, self.values.pop(0))  # noqa: E731


def warp(factor: float, place: float, flip: float) -> tuple[torch.Tensor, torch.Tensor]:
    config = SegmentationConfig(hflip=0.5, color=0.0)
    return augment(pixels(), config, Drawn(factor, place, flip))  # type: ignore[arg-type]


def test_factor_of_one_keeps_every_pixel_and_a_flip_turns_them() -> None:
    image, mask = warp(1.0, 0.7, 0.9)
    assert torch.equal(image, pixels()[:, :3])
    assert torch.equal(mask, pixels()[:, 3])
    image, mask = warp(1.0, 0.7, 0.1)
    assert torch.equal(image, pixels()[:, :3].flip(-1))
    assert torch.equal(mask, pixels()[:, 3].flip(-1))


def test_twice_the_size_shows_the_corner_that_is_drawn() -> None:
    assert warp(2.0, -1.0, 0.9)[1][0, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert warp(2.0, 1.0, 0.9)[1][0, 0].tolist() == [3, 3, 4, 4, 5, 5]


def test_half_the_size_is_padded_with_void_and_the_pad_colour() -> None:
    image, mask = warp(0.5, 1.0, 0.9)  # the crop's middle moves by (0.5 - 1) / 0.5 = -1
    assert (mask[0, :2] == 255).all() and (mask[0, :, :3] == 255).all()
    assert (mask[0, 2:, 3:] != 255).all()
    assert image[0, :, 0, 0].tolist() == list(PAD_COLOR)


def test_colours_are_changed_as_opencv_changes_them() -> None:
    from src.data.transforms import ColorMatrix

    rng = np.random.default_rng(0)
    image = rng.integers(60, 160, (5, 7, 3), dtype=np.uint8)
    draws = Drawn(1.1, 0.5)  # brightness, contrast, saturation; hue
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    found = change_colors(batch, 0.2, draws)[0].permute(1, 2, 0)  # type: ignore[arg-type]
    hue = 0.5 * np.radians(36 * 0.2)
    wanted = ColorMatrix(0.2).apply(image, (1.1, 1.1, 1.1, hue))
    assert np.abs(found.round().clamp(0, 255).numpy() - wanted).max() <= 1


def test_a_batch_is_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SegmentationConfig()
    first, again, other = (
        augment(pixels(), config, np.random.default_rng(key))[0] for key in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert device_batches.VOID == 255


def test_teachers_come_first_and_every_run_once() -> None:
    jobs = plan(3, 6)
    assert len(set(jobs)) == len(jobs) == 3 + 18 + 6
    place = {job: number for number, job in enumerate(jobs)}
    assert all(place[need] < place[job] for job in jobs for need in job.needs)
    assert Job("student", 5) in jobs and Job("three_kl", 5) not in jobs


def test_the_mean_of_equal_teachers_is_each() -> None:
    class Net(torch.nn.Module):
        def __init__(self, offset: float) -> None:
            super().__init__()
            self.offset = offset

        def forward_with_features(
            self, image: torch.Tensor
        ) -> tuple[torch.Tensor, list[torch.Tensor]]:
            return image + self.offset, [image]

    image = torch.ones(1, 2, 3, 3)
    assert torch.equal(teaching.show_mean([Net(0.0), Net(2.0)], image)[0], image + 1)
