"""Readers of Label Studio, Supervisely, VIA, CVAT, GeoJSON: drawn as masks like COCO polygons.

Layouts, and which shapes count: docs/layouts.md. Lines and points have no area.
https://labelstud.io/guide/export
https://docs.supervisely.com/data-organization/00_ann_format_navi
https://www.robots.ox.ac.uk/~vgg/software/via/
https://docs.cvat.ai/docs/manual/advanced/xml_format/
https://datatracker.ietf.org/doc/html/rfc7946 (GeoJSON, of QuPath in pixels)
"""

from __future__ import annotations

import base64
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np

from src.data.csv_io import first_lines, read_csv
from src.data.files import split_of_word
from src.data.sources.annotations import find_json, find_shape_fault, naming_damage, read_json
from src.data.sources.coco import fill_polygon, to_runs
from src.data.sources.labelme import (
    Drawing,
    Outline,
    check_polygon,
    drawing_source,
    outline_box,
    outline_ellipse,
)
from src.data.sources.masks import IMAGE_SUFFIXES, image_header, note_missing, refuse_size
from src.data.sources.names import Locator, read_lines
from src.data.sources.places import walk
from src.data.sources.rle_table import find_runs
from src.files import Json, read_head


def draw_label_studio(locator: Locator, notes: list[str]) -> Iterator[Drawing]:
    """Yield the annotated photographs of the exported tasks."""
    idle = []
    for path in find_json(locator.root, "labelstudio"):
        for place, task in enumerate(read_json(path), start=1):
            with naming_damage(f"{path}: task {place}"):
                if not task["annotations"]:
                    idle.append(f"{path.name}, task {place}")
                    continue
                yield _read_task(path, place, task, locator)
    note_missing(notes, "tasks without annotations, left out", idle)


def _read_task(path: Path, place: int, task: Any, locator: Locator) -> Drawing:
    addresses = [value for value in task["data"].values() if isinstance(value, str)]
    name = unquote(addresses[0].rpartition("?d=")[2])
    image = locator.find_file(name, [path.parent])
    if image is None:  # uploads are stored with a hash before the name
        image = locator.find_file(PurePosixPath(name).name.partition("-")[2], [path.parent])
    width, height = image_header(image)[:2] if image else (1, 1)
    outlines = list(_outline_label_studio(task["annotations"][0]["result"], width, height))
    for _, shape in outlines:
        if fault := find_shape_fault(shape if isinstance(shape, dict) else [shape]):
            raise TypeError(fault)
    return Drawing(path, str(place), image, outlines)


def _outline_label_studio(result: Any, width: int, height: int) -> Iterator[tuple[str, Outline]]:
    """Yield (label, polygon in pixels or runs); places are stored in percent of the sides."""
    for item in result:
        kind, value = item["type"], item.get("value", {})
        if kind not in ("polygonlabels", "rectanglelabels", "brushlabels"):
            continue
        if kind == "brushlabels":
            packed = value.get("rle")
            stored = (item["original_height"], item["original_width"]) if packed else (0, 0)
            yield str(value[kind][0]), to_runs(unpack_brush(packed, *stored)) if packed else []
            continue
        corners = value.get("points", [])
        if kind == "rectanglelabels":
            x, y = value["x"], value["y"]
            right, low = x + value["width"], y + value["height"]
            corners = [(x, y), (right, y), (right, low), (x, low)]
        polygon = [side for x, y in corners for side in (x * width / 100, y * height / 100)]
        yield str(value[kind][0]), polygon


def unpack_brush(data: Sequence[int], height: int, width: int) -> np.ndarray:
    """Unpack a brush, the alpha of an RGBA image, into bool (H, W).

    After the count of numbers (32 bits), their width less 1 (5 bits) and four widths of run lengths
    less 1 (4 bits each) come runs: a bit that says whether one number is repeated, the choice of a
    width (2 bits), the length less 1, and the number or numbers.
    https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack

    Raises:
        ValueError: another count than the image has.
    """
    bits = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def take(width: int) -> int:
        nonlocal place
        place += width
        return int(bits[place - width : place], 2)

    count, word = take(32), take(5) + 1
    widths = [take(4) + 1 for _ in range(4)]
    if count != height * width * 4:
        raise ValueError(f"a brush of {count // 4} pixels on an image of {width}x{height}")
    pixels: list[int] = []
    while len(pixels) < count:
        repeated = take(1)
        length = take(widths[take(2)]) + 1
        pixels += [take(word)] * length if repeated else [take(word) for _ in range(length)]
    return np.reshape(pixels[3:count:4], (height, width)) > 0


def draw_supervisely(locator: Locator, notes: list[str]) -> Iterator[Drawing]:
    """Yield the photographs with a file below ``ann/``."""
    missing = []
    for path in find_json(locator.root, "supervisely"):
        image = _find_image(path.stem, [path.parent.parent / "img", path.parent], locator)
        if image is None:
            missing.append(path.name)
            continue
        with naming_damage(path):
            yield _read_supervisely(path, read_json(path), image)
    note_missing(notes, "annotated photographs that are missing, by file", missing)


def _find_image(name: str, near: Sequence[Path], locator: Locator) -> Path | None:
    """Return the photograph of a name with or without its ending."""
    names = [name]
    if Path(name).suffix.lower() not in IMAGE_SUFFIXES:
        names = [name + ending for ending in sorted(IMAGE_SUFFIXES)]
    return next(filter(None, (locator.find_file(name, near) for name in names)), None)


def _read_supervisely(path: Path, content: Json, image: Path) -> Drawing:
    width, height, _ = image_header(image)
    stated = (int(content["size"]["height"]), int(content["size"]["width"]))
    if stated != (height, width):
        refuse_size(stated, (height, width), path, image)
    outlines = [
        (str(item["classTitle"]), _outline_supervisely(item, height, width))
        for item in content["objects"]
    ]
    tags = [split_of_word(str(tag.get("name", ""))) for tag in content.get("tags") or []]
    return Drawing(path, "0", image, outlines, next(filter(None, tags), ""))


def _outline_supervisely(item: Json, height: int, width: int) -> Outline:
    kind = item.get("geometryType") or ("bitmap" if item.get("bitmap") else "polygon")
    if kind == "bitmap":
        return to_runs(_read_bitmap(item["bitmap"], height, width))
    if kind not in ("polygon", "rectangle"):
        return []
    points = _check(item["points"]["exterior"])
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points
        return outline_box(x0, y0, x1 + 1, y1 + 1)  # the last pixel belongs to it
    holes = [_check(hole) for hole in item["points"].get("interior") or []]
    if len(points) < 3:
        return []
    if not holes:
        return [value for point in points for value in point]
    mask = fill_polygon(np.array(points, float), height, width)
    for hole in holes:
        mask &= ~fill_polygon(np.array(hole, float), height, width)
    return to_runs(mask)


def _check(points: Any) -> list[tuple[float, float]]:
    check_polygon([value for x, y in points for value in (x, y)])
    return [(x, y) for x, y in points]


def _read_bitmap(bitmap: Json, height: int, width: int) -> np.ndarray:
    """Return the mask bool (H, W) of a packed PNG whose upper left corner lies at ``origin``."""
    from PIL import Image

    data = zlib.decompress(base64.b64decode(bitmap["data"]))
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        clear = "A" in image.mode or "transparency" in image.info
        part = np.asarray(image.convert("RGBA"))[..., 3 if clear else 0] > 0
    x, y = bitmap["origin"]
    mask = np.zeros((height, width), bool)
    mask[y : y + part.shape[0], x : x + part.shape[1]] = part
    return mask


_CSV = "region_shape_attributes"  # a column that no other table has


def draw_via(locator: Locator, notes: list[str]) -> Iterator[Drawing]:
    """Yield the photographs with regions."""
    idle = []
    for path in _find_via(locator.root):
        with naming_damage(path):
            for number, (name, regions) in enumerate(_read_via(path), start=1):
                if not regions:
                    idle.append(name)
                    continue
                image = locator.find_file(name, [path.parent])
                yield Drawing(path, str(number), image, [_read_via_region(r) for r in regions])
    note_missing(notes, "photographs without a region, left out", idle)


def _find_via(root: Path) -> list[Path]:
    found = find_json(root, "via")
    if found:
        return found
    tables = (root.joinpath(*p, f) for p, files in walk(root, 3) for f in files if f[-4:] == ".csv")
    return [path for path in tables if _CSV in first_lines(path)[0]]


def _read_via(path: Path) -> Iterator[tuple[str, list[Json]]]:
    """Yield (name of the photograph, its regions)."""
    if path.suffix.lower() == ".csv":
        table = read_csv(path)
        for name, lines in table.groupby("filename", sort=False):
            cells = lines[[_CSV, "region_attributes"]].replace("", "{}").map(json.loads)
            cells.columns = ["shape_attributes", "region_attributes"]
            yield str(name), [r for r in cells.to_dict("records") if r["shape_attributes"]]
        return
    content = read_json(path)
    for item in content.get("_via_img_metadata", content).values():
        regions = item["regions"]
        yield item["filename"], list(regions.values() if isinstance(regions, dict) else regions)


_VIA: dict[str, Callable[[Json], Iterable[float]]] = {  # shapes with an area → polygon
    "polygon": lambda s: chain(*zip(s["all_points_x"], s["all_points_y"], strict=True)),
    "rect": lambda s: outline_box(s["x"], s["y"], s["x"] + s["width"], s["y"] + s["height"]),
    "circle": lambda s: outline_ellipse(s["cx"], s["cy"], s["r"], s["r"]),
    "ellipse": lambda s: outline_ellipse(s["cx"], s["cy"], s["rx"], s["ry"], s.get("theta", 0.0)),
}


def _read_via_region(region: Json) -> tuple[str, list[float]]:
    shape = region["shape_attributes"]
    outline = _VIA.get(shape["name"], lambda _: ())
    polygon = [float(value) for value in outline(shape)]
    return _label_via(region["region_attributes"]), check_polygon(polygon)


def _label_via(attributes: dict[str, Any]) -> str:
    """Return the first attribute's value; of ticked boxes the first; "object" where there is none.

    Several attributes are kept in the order in which they were defined.
    """
    for value in attributes.values():
        ticked = (key for key, on in value.items() if on) if isinstance(value, dict) else [value]
        if text := str(next(iter(ticked), "")).strip():
            return text
    return "object"


def draw_cvat(locator: Locator, notes: list[str]) -> Iterator[Drawing]:
    """Yield the images of the files."""
    for path in _find_cvat(locator.root):
        with naming_damage(path):
            for image in ElementTree.parse(path).getroot().findall("image"):
                yield _read_cvat_image(path, image, locator)


def _read_cvat_image(path: Path, item: ElementTree.Element, locator: Locator) -> Drawing:
    image = locator.find_file(item.attrib["name"], [path.parent, path.parent / "images"])
    size = int(item.attrib["height"]), int(item.attrib["width"])
    shapes = sorted(item, key=lambda shape: int(shape.get("z_order", 0)))
    outlines = [
        (shape.attrib["label"], _outline_cvat(shape.tag, shape.attrib, *size))
        for shape in shapes
        if "label" in shape.attrib and shape.tag != "tag"
    ]
    split = split_of_word(item.get("subset", ""))
    return Drawing(path, item.attrib["id"], image, outlines, split, size)


def _outline_cvat(kind: str, item: Mapping[str, str], height: int, width: int) -> Outline:
    """Return polygon or run lengths of a shape, [] of one without an area."""
    if kind == "mask":
        runs = [int(word) for word in item["rle"].split(",")]
        left, top, across, down = (int(item[key]) for key in ("left", "top", "width", "height"))
        if sum(runs) > across * down:  # before they cost memory
            raise ValueError("run lengths beyond their box")
        part = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        box = np.pad(part, (0, across * down - part.size)).reshape(down, across)
        mask = np.zeros((height, width), bool)
        mask[top : top + down, left : left + across] = box
        return to_runs(mask)
    polygon: list[float] = []
    if kind == "polygon":
        polygon = [float(value) for value in item["points"].replace(";", ",").split(",")]
    elif kind == "box":
        polygon = outline_box(*(float(item[key]) for key in ("xtl", "ytl", "xbr", "ybr")))
    elif kind == "ellipse":
        polygon = outline_ellipse(*(float(item[key]) for key in ("cx", "cy", "rx", "ry")))
    return check_polygon(polygon)


def _find_cvat(root: Path) -> list[Path]:
    found = []
    for parts, files in walk(root, 3):
        for path in (root.joinpath(*parts, file) for file in files if file.endswith(".xml")):
            head = read_head(path, 4096)
            found += [path] if b"<annotations>" in head and b"<version>1.1" in head else []
    return found


def draw_geojson(locator: Locator, notes: list[str]) -> Iterator[Drawing]:
    """Yield the images whose name a file of features has, or a line of HuBMAP's."""
    for path in _find_features(locator.root):
        with naming_damage(path):
            for number, (name, items) in enumerate(_read_features(path), start=1):
                image = _find_image(name, [path.parent], locator)
                sides = image_header(image)[1::-1] if image else (0, 0)
                outlines = [(label, _outline_rings(geometry, *sides)) for label, geometry in items]
                yield Drawing(path, str(number), image, outlines)


_FEATURES = re.compile(rb'"type"\s*:\s*"Feature(Collection)?"')
_LINES = re.compile(rb'"annotations"\s*:.*"coordinates"\s*:', re.DOTALL)


def _find_features(root: Path) -> list[Path]:
    signs = {".json": _FEATURES, ".geojson": _FEATURES, ".jsonl": _LINES}
    found = []
    for parts, files in walk(root):
        for path in (root.joinpath(*parts, file) for file in files):
            sign = signs.get(path.suffix.lower())
            found += [path] if sign and sign.search(read_head(path, 4096)) else []
    return found if find_runs(root)[0] is None else []


def _has_features(root: Path) -> bool:
    """Tell whether files of features have images: a map of where they were taken has none."""
    found = _find_features(root)
    locator = Locator(root) if found else None
    return locator is not None and any(
        path.suffix.lower() == ".jsonl" or _find_image(path.stem, [path.parent], locator)
        for path in found
    )


def _read_features(path: Path) -> Iterator[tuple[str, list[tuple[str, Json]]]]:
    """Yield (name of an image, its labels and geometries)."""
    if path.suffix.lower() == ".jsonl":
        for item in map(json.loads, read_lines(path)):
            shapes = [(str(a["type"]), {**a, "type": "Polygon"}) for a in item["annotations"]]
            yield str(item["id"]), shapes
        return
    content = read_json(path)
    features = content if isinstance(content, list) else content.get("features", [content])
    items = [(_label_feature(f.get("properties") or {}), f["geometry"] or {}) for f in features]
    yield path.stem, items


def _label_feature(properties: Json) -> str:
    said = properties.get("classification") or {}
    name = said.get("name") if isinstance(said, dict) else said
    return str(name or properties.get("label") or properties.get("name") or "object")


def _outline_rings(geometry: Json, height: int, width: int) -> Outline:
    """Return the polygon, or the runs of what lies within an odd number of rings."""
    kind = geometry.get("type")
    if kind not in ("Polygon", "MultiPolygon"):
        return []
    places = geometry["coordinates"]
    rings = [ring for part in (places if kind == "MultiPolygon" else [places]) for ring in part]
    polygons = [check_polygon([v for point in ring for v in point[:2]]) for ring in rings]
    if len(polygons) == 1:
        return polygons[0]
    mask = np.zeros((height, width), bool)
    for polygon in polygons:
        mask ^= fill_polygon(np.reshape(polygon, (-1, 2)), height, width)
    return to_runs(mask)


LABEL_STUDIO = drawing_source(
    "labelstudio", draw_label_studio, lambda root: find_json(root, "labelstudio"),
    " holds no annotated task of Label Studio: export the project again",
)  # fmt: skip
SUPERVISELY = drawing_source(
    "supervisely", draw_supervisely, lambda root: find_json(root, "supervisely"),
    " holds Supervisely's ann/, but no img/ with its photographs: add it",
)  # fmt: skip
VIA = drawing_source(
    "via", draw_via, _find_via, ": VIA's file has no region: draw some, and save again"
)
CVAT = drawing_source(
    "cvat", draw_cvat, _find_cvat,
    " holds no annotations.xml of images: export as CVAT for images",
)  # fmt: skip
GEOJSON = drawing_source(
    "geojson", draw_geojson, _has_features,
    " holds no GeoJSON with features: export the annotations again",
)  # fmt: skip
