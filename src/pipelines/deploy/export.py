"""Export of a finished run or the whole ensemble as one file: ONNX in fp32, int8, fp16; tensors."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from src.data.decode import decode_image
from src.files import Json, replacing
from src.models.convolutions import FOLDING_SIDE, fold_norms
from src.pipelines.deploy.graph import (
    Deployed,
    Export,
    check_onnx,
    write_onnx,
    write_safetensors,
)
from src.pipelines.library import ClassifierRun, MaskRun, list_images, load_run
from src.runs import Run
from src.script import UserError
from src.targets import own_file, refuse_file
from src.tasks.segmentation import background_label
from src.tool_config import ExportConfig

NEEDED = ("onnx", "onnxscript", "onnxruntime")
NUM_CALIBRATED = 64  # training images that settle the ranges of int8


def write_export(config: ExportConfig) -> list[str]:
    """Write the file and return lines that say what was written and how it was checked.

    Raises:
        UserError: no such run, packages that are missing, or a graph that differs from PyTorch.
    """
    if config.format == "onnx":
        missing = [name for name in NEEDED if find_spec(name) is None]
        if missing:
            raise UserError(f"--format onnx needs {', '.join(missing)}: pip install them")
    elif config.precision != "fp32":
        raise UserError(f"--precision {config.precision} is of --format onnx: leave it out")
    folder = Path(config.run)
    run = None if is_ensemble(folder) else load_run(folder, device="cpu", precision="fp32")
    if run is None and (config.format, config.precision) != ("onnx", "fp32"):
        raise UserError(f"{folder} is an ensemble: it is exported as ONNX in fp32; name one run")
    export = open_whole(folder) if run is None else open_export(folder, run)
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


def is_ensemble(folder: Path) -> bool:
    """Tell whether ``folder`` is an output folder with a blend, not a run's."""
    return (folder / "weights.json").exists() and not Run(folder).config.exists()


def open_whole(folder: Path) -> Export:
    """Load the ensemble below ``folder`` for export."""
    from src.pipelines.deploy.ensemble import open_ensemble

    return open_ensemble(folder)


def lower_precision(config: ExportConfig, run: ClassifierRun | MaskRun, path: Path) -> list[str]:
    """Replace the float32 graph at ``path``; return lines about loss and speed beside it.

    Raises:
        UserError: the images of the run are gone.
    """
    from src.pipelines.deploy.model import open_model
    from src.pipelines.deploy.precision import compare, convert
    from src.pipelines.deploy.samples import class_samples, mask_samples

    if isinstance(run, MaskRun):
        samples = mask_samples(run.member, NUM_CALIBRATED, config.num_scored)
    else:
        samples = class_samples(run.fold.run, config.data_dir, NUM_CALIBRATED, config.num_scored)
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

    Args:
        folder: of the run.
        run: the same, where it is loaded already.

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
