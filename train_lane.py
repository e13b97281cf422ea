"""Train a net on thin lanes or cracks: python train_lane.py --encoder tu-tf_efficientnet_lite0.

Images with two-class masks in, output/lane/<name>/fold<k>/ out: weights, scores at native size and
held-out probabilities. Without --data_dir road scenes are generated. Started again, it goes on
where it stopped; a finished run is skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from src.engine.interrupt import stoppable
from src.mask_config import LaneConfig
from src.pipelines.run_folder import data_label, finished, parse_fold
from src.reader import parse
from src.runs import Output, Run
from src.script import UserError, run_script

if TYPE_CHECKING:
    from src.pipelines.segmentation.train import MaskData


@stoppable()
def main(argv: list[str]) -> int:
    """Train the run that ``argv`` asks for."""
    config = parse(
        LaneConfig, argv, prog="train_lane.py", description=__doc__ or "", row_by="model",
        rows_only=True,
    )  # fmt: skip
    output = Output(Path(config.output_dir)).track("lane")
    name = (
        config.name
        or f"{data_label(config.data_dir)}-{config.model or f'{config.arch}-{config.encoder}'}"
    )
    run = output.run(name, parse_fold(config.fold))
    if config.dry_run:
        from src.pipelines.segmentation.train import show_data

        show_data(read_lanes(config), run.folder)
        return 0
    known = ""  # of generated scenes, and of data that are gone, nothing is asked
    if run.finished.exists() and config.data_dir and Path(config.data_dir).is_dir():
        known = read_lanes(config).hash
    if finished(run, config, known, held=False):
        return 0

    with run.hold():
        if not finished(run, config, known):
            train(config, output, run)
    return 0


def read_lanes(config: LaneConfig) -> MaskData:
    """Read the images, or generate them where no data are given."""
    from src.pipelines.segmentation.train import find_data

    data = find_data(config, num_scenes=config.num_scenes, num_frames=config.num_frames)
    if data.index.num_classes != 2:
        raise UserError(
            f"{data.source['data_dir']} has {data.index.num_classes} classes: train_lane.py learns "
            "one against the background; use train_distill.py for more, or --source lanes, for "
            "which every number above 0 is the one class"
        )
    return data


def train(config: LaneConfig, output: Output, run: Run) -> None:
    """Train the run to its finished folder."""
    import torch

    from src.engine.runtime import start_runtime
    from src.pipelines.segmentation import train as masks

    data = read_lanes(config)
    task = masks.build_task(config, data)
    network = masks.segmenter_spec(
        config.arch, config.encoder, task.num_outputs, config.decoder_width
    )
    weights = masks.find_encoder_weights(config.encoder, config.pretrained)
    runtime = start_runtime(config.device, config.precision, config.channels_last)
    torch.manual_seed(config.seed)
    model = masks.build_network(network, weights)
    if config.prior:
        masks.start_at_prior(model, data)
    masks.train_masks(
        config, run, data, model, task, output=output, network=network, runtime=runtime,
        extra={"track": "lane", "weights": str(weights)},
    )  # fmt: skip


if __name__ == "__main__":
    run_script(main, launched=True)
