"""Export of a finished run as one file: ONNX with its preprocessing inside, or safetensors.

ONNX: ``image`` (1, H, W, 3) uint8 RGB of any size in; out ``probs``, (1, K) of classes or
(1, 1 or K, H, W) of masks at the image's own size. Resizing (bilinear, antialiased), mean and std
and the last softmax or sigmoid are part of the graph; classes, threshold and a checksum are its
metadata.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.data.decode import decode_image
from src.files import SEAL, Json, replacing, seal
from src.models.convolutions import FOLDING_SIDE, fold_norms
from src.pipelines.library import ClassifierRun, list_images, load_run
from src.script import UserError
from src.targets import own_file, refuse_file
from src.tasks.segmentation import background_label
from src.tool_config import ExportConfig

NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # between PyTorch and onnxruntime, of a probability
MAX_SIDE = 16_384


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


@dataclass(frozen=True)
class Export:
    """What is exported and what its file says of itself."""

    module: Deployed
    about: Json


def write_export(config: ExportConfig) -> list[str]:
    """Write the file and return lines that say what was written and how it was checked.

    Raises:
        UserError: no such run, packages that are missing, or a graph that differs from PyTorch.
    """
    if config.format == "onnx":
        missing = [name for name in NEEDED if find_spec(name) is None]
        if missing:
            raise UserError(f"--format onnx needs {', '.join(missing)}: pip install them")
    export = open_export(Path(config.run))
    default = Path(config.run) / f"export.{config.format}"
    path = Path(config.output or default)
    refuse_file(path, ours=path == default)
    images = example_images(config)
    with own_file(path, ours=path == default), replacing(path) as temporary:
        if config.format == "onnx":
            write_onnx(export, temporary)
            checked = check_onnx(export, temporary, images)
        else:
            checked = write_safetensors(export, temporary)
    return [checked, f"{path} written ({path.stat().st_size / 1e6:.1f} MB)"]


def open_export(folder: Path) -> Export:
    """Load a run for export: on the CPU, in float32, norms folded.

    Raises:
        UserError: no such run, or masks that are predicted window by window or at native size.
    """
    run = load_run(folder, device="cpu", precision="fp32")
    about: Json = {"run": folder.as_posix(), "layout": "image (1, H, W, 3) uint8 RGB"}
    about["resize"] = "bilinear, antialiased, inside the graph"
    if isinstance(run, ClassifierRun):
        fold = run.fold
        size = (fold.image_size, fold.image_size)
        about |= {"classes": list(fold.classes), "size": size}
        about |= {"probs": f"(1, K) {'sigmoid' if fold.several else 'softmax'}"}
        about |= {"task": "labels" if fold.several else "classes"}
        module = Deployed(fold.model.eval(), size, masks=False, several=fold.several)
        return Export(module.eval(), about)
    member = run.member
    whole = member.size("")
    window = member.resolved["window"]
    if whole is None or (window and tuple(window) != tuple(whole)):
        raise UserError(
            f"{folder} predicts at native size or by windows, which no fixed graph does: train "
            "with --resolution HxW and no --window"
        )
    about |= {"classes": member.resolved["classes"], "size": whole, "threshold": member.threshold}
    about |= {"probs": "(1, 1 or K, H, W); one channel is the foreground's", "views": 1}
    about |= {"task": "masks", "background": background_label(member.resolved["classes"])}
    network = fold_norms(member.build(), FOLDING_SIDE).eval()
    return Export(Deployed(network, whole, masks=True).eval(), about)


def example_images(config: ExportConfig) -> list[np.ndarray]:
    """Return images (H, W, 3) uint8 to check with: of the data folder, or noise of all shapes."""
    if Path(config.data_dir).is_dir():
        try:
            paths = list_images(config.data_dir)
            step = -(-len(paths) // config.num_checked)
            return [decode_image(path) for path in paths[::step]]
        except UserError:
            pass  # the check needs no particular images
    rng = np.random.default_rng(0)
    sides = rng.integers(24, 400, (config.num_checked, 2)).tolist()
    return [rng.integers(0, 256, (*side, 3), dtype=np.uint8) for side in sides]


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
    largest = 0.0
    for image in images:
        batch = np.ascontiguousarray(image[None])
        (found,) = session.run(None, {"image": batch})
        with torch.inference_mode():
            expected = export.module(torch.from_numpy(batch)).numpy()
        largest = max(largest, float(np.abs(found - expected).max()))
    if not largest <= TOLERANCE:
        raise UserError(
            f"onnxruntime and PyTorch differ by {largest:.1e}, more than {TOLERANCE}: nothing was "
            "written; try other versions of torch, onnxscript and onnxruntime"
        )
    version = onnxruntime.__version__
    return f"onnxruntime {version} agrees with PyTorch on {len(images)} images: {largest:.1e}"


def write_safetensors(export: Export, path: Path) -> str:
    """Write the network's tensors, norms folded, with the description as metadata."""
    from safetensors.torch import load_file, save_file

    tensors = {k: v.contiguous().clone() for k, v in export.module.network.state_dict().items()}
    about = export.about | {"resize": "to size, before the network", "norms": "folded"}
    save_file(tensors, path, {k: json.dumps(v, ensure_ascii=False) for k, v in about.items()})
    again = load_file(path)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    return f"{len(tensors)} tensors read back unchanged"
