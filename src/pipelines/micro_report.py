"""Report of a micro net: costs, latency, scores, checklist, and what its score asks for next."""

from __future__ import annotations

import platform
import statistics
import tempfile
import timeit
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from src.data.sources.registry import DATASETS
from src.files import write_text
from src.mask_config import MicroConfig
from src.models.convolutions import fold_norms
from src.models.micro.registry import BUDGET_CLASSES, build_micro, count_trainable, measure_budget
from src.pipelines.micro import Finished, MicroSet, mean_over_sets, score_table
from src.script import counted

SIDE = 256  # px of an image that is timed or tried
REPEATS = 20
OUTPUTS = {"VOC": 21}  # the others have two classes, one logit
# What to do next, by the mean score of a would-be teacher.
DECISIONS = (
    (0.53, "distil it into the smaller nets"),
    (0.50, "ablate its blocks"),
    (0.47, "tune its recipe"),
    (float("-inf"), "debug the architecture"),
)


def decide(score: float) -> str:
    """Return what a teacher's mean score over the sets asks for."""
    return next(what for limit, what in DECISIONS if score >= limit)


def measure_latency(net: nn.Module) -> float:
    """Return the median milliseconds of one image, norms folded, on this machine's CPU."""
    net = fold_norms(net, SIDE).to("cpu").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.zeros(1, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        return median_ms(lambda: net(image))


def median_ms(call: Callable[[], object]) -> float:
    """Return the median milliseconds of a call, after three to warm up."""
    seconds = timeit.repeat(call, number=1, repeat=REPEATS + 3)
    return 1e3 * statistics.median(seconds[3:])


def measure_onnx(net: nn.Module) -> float | None:
    """Return the same of its ONNX file in onnxruntime; None where that is not installed."""
    from src.pipelines.deploy.export import NEEDED, Deployed, Export, write_onnx
    from src.pipelines.deploy.model import open_session

    if any(find_spec(name) is None for name in NEEDED):
        return None
    module = Deployed(fold_norms(net, SIDE).to("cpu"), (SIDE, SIDE), masks=True).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        write_onnx(Export(module, {}), path)
        session = open_session(path, threads=torch.get_num_threads())
    image = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    return median_ms(lambda: session.run(None, {"image": image}))


def latency_table(net: nn.Module) -> list[str]:
    """Return a Markdown table of median latencies: PyTorch's, and its ONNX file's."""
    onnx = measure_onnx(net)
    shown = (
        "not measured: pip install onnx onnxscript onnxruntime" if onnx is None else f"{onnx:.1f}"
    )
    return [
        f"| engine | ms, median of {REPEATS} |",
        "|---|---:|",
        f"| torch {torch.__version__}, channels last | {measure_latency(net):.1f} |",
        f"| ONNX, pixels in, probabilities out | {shown} |",
    ]


def passes_forward(net: str, drop: tuple[str, ...], dataset: str) -> bool:
    """Return whether the net, built for ``dataset``, gives finite logits of the image's size."""
    outputs = OUTPUTS.get(dataset, 1)
    model = build_micro(net, outputs, dataset=dataset, drop=drop).eval()
    with torch.inference_mode():
        logits = model(torch.randint(0, 256, (1, 3, SIDE, SIDE), dtype=torch.uint8))
    return tuple(logits.shape) == (1, outputs, SIDE, SIDE) and bool(torch.isfinite(logits).all())


def checklist(
    config: MicroConfig, trainable: int, results: Mapping[str, Sequence[Finished]]
) -> list[tuple[bool, str]]:
    """Return what a submission has to hold, and whether it does."""
    net = config.net or config.model
    seeds = len(next(iter(results.values())))
    missing = [name for name in DATASETS if name not in results]
    trained = f"trained on all five sets{': not ' + ', '.join(missing) if missing else ''}"
    limit = f"{trainable:,} trainable parameters with {BUDGET_CLASSES} classes"
    return [
        (trainable <= config.max_params, f"{limit}, at most {config.max_params:,}"),
        *((passes_forward(net, config.drop, name), f"forward pass on {name}") for name in DATASETS),
        (config.protocol == "strict", "strict protocol"),
        (not missing, trained),
        (seeds >= 3, f"three seeds or more: {seeds}"),
    ]


def write_report(
    config: MicroConfig,
    sets: Sequence[MicroSet],
    results: Mapping[str, Sequence[Finished]],
    path: Path,
) -> Path:
    """Write the report as Markdown and return its path.

    ``results`` are set → its runs, one a seed.
    """
    net = config.net or config.model
    built = [build_micro(net, BUDGET_CLASSES, dataset=s.name, drop=config.drop) for s in sets]
    model = max(built, key=count_trainable)  # some sets' options add to the net
    budget = measure_budget(model)
    mean = float(np.mean(mean_over_sets(results)))
    threads = torch.get_num_threads()
    checks = checklist(config, budget.trainable, results)
    lines = [
        f"# {net}, {config.protocol} protocol",
        "",
        f"- parameters with {BUDGET_CLASSES} classes: {budget.trainable:,} trainable, "
        f"{budget.deployed:,} deployed (norms folded)",
        f"- {budget.flops / 1e6:.1f} MFLOPs for one 256x256 image (a multiply-add is two)",
        f"- one {SIDE}x{SIDE} image, {counted(threads, 'CPU thread')}, {platform.machine()}:",
        "",
        *latency_table(model),
        "",
        "```",
        budget.table(),
        "```",
        "",
        "## Scores",
        "",
        "```",
        score_table(results),
        "```",
        "",
        "## Checklist",
        "",
        *(f"- [{'x' if holds else ' '}] {what}" for holds, what in checks),
        "",
        "## Decision",
        "",
        f"As a teacher, at {mean:.4f} over {counted(len(results), 'set')}: {decide(mean)}.",
    ]
    write_text(path, "\n".join(lines) + "\n")
    return path
