"""Caches: the same pixels, each file decoded once, safe for many processes, and never stale."""

import os
import pickle
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from src.data import cache
from src.data.cache import DiskCache, RamCache, Subset, build, free_memory, num_bytes, open_cache
from src.data.canonical import ImageSource, MaskSource
from src.data.dataset import EpochSampler, ImageDataset, make_loader
from src.data.transforms import train_transform
from src.script import UserError
from tests.data.layout import refused

NAMES = [f"{row}.jpg" for row in range(9)]


class Counting(ImageSource):
    """Counts decodes; the count is shared with forked processes."""

    def __init__(self, *args):
        super().__init__(*args)
        self.count = torch.zeros(len(self), dtype=torch.int64).share_memory_()

    def __getitem__(self, row):
        self.count[row] += 1
        return super().__getitem__(row)


@pytest.fixture
def images(tmp_path):
    generator = np.random.default_rng(0)
    folder = tmp_path / "input"
    folder.mkdir()
    for name in NAMES:
        cv2.imwrite(str(folder / name), generator.integers(0, 256, (90, 70, 3), dtype=np.uint8))
    return folder


def batches(source, num_workers):
    data = ImageDataset(source, range(len(source)), train_transform(32), seed=4)
    sampler = EpochSampler(len(source), 3, seed=1, shuffle=True)
    loader = make_loader(data, sampler, num_workers=num_workers)
    found = []
    for epoch in range(2):
        sampler.start(epoch)
        found += [batch["image"] for batch in loader]
    return torch.cat(found)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_cache_gives_the_same_batches(images, tmp_path, num_workers):
    source = Counting(images, NAMES, 40)
    plain = batches(open_cache(source, "none"), num_workers)
    assert (source.count >= 2).all()
    assert source.count.sum() == 18 + (num_workers > 0)  # one sample tells a batch's bytes
    for kind in ("ram", "disk"):
        source = Counting(images, NAMES, 40)
        kept = open_cache(source, kind, folder=tmp_path / "cache", num_workers=num_workers)
        assert torch.equal(batches(kept, num_workers), plain)
        assert (source.count == 1).all() or kind == "disk"
        assert source.count.max() <= 2  # the disk's probes


def test_rows_of_one_file_serve_every_fold(images, tmp_path):
    source = ImageSource(images, NAMES, 40)
    for rows in ([0, 3, 8], [2, 1]):
        for kind in ("none", "ram", "disk"):
            view = open_cache(source, kind, rows=rows, folder=tmp_path / "cache")
            assert len(view) == len(rows) and view.name(1).endswith(NAMES[rows[1]])
            assert all(np.array_equal(view[i], source[row]) for i, row in enumerate(rows))
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


def test_masks_are_kept_beside_their_images(images, tmp_path):
    for name in NAMES:
        mask = np.random.default_rng(1).integers(0, 5, (90, 70), dtype=np.uint8)
        cv2.imwrite(str(images / f"{name}.png"), mask)
    source = MaskSource(images, NAMES, [f"{name}.png" for name in NAMES], size=(32, 64))
    kept = DiskCache(source, tmp_path)
    assert kept[3].shape == (32, 64, 4) and np.array_equal(kept[3], source[3])


def test_a_disk_cache_is_built_once_and_decodes_no_more(images, tmp_path):
    build(ImageSource(images, NAMES, 40), tmp_path)
    source = Counting(images, NAMES, 40)
    kept = DiskCache(source, tmp_path)
    for row in range(9):
        kept[row]
    assert source.count.sum() == 3  # the probes
    again = pickle.loads(pickle.dumps(kept))
    assert np.array_equal(again[5], kept[5]) and len(pickle.dumps(kept)) < 10_000


def test_changed_files_sizes_and_sides_get_another_file(images, tmp_path):
    paths = {build(ImageSource(images, NAMES, 40), tmp_path)}
    assert build(ImageSource(images, NAMES, 40), tmp_path) in paths
    paths.add(build(ImageSource(images, NAMES, 48), tmp_path))
    paths.add(build(ImageSource(images, NAMES[::-1], 40), tmp_path))
    status = (images / NAMES[0]).stat()
    os.utime(images / NAMES[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    paths.add(build(ImageSource(images, NAMES, 40), tmp_path))
    assert len(paths) == 4


@pytest.mark.parametrize("harm", ["cut", "longer", "shape", "garbage", "pixels"])
def test_a_damaged_file_is_built_again(images, tmp_path, harm):
    source = ImageSource(images, NAMES, 40)
    path = build(source, tmp_path)
    whole = path.read_bytes()
    harmed = {
        "cut": whole[:-1],
        "longer": whole + b"0",
        "shape": whole.replace(b"(9, 40, 40, 3)", b"(9, 40, 3, 40)"),
        "garbage": b"garbage",
        "pixels": whole[:-41] + b"12345" + whole[-36:],  # 9 checksums stand behind
    }[harm]
    assert harmed != whole
    path.write_bytes(harmed)
    build(source, tmp_path)
    assert path.read_bytes() == whole


def build_slowly(images, folder, log):
    class Slow(ImageSource):
        def __getitem__(self, row):
            with Path(log).open("a") as file:
                file.write(f"{row}\n")
            return super().__getitem__(row)

    build(Slow(images, NAMES, 40), folder)


def test_several_processes_build_once(images, tmp_path):
    context = get_context("fork")
    log = tmp_path / "log"
    arguments = (images, tmp_path / "cache", log)
    processes = [context.Process(target=build_slowly, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(log.read_text().split()) == 9 + 2 * 3  # built once, probed by the two others


def test_an_interrupted_build_leaves_nothing_that_counts(images, tmp_path):
    good = ImageSource(images, NAMES[:6], 40)
    stale = tmp_path / f".{build(good, tmp_path).name}.123.tmp"
    stale.write_bytes(b"of a killed process")
    next(tmp_path.glob("*.npy")).unlink()
    build(good, tmp_path)
    assert not stale.exists()


def test_a_damaged_image_stops_whoever_reads_it_not_the_build(images, tmp_path):
    (images / NAMES[6]).write_bytes(b"")
    source = ImageSource(images, NAMES, 40)
    healthy = open_cache(source, "disk", rows=[0, 5, 7], folder=tmp_path)  # 6 is in quarantine
    assert all(healthy[row].any() for row in range(3))
    everything = open_cache(source, "disk", folder=tmp_path)
    with pytest.raises(UserError, match=r"6\.jpg is empty"):
        everything[6]


def test_what_does_not_fit_is_refused_by_name(images, tmp_path, monkeypatch):
    source = ImageSource(images, NAMES, 40)
    assert num_bytes(source) == 9 * 40 * 40 * 3
    monkeypatch.setattr(cache, "free_memory", lambda shared=False: 1000)
    refused("--cache ram needs", open_cache, source, "ram")
    assert type(open_cache(source, "auto")) is Subset
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    refused("--cache disk needs", open_cache, source, "disk", folder=tmp_path)
    native = ImageSource(images, NAMES, None)
    assert type(open_cache(native, "auto")) is Subset
    refused("one size", open_cache, native, "ram")


def test_auto_takes_memory_where_there_is_plenty(images, monkeypatch):
    source = ImageSource(images, NAMES, 40)
    room = 4 * num_bytes(source)
    monkeypatch.setattr(cache, "free_memory", lambda shared=False: room)
    assert isinstance(open_cache(source, "auto"), RamCache)
    assert type(open_cache(source, "auto", num_processes=2)) is Subset
    assert free_memory() > 0 and free_memory(shared=True) <= free_memory() + 2**30


def test_cached_pixels_cannot_be_changed(images, tmp_path):
    source = ImageSource(images, NAMES, 40)
    for kept in (RamCache(source), DiskCache(source, tmp_path)):
        for _ in range(2):
            with pytest.raises(ValueError, match="read-only"):
                kept[0][:] = 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells its memory")
def test_shared_memory_is_taken_as_rows_are_read(images):
    def shared_kb():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssShmem"))

    many = ImageSource(images, NAMES * 120, 256)  # 200 MB
    before = shared_kb()
    kept = RamCache(many, shared=True)
    assert num_bytes(kept) > 200e6 and shared_kb() - before < 20_000
    assert kept.pixels.is_shared() and kept.filled.is_shared() and not kept.filled.any()
    assert np.array_equal(kept[7], many[7]) and kept.filled.sum() == 1


def test_a_row_damaged_on_disk_is_decoded_again(images, tmp_path):
    """Rows that building does not probe: each has a checksum, compared as it is first read."""
    source = ImageSource(images, NAMES, 40)
    cache = DiskCache(source, tmp_path)
    pixels = np.load(cache.path, mmap_mode="r+")
    pixels[5] = 255 - pixels[5]
    pixels.flush()
    again = DiskCache(source, tmp_path)
    for row in range(len(NAMES)):
        np.testing.assert_array_equal(again[row], source[row])


def test_a_control_group_limits_what_is_free(tmp_path, monkeypatch):
    import src.data.cache as cache

    group = tmp_path / "group"
    group.mkdir()
    (group / "memory.max").write_text("3000000\n")
    (group / "memory.current").write_text("2000000\n")
    (group / "memory.stat").write_text("anon 5\ninactive_file 250000\n")
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.setattr(cache, "_own_groups", lambda: [tmp_path, group])
    assert cache.free_memory() == 1_250_000
    monkeypatch.setattr(cache, "_own_groups", lambda: [tmp_path])
    assert cache.free_memory() > 1_250_000
