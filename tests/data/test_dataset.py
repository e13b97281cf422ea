"""Samples: right pixels, right labels, pure in (seed, epoch, row), and errors that name a file."""

import pickle

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from src.data.canonical import ImageSource, MaskSource, canonical_side, resize_image
from src.data.dataset import ImageDataset, to_tensor
from src.data.transforms import eval_transform, train_mask_transform, train_transform
from src.script import UserError


def write_image(path, pixels):
    pixels = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for row in range(4):
        image = generator.integers(0, 256, (20 + row, 30, 3), dtype=np.uint8)
        write_image(tmp_path / f"사진{row}.png", image)
        mask = np.full((20 + row, 30), row, np.uint8)
        mask[:10] = 255
        write_image(tmp_path / f"mask{row}.png", mask)
    return tmp_path


IMAGES = [f"사진{row}.png" for row in range(4)]
MASKS = [f"mask{row}.png" for row in range(4)]


def test_evaluation_sample_is_the_resized_file(folder):
    data = ImageDataset(ImageSource(folder, IMAGES, 16), [2, 0, 1, 2], eval_transform(16))
    sample = data[(0, 2)]
    stored = cv2.imdecode(np.fromfile(folder / IMAGES[2], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    expected = np.asarray(Image.fromarray(stored).resize((16, 16), Image.Resampling.BILINEAR))
    difference = sample["image"].permute(1, 2, 0).numpy().astype(int) - expected
    assert np.abs(difference).max() <= 1  # they round in another place
    assert sample["image"].dtype == torch.uint8 and sample["image"].is_contiguous()
    assert sample["index"].item() == 2 and sample["target"].item() == 1
    assert sample["index"].dtype == sample["target"].dtype == torch.int64
    assert len(data) == 4


def test_test_images_have_no_target(folder):
    data = ImageDataset(ImageSource(folder, IMAGES, 16), None, eval_transform(16))
    assert set(data[(0, 0)]) == {"image", "index"}


def test_augmentation_is_pure_in_seed_epoch_and_row(folder):
    source = ImageSource(folder, IMAGES, canonical_side(16))
    data = ImageDataset(source, [0] * 4, train_transform(16), seed=1)
    first = data[(3, 1)]["image"]
    assert not torch.equal(first, data[(4, 1)]["image"])
    spawned = pickle.loads(pickle.dumps(data))
    assert torch.equal(first, spawned[(3, 1)]["image"])
    other = ImageDataset(source, [0] * 4, train_transform(16), seed=2)
    assert not torch.equal(first, other[(3, 1)]["image"])


@pytest.mark.parametrize(("size", "side"), [(224, 256), (128, 144), (384, 440), (8, 8)])
def test_canonical_side(size, side):
    assert canonical_side(size) == side


def test_resize_averages_when_it_shrinks():
    image = np.zeros((4, 4, 3), np.uint8)
    image[::2] = 200  # stripes: any sampling would see 0 or 200, their average is 100
    assert (np.abs(resize_image(image, (2, 2)).astype(int) - 100) <= 30).all()
    assert resize_image(image, (4, 4)) is image
    assert resize_image(image, (8, 2)).shape == (8, 2, 3)


def test_resized_masks_stay_labels(folder):
    data = ImageDataset(MaskSource(folder, IMAGES, MASKS, size=(64, 96)), None, eval_transform())
    sample = data[(0, 2)]
    assert sample["image"].shape == (3, 64, 96)
    assert set(sample["mask"].unique().tolist()) == {2, 255}


def test_training_crops(folder):
    source = MaskSource(folder, IMAGES, MASKS)
    data = ImageDataset(source, None, train_mask_transform((32, 16)), seed=1)
    sample = data[(0, 1)]
    assert sample["image"].shape == (3, 32, 16) and sample["mask"].shape == (32, 16)
    assert torch.equal(sample["image"], data[(0, 1)]["image"])
    assert set(sample["mask"].unique().tolist()) <= {1, 255}


def test_without_masks(folder):
    data = ImageDataset(ImageSource(folder, IMAGES, 32), None, eval_transform())
    assert set(data[(0, 0)]) == {"image", "index"}


def test_errors_name_the_file(folder):
    (folder / IMAGES[1]).write_bytes(b"text")
    data = ImageDataset(ImageSource(folder, IMAGES, 16), None, eval_transform(16))
    with pytest.raises(UserError, match="사진1"):
        data[(0, 1)]
    with pytest.raises(UserError, match=r"mask1\.png.*30x21.*30x20"):
        MaskSource(folder, IMAGES[:1], MASKS[1:2])[0]

    def far(path):
        return np.full((20, 30), 300, np.int32)

    with pytest.raises(UserError, match=r"mask0\.png"):
        MaskSource(folder, IMAGES, MASKS, read_mask=far)[0]

    def broken(path):
        raise KeyError("groundTruth")

    broken_data = ImageDataset(
        MaskSource(folder, IMAGES, MASKS, read_mask=broken), None, eval_transform()
    )
    with pytest.raises(RuntimeError, match=r"사진0\.png.*groundTruth"):
        broken_data[(0, 0)]


def test_to_tensor_is_a_copy():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    tensor = to_tensor(image)
    assert torch.equal(tensor, torch.from_numpy(image.copy()).permute(2, 0, 1))
    image[:] = 0
    assert tensor.max() == 23
