"""Masks in colours: tables that name them, one colour on black, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from src.data.masks import VoidReader, read_labelled
from src.data.sources.registry import read_source
from src.script import UserError
from tests.data.layout import refused

RED, BLUE, WHITE = (250, 50, 83), (51, 221, 255), (255, 255, 255)


def masks_of(index):
    return [index.decode(index.root / target).tolist() for target in index.table["target"]]


def lay(disk, *colours):
    disk.image("images/1.jpg")
    disk.mask("masks/1.png", {(0, place): colour for place, colour in enumerate(colours)})


@pytest.mark.parametrize(
    ("name", "lines"),
    [("labelmap.txt", ["# label:color_rgb:parts:actions", "crack:250,50,83::", "background:0,0,0::",
                       "spot:51,221,255::"]),
     ("class_dict.csv", ["name, r, g, b", "crack, 250, 50, 83", "background, 0, 0, 0",
                         "spot, 51, 221, 255"]),
     ("label_colors.txt", ["250 50 83\tcrack", "0 0 0\tbackground", "51 221 255\tspot"])],
)  # fmt: skip
def test_a_table_names_the_colours(disk, name, lines):
    lay(disk, RED, BLUE)
    disk.text(name, *lines)
    index = read_labelled("auto", disk.root)
    assert index.classes == ("background", "crack", "spot")
    assert masks_of(index)[0][0][:3] == [1, 2, 0]


def test_void_is_no_class_and_a_colour_without_a_name_is_refused(disk):
    lay(disk, RED, BLUE)
    disk.text("class_dict.csv", "name,r,g,b", "bg,0,0,0", "Void,250,50,83", "a,51,221,255")
    index = read_labelled("auto", disk.root)
    assert index.classes == ("bg", "a") and index.ignore_index == 255
    assert masks_of(index)[0][0][:3] == [255, 1, 0]
    disk.text("class_dict.csv", "name,r,g,b", "bg,0,0,0", "a,51,221,255")
    with pytest.raises(
        UserError, match=r"2% of .* have no class_dict.csv's colour, such as 250,50,83"
    ):
        masks_of(read_labelled("auto", disk.root))
    disk.text("class_dict.csv", "name,r,g,b", "bg,0,0,0", "a,0,0,0")
    refused("two classes have the colour", read_labelled, "auto", disk.root)


def test_one_colour_on_black_needs_no_table_and_several_do(disk):
    lay(disk, RED)
    index = read_labelled("auto", disk.root)
    assert index.classes == ("background", "foreground") and masks_of(index)[0][0][:2] == [1, 0]
    lay(disk, RED, BLUE)
    refused(r"1\.png holds colours.*name them in class_dict\.csv", read_labelled, "auto", disk.root)
    disk.text("class_dict.csv", "b,0,0,0", "x,250,50,83", "y,51,221,255")  # followed
    assert read_labelled("auto", disk.root).classes == ("b", "x", "y")
    index = read_labelled("lanes", disk.root)  # of which all are one
    assert masks_of(index)[0][0][:3] == [1, 1, 0]


def test_the_table_names_numbers_too(disk):
    disk.image("images/1.jpg", "images/2.jpg")
    disk.mask("masks/1.png", {(0, 0): 2})
    disk.mask("masks/2.png", {(0, 0): WHITE, (1, 1): WHITE})  # grey, though RGB
    disk.text("class_dict.csv", "a,0,0,0", "b,250,50,83", "c,51,221,255")
    (disk.root / "masks/2.png").unlink()
    assert read_labelled("auto", disk.root).classes == ("a", "b", "c")
    disk.mask("masks/1.png", {(0, 0): WHITE})
    disk.text("class_dict.csv", "none,0,0,0", "road,255,255,255")
    index = read_labelled("auto", disk.root)
    assert index.classes == ("none", "road") and np.sum(masks_of(index)[0]) == 1


@pytest.mark.parametrize("source", ["folders", "lanes"])
def test_black_masks_before_coloured_ones_say_nothing(disk, source):
    lay(disk, RED)
    disk.image("images/0.jpg", "images/00.jpg")
    disk.mask("masks/0.png", {(0, 0): (0, 0, 0)})
    disk.mask("masks/00.png", {})
    index = read_labelled(source, disk.root)
    assert sum(map(np.sum, masks_of(index))) == 1
    disk.mask("masks/1.png", {(0, 0): RED, (0, 1): BLUE})
    refused(r"1\.png holds colours", read_labelled, "folders", disk.root)


@pytest.mark.parametrize("source", ["folders", "lanes"])
def test_palettes_that_differ_are_read_by_their_colours(disk, source):
    lay(disk, WHITE)
    disk.image("images/0.jpg")
    disk.mask("masks/0.png", {(0, 0): (0, 0, 0)})
    for number in (0, 1):  # Pillow puts white first, and black where there is no white
        path = disk.root / f"masks/{number}.png"
        Image.open(path).quantize(2).save(path)
    assert Image.open(path).getpixel((0, 0)) == 0
    assert sum(map(np.sum, masks_of(read_labelled(source, disk.root)))) == 1


def test_a_palette_in_another_order_than_the_table_is_read_by_its_colours(disk):
    disk.image("images/0.jpg", "images/1.jpg")
    for number in range(2):
        mask = Image.fromarray(np.array([[2, 2, 0], [2, 1, 0]], np.uint8).repeat(3, 0))
        mask.putpalette([*BLUE, *RED, 0, 0, 0])
        mask.resize((8, 6)).save(disk.path(f"masks/{number}.png"))
    named = ["bg,0,0,0", "red,{},{},{}".format(*RED), "blue,{},{},{}".format(*BLUE)]
    disk.text("class_dict.csv", *named)
    index = read_labelled("auto", disk.root)
    assert index.classes == ("bg", "red", "blue")
    mask = np.array(masks_of(index)[0])
    assert (mask[0, 0], mask[5, 4], mask[0, 7]) == (0, 1, 2)
    disk.text("class_dict.csv", named[2], named[1], named[0].replace("bg", "none"))
    assert np.array(masks_of(read_labelled("auto", disk.root))[0])[0, 0] == 2  # they agree: numbers


def test_soft_edges_of_a_colour_are_cut_as_those_of_grey_are(disk):
    disk.image("images/0.jpg", "images/1.jpg")
    places = {(r, c): (60, 0, 0) for r in range(1, 5) for c in range(1, 6)}
    places |= {(r, c): (255, 0, 0) for r in range(2, 4) for c in range(2, 5)}
    for number in range(2):
        disk.mask(f"masks/{number}.png", places)
    index = read_source("lanes", disk.root)
    assert index.decode(index.mask_path(0)).sum() == 6
    assert any("soft edges" in note for note in index.notes)
    disk.mask("masks/0.png", {(2, 2): (255, 0, 0), (5, 5): (60, 0, 0), (5, 6): (60, 0, 0)})
    disk.mask("masks/1.png", {(0, 0): (60, 0, 0)})  # a colour of its own, no edge
    index = read_source("lanes", disk.root)
    assert index.decode(index.mask_path(0)).sum() == 3


def test_another_colour_in_the_table_is_another_cache(disk):
    """The masks are the same files; their cached labels were those of the table of before."""
    disk.image("images/0.jpg")
    disk.mask("masks/0.png", {(0, 0): (64, 0, 0), (0, 1): (0, 64, 0), (1, 1): (0, 0, 64)})
    said = []
    for car, dog in (("64,0,0", "0,64,0"), ("0,64,0", "64,0,0"), ("0,64,0", "64,0,0")):
        disk.text("class_dict.csv", "bg,0,0,0", f"car,{car}", f"dog,{dog}", "cat,0,0,64")
        said.append(VoidReader(read_source("folders", disk.root)).describe())
    assert said[0] != said[1] == said[2]
