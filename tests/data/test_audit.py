import csv
import sys
import types

import cv2
import numpy as np
import pandas as pd
import pytest

from src.data.audit import audit_images, write_duplicates, write_quarantine
from tests.data.test_audit_duplicates import photograph, recompress


@pytest.fixture(autouse=True)
def no_strict_decoder(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)


def put(root, images, targets=None):
    """Write {name: pixels or bytes} and return their table."""
    for name, image in images.items():
        data = image if isinstance(image, bytes) else cv2.imencode(name[-4:], image)[1].tobytes()
        (root / name).write_bytes(data)
    names = list(images)
    columns = {"id": names, "image": names, "target": targets or ["a"] * len(names)}
    return pd.DataFrame(columns, dtype="str")


def test_clean_images_give_nothing(tmp_path):
    table = put(tmp_path, {f"{seed}.jpg": photograph(seed) for seed in range(10)})
    found = audit_images(table, tmp_path)
    assert (found.unreadable, found.exact, found.conflicts, found.near) == ({}, (), (), ())
    assert found.linked == () and found.notes == ()


def test_unreadable_images_are_quarantined_with_their_names(tmp_path):
    whole = cv2.imencode(".jpg", photograph(0))[1].tobytes()
    images = {
        "good.jpg": whole,
        "cut.jpg": whole[: len(whole) // 2],
        "empty.jpg": b"",
        "=text.jpg": b"hello",
    }
    table = put(tmp_path, images)
    (tmp_path / "folder.jpg").mkdir()
    table.loc[len(table)] = ["folder.jpg", "folder.jpg", "a"]
    found = audit_images(table, tmp_path)
    assert sorted(found.unreadable) == [1, 2, 3, 4]
    for row, reason in found.unreadable.items():
        assert table["image"][row] in reason
    assert "4 unreadable images quarantined, first: " in found.notes[0]
    write_quarantine(found, table, tmp_path / "quarantine.csv")
    with (tmp_path / "quarantine.csv").open(encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["id", "image", "target", "reason"]
    assert lines[3][:3] == ["'=text.jpg", "'=text.jpg", "a"] and len(lines) == 5


def test_exact_and_near_copies_and_conflicts(tmp_path):
    one, two, three = photograph(1), photograph(2), photograph(3)
    images = {
        "1.png": one, "1-copy.png": one, "1-again.png": one,
        "2.png": two, "2-copy.png": two,
        "3.png": three, "3-near.jpg": recompress(three), "1-near.jpg": recompress(one),
        "4.png": photograph(4),
    }  # fmt: skip
    table = put(tmp_path, images, ["a", "a", "b", "c", "c", "d", "e", "a", "f"])
    found = audit_images(table, tmp_path)
    assert found.exact == ((0, 1, 2), (3, 4)) and found.conflicts == ((0, 1, 2),)
    assert found.near == ((0, 7), (5, 6))
    assert found.linked == found.exact + found.near
    assert any("1.png (a), 1-copy.png (a)" in note for note in found.notes)
    write_duplicates(found, table, tmp_path / "duplicates.csv")
    lines = (tmp_path / "duplicates.csv").read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["set,kind,id,image,target", "0,conflict,1.png,1.png,a"]
    assert lines[-1] == "3,near,3-near.jpg,3-near.jpg,e" and len(lines) == 10


def test_the_result_does_not_depend_on_threads(tmp_path, monkeypatch):
    photographs = [cv2.imencode(".jpg", photograph(seed))[1].tobytes() for seed in range(30)]
    table = put(tmp_path, {f"{n}.jpg": photographs[n % 30] for n in range(600)})
    counted = []

    def progress(results):
        for result in results:
            counted.append(result)
            yield result

    monkeypatch.setattr("os.cpu_count", lambda: 1)
    one = audit_images(table, tmp_path, progress=progress)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    many = audit_images(table, tmp_path)
    assert one == many and len(counted) == 600
    assert len(one.exact) == 30 and sum(map(len, one.exact)) == 600


def test_a_set_too_large_is_not_grouped(tmp_path):
    scene = photograph(0)
    images = {}
    for number in range(40):  # frames of one scene: alike, none a copy of another's bytes
        frame = scene.copy()
        frame[0, number] = 0
        images[f"{number}.png"] = frame
    found = audit_images(put(tmp_path, images), tmp_path)
    assert found.near == () and "40 images look too much alike" in found.notes[-1]


def strict_decoder(message):
    def decode_jpeg(data, colorspace, **options):
        assert colorspace == "GRAY" and options["strict"] is True
        if message:
            raise ValueError(message)

    return types.SimpleNamespace(decode_jpeg=decode_jpeg)


@pytest.mark.parametrize(
    ("message", "tail", "damaged"),
    [
        ("", b"", False),
        ("Corrupt JPEG data: premature end of data segment", b"", True),
        ("Corrupt JPEG data: 4 extraneous bytes before marker 0xd2", b"", True),
        ("Corrupt JPEG data: 4 extraneous bytes before marker 0xd9", b"abcd", True),
        ("Corrupt JPEG data: 4 extraneous bytes before marker 0xd9", bytes(4), False),
        ("Unsupported color conversion request", b"", False),
    ],
)
def test_damage_inside_a_jpeg_is_found_where_a_strict_decoder_is(
    tmp_path, monkeypatch, message, tail, damaged
):
    whole = cv2.imencode(".jpg", photograph(0))[1].tobytes()
    table = put(tmp_path, {"a.jpg": whole[:-2] + tail + whole[-2:]})
    monkeypatch.setitem(sys.modules, "simplejpeg", strict_decoder(message))
    found = audit_images(table, tmp_path)
    assert (0 in found.unreadable) == damaged
    assert not damaged or "a.jpg is damaged inside" in found.unreadable[0]


@pytest.mark.parametrize("ending", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_16_bits_that_use_12_are_said_to_become_black(tmp_path, ending, channels):
    wide = {}
    for seed in range(3):
        pixels = photograph(seed).astype(np.uint16)[..., :1].repeat(channels, axis=2)
        pixels[0, 0] = 255
        scale = (16, 16, 257)[seed]  # two of 12 bits, one of 16
        wide[f"{seed}{ending}"] = pixels * scale
        if channels == 4:
            wide[f"{seed}{ending}"][..., 3] = 65535
    table = put(tmp_path, {**wide, "8bit.png": photograph(9) // 32})
    found = audit_images(table, tmp_path)
    assert len(found.notes) == 1
    assert "2 of 3 images with 16 bits reach only 1/16" in found.notes[0]
    assert f"first: 0{ending}" in found.notes[0] and "8 bits" in found.notes[0]
