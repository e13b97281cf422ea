"""Camera of generated road scenes, and what makes them hard: night, rain, wear, trees, traffic.

A pinhole camera over a flat road says where each pixel looks on the ground, in metres.

Each condition is there or not, and how strong, by a random stream of its own, so that one more
changes no other and a scene's road and lines stay where they are. Night, rain, wear, trees and JPEG
change pixels alone; a vehicle hides the lines behind it, also in the mask; a tilted camera turns
image and mask. Images are float32 (H, W, 3) in 0..255, changed in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

SKY = 1e4  # metres: "ahead" of a pixel above the horizon


@dataclass(frozen=True)
class Ground:
    """Where each pixel looks."""

    X: np.ndarray  # (H, W) metres to the right; 0 above the horizon
    Z: np.ndarray  # (H, W) metres ahead; SKY above the horizon
    metres: np.ndarray  # (H, W) width of a pixel on the ground
    right: np.ndarray  # (H, W) pixels to the right of the camera's axis, along the horizon
    down: np.ndarray  # (H, W) pixels below the horizon
    focal: float  # focal length in pixels
    height: float  # of the camera over the road, metres


def look(
    rng: np.random.Generator, size: tuple[int, int], roll: float = 0.0, nod: float = 0.0
) -> Ground:
    """Mount the camera: its height, pitch and focal length vary.

    ``roll``, about the camera's axis in radians, lowers the horizon's right end where it is
    positive; ``nod`` lowers the horizon, as a share of H.
    """
    height, width = size
    focal = width * rng.uniform(0.8, 1.2)
    horizon = height * (rng.uniform(0.3, 0.45) + nod)
    above = rng.uniform(1.2, 1.8)
    y = np.arange(height)[:, None] + 0.5 - horizon
    x = np.arange(width)[None] + 0.5 - width * rng.uniform(0.42, 0.58)
    down = y * np.cos(roll) - x * np.sin(roll)
    right = y * np.sin(roll) + x * np.cos(roll)
    Z = np.where(down > 0, focal * above / np.maximum(down, 1e-3), SKY)
    metres = (np.where(Z < SKY, Z, 0) / focal).astype(np.float32)
    X = (right * metres).astype(np.float32)
    return Ground(X, Z.astype(np.float32), metres, right, down, focal, above)


def cloud(rng: np.random.Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Draw smooth noise in 0..1, (H, W)."""
    coarse = rng.random((cells, cells)).astype(np.float32)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)


CONDITIONS = ("night", "rain", "wear", "trees", "traffic", "tilt", "jpeg")
SHARE = 0.25  # of the scenes that have a given condition
CAR_WIDTH = 1.8  # metres

Conditions = dict[str, np.random.Generator]


def draw_conditions(
    seed: int, scene: int, allowed: Sequence[str] = CONDITIONS, share: float = SHARE
) -> Conditions:
    """Return the conditions of a scene, each with its own generator."""
    streams = {
        name: np.random.default_rng([seed, scene, 1 << 20, number])
        for number, name in enumerate(CONDITIONS)
    }
    return {name: rng for name, rng in streams.items() if rng.random() < share and name in allowed}


def tilt(rng: np.random.Generator | None, noise: np.random.Generator) -> tuple[float, float]:
    """Return the camera's roll (radians) and nod of a frame (share of the height)."""
    if rng is None:
        return 0.0, 0.0
    roll = np.deg2rad(rng.uniform(2, 7)) * rng.choice([-1, 1])
    return float(roll), float(rng.uniform(-0.08, 0.05) + noise.normal(0, 0.006))


def wear(rng: np.random.Generator | None, size: tuple[int, int]) -> np.ndarray | float:
    """Return what is left of the paint, 0..1: (H, W), patches of it gone; 1.0 without wear."""
    if rng is None:
        return 1.0
    patches = cloud(rng, size, 45) + 0.5 * (cloud(rng, size, 130) - 0.5)
    gone = np.clip((patches - rng.uniform(0.35, 0.6)) * 6, 0, 1)
    return rng.uniform(0.35, 0.8) * (1 - gone)


@dataclass(frozen=True)
class Car:
    """One vehicle: metres ahead of the camera and across the road, height, colour, lamps."""

    Z: float
    offset: float
    tall: float
    colour: np.ndarray
    oncoming: bool = False


def place_traffic(rng: np.random.Generator, lanes: Sequence[float], travelled: float) -> list[Car]:
    """Return more vehicles.

    ``lanes`` are the middles of the lanes and of the strip beside the road, metres across;
    ``travelled`` are the camera's metres.
    """
    cars = []
    for _ in range(int(rng.integers(4, 9))):
        oncoming = bool(rng.random() < 0.3)
        speed = rng.uniform(-2.5, -1.2) if oncoming else rng.uniform(-0.6, 0.6)
        where = lanes[int(rng.integers(len(lanes)))] + rng.normal(0, 0.4)
        tall = rng.choice([rng.uniform(1.4, 1.9), rng.uniform(2.4, 3.6)], p=[0.75, 0.25])
        start = rng.uniform(6, 45)
        colour = rng.uniform(20, 230, 3)
        cars.append(Car(start + speed * travelled, where, float(tall), colour, oncoming))
    return cars


def paint_car(
    image: np.ndarray, mask: np.ndarray, ground: Ground, car: Car, aside: float,
    glow: np.ndarray | None,
) -> None:  # fmt: skip
    """Paint a box with window, wheels and shadow, and clear the mask where it stands.

    Into ``image`` (H, W, 3) and ``mask`` (H, W) bool, ``aside`` metres to the right of the camera's
    axis; ``glow`` (H, W, 3) takes the light that is added at night.
    """
    scale = ground.focal / car.Z
    x, y = aside * scale, ground.height * scale
    half, high = CAR_WIDTH / 2 * scale, car.tall * scale
    across, up = (ground.right - x) / half, (y - ground.down) / high  # -1..1, 0..1 in the box
    wide = np.abs(across) < 1
    image[wide & (up < 0) & (up > -0.15 / car.tall)] *= 0.4
    body = wide & (up >= 0) & (up < 1)
    image[body] = car.colour
    image[body & (up > 0.55) & (up < 0.85) & (np.abs(across) < 0.88)] = 40
    image[body & (up < 0.12)] = 25
    mask[body] = False
    if glow is None:
        return
    lamp = np.array([1.0, 0.95, 0.8]) * 900 if car.oncoming else np.array([1.0, 0.08, 0.05]) * 380
    for side in (-0.7, 0.7):
        away = (across - side) ** 2 + ((up - 0.4) * car.tall / CAR_WIDTH * 2) ** 2
        spread = 0.25 if car.oncoming else 0.06
        glow += np.exp(-away / spread)[..., None] * lamp


def shade_trees(
    rng: np.random.Generator, image: np.ndarray, ground: Ground, travelled: float
) -> None:
    """Dapple the road with the shadow of leaves, which lies still on the ground."""
    leaves = np.zeros((128, 128), np.float32)
    for cells, weight in ((4, 0.5), (14, 0.3), (40, 0.3)):
        leaves += weight * cloud(rng, leaves.shape, cells)
    tile = np.pad(leaves, (0, 128), mode="symmetric")  # mirrored, it repeats without a seam
    scale = len(tile) / rng.uniform(15, 30)  # pixels a metre
    column = np.mod(ground.X * scale, len(tile)).astype(np.float32)
    row = np.mod((np.minimum(ground.Z, 200) + travelled) * scale, len(tile)).astype(np.float32)
    laid = cv2.remap(tile, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    dark = np.clip((laid - rng.uniform(0.4, 0.55)) * 14, 0, 1)
    edge, side = rng.uniform(-1, 6), rng.choice([-1, 1])
    reach = np.clip((side * ground.X + edge) / 1.5, 0, 1) * (ground.Z < SKY)
    image *= (1 - rng.uniform(0.4, 0.7) * dark * reach)[..., None]


def rain(
    rng: np.random.Generator, noise: np.random.Generator, image: np.ndarray, ground: Ground
) -> None:
    """Haze with distance, a wet road that mirrors the sky, streaks, and drops on the lens."""
    H, W = image.shape[:2]
    grey = rng.uniform(110, 175) * np.array([0.97, 1.0, 1.03])
    shine = rng.uniform(0.15, 0.4) * cloud(rng, (H, W), 14) * (ground.Z < 60)
    image += (grey - image) * shine[..., None]
    clear = np.exp(-np.minimum(ground.Z, 400) / rng.uniform(25, 80))
    image += (grey - image) * (1 - clear)[..., None]
    streaks = np.zeros((H, W), np.float32)
    lean, length = rng.uniform(-0.35, 0.35), H * rng.uniform(0.02, 0.07)
    for x, y in noise.uniform(0, [W, H], (int(rng.integers(60, 260)), 2)):
        end = (int(x + lean * length), int(y + length))
        cv2.line(streaks, (int(x), int(y)), end, float(noise.uniform(0.1, 0.45)), 1, cv2.LINE_AA)
    image += (225 - image) * streaks[..., None]
    drops = np.zeros((H, W), np.float32)
    for x, y in rng.uniform(0, [W, H], (int(rng.integers(0, 14)), 2)):
        cv2.circle(drops, (int(x), int(y)), int(W * rng.uniform(0.01, 0.035)), 1.0, -1, cv2.LINE_AA)
    blurred = cv2.GaussianBlur(image, (0, 0), W * 0.02)
    image += (blurred - image) * drops[..., None]


def darken(
    rng: np.random.Generator,
    noise: np.random.Generator,
    image: np.ndarray,
    ground: Ground,
    glow: np.ndarray,
) -> None:
    """Night: headlights on the near road, lamps of others, a dark sky and a noisy sensor."""
    reach, width = rng.uniform(10, 24), rng.uniform(2.5, 6)
    beam = np.exp(-ground.Z / reach) * np.exp(-((ground.X / (width + 0.12 * ground.Z)) ** 2))
    light = rng.uniform(0.03, 0.14) + rng.uniform(0.6, 1.3) * beam * (ground.Z < SKY)
    image *= light[..., None] * np.array([1.05, 0.98, 0.85])
    for _ in range(int(rng.integers(0, 6))):  # lamps beside the road
        x, y = rng.uniform(-0.5, 0.5) * image.shape[1], -rng.uniform(0.02, 0.3) * image.shape[0]
        away = (ground.right - x) ** 2 + (ground.down - y) ** 2
        size = image.shape[1] * rng.uniform(0.006, 0.02)
        glow += np.exp(-away / (2 * size**2))[..., None] * np.array([255, 215, 140])
    image += cv2.GaussianBlur(glow, (0, 0), image.shape[1] * 0.008)
    image += noise.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(3, 10))


def compress(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Return the image (H, W, 3) uint8 after JPEG at quality 12 to 50."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(12, 51))]
    done, data = cv2.imencode(".jpg", image[..., ::-1], quality)
    again = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert done and again is not None
    return np.ascontiguousarray(again[..., ::-1])
