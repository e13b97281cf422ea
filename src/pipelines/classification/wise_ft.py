"""Linear-probe initialisation (LP-FT) and WiSE-FT weight interpolation.

Fine-tuning from a head of noise first spoils the features that it should build on; from a fitted
head it starts at the score of the frozen net. Kumar et al. 2022, https://arxiv.org/abs/2202.10054.

WiSE-FT interpolates initial and fine-tuned weights and keeps the alpha with the best validation
score. Where pretrained features fit the data already, few images teach as much noise as signal, and
some of the way back scores better than the end. Wortsman et al. 2022,
https://arxiv.org/abs/2109.01903.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from src.data.dataset import Loader
from src.engine.interrupt import catch_signals
from src.engine.log import say
from src.engine.predict import evaluate, predict
from src.engine.runtime import Runtime
from src.engine.weights import load_weights, read_about, save_weights
from src.models.classifier import Classifier
from src.models.probe import LinearProbe, fit_probe
from src.runs import Run
from src.tasks.protocols import BatchLoader, Task
from src.views import VIEWS, View

MAX_ROWS = 16_384  # more images than that change a starting point little


class Embedding:
    """A task whose prediction is what the head sees."""

    def predict(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return (B, D)."""
        assert isinstance(model, Classifier)
        return model.embed(model.forward_features(batch["image"]))


def pick_rows(rows: np.ndarray, seed: int) -> np.ndarray:
    """Return ``rows``, or an even choice of them where they are many, in their order."""
    if len(rows) <= MAX_ROWS:
        return rows
    return np.sort(np.random.default_rng(seed).permutation(rows)[:MAX_ROWS])


def embed_rows(
    model: Classifier, loader: Loader, runtime: Runtime, views: Sequence[View] = VIEWS[:1]
) -> Tensor:
    """Return the features (V, N, D) float32 that the head sees of N rows in order, in V views.

    Where they overflow in fp16 they are computed in fp32.
    """
    num_rows = loader.batch_sampler.num_rows
    features = torch.zeros(len(views), num_rows, model.head.in_features)

    def write(batch: dict[str, Tensor], outputs: list[Tensor]) -> None:
        features[:, batch["index"].cpu()] = torch.stack(outputs).cpu()

    with catch_signals(runtime.agree) as pause:
        predict(
            runtime.place(model), loader, Embedding(), runtime, views=views,
            num_rows=num_rows, write=write, pause=pause, label="features",
        )  # fmt: skip
    runtime.join_rows(features.numpy())
    if runtime.precision == "fp16" and not bool(torch.isfinite(features).all()):
        return embed_rows(model, loader, runtime.with_choice("fp32", runtime.channels_last), views)
    return features


def fit_head(
    model: Classifier,
    loader: Loader,
    num_classes: int,
    runtime: Runtime,
    views: Sequence[View] = VIEWS[:1],
) -> None:
    """Set the head of ``model`` to a linear probe of its features, the mean of ``views``.

    ``loader`` gives the training rows in order, without augmentation.

    Raises:
        UserError: a file cannot be decoded.
        Interrupted: a signal asked to stop.
    """
    target = torch.from_numpy(loader.dataset.data.targets)  # type: ignore[attr-defined]
    features = embed_rows(model, loader, runtime, views).mean(0)
    try:
        if model.stages is not None:
            features = model.stages.set_scale(features)
        probe = fit_probe(features, target, num_classes, model.level_widths)
    except ValueError as error:
        say(runtime, f"warning: no linear head to start from: {error}")
        return
    set_head(model, probe)
    say(
        runtime,
        f"the frozen net with a linear head: log loss {probe.log_loss:.4f}, accuracy "
        f"{probe.accuracy:.4f} (leave-one-out); training starts there",
    )


def set_head(model: Classifier, probe: LinearProbe) -> None:
    """Let the head of ``model`` be the probe."""
    with torch.no_grad():
        model.head.weight.copy_(probe.weight)
        model.head.bias.copy_(probe.bias)


ALPHAS = (0.75, 0.5, 0.25, 0.0)  # 1 = the fine-tuned weights, 0 = the initial ones


def interpolate_weights(
    run: Run,
    model: nn.Module,
    task: Task,
    valid: BatchLoader,
    runtime: Runtime,
    score: float,
    identity: str = "",
) -> float:
    """Interpolate from the best weights towards the start while the held-out images score better.

    ``run`` has ``start``, of the same ``identity`` as its best weights, which are replaced by
    better ones. Return their score; ``score`` is what it was.

    Raises:
        Interrupted: a signal asked to stop; started again, it goes the same way.
    """
    about = read_about(run.best)
    if about.get("kind") == "mixed":  # stopped between this and the end of the run
        return float(about[task.monitor])
    start, end = (load_weights(path, identity) for path in (run.start, run.best))
    end = {name: value.clone() for name, value in end.items()}  # Windows replaces no mapped file
    sign, best = (1 if task.lower_is_better else -1), 1.0
    with catch_signals(runtime.agree) as pause:
        for alpha in ALPHAS:
            model.load_state_dict(mix_weights(start, end, alpha))
            found = evaluate(
                model, valid, task, runtime, num_rows=valid.batch_sampler.num_rows, pause=pause
            )[task.monitor]
            if not sign * found < sign * score:
                break
            best, score = alpha, found
    if runtime.is_main:  # written in any case: it says that the start is needed no more
        about |= {"kind": "mixed", "share": str(best), task.monitor: repr(score)}
        save_weights(run.best, mix_weights(start, end, best) if best < 1.0 else end, about)
    if best < 1.0:
        say(runtime, f"{best:.0%} of the way from the start scores better: {score:.4f}")
    return score


def mix_weights(
    start: dict[str, Tensor], end: dict[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """Return ``start`` plus ``alpha`` of the way to ``end``; whole numbers are the end's."""
    return {
        name: torch.lerp(start[name], value, alpha) if value.is_floating_point() else value
        for name, value in end.items()
    }
