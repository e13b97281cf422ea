"""EXIF orientations of photographs with masks: counted, and named where they are the cause."""

import numpy as np
import pytest
from PIL import Image

from src.data.canonical import MaskSource
from src.data.masks import image_size, read_labelled
from src.script import UserError


def photograph(disk, name, orientation, size=(6, 8)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(disk.path(name), exif=exif)


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_images_with_an_orientation_are_counted(disk, orientation, ending):
    photograph(disk, f"images/1.{ending}", orientation)
    photograph(disk, "images/2.jpg", 1)
    for name in ("1", "2"):
        disk.mask(f"masks/{name}.png", {(0, 0): 1})
    notes = " | ".join(read_labelled("auto", disk.root).notes)
    assert "with an EXIF orientation, which is applied" in notes
    assert f"drawn on the turned image: 1 (images/1.{ending})" in notes


def test_an_upright_set_has_no_such_note(disk):
    disk.image("images/1.jpg")
    disk.mask("masks/1.png", {(0, 0): 1})
    assert not read_labelled("auto", disk.root).notes


def test_a_mask_in_stored_pixels_is_refused_by_its_cause_and_the_remedy_works(disk):
    photograph(disk, "images/1.jpg", 6)
    disk.mask("masks/1.png", {(0, 0): 1})
    index = read_labelled("auto", disk.root)
    assert image_size(index.image_path(0)) == (8, 6)
    source = MaskSource(disk.root, ["images/1.jpg"], ["masks/1.png"])
    what = r"masks/1\.png is 8x6 pixels but its image .*images/1\.jpg is 6x8 as its EXIF orientati"
    with pytest.raises(UserError, match=what + r"on 6 turns it.*remove the EXIF orientation"):
        source[0]
    photograph(disk, "images/1.jpg", 1)
    assert source[0].shape == (6, 8, 4)


@pytest.mark.parametrize(("second", "noted"), [((8, 6), True), ((4, 3), False)])
def test_stacks_of_pages_are_counted_previews_are_not(disk, second, noted):
    pages = [Image.new("RGB", size, (9, 9, 9)) for size in ((8, 6), second)]
    pages[0].save(disk.path("images/1.tif"), save_all=True, append_images=pages[1:])
    disk.mask("masks/1.png", {(0, 0): 1})
    notes = " ".join(read_labelled("auto", disk.root).notes)
    assert ("of several pages, of which the first alone is read" in notes) == noted
