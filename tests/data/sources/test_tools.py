"""Exports of Supervisely, VIA and CVAT, of six rows and eight columns."""

import base64
import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from src.data.masks import read_labelled
from src.data.sources.lanes import read_lanes
from src.data.sources.registry import detect_source
from tests.data.layout import refused

SQUARE = [[0, 0], [4, 0], [4, 4], [0, 4]]  # 16 pixels
HOLE = [[1, 1], [3, 1], [3, 3], [1, 3]]  # 4 of them


def masks_of(root, source):
    """Masks by id, with what is common to all readers."""
    assert detect_source(root) == source
    index = read_labelled("auto", root)
    assert read_lanes(root).classes == ("background", "lane")
    rows = index.table[["id", "target"]].itertuples(index=False)
    return index, {row.id: index.decode(index.root / row.target) for row in rows}


def bitmap(pixels, origin, *, alpha):
    """Supervisely packs a PNG: of palette with a transparent colour, or RGBA."""
    image = Image.fromarray(np.array(pixels, bool))
    file = io.BytesIO()
    if alpha:
        grey = image.convert("L")
        Image.merge("RGBA", [grey.point(lambda _: 0)] * 3 + [grey]).save(file, "PNG")
    else:
        image.save(file, "PNG", transparency=0)
    data = base64.b64encode(zlib.compress(file.getvalue())).decode()
    return {"classTitle": "dent", "geometryType": "bitmap",
            "bitmap": {"data": data, "origin": origin}}  # fmt: skip


def polygon(title, kind, exterior, interior=()):
    return {"classTitle": title, "geometryType": kind,
            "points": {"exterior": exterior, "interior": list(interior)}}  # fmt: skip


def supervisely(disk, name, *objects, size=(6, 8), tags=()):
    disk.image(name.replace("/ann/", "/img/").removesuffix(".json"))
    disk.json(name, {
        "description": "", "tags": [{"name": tag} for tag in tags],
        "size": {"height": size[0], "width": size[1]}, "objects": list(objects),
    })  # fmt: skip


@pytest.mark.parametrize("alpha", [False, True])
def test_supervisely(disk, alpha):
    disk.json("meta.json", {"classes": [{"title": "dent"}], "tags": []})
    supervisely(disk, "train/ann/1.jpg.json", bitmap([[1, 0], [1, 1]], [6, 4], alpha=alpha),
                polygon("rust", "polygon", SQUARE, [HOLE]))  # fmt: skip
    supervisely(disk, "train/ann/2.png.json")
    supervisely(disk, "val/ann/3.jpg.json", polygon("rust", "rectangle", [[1, 1], [3, 2]]),
                polygon("rust", "line", [[0, 0], [7, 5]]))  # fmt: skip
    index, masks = masks_of(disk.root, "supervisely")
    assert index.classes == ("background", "dent", "rust")
    assert index.table["split"].tolist() == ["train", "train", "valid"]
    assert (masks["1"] == 1).nonzero() == pytest.approx(np.array([[4, 5, 5], [6, 6, 7]]))
    assert (masks["1"] == 2).sum() == 12 and not masks["1"][1:3, 1:3].any()
    assert not masks["2"].any()
    assert masks["3"].sum() == 2 * 6 and (masks["3"][1:3, 1:4] == 2).all()


def test_supervisely_tags_divide_and_sizes_are_compared(disk):
    supervisely(disk, "set/ann/1.jpg.json", polygon("a", "polygon", SQUARE), tags=["train"])
    supervisely(disk, "set/ann/2.jpg.json", polygon("a", "polygon", SQUARE), tags=["x", "val"])
    assert masks_of(disk.root, "supervisely")[0].table["split"].tolist() == ["train", "valid"]
    supervisely(disk, "set/ann/2.jpg.json", size=(8, 6))
    refused(r"2\.jpg\.json is 6x8 pixels but its image .* is 8x6", read_labelled, "auto", disk.root)
    supervisely(disk, "set/ann/2.jpg.json", {"classTitle": "a", "geometryType": "bitmap"})
    refused(r"2\.jpg\.json is damaged \(KeyError\('bitmap'", read_labelled, "auto", disk.root)


def region(label, name, **shape):
    return {"shape_attributes": {"name": name, **shape}, "region_attributes": label}


VIA = [
    ("1.jpg", [region({"type": "dent"}, "polygon", all_points_x=[0, 4, 4, 0],
                      all_points_y=[0, 0, 4, 4])]),
    ("2.jpg", [region({"x": "", "type": {"rust": True}}, "rect", x=1, y=2, width=3, height=2),
               region({"type": "rust"}, "point", cx=7, cy=5)]),
    ("3.jpg", [region({"type": "dent"}, "circle", cx=4, cy=3, r=2)]),
    ("4.jpg", [region({"type": "dent"}, "ellipse", cx=4, cy=3, rx=2, ry=2, theta=0.5)]),
    ("5.jpg", []),
]  # fmt: skip


def via_json(disk, *, project):
    listed = {name: {"filename": name, "size": 9, "regions": regions, "file_attributes": {}}
              for name, regions in VIA}  # fmt: skip
    listed["2.jpg"]["regions"] = dict(enumerate(listed["2.jpg"]["regions"]))  # as VIA 1 writes them
    disk.json("via.json", {"_via_settings": {}, "_via_img_metadata": listed} if project else listed)


def via_csv(disk):
    lines = ["filename,file_size,region_id,region_shape_attributes,region_attributes"]
    for name, regions in VIA:
        for item in regions or [{}]:
            cells = [json.dumps(item.get(key, {})).replace('"', '""')
                     for key in ("shape_attributes", "region_attributes")]  # fmt: skip
            lines.append(f'{name},9,0,"{cells[0]}","{cells[1]}"')
    disk.text("via.csv", *lines)


@pytest.mark.parametrize(
    "write",
    [
        via_csv,
        lambda disk: via_json(disk, project=True),
        lambda disk: via_json(disk, project=False),
    ],
)
def test_via(disk, write):
    disk.image(*(f"images/{name}" for name, _ in VIA))
    write(disk)
    index, masks = masks_of(disk.root, "via")
    assert index.classes == ("background", "dent", "rust")
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        "1": 16,
        "2": 12,
        "3": 12,
        "4": 12,
    }  # fmt: skip  (a circle of 2 px: 12.57 of area)
    assert (masks["2"][2:4, 1:4] == 2).all()
    assert "photographs without a region, left out: 1 (5.jpg)" in index.notes
    assert "files with lines or points" in " | ".join(index.notes)


def test_via_damage_is_named(disk):
    disk.image("1.jpg")
    disk.json("via.json", {"1": {"filename": "1.jpg", "regions": [{"shape_attributes": {}}]}})
    refused(
        r"via\.json is damaged \(KeyError\('name'\)\): export", read_labelled, "auto", disk.root
    )


def cvat(disk, *images):
    body = [f'<image id="{k}" name="{name}" width="8" height="6"{extra}>{shapes}</image>'
            for k, (name, extra, shapes) in enumerate(images)]  # fmt: skip
    disk.text("annotations.xml", "<annotations>", "<version>1.1</version>", *body, "</annotations>")


def test_cvat(disk):
    disk.image("images/a/1.jpg", "images/2.jpg", "images/3.jpg")
    cvat(
        disk,
        ("a/1.jpg", ' subset="Train"', '<box label="rust" z_order="1" xtl="0" ytl="0" xbr="2" '
         'ybr="2"/><polygon label="dent" z_order="0" points="0,0;4,0;4,4;0,4"/><tag label="t"/>'),
        ("2.jpg", ' subset="Validation"', '<mask label="dent" rle="1, 2, 1, 2" left="5" top="3" '
         'width="3" height="2"/>'),
        ("3.jpg", "", '<polyline label="dent" points="0,0;4,4"/>'),
    )  # fmt: skip
    index, masks = masks_of(disk.root, "cvat")
    assert index.classes == ("background", "dent", "rust")
    assert index.table["split"].tolist() == ["train", "valid", ""]
    assert (masks["1"] == 1).sum() == 12 and (masks["1"][:2, :2] == 2).all()  # later ones are above
    # behind one pixel of background, row by row in a box of 3 x 2: .XX / .XX
    assert masks["2"].sum() == 4 and masks["2"][3:5, 6:8].all()
    assert not masks["3"].any()
    endless = '<mask label="dent" rle="1, 9999999999999999" left="0" top="0" width="2" height="2"/>'
    cvat(disk, ("2.jpg", "", endless))
    refused("beyond their box", masks_of, disk.root, "cvat")
    Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(disk.root / "images/3.jpg")
    cvat(disk, ("3.jpg", "", '<polygon label="dent" points="0,0;4,0;4,4"/>'))
    refused("annotations.xml is 8x6 pixels but its image .* is 16x12", masks_of, disk.root, "cvat")
    cvat(disk, ("2.jpg", "", '<polygon label="dent" points="0,0;4"/>'))
    refused(r"annotations\.xml is damaged .*odd number", read_labelled, "auto", disk.root)
    disk.text("annotations.xml", "<annotations>", "<version>1.1</version>", "<image")
    refused(r"annotations\.xml is damaged \(ParseError", read_labelled, "auto", disk.root)


RING = [[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]
GAP = [[1, 1], [2, 1], [2, 2], [1, 2], [1, 1]]


def feature(kind, places, **properties):
    geometry = {"type": kind, "coordinates": places}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def test_geojson(disk):
    disk.image("images/1.png", "images/2.png", "test/3.png")
    named = {"classification": {"name": "gland"}}
    several = feature("MultiPolygon", [[RING, GAP], [[[5, 0], [7, 0], [7, 2]]]], name="duct")
    point = feature("Point", [1, 1])
    content = {"type": "FeatureCollection", "features": [several, point]}
    disk.json("annotations/1.geojson", content)
    disk.json("annotations/2.json", [feature("Polygon", [RING], **named)])
    index, masks = masks_of(disk.root, "geojson")
    assert index.classes == ("background", "duct", "gland")
    assert (masks["1"] == 1).sum() == 16 - 1 + 3 and masks["1"][1, 1] == 0 == masks["1"][5, 5]
    assert (masks["2"] == 2).sum() == 16
    assert read_lanes(disk.root).classes == ("background", "lane")
    plain = feature("Polygon", [RING], classification="gland")
    disk.json("annotations/2.json", [plain, plain | {"geometry": None}])
    assert (masks_of(disk.root, "geojson")[1]["2"] == 2).sum() == 16
    disk.json("annotations/2.json", [feature("Polygon", [[[0, 0], [1]]])])
    refused("2.json is damaged", masks_of, disk.root, "geojson")


def test_a_map_beside_masks_is_no_annotation(disk):
    disk.image("1.png", "2.png")
    for n in (1, 2):
        Image.fromarray(np.eye(6, 8, dtype=np.uint8)).save(disk.path(f"{n}_mask.png"))
    disk.json("place.geojson", {"type": "FeatureCollection", "features": []})
    disk.text("meta.json", '{"Features": ["age"]}')
    assert detect_source(disk.root) == "folders"


def test_polygons_of_hubmap(disk):
    disk.image("train/a1.tif", "train/a2.tif")
    kinds = {"a1": "vessel", "a2": "unsure", "gone": "vessel"}
    lines = [{"id": name, "annotations": [{"type": kind, "coordinates": [RING]}]}
             for name, kind in kinds.items()]  # fmt: skip
    disk.text("polygons.jsonl", *map(json.dumps, lines))
    index, masks = masks_of(disk.root, "geojson")
    assert index.classes == ("background", "vessel", "unsure")
    assert [mask.sum() for mask in masks.values()] == [16, 32]
    assert any("photographs that are missing" in note for note in index.notes)
    disk.text("train.csv", "id,rle", "a1,1 2", "a2,1 2")
    assert detect_source(disk.root) == "rle"
