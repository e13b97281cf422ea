"""A config in, the folder of its images and masks and their layout out: given, or generated."""

from __future__ import annotations

from pathlib import Path

from src.data.road_scenes import write_scenes
from src.data.sources.registry import detect_source
from src.mask_config import LaneConfig, SegmentationConfig
from src.runs import Output
from src.script import UserError
from src.tracks.folder import parse_size

SCENES = "road_scenes"
SIDE = 384
TWO_CLASSES = ("folders", "coco")  # layouts of any classes, of which a lane run sees two


def find_images(
    config: SegmentationConfig, *, num_scenes: int = 30, num_frames: int = 8
) -> tuple[str, Path]:
    """Return (layout, folder) of the data; road scenes are generated where none are named.

    Args:
        config: ``data_dir``, ``source`` and ``resolution``.
        num_scenes: scenes to generate.
        num_frames: frames of each.

    Raises:
        UserError: no such folder.
    """
    root = Path(config.data_dir)
    if not config.data_dir:
        size = parse_size("resolution", config.resolution) or (SIDE, SIDE)
        # every set has a folder of its own: a test scene of one is a training scene of another
        name = f"{SCENES}_{num_scenes}x{num_frames}_{size[1]}x{size[0]}_seed{config.fold_seed}"
        root = Output(Path(config.output_dir)).scenes(name)
        print(f"no --data_dir: {num_scenes} road scenes in {root}", flush=True)
        write_scenes(
            root, num_scenes=num_scenes, num_frames=num_frames, size=size, seed=config.fold_seed
        )
        return "lanes", root
    if not root.is_dir():
        raise UserError(f"--data_dir {root}: no such folder")
    if config.source != "auto":
        return config.source, root
    source = detect_source(root)
    if isinstance(config, LaneConfig) and source in TWO_CLASSES:
        return "lanes", root  # one class against the background, neighbouring frames in one group
    return source, root
