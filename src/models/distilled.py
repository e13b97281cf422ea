"""Student wrapper for distillation: the network, a feature projector and running loss sizes.

Teacher and student differ in channels, so mimicking needs a 1×1 projection. It learns, hence it is
part of the model; inference drops it. The running sizes of the loss terms are buffers, so that a
checkpoint keeps them and a resumed run divides by the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from src.models.classifier import Classifier, as_map

UNKNOWN = -1.0


class Student(nn.Module):
    """A net that also shows its features.

    ``network`` is the net itself, whose tensors alone are needed for inference; ``projector`` maps
    the student's channels to the teacher's, None where that is not needed.
    """

    sizes: Tensor  # (T,) running size of every loss term, -1 before its first
    shares: Tensor  # (T,) the last measured gradient share of every term
    steps: Tensor  # () training steps seen
    _counted: tuple[int, int, int] = (0, -1, 0)

    def __init__(self, network: nn.Module, projector: nn.Module | None, num_terms: int) -> None:
        super().__init__()
        self.network = network
        self.projector = projector
        self.register_buffer("sizes", torch.full((num_terms,), UNKNOWN))
        self.register_buffer("shares", torch.zeros(num_terms))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def count_step(self, every: int) -> bool:
        """Count a training step; tell whether it is the first of ``every`` steps.

        The host keeps its own copy of the count, good for as long as nobody else has written to
        the buffer (a checkpoint, a step undone): to read it would make the host wait each time.
        """
        steps, tensor, version = self._counted
        if (tensor, version) != (id(self.steps), self.steps._version):
            steps = int(self.steps)
        self.steps += 1
        self._counted = steps + 1, id(self.steps), self.steps._version
        return (steps + 1) % every == 1 % every

    @property
    def backbone(self) -> nn.Module:
        """The pretrained part, which learns more slowly."""
        return self.network.backbone  # type: ignore[return-value]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the network's activations in the backward pass."""
        self.network.set_grad_checkpointing(enable)  # type: ignore[operator]

    def forward(
        self, image: Tensor, features: bool = False
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Return logits; with ``features`` also the deepest map and its projection.

        One call serves both, because only calls through ``forward`` are seen by processes that
        train together.

        Args:
            image: (B, 3, H, W).
            features: return (logits, map (B, C, h, w), projected (B, C', h, w)).
        """
        if not features:
            return self.network(image)
        logits, deepest = show_features(self.network, image)
        return logits, deepest, deepest if self.projector is None else self.projector(deepest)


def show_features(network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and the deepest map (B, C, h, w) of a mask net or a classifier."""
    if not isinstance(network, Classifier):
        logits, maps = network.forward_with_features(image)  # type: ignore[operator]
        return logits, maps[-1]
    features = network.forward_features(image)
    return network.classify(network.embed(features)), as_map(network.backbone, features[0])


@torch.no_grad()
def build_student(
    network: nn.Module, teacher: nn.Module, *, project: bool, num_terms: int, size: int = 64
) -> Student:
    """Wrap ``network``, with a projector to the teacher's channels if asked.

    ``num_terms`` loss terms are remembered. The channels are looked up with an image of ``size``
    px; nets of a fixed size need theirs.
    """
    if not project:
        return Student(network, None, num_terms)
    channels = []
    for net in (network, teacher):
        image = torch.zeros(1, 3, size, size, device=next(net.parameters()).device)
        was_training = net.training
        channels.append(show_features(net.eval(), image)[1].shape[1])
        net.train(was_training)
    return Student(network, nn.Conv2d(channels[0], channels[1], 1), num_terms)
