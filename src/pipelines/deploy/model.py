"""Image model: pixels of one image → probabilities, mask and overlay; by onnxruntime or PyTorch.

On a video a file of ``scripts/export.py`` wants numpy, OpenCV and onnxruntime; torch stays out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from src.files import Json, is_sound, patiently, refuse_shape
from src.metrics.classification import Array
from src.pipelines.library import Images, MaskPredictions, Predictions, list_images
from src.pipelines.pictures import draw_overlay
from src.script import UserError

if TYPE_CHECKING:
    from torch import Tensor

ABOUT: dict[str, type | tuple[type, ...]] = {
    "task": str, "classes": list, "threshold": (int, float), "background": (int, type(None)),
}  # fmt: skip


@dataclass(frozen=True)
class ImageModel:
    """What predicts one image after the other."""

    # image (H, W, 3) uint8 RGB → float32 (K,) of classes or (1 or K, H, W) of masks
    probs: Callable[[Array], Array]
    classes: tuple[str, ...]  # K names; two for one map of masks, background and foreground
    task: str  # ``classes``, ``labels`` (an image may have several) or ``masks``
    threshold: float = 0.5  # of masks, see :func:`src.pipelines.segmentation.score.to_mask`
    background: int | None = None  # label that overlays leave as it is, None = they tint all
    engine: str = ""  # what computes, and on how many threads or on which device

    def mask(self, probs: Array) -> Array:
        """Turn probabilities (1 or K, H, W) into labels (H, W) uint8."""
        if len(probs) == 1:
            return (probs[0] >= self.threshold).astype(np.uint8)
        if self.threshold == 0.5:
            return probs.argmax(0).astype(np.uint8)
        best, label = probs[1:].max(0), probs[1:].argmax(0) + 1
        return (label * (best / (best + probs[0]) >= self.threshold)).astype(np.uint8)

    def draw(self, image: Array, probs: Array) -> Array:
        """Return the image with its mask tinted over it, or with its likeliest class written."""
        if self.task == "masks":
            return draw_overlay(image, self.mask(probs), background=self.background)
        best = np.argsort(-probs, kind="stable")[:3]
        text = ", ".join(f"{self.classes[k]} {probs[k]:.2f}" for k in best.tolist())
        return write_line(image, text.encode("ascii", "replace").decode())

    def predict(self, images: Images) -> Predictions | MaskPredictions:
        """Predict image files.

        Raises:
            UserError: an image that is missing or cannot be decoded.
        """
        from src.data.decode import decode_image

        paths = tuple(list_images(images))
        found = (self.probs(decode_image(path)) for path in paths)
        if self.task == "masks":
            return MaskPredictions(paths, self.classes, tuple(map(self.mask, found)))
        return Predictions(paths, self.classes, np.stack(list(found)))


def write_line(image: Array, text: str) -> Array:
    """Return a copy of the image (H, W, 3) with a line of ASCII on a dark bar at its top."""
    drawn = np.array(image)
    scale = max(image.shape[0] / 600, 0.4)
    bar = round(26 * scale)
    drawn[:bar] //= 4
    place = (round(4 * scale), round(19 * scale))
    cv2.putText(drawn, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6 * scale, (255,) * 3, 1,
                cv2.LINE_AA)  # fmt: skip
    return drawn


def open_model(path: Path, device: str = "auto") -> ImageModel:
    """Open an ONNX file of ``scripts/export.py``, or the folder of a finished run.

    ``device`` is auto, cuda, mps, xpu or cpu.

    Raises:
        UserError: neither, onnxruntime is missing, or the run predicts by windows.
    """
    if path.suffix != ".onnx":
        return _open_run(path, device)
    if not path.is_file():
        raise UserError(f"{path}: no such file; scripts/export.py --run writes it")
    content = patiently(path.read_bytes)
    if not is_sound(content):
        raise UserError(f"{path}: its checksum does not match; write it with scripts/export.py")
    if find_spec("onnxruntime") is None:
        raise UserError(f"{path} needs onnxruntime: pip install onnxruntime")
    session = open_session(content, device)
    about = read_about(path, session.get_modelmeta().custom_metadata_map)
    provider = session.get_providers()[0].removesuffix("ExecutionProvider")
    return ImageModel(
        lambda image: session.run(None, {"image": np.ascontiguousarray(image[None])})[0][0],
        tuple(map(str, about["classes"])), about["task"], about["threshold"], about["background"],
        f"onnxruntime, {provider}",
    )  # fmt: skip


def read_about(path: Path, metadata: Mapping[str, str]) -> Json:
    """Return what a graph says of itself.

    Raises:
        UserError: not what ``scripts/export.py`` writes.
    """
    remedy = "write it with scripts/export.py"
    try:
        about = {key: json.loads(metadata[key]) for key in ABOUT if key in metadata}
    except ValueError:
        raise UserError(f"{path}: damaged; {remedy}") from None
    if "task" not in about:
        raise UserError(f"{path} does not say what it predicts: {remedy}")
    about = {"threshold": 0.5, "background": None} | about
    refuse_shape(path, about, ABOUT, remedy)
    return about


def open_session(model: Path | bytes, device: str = "cpu", threads: int = 0) -> Any:
    """Return an onnxruntime session; ``threads`` 0 = as many as cores.

    Raises:
        UserError: a file that is no graph, or a device it has no provider for.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device not in ("auto", "cpu") and not (device == "cuda" and has_cuda):
        raise UserError(f"--device {device}: this onnxruntime has no such device; pass cpu")
    wanted = ["CUDAExecutionProvider"] if has_cuda and device != "cpu" else []
    content = model if isinstance(model, bytes) else model.read_bytes()
    try:
        return onnxruntime.InferenceSession(content, options, [*wanted, "CPUExecutionProvider"])
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):  # its own derive from no other
            raise
        reason = str(error).splitlines()[0][:150]
        raise UserError(f"no ONNX graph ({reason}); write it with scripts/export.py") from None


def _open_run(folder: Path, device: str) -> ImageModel:
    import torch

    from src.engine.runtime import start_runtime
    from src.pipelines.deploy.export import open_export

    export = open_export(folder)
    runtime = start_runtime(device, "fp32")
    module, about = runtime.place(export.module), export.about

    def probs(image: Array) -> Array:
        batch: Tensor = torch.from_numpy(np.ascontiguousarray(image[None]))
        with torch.inference_mode():
            return module(batch.to(runtime.device))[0].cpu().numpy()

    classes, task, threshold = about["classes"], about["task"], about.get("threshold", 0.5)
    engine = f"PyTorch, {runtime.device.type}"
    return ImageModel(probs, tuple(classes), task, threshold, about.get("background"), engine)
