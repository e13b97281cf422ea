"""Exported network: preprocessing inside, written as ONNX or safetensors, checked before it stands.

ONNX: ``image`` (1, H, W, 3) uint8 RGB of any size in; out ``probs``, (1, K) of classes or
(1, 1 or K, H, W) of masks at the image's own size. Resizing (bilinear, antialiased), mean and std
and the last softmax or sigmoid are part of the graph; classes, threshold and a checksum are its
metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.data.canonical import resize_image
from src.files import SEAL, Json, seal
from src.script import UserError

TOLERANCE = 1e-4  # between PyTorch and onnxruntime, of a probability
MAX_SIDE = 16_384
Resize = Callable[[np.ndarray, tuple[int, int]], np.ndarray]


class Deployed(nn.Module):
    """A network with everything from the pixels of a file to probabilities."""

    def __init__(
        self, network: nn.Module, size: tuple[int, int], *, masks: bool, several: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        self.size = size
        self.masks = masks
        self.several = several  # of the classes an image may have

    def forward(self, image: Tensor) -> Tensor:
        """Return probabilities of ``image`` (1, H, W, 3) uint8 RGB; see the module."""
        x = image.permute(0, 3, 1, 2).float()
        logits = self.network(F.interpolate(x, self.size, mode="bilinear", antialias=True))
        each = self.several or logits.shape[1] == 1
        probs = logits.sigmoid() if each else logits.softmax(1)
        if self.masks:
            size = (image.shape[1], image.shape[2])
            probs = F.interpolate(probs, size, mode="bilinear")
        return probs


def shrink(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Squash (1, 3, H, W) in [0, 255] to ``size``, rounded after each axis.

    So does :func:`src.data.canonical.resize_image`, with weights of 16 bits: of a photograph's
    pixels at most one in a hundred differs, by 1. (A single run's graph does not round: where
    PyTorch and onnxruntime differ in the last bit, a rounded pixel differs by 1.)
    """
    for axes in ((image.shape[2], size[1]), size):
        image = (F.interpolate(image, axes, mode="bilinear", antialias=True) + 0.5).floor()
    return image


def shrink_array(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Squash (H, W, 3) uint8 as :func:`shrink` does."""
    x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    return shrink(x, size)[0].permute(1, 2, 0).to(torch.uint8).numpy()


@dataclass(frozen=True)
class Export:
    """What is exported.

    Attributes:
        module: image (1, H, W, 3) uint8 RGB → probabilities.
        about: what its file says of itself.
        expected: (images, resize) → what the program itself predicts, (N, K), of images that
            ``resize(image, size)`` has made small; None = what the module says.
        side: of the largest network, px, where there is ``expected``: compared are squares of it,
            since a last bit of a resizing makes a rounded pixel another one.
    """

    module: nn.Module
    about: Json
    expected: Callable[[Sequence[np.ndarray], Resize], np.ndarray] | None = None
    side: int = 0


def write_onnx(export: Export, path: Path) -> None:
    """Write the graph with its description as metadata."""
    side = {n: torch.export.Dim(name, min=2, max=MAX_SIDE) for n, name in
            ((1, "height"), (2, "width"))}  # fmt: skip
    example = torch.zeros(1, 61, 97, 3, dtype=torch.uint8)
    program = torch.onnx.export(
        export.module, (example,), input_names=["image"], output_names=["probs"], dynamo=True,
        dynamic_shapes={"image": side}, verbose=False,
    )  # fmt: skip
    assert program is not None
    for key, value in (export.about | {"checksum": SEAL}).items():
        program.model.metadata_props[key] = json.dumps(value, ensure_ascii=False)
    program.save(str(path), external_data=False)
    path.write_bytes(seal(path.read_bytes()))


def check_onnx(export: Export, path: Path, images: Sequence[np.ndarray]) -> str:
    """Compare the graph with PyTorch and return the line that says how far they differ.

    Raises:
        UserError: further than 1e-4.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    side = (export.side, export.side)
    shown = [shrink_array(image, side) for image in images] if export.expected else images
    batches = [np.ascontiguousarray(image[None]) for image in shown]
    found = [session.run(None, {"image": batch})[0] for batch in batches]
    if export.expected:
        expected = list(export.expected(shown, shrink_array)[:, None])
    else:
        with torch.inference_mode():
            expected = [export.module(torch.from_numpy(batch)).numpy() for batch in batches]
    largest = largest_difference(found, expected)
    if not largest <= TOLERANCE:
        raise UserError(
            f"onnxruntime and PyTorch differ by {largest:.1e}, more than {TOLERANCE}: nothing was "
            "written; try other versions of torch, onnxscript and onnxruntime"
        )
    version = onnxruntime.__version__
    said = f"onnxruntime {version} agrees with {{}} on {len(images)} images: {largest:.1e}"
    if not export.expected:
        return said.format("PyTorch")
    found = [session.run(None, {"image": np.ascontiguousarray(i[None])})[0] for i in images]
    own = largest_difference(found, list(export.expected(images, resize_image)[:, None]))
    return f"{said.format('infer_ensemble.py')}, and {own:.1e} with its own resizing of bytes"


def largest_difference(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Return the largest difference of two probabilities."""
    return max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))


def write_safetensors(export: Export, path: Path) -> str:
    """Write the network's tensors, norms folded, with the description as metadata."""
    from safetensors.torch import load_file, save_file

    network = export.module.network
    assert isinstance(network, nn.Module)
    tensors = {k: v.contiguous().clone() for k, v in network.state_dict().items()}
    about = export.about | {"resize": "to size, before the network", "norms": "folded"}
    save_file(tensors, path, {k: json.dumps(v, ensure_ascii=False) for k, v in about.items()})
    again = load_file(path)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    return f"{len(tensors)} tensors read back unchanged"
