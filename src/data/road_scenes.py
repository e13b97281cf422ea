"""Generated perspective road scenes with lane masks: data to train on where there are none.

A pinhole camera looks along a flat road. Every pixel below the horizon knows its place on the
ground (X across, Z ahead, metres), so lines stay lines however the road bends. Varied: bends,
number and kind of lines, asphalt, sun glare, bridge shadows, vehicles that hide lines, and white
things that are no lanes (stop lines, tar seams, kerbs). A quarter of the scenes each also have what
``road_conditions.py`` holds: night, rain, worn paint, trees, traffic, a tilted camera, compression.

As in lane data sets, the mask follows a dashed line through its gaps, through shadow and where its
paint is gone; it stops where a vehicle hides it. A frame is a pure function of (seed, scene, frame)
and the conditions allowed. Images are float32 (H, W, 3) in 0..255 while they are painted, in place;
lengths are metres on the ground.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.data.decode import write_picture
from src.data.files import below
from src.data.road_conditions import (
    CONDITIONS,
    SHARE,
    SKY,
    Car,
    Ground,
    cloud,
    compress,
    darken,
    draw_conditions,
    look,
    paint_car,
    place_traffic,
    rain,
    shade_trees,
    tilt,
    wear,
)
from src.files import describe_file, read_json, write_json, write_text

STEP = 1.2  # metres the camera moves from one frame to the next
FAR = 55.0  # metres up to which lines are drawn and labelled
LANE_WIDTH = 3.5
PAINT_WIDTH = 0.18
MIN_LABEL = 1.4  # pixels: a labelled line is at least so wide


@dataclass(frozen=True)
class Road:
    """A road as one frame shows it."""

    rng: np.random.Generator  # draws what all frames of the scene share
    ground: Ground  # where each pixel of the ground lies
    across: np.ndarray  # (H, W), metres from the middle of the bend
    offsets: list[float]  # of the lines, metres, from left to right
    travelled: float  # metres since the first frame


def paint_land(road: Road, size: tuple[int, int]) -> np.ndarray:
    """Sky, hills, verge and asphalt: float (H, W, 3)."""
    rng, ground, across, offsets = road.rng, road.ground, road.across, road.offsets
    rows = np.linspace(0, 1, size[0])[:, None, None]
    sky = np.array([120, 160, 215]) + np.array([110, 75, 25]) * rows / 0.45
    image = (sky * rng.uniform(0.6, 1.1) + np.zeros((*size, 3))).astype(np.float32)
    is_hill = ground.down > -size[0] * 0.12 * cloud(rng, (1, size[1]), 9)[0]
    green = np.array([60, 85, 50]) * rng.uniform(0.6, 1.3)
    image[is_hill] = green * (0.7 + 0.6 * cloud(rng, size, 40)[is_hill])[:, None]
    land = ground.Z < SKY
    verge = np.array([[95, 115, 60], [140, 125, 95], [150, 150, 145]])[rng.integers(3)]
    image[land] = verge * (0.7 + 0.6 * cloud(rng, size, 60)[land])[:, None]
    shoulder = rng.uniform(0.3, 1.8)
    paved = land & (across > offsets[0] - shoulder) & (across < offsets[-1] + shoulder)
    grey = rng.uniform(55, 130) + np.array([0, 0, rng.uniform(-4, 8)])
    waves = np.sin(ground.Z[paved] + road.travelled)
    grain = 0.85 + 0.3 * cloud(rng, size, 90)[paved] + 0.04 * waves
    beside = np.abs(across[paved] - np.mean(offsets[:2])) - 0.8  # wheels darken the asphalt
    image[paved] = grey * (grain * (1 - 0.12 * np.exp(-((beside / 0.3) ** 2))))[:, None]
    return image


def paint_line(
    road: Road, image: np.ndarray, away: np.ndarray, *, dashed: bool, left: np.ndarray | float
) -> np.ndarray:
    """Paint the line at ``away == 0`` and return where it is labelled: bool (H, W).

    ``left`` is what wear has left of the paint, (H, W) in 0..1.
    """
    rng, ground = road.rng, road.ground
    half = PAINT_WIDTH / 2 * rng.uniform(0.8, 1.4)
    labelled = np.maximum(half, MIN_LABEL / 2 * ground.metres)
    at = np.nonzero((ground.Z < FAR) & (np.abs(away) < labelled + ground.metres))
    off, pixels = np.abs(away[at]), ground.metres[at]
    # The share of a pixel that the stripe covers, so that distant lines fade instead of breaking.
    cover = np.clip((half - off) / pixels + 0.5, 0, 1) * np.minimum(1, 2 * half / pixels)
    period, share = (rng.uniform(8, 13), rng.uniform(0.35, 0.6)) if dashed else (1.0, 1.0)
    distance = ground.Z[at] + (road.travelled + rng.uniform(0, period))
    worn = rng.uniform(0.75, 1.3) - rng.uniform(0, 0.6) * cloud(rng, away.shape, 70)[at]
    worn = np.clip(worn, 0, 1) * np.broadcast_to(left, away.shape)[at]
    alpha = (cover * (distance % period < period * share) * worn)[:, None]
    colour = np.array([[235, 235, 230], [225, 180, 60]])[int(rng.random() < 0.25)]
    image[at] += (colour * rng.uniform(0.75, 1.0) - image[at]) * alpha
    mask = np.zeros(away.shape, bool)
    mask[at] = off < labelled[at]
    return mask


def paint_distractors(road: Road, image: np.ndarray) -> None:
    """Things that look like lines and are none: a stop line, a tar seam, a kerb."""
    rng, ground, across, offsets = road.rng, road.ground, road.across, road.offsets
    on_road = (across > offsets[0]) & (across < offsets[-1])
    at = rng.uniform(8, 40) - road.travelled
    if rng.random() < 0.3:
        bar = on_road & (np.abs(ground.Z - at) < 0.25)
        image[bar] = image[bar] * 0.2 + 190
    if rng.random() < 0.5:
        seam = rng.uniform(offsets[0], offsets[-1]) + 0.2 * np.sin(at)
        tar = (np.abs(across - seam) < 0.06 + ground.metres / 2) & (ground.Z < FAR)
        image[tar] *= rng.uniform(0.5, 0.8)
    if rng.random() < 0.3:
        kerb = offsets[-1] + rng.uniform(1.9, 2.6)
        image[(np.abs(across - kerb) < 0.12) & (ground.Z < FAR)] = rng.uniform(150, 200)


def cast_shadows(road: Road, image: np.ndarray) -> None:
    """Darken bands across the road (a bridge, trees) with ragged edges."""
    rng, ground, across = road.rng, road.ground, road.across
    for _ in range(int(rng.integers(0, 4))):
        start, length = rng.uniform(3, 45) - road.travelled, rng.uniform(1, 8)
        slant, ragged = rng.uniform(-0.6, 0.6), rng.uniform(0, 3)
        depth = ground.Z + slant * across + ragged * cloud(rng, across.shape, 24)
        reach = rng.uniform(-6, 6)
        shadow = (
            (depth > start) & (depth < start + length) & (np.sign(reach) * across > -abs(reach))
        )
        image[shadow] *= rng.uniform(0.35, 0.7)


def drive_vehicles(
    road: Road,
    more: np.random.Generator | None,
    image: np.ndarray,
    mask: np.ndarray,
    bend: tuple[float, float],
    glow: np.ndarray | None,
) -> None:
    """Put vehicles on the road, far ones first; they hide what is behind.

    Up to three in the road's lanes; with ``more``, the generator of the traffic, many and beside
    the road. ``bend`` is curvature and heading of the road; ``glow`` (H, W, 3) takes the light of
    their lamps at night.
    """
    rng, offsets, travelled = road.rng, road.offsets, road.travelled
    cars = []
    for _ in range(int(rng.integers(0, 4))):
        speed = rng.uniform(-0.5, 0.8)
        lane = int(rng.integers(len(offsets) - 1))
        colour = rng.uniform(20, 220, 3)
        Z, tall = rng.uniform(7, 40) + speed * travelled, rng.uniform(1.4, 2.6)
        cars.append(Car(Z, offsets[lane] + LANE_WIDTH / 2, tall, colour))
    if more is not None:
        middles = [offset + LANE_WIDTH / 2 for offset in offsets]
        cars += place_traffic(more, middles, travelled)
    for car in sorted(cars, key=lambda car: -car.Z):
        if car.Z >= 5:
            aside = car.offset + car.Z * bend[1] + car.Z**2 * bend[0] / 2
            paint_car(image, mask, road.ground, car, aside, glow)


def shine(rng: np.random.Generator, image: np.ndarray, ground: Ground) -> None:
    """Light of the day: brightness, a colour cast, and often a low sun with its glare."""
    H, W = image.shape[:2]
    image *= rng.uniform(0.45, 1.2) * (1 + rng.normal(0, 0.04, 3))
    if rng.random() < 0.4:
        x, up = rng.uniform(0, W), rng.uniform(0, 0.45 * H)
        spread = W * rng.uniform(0.15, 0.6)
        away = (ground.down + up) ** 2 + (np.arange(W)[None] - x) ** 2
        glow = np.exp(-away / (2 * spread**2))
        image += glow[..., None] * rng.uniform(80, 200) * np.array([1.0, 0.95, 0.8])


def render_frame(
    seed: int,
    scene: int,
    frame: int = 0,
    size: tuple[int, int] = (384, 384),
    conditions: Sequence[str] = CONDITIONS,
    share: float = SHARE,
) -> tuple[np.ndarray, np.ndarray]:
    """Render one frame: image (H, W, 3) uint8 RGB and mask (H, W) uint8, 1 on lane lines.

    A ``scene`` settles road, weather, camera and traffic; with each ``frame`` the camera drives on.
    Each of the ``conditions`` is in a ``share`` of the scenes.
    """
    rng = np.random.default_rng([seed, scene])
    noise = np.random.default_rng([seed, scene, frame])
    hard = draw_conditions(seed, scene, conditions, share)
    roll, nod = tilt(hard.get("tilt"), noise)
    ground = look(rng, size, roll, nod)
    bend = rng.normal(0, 0.0018), rng.normal(0, 0.012)
    num_lanes = int(rng.integers(1, 4))
    ego = int(rng.integers(num_lanes))
    drift = rng.normal(0, 0.35) + 0.15 * np.sin(0.3 * frame + rng.uniform(0, 6))
    offsets = [LANE_WIDTH * (line - ego - 0.5) + drift for line in range(num_lanes + 1)]

    depth = np.minimum(ground.Z, 200)  # beyond, a parabola is no road
    centre = depth * bend[1] + depth**2 * bend[0] / 2
    road = Road(rng, ground, ground.X - centre, offsets, frame * STEP)
    image = paint_land(road, size)
    mask = np.zeros(size, bool)
    left = wear(hard.get("wear"), size)
    for number, offset in enumerate(offsets):
        inner = 0 < number < num_lanes
        mask |= paint_line(road, image, road.across - offset, dashed=inner, left=left)
    paint_distractors(road, image)
    cast_shadows(road, image)
    if "trees" in hard:
        shade_trees(hard["trees"], image, ground, road.travelled)
    glow = np.zeros_like(image) if "night" in hard else None
    drive_vehicles(road, hard.get("traffic"), image, mask, bend, glow)
    if "rain" in hard:
        rain(hard["rain"], noise, image, ground)
    if glow is None:
        shine(rng, image, ground)
    else:
        darken(hard["night"], noise, image, ground, glow)
    image += noise.standard_normal((*size, 1), np.float32) * np.float32(rng.uniform(1, 6))
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    if "jpeg" in hard:
        pixels = compress(hard["jpeg"], pixels)
    return pixels, mask.astype(np.uint8)


def write_scenes(
    root: Path | str,
    *,
    num_scenes: int = 30,
    num_frames: int = 8,
    size: tuple[int, int] = (384, 384),
    seed: int = 0,
    test_share: float = 0.2,
    conditions: Sequence[str] = CONDITIONS,
    share: float = SHARE,
) -> Path:
    """Write scenes as ``images/`` + ``masks/`` folders with train.txt and test.txt, once.

    Whole scenes go to the test list. A folder that already holds the same set is left as it is;
    with a file lost or damaged it is not the same.

    Returns:
        ``root``.
    """
    root = Path(root)
    spec = {"num_scenes": num_scenes, "num_frames": num_frames, "size": list(size), "seed": seed}
    spec |= {"conditions": [name for name in CONDITIONS if name in conditions], "share": share}
    done = root / "scenes.json"
    kept = read_json(done, "delete it and make the scenes again") if done.is_file() else {}
    check = kept.pop("crc32", None)
    if kept == spec and check == _checksum(root):  # else of two sets, if a process stopped half way
        return root
    first_test = num_scenes - round(num_scenes * test_share)
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for scene in range(num_scenes):
        for frame in range(num_frames):
            name = f"scene{scene:03d}_{frame:03d}"
            image, mask = render_frame(seed, scene, frame, size, conditions, share)
            write_picture(root / "images" / f"{name}.jpg", image)
            write_picture(root / "masks" / f"{name}.png", mask * 255)
            lists["train" if scene < first_test else "test"].append(name)
    for split, names in lists.items():
        write_text(root / f"{split}.txt", "".join(f"{name}\n" for name in names))
    write_json(done, spec | {"crc32": _checksum(root)})
    return root


def _checksum(root: Path) -> str:
    """Return the CRC-32 of the names and contents of all scenes and lists."""
    files = (path for pattern in ("*.txt", "images/*.jpg", "masks/*.png")
             for path in sorted(root.glob(pattern)) if path.is_file())  # fmt: skip
    found = {below(root, path): describe_file(path) for path in files}
    return f"{zlib.crc32(json.dumps(found).encode()):08x}"
