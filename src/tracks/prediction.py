"""Members and images in, blended class probabilities at every image's own size out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from src.data.loader import EpochSampler, default_num_workers, make_loader
from src.data.mask_loading import image_size, mask_dataset
from src.data.sources.masks import MaskIndex
from src.data.transforms import eval_mask_transform
from src.engine.interrupt import catch_signals
from src.engine.predict import default_batch_size, predict
from src.engine.runtime import Runtime
from src.engine.tta import first_views
from src.models.folding import FOLDING_SIDE, fold_norms
from src.tracks.maps import fit_size, mean_probs
from src.tracks.members import Member

CHUNK = 32  # images whose maps are held at once


def blend_maps(
    members: Sequence[Member],
    index: MaskIndex,
    rows: np.ndarray,
    runtime: Runtime,
    *,
    resolution: str = "",
    batch_size: int = 0,
    num_workers: int = -1,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (row, probabilities (1 or K, H, W) at native size), a chunk of images at a time.

    Args:
        members: nets with their shares.
        index: the images.
        rows: of its table.
        runtime: device and precision.
        resolution: HxW or ``native`` instead of what the members were trained at.
        batch_size: images at once; 0 = by resolution.
        num_workers: loader processes; -1 = by device.
    """
    models = [fold_norms(member.build(), FOLDING_SIDE) for member in members]
    workers = default_num_workers(runtime.device.type) if num_workers < 0 else num_workers
    with catch_signals() as pause:
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            sizes = [image_size(index.image_path(int(row))) for row in part]
            total: list[Tensor | None] = [None] * len(part)
            for member, model in zip(members, models, strict=True):
                size = member.size(resolution)
                if size is None and len(set(sizes)) == 1:
                    size = sizes[0]
                data = mask_dataset(
                    index, part, eval_mask_transform(divisor=1), size=size, labelled=False,
                    cache="none",
                )  # fmt: skip
                batch = 1
                if size is not None:
                    batch = batch_size or default_batch_size(max(size), runtime.device)
                loader = make_loader(
                    data, EpochSampler(len(part), batch), num_workers=workers,
                    device_type=runtime.device.type,
                )  # fmt: skip
                moved = runtime.place(model)

                def write(
                    batch: dict[str, Tensor],
                    outputs: list[Tensor],
                    share: float = member.share,
                    total: list[Tensor | None] = total,
                    sizes: list[tuple[int, int]] = sizes,
                ) -> None:
                    mean = mean_probs(outputs)
                    for probs, place in zip(mean, batch["index"].tolist(), strict=True):
                        native = fit_size(probs, sizes[place]).cpu() * share
                        before = total[place]
                        total[place] = native if before is None else before + native

                predict(
                    moved, loader, member.task, runtime, num_rows=len(part), write=write,
                    views=first_views(member.num_views), pause=pause,
                )  # fmt: skip
                if len(members) > 1:
                    model.to("cpu")
            for row, probs in zip(part.tolist(), total, strict=True):
                assert probs is not None
                yield row, probs
