"""scripts/export.py: files that predict what the run predicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import src
from src.data.decode import decode_image
from src.pipelines.deploy import export
from src.pipelines.segmentation.score import fit_size
from tests.scripts.conftest import Place


def test_the_exported_module_predicts_what_the_run_predicts(place: Place) -> None:
    """At the network's own size no resizing stands between them."""
    opened = export.open_export(place.run)
    images = sorted((place.data / "test").iterdir())
    expected = src.load_run(place.run, device="cpu", precision="fp32").predict(images)
    with torch.inference_mode():
        found = torch.cat([opened.module(torch.from_numpy(decode_image(path)[None].copy()))
                           for path in images])  # fmt: skip
    np.testing.assert_allclose(found.numpy(), expected.probs, atol=2e-3)  # float16 logits there
    assert opened.about["classes"] == list(expected.classes) and opened.about["size"] == (32, 32)


def test_masks_come_back_at_the_size_of_the_image() -> None:
    module = export.Deployed(nn.Conv2d(3, 1, 1), (16, 16), masks=True)
    assert module(torch.zeros(1, 20, 30, 3, dtype=torch.uint8)).shape == (1, 1, 20, 30)
    many = export.Deployed(nn.Conv2d(3, 4, 1), (16, 16), masks=True)
    probs = many(torch.randint(0, 256, (1, 20, 30, 3), dtype=torch.uint8))
    torch.testing.assert_close(probs.sum(1), torch.ones(1, 20, 30))


class Given(nn.Module):
    """A network that has its logits."""

    def __init__(self, maps: torch.Tensor) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.maps


def test_masks_of_small_images_shrink_as_the_program_shrinks_them() -> None:
    """Without antialiasing, a map that is made smaller is sampled at single pixels."""
    maps = torch.randn(1, 1, 64, 64)
    module = export.Deployed(Given(maps), (64, 64), masks=True)
    found = module(torch.zeros(1, 10, 14, 3, dtype=torch.uint8))[0]
    torch.testing.assert_close(found, fit_size(maps.sigmoid()[0], (10, 14)))


def test_safetensors_hold_the_network_and_what_it_wants(place: Place, call: Any) -> None:
    from safetensors import safe_open

    done = call("scripts.export", "--run", str(place.run), "--format", "safetensors")
    assert done.status == 0 and "read back unchanged" in done.out, done.err
    with safe_open(place.run / "export.safetensors", "pt") as file:
        about = {key: json.loads(value) for key, value in file.metadata().items()}
        names = set(file.keys())
    assert about["classes"] == ["evening", "noon"] and about["size"] == [32, 32]
    assert {"mean", "std", "head.weight"} <= names, "mean and std are inside"


@pytest.fixture
def onnx() -> None:
    for name in export.NEEDED:
        pytest.importorskip(name)


def test_onnx_agrees_with_pytorch(place: Place, call: Any, onnx: None) -> None:
    import onnxruntime

    path = place.output / "run.onnx"
    done = call("scripts.export", "--run", str(place.run), "--data_dir", str(place.data),
                "--output", str(path))  # fmt: skip
    assert done.status == 0 and "agrees with PyTorch on" in done.out, done.err
    session = onnxruntime.InferenceSession(str(path))
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == ["evening", "noon"]
    image = np.random.default_rng(0).integers(0, 256, (1, 50, 70, 3), dtype=np.uint8)
    (probs,) = session.run(None, {"image": image})
    assert probs.shape == (1, 2) and probs.sum() == pytest.approx(1)


def test_a_graph_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys
    from types import SimpleNamespace

    class Session:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def run(self, _: Any, feed: Any) -> list[np.ndarray]:
            return [np.full((1, 2), 0.5 + self.off, np.float32)]

    fake = SimpleNamespace(InferenceSession=Session, __version__="0")
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)

    class Half(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.full((1, 2), 0.5)

    path = tmp_path / "x"
    path.write_bytes(b"")
    opened = export.Export(Half(), {})
    images = [np.zeros((8, 8, 3), np.uint8)] * 3
    Session.off = 5e-5
    assert "on 3 images: 5.0e-05" in export.check_onnx(opened, path, images)
    Session.off = 2e-4
    with pytest.raises(src.script.UserError, match="differ by 2"):
        export.check_onnx(opened, path, images)


def test_mistakes_are_one_line(place: Place, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("scripts.export").is_one_line("--run is missing")
    monkeypatch.setattr(export, "NEEDED", ("onnx_of_nowhere", "json"))
    done = call("scripts.export", "--run", str(place.run))
    assert done.is_one_line("pip install onnx_of_nowhere")
    assert not list(place.run.glob("export*"))


def test_the_whole_ensemble_is_one_file(place: Place, call: Any, onnx: None) -> None:
    """Two folds, their views and temperatures: what infer_ensemble.py would say of a photograph."""
    path = place.output / "all.onnx"
    done = call("scripts.export", "--run", str(place.output), "--data_dir", str(place.data),
                "--output", str(path))  # fmt: skip
    assert done.status == 0 and "agrees with infer_ensemble.py on " in done.out, done.err
    images = sorted((place.data / "test").iterdir())
    expected = src.load_ensemble(place.output, device="cpu").predict(images)
    answer = call("scripts.predict", *map(str, images), "--model", str(path), "--output",
                  str(place.output / "p.json"))  # fmt: skip
    assert answer.status == 0, answer.err
    rows = json.loads((place.output / "p.json").read_text(encoding="utf-8"))["predictions"]
    found = [[row["classes"][name] for name in expected.classes] for row in rows]
    np.testing.assert_allclose(found, expected.probs, atol=2e-3)  # float16 logits there
    assert call("scripts.export", "--run", str(place.output), "--precision", "int8").is_one_line(
        "an ensemble", "name one run"
    )


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_other_precisions_say_what_they_lose(
    place: Place, call: Any, onnx: None, precision: str
) -> None:
    flags = ("--run", str(place.run), "--data_dir", str(place.data))
    done = call("scripts.export", *flags, "--precision", precision)
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    of_run = src.load_run(place.run, device="cpu", precision="fp32")
    from src.ensemble.predictions import open_oof
    from src.metrics.classification import log_loss, softmax

    oof = open_oof(place.run / "oof.npz")
    loss = log_loss(softmax(np.asarray(oof.logits[0], np.float64)), oof.targets)
    assert f"beside fp32 on {len(oof.ids)} held-out images" in lines[1]
    assert float(lines[1].split()[-1].rstrip("%")) >= 90, "decisions that stay"
    assert float(lines[2].split("fp32 ")[1].split(",")[0]) == pytest.approx(loss, abs=2e-3)
    assert "accuracy" in lines[3] and "times as fast" in lines[4]
    path = place.run / f"export.{precision}.onnx"
    from src.pipelines.deploy.model import open_model

    model, image = open_model(path), sorted((place.data / "test").iterdir())[0]
    expected = of_run.predict([image]).probs
    np.testing.assert_allclose(model.predict([image]).probs, expected, atol=0.05)
    assert len(list(place.run.glob("export*"))) == len(list(place.run.glob("*.onnx"))) == 1
