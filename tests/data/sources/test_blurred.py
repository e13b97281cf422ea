"""JPEG masks: black and white are cut in the middle, other greys and colours are refused."""

import cv2
import numpy as np
import pytest

from src.data.masks import read_labelled
from tests.data.layout import refused


def write(disk, mask, name="masks/1.jpg", quality=75):
    path = disk.path(name)
    cv2.imwrite(str(path.with_suffix(".jpg")), mask, [cv2.IMWRITE_JPEG_QUALITY, quality])
    path.with_suffix(".jpg").rename(path)
    image = path.parent.parent / "images" / f"{path.stem}.png"
    image.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(image), np.full((*mask.shape[:2], 3), 90, np.uint8))


def circle(value=255, thickness=-1):
    mask = np.zeros((96, 96), np.uint8)
    cv2.circle(mask, (50, 40), 25, value, thickness)
    return mask


@pytest.mark.parametrize("thickness", [-1, 1])
@pytest.mark.parametrize("quality", [50, 95])
def test_black_and_white_come_back(disk, thickness, quality):
    mask = circle(thickness=thickness)
    write(disk, mask, quality=quality)
    index = read_labelled("auto", disk.root)
    assert index.classes == ("background", "foreground")
    assert any("masks are JPEG: greys from 128 on are read as foreground" in n for n in index.notes)
    assert np.mean(index.decode(index.root / "masks/1.jpg") != (mask > 0)) < 0.002
    assert read_labelled("lanes", disk.root).classes == ("background", "lane")


def test_a_jpeg_that_is_called_png_is_read_too(disk):
    write(disk, circle(), "masks/1.png")
    assert (
        read_labelled("auto", disk.root).decode(disk.root / "masks/1.png").sum()
        == (circle() > 0).sum()
    )


def test_masks_beside_their_images(disk):
    write(disk, circle(), "scans/1_mask.jpg")
    (disk.root / "images/1_mask.png").rename(disk.root / "scans/1.png")
    assert read_labelled("auto", disk.root).table["target"].tolist() == ["scans/1_mask.jpg"]


def test_what_jpeg_has_changed_is_refused(disk):
    both = circle()
    both[80:] = 128
    for mask in (both, circle(3), circle(128)):
        write(disk, mask)
        refused(
            r"are JPEG and not black and white alone \(many pixels",
            read_labelled,
            "auto",
            disk.root,
        )
    write(disk, cv2.merge([circle(), circle() * 0, circle() * 0]))
    refused(r"1\.jpg is a JPEG of colours: export the masks anew", read_labelled, "auto", disk.root)
    write(disk, circle())
    disk.text("classes.txt", "a", "b", "c")
    refused("which changes the numbers of 3 classes", read_labelled, "auto", disk.root)
