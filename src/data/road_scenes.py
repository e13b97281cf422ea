"""A seed in, perspective road scenes with their lane masks out: data to train lanes on, anywhere.

A pinhole camera looks along a flat road. Every pixel below the horizon knows its place on the
ground (X across, Z ahead, metres), so lines stay lines however the road bends. Varied: bends,
number and kind of lines, worn paint, asphalt, sun glare, tree and bridge shadows, vehicles that
hide lines, and white things that are no lanes (stop lines, tar seams, kerbs).

As in lane data sets, the mask follows a dashed line through its gaps and through shadow; it stops
where a vehicle hides it. A frame is a pure function of (seed, scene, frame).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from src.data.road_paint import (
    LANE_WIDTH,
    cast_shadows,
    drive_vehicles,
    look,
    paint_distractors,
    paint_land,
    paint_line,
    shine,
)
from src.files import atomic_write, write_json, write_text

STEP = 1.2  # metres the camera moves from one frame to the next


def render_frame(
    seed: int, scene: int, frame: int = 0, size: tuple[int, int] = (384, 384)
) -> tuple[np.ndarray, np.ndarray]:
    """Render one frame.

    Args:
        seed: of the whole set.
        scene: number of the scene: road, weather, camera and traffic.
        frame: number within the scene; the camera drives on.
        size: (H, W) in pixels.

    Returns:
        image (H, W, 3) uint8 RGB and mask (H, W) uint8, 1 on lane lines.
    """
    rng = np.random.default_rng([seed, scene])
    noise = np.random.default_rng([seed, scene, frame])
    ground = look(rng, size)
    travelled = frame * STEP
    bend = rng.normal(0, 0.0018), rng.normal(0, 0.012)
    num_lanes = int(rng.integers(1, 4))
    ego = int(rng.integers(num_lanes))
    drift = rng.normal(0, 0.35) + 0.15 * np.sin(0.3 * frame + rng.uniform(0, 6))
    offsets = [LANE_WIDTH * (line - ego - 0.5) + drift for line in range(num_lanes + 1)]

    depth = np.minimum(ground.Z, 200)  # beyond, a parabola is no road
    centre = depth * bend[1] + depth**2 * bend[0] / 2
    across = ground.X - centre
    image = paint_land(rng, ground, across, offsets, size, travelled)
    mask = np.zeros(size, bool)
    for number, offset in enumerate(offsets):
        inner = 0 < number < num_lanes
        mask |= paint_line(rng, image, ground, across - offset, travelled, dashed=inner)
    paint_distractors(rng, image, ground, across, offsets, travelled)
    cast_shadows(rng, image, ground, across, travelled)
    drive_vehicles(rng, image, mask, ground, bend, offsets, travelled)
    shine(rng, image, ground)
    image += noise.standard_normal((*size, 1), np.float32) * np.float32(rng.uniform(1, 6))
    return np.clip(image, 0, 255).astype(np.uint8), mask.astype(np.uint8)


def write_scenes(
    root: Path | str,
    *,
    num_scenes: int = 30,
    num_frames: int = 8,
    size: tuple[int, int] = (384, 384),
    seed: int = 0,
    test_share: float = 0.2,
) -> Path:
    """Write scenes as ``images/`` + ``masks/`` folders with train.txt and test.txt, once.

    Whole scenes go to the test list. A folder that already holds the same set is left as it is.

    Returns:
        ``root``.
    """
    root = Path(root)
    spec = {"num_scenes": num_scenes, "num_frames": num_frames, "size": list(size), "seed": seed}
    done = root / f"scenes_{num_scenes}x{num_frames}_{size[1]}x{size[0]}_seed{seed}.json"
    if done.is_file():
        return root
    first_test = num_scenes - round(num_scenes * test_share)
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for scene in range(num_scenes):
        for frame in range(num_frames):
            name = f"scene{scene:03d}_{frame:03d}"
            image, mask = render_frame(seed, scene, frame, size)
            _write_image(root / "images" / f"{name}.jpg", image[..., ::-1])
            _write_image(root / "masks" / f"{name}.png", mask * 255)
            lists["train" if scene < first_test else "test"].append(name)
    for split, names in lists.items():
        write_text(root / f"{split}.txt", "".join(f"{name}\n" for name in names))
    write_json(done, spec)
    return root


def _write_image(path: Path, pixels: np.ndarray) -> None:
    done, data = cv2.imencode(path.suffix, np.ascontiguousarray(pixels))
    assert done, path
    with atomic_write(path) as file:
        file.write(data.tobytes())
