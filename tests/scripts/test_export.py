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


def test_safetensors_hold_the_network_and_what_it_wants(place: Place, call: Any) -> None:
    from safetensors import safe_open

    done = call("scripts.export", "--run", str(place.run), "--format", "safetensors")
    assert done.status == 0 and "read back unchanged" in done.out, done.err
    with safe_open(place.run / "export.safetensors", "pt") as file:
        about = {key: json.loads(value) for key, value in file.metadata().items()}
        names = set(file.keys())
    assert about["classes"] == ["evening", "noon"] and about["size"] == [32, 32]
    assert {"mean", "std", "head.weight"} <= names, "mean and std are inside"


def test_onnx_agrees_with_pytorch(place: Place, call: Any) -> None:
    for name in export.NEEDED:
        pytest.importorskip(name)
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
    opened = export.Export(Half(), {})  # type: ignore[arg-type]
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
    assert done.is_one_line("needs onnx_of_nowhere: pip install")
    assert not list(place.run.glob("export*"))
