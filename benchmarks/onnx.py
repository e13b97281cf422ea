"""ONNX files beside PyTorch: do they say the same, and what does an image cost?

    python benchmarks/onnx.py            (four minutes on two quiet cores)

Networks with random weights are exported as scripts/export.py does it, image in, probabilities out.
Equality is the largest difference of a probability over crops of photographs; latency is that of
one image after the other, PyTorch (norms folded, channels last) and onnxruntime in turns, with as
many threads each.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.remove(sys.path[1])  # this folder, whose onnx.py is not the package

from benchmarks.timing import alternate, num_cores, print_table, seconds, write_photographs

os.environ.setdefault("OMP_NUM_THREADS", str(num_cores()))

import numpy as np
import torch
from torch import nn

from src.data.decode import decode_image
from src.models.classifier import build_classifier
from src.models.convolutions import FOLDING_SIDE, fold_norms
from src.models.micro.registry import build_micro
from src.models.segmenter import build_segmenter
from src.pipelines.deploy.export import Deployed, Export, largest_difference, write_onnx
from src.pipelines.deploy.model import open_session

NUM_CLASSES = 100
THREADS = int(os.environ["OMP_NUM_THREADS"])


def classifier(timm_id: str, side: int) -> Callable[[], Deployed]:
    """Return a builder of a classifier at ``side`` px."""

    def build() -> Deployed:
        net = build_classifier(timm_id, NUM_CLASSES, image_size=side).eval()
        return Deployed(fold_norms(net, side), (side, side), masks=False)

    return build


def segmenter(build_net: Callable[[], nn.Module], side: int) -> Callable[[], Deployed]:
    """Return a builder of a mask network at ``side`` px."""
    return lambda: Deployed(fold_norms(build_net().eval(), FOLDING_SIDE), (side, side), masks=True)


NETWORKS = {
    "micro twohead_10k, 256 px": segmenter(lambda: build_micro("twohead_10k", 1), 256),
    "EfficientNet-Lite0, 224 px": classifier("tf_efficientnet_lite0", 224),
    "DeepLabV3+ lite0, 384 px": segmenter(
        lambda: build_segmenter("deeplabv3plus", "tu-tf_efficientnet_lite0", 1), 384
    ),
    "SegFormer B0, 384 px": segmenter(lambda: build_segmenter("segformer", "mit_b0", 11), 384),
    "convnext_base, 224 px": classifier("convnext_base.fb_in22k_ft_in1k", 224),
    "vit_base, 224 px": classifier("vit_base_patch16_224.augreg_in21k_ft_in1k", 224),
}  # the cheapest first


def measure(name: str, images: list[np.ndarray], rounds: int, folder: Path) -> tuple[str, ...]:
    """Export a network, compare and time it; return the row of the table."""
    torch.manual_seed(0)
    module = NETWORKS[name]().eval()
    path = folder / "net.onnx"
    write_onnx(Export(module, {}), path)
    size = path.stat().st_size / 1e6
    session = open_session(path, threads=THREADS)
    module.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = [np.ascontiguousarray(image[None]) for image in images]

    def by_torch(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(batch)).numpy()

    def by_onnx(batch: np.ndarray) -> np.ndarray:
        return session.run(None, {"image": batch})[0]

    largest = largest_difference(list(map(by_onnx, batches)), list(map(by_torch, batches)))

    def timed(predict: Callable[[np.ndarray], np.ndarray]) -> Callable[[], float]:
        turn = itertools.cycle(batches)
        return lambda: 1e3 * seconds(lambda: predict(next(turn)))

    took = alternate({"torch": timed(by_torch), "onnx": timed(by_onnx)}, rounds, warmup=3)
    cells = [f"{np.percentile(took[k], q):.1f}" for k in ("torch", "onnx") for q in (50, 95)]
    ratio = np.median(took["torch"]) / np.median(took["onnx"])
    return (name, f"{size:.1f}", f"{largest:.1e}", *cells, f"{ratio:.2f}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], help="words of the networks to measure")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--images", type=int, default=32)
    args = parser.parse_args(argv)
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError:
        print("skipped: no onnxruntime here; pip install onnx onnxscript onnxruntime")
        return
    torch.set_num_threads(THREADS)
    names = [n for n in NETWORKS if not args.only or any(word in n for word in args.only)]
    with tempfile.TemporaryDirectory() as folder:
        files = write_photographs(Path(folder), args.images)
        images = [decode_image(Path(folder) / name) for name in files]
        rows = [measure(name, images, args.rounds, Path(folder)) for name in names]
    print(
        f"n = {args.rounds} images of 640x480, one at a time, {THREADS} threads; difference over "
        f"{args.images} images; ms; torch {torch.__version__}, onnxruntime "
        f"{onnxruntime.__version__}, random weights\n"
    )
    header = ("network", "MB", "largest difference", "torch p50", "torch p95", "ONNX p50",
              "ONNX p95", "torch ÷ ONNX")  # fmt: skip
    print_table(header, rows)


if __name__ == "__main__":
    main()
