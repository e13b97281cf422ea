"""Export of a finished run or the whole ensemble as one file: ONNX in fp32, int8, fp16; tensors.

ONNX: ``image`` (1, H, W, 3) uint8 RGB of any size in; out ``probs``, (1, K) of classes or
(1, 1 or K, H, W) of masks at the image's own size. Resizing (bilinear, antialiased), mean and std
and the last softmax or sigmoid are part of the graph; classes, threshold and a checksum are its
metadata. The file is checked before it stands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.data.canonical import resize_image
from src.data.decode import decode_image
from src.files import SEAL, Json, replacing, seal
from src.models.convolutions import FOLDING_SIDE, fold_norms
from src.pipelines.library import ClassifierRun, MaskRun, is_ensemble, list_images, load_run
from src.pipelines.segmentation.ensemble import load_member
from src.runs import own_file, refuse_file
from src.script import UserError, counted
from src.tasks.segmentation import background_label
from src.tool_config import ExportConfig

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
            probs = F.interpolate(probs, size, mode="bilinear", antialias=True)
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
    """What is exported."""

    module: nn.Module  # image (1, H, W, 3) uint8 RGB → probabilities
    about: Json  # what its file says of itself
    # (images, resize) → what the program itself predicts, (N, K), of images that
    # ``resize(image, size)`` has made small; None = what the module says
    expected: Callable[[Sequence[np.ndarray], Resize], np.ndarray] | None = None
    # of the largest network, px, where there is ``expected``: compared are squares of it,
    # since a last bit of a resizing makes a rounded pixel another one
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
    said = (
        f"onnxruntime {version} agrees with {{}} on {counted(len(images), 'image')}: {largest:.1e}"
    )
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
    from safetensors.torch import load_file, save

    network = export.module.network
    assert isinstance(network, nn.Module)
    tensors = {k: v.contiguous().clone() for k, v in network.state_dict().items()}
    about = export.about | {"resize": "to size, before the network", "norms": "folded"}
    told = {k: json.dumps(v, ensure_ascii=False) for k, v in about.items()}
    path.write_bytes(save(tensors, told))  # its own file writer hides what the disk says
    again = load_file(path)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    return f"{len(tensors)} tensors read back unchanged"


NEEDED = ("onnx", "onnxscript", "onnxruntime")


def write_export(config: ExportConfig) -> list[str]:
    """Write the file and return lines that say what was written and how it was checked.

    Raises:
        UserError: no such run, packages that are missing, or a graph that differs from PyTorch.
    """
    if config.format == "onnx":
        missing = [name for name in NEEDED if find_spec(name) is None]
        if missing:
            raise UserError(f"--format onnx needs more packages: pip install {' '.join(missing)}")
    elif config.precision != "fp32":
        raise UserError(f"--precision {config.precision} is of --format onnx: leave it out")
    folder = Path(config.run)
    run = None if is_ensemble(folder) else load_run(folder, device="cpu", precision="fp32")
    if run is None and (config.format, config.precision) != ("onnx", "fp32"):
        raise UserError(f"{folder} is an ensemble: it is exported as ONNX in fp32; name one run")
    if run is None:
        from src.pipelines.deploy.ensemble import open_ensemble

        export = open_ensemble(folder)
    else:
        export = open_export(folder, run)
    ending = "" if config.precision == "fp32" else f".{config.precision}"
    default = folder / f"export{ending}.{config.format}"
    path = Path(config.output or default)
    refuse_file(path, ours=path == default)
    with own_file(path, ours=path == default), replacing(path) as temporary:
        if config.format == "safetensors":
            said = [write_safetensors(export, temporary)]
        else:
            write_onnx(export, temporary)
            said = [check_onnx(export, temporary, example_images(config))]
            if config.precision != "fp32":
                assert run is not None
                said += lower_precision(config, run, temporary)
    return [*said, f"{path} written ({path.stat().st_size / 1e6:.1f} MB)"]


def lower_precision(config: ExportConfig, run: ClassifierRun | MaskRun, path: Path) -> list[str]:
    """Replace the float32 graph at ``path``; return lines about loss and speed beside it.

    Raises:
        UserError: the images of the run are gone.
    """
    from src.pipelines.deploy.model import open_model
    from src.pipelines.deploy.precision import class_samples, compare, convert, mask_samples

    if isinstance(run, MaskRun):
        samples = mask_samples(run.member, config.num_scored)
    else:
        samples = class_samples(run.fold.run, config.data_dir, config.num_scored)
    plain, lower = (path.with_name(f"{path.name}.{name}.onnx") for name in ("fp32", "lower"))
    try:
        path.replace(plain)
        convert(plain, lower, config.precision, samples.train)
        said = compare(
            config.precision, open_model(plain, "cpu"), open_model(lower, "cpu"), samples
        )
        lower.replace(path)
    finally:
        plain.unlink(missing_ok=True)
        lower.unlink(missing_ok=True)
    return said


def open_export(folder: Path, run: ClassifierRun | MaskRun | None = None) -> Export:
    """Load a run for export: on the CPU, in float32, norms folded.

    ``run`` is the same, where it is loaded already.

    Raises:
        UserError: no such run, or masks that are predicted window by window or at native size.
    """
    run = run or load_run(folder, device="cpu", precision="fp32")
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
    member = load_member(run.member.run, tta_steps=1)  # with the threshold of its one view
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
