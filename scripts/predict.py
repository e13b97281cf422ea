"""Classes or masks of photographs: python scripts/predict.py --run output/lite0/fold0 a.jpg b/.

Without --run the ensemble of --output_dir predicts, as with --run output; --model takes a file of
scripts/export.py. The likeliest classes of each are printed; --output writes all of them as CSV or
JSON. A mask run writes masks and overlays to a folder. --video drive.mp4 (or 0, a camera) writes a
video with overlays and prints frames/s and latency; a source that does not wait drops frames.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.reader import parse
from src.runs import own_file, own_folder, refuse_file
from src.script import UserError, counted, run_script
from src.tool_config import PredictConfig

if TYPE_CHECKING:
    from src.pipelines.library import MaskPredictions, Predictions


def main(argv: list[str]) -> int:
    """Predict the photographs or the video that ``argv`` names."""
    flags = name_images(argv)
    config = parse(PredictConfig, flags, prog="scripts/predict.py", description=__doc__ or "")
    if config.model and config.run:
        raise UserError("--model and --run name two models: leave one out")
    if config.video:
        return follow_video(config)
    if not config.images:
        raise UserError("no photographs: name files or folders, as in scripts/predict.py a.jpg b/")
    if config.output and Path(config.output).suffix not in ("", ".csv", ".json"):
        raise UserError(f"--output {config.output}: expected a name ending in .csv or .json")
    if Path(config.output).suffix:
        refuse_file(Path(config.output))
    from src.pipelines.library import MaskPredictions

    found = predict(config)
    return write_masks(config, found) if isinstance(found, MaskPredictions) else tell(config, found)


def predict(config: PredictConfig) -> Predictions | MaskPredictions:
    """Load the model that ``config`` names, and predict its images."""
    if config.model.endswith(".onnx"):
        from src.pipelines.deploy.model import open_model

        refuse_views(config)
        refuse_precision(config)
        return open_model(Path(config.model), config.device).predict(config.images)
    from src.pipelines.library import MaskRun, is_ensemble, load_ensemble, load_run

    folder = config.model or config.run
    if not folder or is_ensemble(Path(folder)):
        refuse_views(config)
        ensemble = load_ensemble(
            folder or config.output_dir, device=config.device, precision=config.precision
        )
        return ensemble.predict(config.images)
    run = load_run(folder, device=config.device, precision=config.precision)
    if isinstance(run, MaskRun):
        refuse_views(config)
        return run.predict(config.images)
    return run.predict(config.images, tta_steps=config.tta_steps)


def refuse_views(config: PredictConfig) -> None:
    """Refuse a number of views where the model has its own."""
    if config.tta_steps > 1:
        raise UserError(
            f"--tta_steps {config.tta_steps}: is for a single run of classes; an ensemble, a mask "
            "run, an ONNX file and a video have their own views: leave it out"
        )


def refuse_precision(config: PredictConfig) -> None:
    """Refuse an arithmetic where the model has its own."""
    if config.precision != "auto":
        raise UserError(
            f"--precision {config.precision}: an ONNX file has that of its export, and videos are "
            "predicted in fp32: leave it out"
        )


def follow_video(config: PredictConfig) -> int:
    """Predict a video or camera and print what was measured."""
    if config.images:
        raise UserError("--video and photographs: name one or the other")
    if not config.model and not config.run:
        raise UserError("--model is missing: an ONNX file of scripts/export.py, or a run's folder")
    refuse_views(config)
    refuse_precision(config)
    from src.pipelines.deploy.video import predict_video

    print("\n".join(predict_video(config)))
    return 0


def name_images(argv: Sequence[str]) -> list[str]:
    """Return ``argv`` with what stands without a flag as values of ``--images``."""
    flags: list[str] = []
    images: list[str] = []
    several = False  # of --images, until the next flag
    for token in argv:
        last = flags[-1] if flags else ""
        if token.startswith("--") and token != "--":
            several = token == "--images"
            if not several:
                flags.append(token)
        elif not several and last.startswith("--") and "=" not in last and last != "--help":
            flags.append(token)  # every other option takes one value
        elif token != "--":
            images.append(token)
    return [*flags, *(["--images", *images] if images else [])]


def tell(config: PredictConfig, found: Predictions) -> int:
    """Write all classes where ``--output`` asks for it; print the likeliest."""
    if config.output:
        with own_file(Path(config.output)):
            write_classes(Path(config.output), found)
    for image, classes in zip(found.images, found.top(config.top), strict=True):
        print(f"{image}: " + ", ".join(f"{name} {p:.3f}" for name, p in classes))
    if config.output:
        size = f"{counted(len(found.images), 'photograph')} × {len(found.classes)} classes"
        print(f"{config.output} written: {size}")
    return 0


def write_classes(path: Path, found: Predictions) -> None:
    """Write all classes of all photographs, as JSON or CSV by the name's ending."""
    from src.data.csv_io import write_csv
    from src.files import write_json

    if path.suffix == ".json":
        rows = [
            {"image": image, "classes": {name: round(p, 6) for name, p in classes}}
            for image, classes in zip(found.images, found.top(len(found.classes)), strict=True)
        ]
        write_json(path, {"predictions": rows})
    else:
        lines = ((image, *(f"{p:.6f}" for p in row.tolist()))
                 for image, row in zip(found.images, found.probs, strict=True))  # fmt: skip
        write_csv(path, ["image", *found.classes], lines)


def write_masks(config: PredictConfig, found: MaskPredictions) -> int:
    """Write masks and overlays, named as the photographs; print the share of each label."""
    import numpy as np

    from src.classes import nfc
    from src.data.decode import decode_image, write_picture
    from src.pipelines.pictures import draw_overlay
    from src.pipelines.segmentation.report import note_others, write_index_png
    from src.tasks.segmentation import background_label

    folder = Path(config.output or "predicted")
    if folder.suffix:
        raise UserError(f"--output {folder}: masks are written to a folder")
    background = background_label(found.classes)
    with own_folder(folder, ("masks", "overlays")):
        for sub in ("masks", "overlays"):
            (folder / sub).mkdir(parents=True, exist_ok=True)
        taken: set[str] = set()
        names = []
        for image, mask in zip(found.images, found.masks, strict=True):
            name = Path(image).stem
            while nfc(name).casefold() in taken:  # of another folder; macOS and Windows see no case
                name = f"{name}-{len(taken)}"
            taken.add(nfc(name).casefold())
            names.append(name)
            write_index_png(folder / "masks" / f"{name}.png", mask)
            overlay = draw_overlay(decode_image(image), mask, background=background)
            write_picture(folder / "overlays" / f"{name}.jpg", overlay)
            share = np.bincount(mask.ravel(), minlength=len(found.classes)) / mask.size
            said = ", ".join(
                f"{c} {s:.1%}" for c, s in zip(found.classes, share, strict=False) if s
            )
            print(f"{image}: {said}")
        note_others(folder / "masks", names)
    print(f"{folder}: masks and overlays of {counted(len(found.images), 'photograph')}")
    return 0


if __name__ == "__main__":
    run_script(main)
