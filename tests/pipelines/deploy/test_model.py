"""Image models: masks as the run makes them, overlays, ONNX files without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from src.files import seal
from src.pipelines.deploy.export import write_safetensors
from src.pipelines.deploy.model import ImageModel, open_model, read_about
from src.pipelines.segmentation.score import to_mask
from src.script import UserError

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.9])
@pytest.mark.parametrize("channels", [1, 4])
def test_masks_are_those_of_the_run(channels: int, threshold: float) -> None:
    probs = np.random.default_rng(0).dirichlet(np.ones(max(channels, 2)), (30, 40))
    probs = np.moveaxis(probs, 2, 0)[:channels].astype(np.float32)
    model = ImageModel(lambda image: probs, tuple("abcd"), "masks", threshold)
    expected = to_mask(torch.from_numpy(probs), threshold)
    np.testing.assert_array_equal(model.mask(probs), expected)
    assert expected.mean() > 0


def test_overlays_tint_masks_and_name_classes() -> None:
    image = np.full((60, 80, 3), 100, np.uint8)
    probs = np.zeros((1, 60, 80), np.float32)
    probs[:, 10:20] = 0.9
    drawn = ImageModel(lambda _: probs, ("road", "lane"), "masks", background=0).draw(image, probs)
    assert (drawn[:10] == 100).all() and (drawn[10:20] != 100).any() and (image == 100).all()
    named = ImageModel(lambda _: probs, ("차", "b"), "classes").draw(image, np.array([0.9, 0.1]))
    assert (named[40:] == 100).all() and named[:12].max() > 200


def test_what_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        open_model(tmp_path / "x.onnx")
    pytest.importorskip("onnxruntime")
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match="no ONNX graph"):
        open_model(tmp_path / "x.onnx")
    with pytest.raises(UserError, match="--device mps"):
        open_model(tmp_path / "x.onnx", "mps")


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, "does not say"), ({"task": "{"}, "damaged"), ({"task": '"masks"'}, "classes is not"),
        ({"task": '"masks"', "classes": '["a"]', "threshold": '"x"'}, "threshold is not"),
    ],
)  # fmt: skip
def test_what_a_graph_says_of_itself_is_looked_at(metadata: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=rf"x\.onnx.*{said}"):
        read_about(Path("x.onnx"), metadata)


def test_a_flipped_bit_is_found_before_anything_is_predicted(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(seal(b"weights" * 400_000 + b'"crc32:00000000"'))
    content = bytearray(path.read_bytes())
    content[1_500_000] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.onnx: its checksum does not match"):
        open_model(path)


def test_a_video_is_predicted_without_torch(tmp_path: Path) -> None:
    """A small car has onnxruntime and OpenCV."""
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, "h", "w", 3])
    probs = helper.make_tensor_value_info("probs", TensorProto.FLOAT, [1, 1, "h", "w"])
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [3])
    nodes = [  # bright pixels are the foreground
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["grey"], keepdims=0),
        helper.make_node("Sub", ["grey", "half"], ["centred"]),
        helper.make_node("Sigmoid", ["centred"], ["p"]),
        helper.make_node("Unsqueeze", ["p", "one"], ["probs"]),
    ]
    constants = [axes, helper.make_tensor("half", TensorProto.FLOAT, [], [128.0]),
                 helper.make_tensor("one", TensorProto.INT64, [1], [1])]  # fmt: skip
    graph = helper.make_graph(nodes, "bright", [image], [probs], constants)
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    for key, value in (("task", '"masks"'), ("classes", '["dark", "bright"]'), ("background", "0")):
        entry = file.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(file, tmp_path / "lane.onnx")
    from src.pipelines.deploy.video import write_video

    with write_video(tmp_path / "drive.mp4", 25, (64, 48)) as (write, _):
        for left in range(0, 50, 5):
            picture = np.zeros((48, 64, 3), np.uint8)
            picture[:, left : left + 10] = 255
            write(picture, 0)
    code = (
        "import sys; from scripts.predict import main; main(sys.argv[1:]);"
        "assert not {'torch', 'pandas', 'timm'} & set(sys.modules), 'heavy'"
    )
    flags = ["--video", tmp_path / "drive.mp4", "--model", tmp_path / "lane.onnx", "--output",
             tmp_path / "drawn.mp4"]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, *map(str, flags)], cwd=ROOT,
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "10 frames in" in done.stdout and "p99" in done.stdout and "0 dropped" in done.stdout
    import cv2

    found, last = (capture := cv2.VideoCapture(str(tmp_path / "drawn.mp4"))).read()
    assert found and last[:, 2:8].mean() > last[:, 20:].mean() + 50
    blue, green, red = last[10:40, 3:7].reshape(-1, 3).mean(0)
    assert red > blue + 60 and red > green + 60, "the foreground is tinted with its colour"
    capture.release()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_a_full_disk_is_told_as_one() -> None:
    export = SimpleNamespace(module=SimpleNamespace(network=torch.nn.Linear(2, 2)), about={})
    with pytest.raises(OSError, match="No space left"):
        write_safetensors(export, Path("/dev/full"))  # type: ignore[arg-type]
