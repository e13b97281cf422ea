"""Finding files of weights in order, loading them, and saying what is missing."""

import re
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from src.models import pretrained
from src.models.classifier import build_classifier
from src.models.pretrained import find_weights, load_pretrained, read_state
from src.models.segmenter import load_encoder
from src.script import UserError


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    return path


def test_none_means_none() -> None:
    assert find_weights("no such model", "none") is None


def test_a_path_is_taken_or_refused(tmp_path: Path) -> None:
    path = touch(tmp_path / "mine.pth")
    assert find_weights("test_vit", str(path)) == path
    with pytest.raises(UserError, match="no such file"):
        find_weights("test_vit", str(tmp_path / "other.pth"))


def test_local_files_are_found_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    names = ["test_vit.pth", "test_vit.safetensors", "test_vit.r160_in1k.pth"]
    for name in [*names, "test_vit.r160_in1k.safetensors"]:  # each goes before those above it
        path = touch(folder / name)
        assert find_weights("test_vit", "auto", tmp_path) == path
        assert find_weights("test_vit.r160_in1k", "auto", tmp_path) == path


def test_the_local_cache_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = touch(tmp_path / "cache" / "model.safetensors")
    asked = []

    def look_up(repository: str, file: str) -> str | None:
        asked.append((repository, file))
        return str(cached) if file == "model.safetensors" else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", look_up)
    assert find_weights("test_vit", "auto", tmp_path) == cached
    assert asked == [("timm/test_vit.r160_in1k", "model.safetensors")]
    local = touch(tmp_path / "weights" / "test_vit.pth")
    assert find_weights("test_vit", "auto", tmp_path) == local


def test_torch_cache_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    path = touch(tmp_path / "checkpoints" / "resnet152d_ra2-5cac0439.pth")
    assert find_weights("resnet152d", "auto", tmp_path) == path


def test_nothing_found_says_what_file_to_put_where(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        find_weights("test_vit", "auto", tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "weights" / "test_vit.r160_in1k.safetensors") in message
    assert "--pretrained none" in message
    assert "\n" not in message
    assert time.monotonic() - start < 30


def test_a_silent_hub_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A server that accepts and says nothing stands for the network that hangs."""
    server = socket.create_server(("127.0.0.1", 0))
    try:
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setattr(
            "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}"
        )
        monkeypatch.setattr(pretrained, "PROBE_SECONDS", 0.2)
        start = time.monotonic()
        with pytest.raises(UserError, match="on a hub within reach"):
            find_weights("test_vit", "auto", tmp_path)
        assert time.monotonic() - start < 30
    finally:
        server.close()


def test_a_hub_that_answers_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    threading.Thread(target=answer, daemon=True).start()
    file = touch(tmp_path / "hub" / "pytorch_model.bin")

    def download(repository: str, name: str, **_: object) -> str:
        if name != file.name:
            raise EntryNotFoundError(f"{repository} has no {name}")
        return str(file)

    try:
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setattr(
            "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}"
        )
        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        assert find_weights("test_vit", "auto", tmp_path) == file
    finally:
        server.close()


def test_a_hub_that_is_lost_is_not_asked_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def download(repository: str, name: str, **_: object) -> str:
        asked.append(name)
        raise LocalEntryNotFoundError("the connection was lost")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(pretrained, "_answers", lambda *_: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(UserError, match=r"fetch_weights\.py tf_efficientnet_lite0\.in1k"):
        find_weights("tf_efficientnet_lite0", "auto", tmp_path)
    assert asked == ["model.safetensors"]


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_another_head_is_no_obstacle(suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = timm.create_model("test_convnext", num_classes=1000)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": source.state_dict()}, path)
    else:
        safetensors.torch.save_file(source.state_dict(), path)
    backbone = timm.create_model("test_convnext", num_classes=0)
    assert load_pretrained(backbone, path) == 1.0
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.eval()(image),
            source.eval().forward_head(source.forward_features(image), pre_logits=True),
        )


def test_position_embeddings_are_adapted_to_the_size(tmp_path: Path) -> None:
    source = timm.create_model("test_vit", num_classes=10)
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    backbone = timm.create_model("test_vit", num_classes=0, img_size=96)
    assert load_pretrained(backbone, tmp_path / "vit.pth") == 1.0
    assert backbone.pos_embed.shape != source.pos_embed.shape
    torch.testing.assert_close(backbone.pos_embed[:, 0], source.pos_embed[:, 0])  # class token


def test_swin_windows_are_adapted_to_the_size(tmp_path: Path) -> None:
    name = "swin_tiny_patch4_window7_224"
    small = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    source = timm.create_model(name, num_classes=10, **small)
    torch.save(source.state_dict(), tmp_path / "swin.pth")
    backbone = timm.create_model(name, num_classes=0, img_size=128, window_size=4, **small)
    assert load_pretrained(backbone, tmp_path / "swin.pth") == 1.0


def test_a_foreign_file_is_refused_with_its_share(tmp_path: Path) -> None:
    before = timm.create_model("test_resnet", num_classes=0)
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    weights = before.conv1[0].weight.clone()
    with pytest.raises(UserError, match=r"vit\.pth: fills 0% of test_resnet"):
        load_pretrained(before, tmp_path / "vit.pth")
    assert torch.equal(before.conv1[0].weight, weights)


def test_a_tenth_missing_is_too_much_and_a_little_is_counted(tmp_path: Path) -> None:
    backbone = timm.create_model("test_resnet", num_classes=0)
    state = backbone.state_dict()
    counted = [name for name in state if not name.endswith("num_batches_tracked")]
    del state["bn1.bias"]
    torch.save(state, tmp_path / "one.pth")
    assert load_pretrained(backbone, tmp_path / "one.pth") == 1 - 1 / len(counted)
    for name in counted:
        if name.startswith("layer1"):
            del state[name]
    torch.save(state, tmp_path / "many.pth")
    with pytest.raises(UserError, match=r"bn1\.bias, layer1"):
        load_pretrained(backbone, tmp_path / "many.pth")


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code in a weights file was run",)


@pytest.mark.parametrize("content", ["pickle", "text", "empty", "list"])
def test_only_plain_tensors_are_read(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.pth"
    if content == "pickle":
        torch.save({"weight": Payload()}, path)
    elif content == "list":
        torch.save({"names": ["a"]}, path)
    else:
        path.write_bytes(b"<html>not here</html>" if content == "text" else b"")
    with pytest.raises(UserError, match=r"bad\.pth"):
        read_state(path)
    assert "was run" not in capsys.readouterr().out
    broken = touch(tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=r"bad\.safetensors"):
        read_state(broken)


def test_a_checkpoint_of_our_own_starts_another_model(tmp_path: Path) -> None:
    ours = build_classifier("test_convnext", 7, image_size=64, pool="gem")
    safetensors.torch.save_file(ours.state_dict(), tmp_path / "best.safetensors")
    backbone = timm.create_model("test_convnext", num_classes=0)
    assert load_pretrained(backbone, tmp_path / "best.safetensors") == 1.0


def test_a_file_of_a_lite_package_is_refused_with_the_script_that_renames_it(
    tmp_path: Path,
) -> None:
    torch.save({"_conv_stem.weight": torch.zeros(1)}, tmp_path / "lite.pth")
    backbone = timm.create_model("test_resnet", num_classes=0)
    with pytest.raises(UserError, match=r"lite\.pth: .*scripts/fetch_weights\.py"):
        load_pretrained(backbone, tmp_path / "lite.pth")
    with pytest.raises(UserError, match=r"lite\.pth: .*scripts/fetch_weights\.py"):
        load_encoder(backbone, tmp_path / "lite.pth")


@pytest.mark.parametrize("prefix", ["model.", "net.", "encoder.", "module.model.", "backbone.", ""])
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "net", ""])
def test_what_frameworks_put_before_the_names_is_taken_off(
    tmp_path: Path, prefix: str, key: str
) -> None:
    model = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    state |= {"criterion.weight": torch.ones(2)}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "w.pth")
    other = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    assert load_pretrained(other, tmp_path / "w.pth") == 1
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert load_encoder(other, tmp_path / "w.pth") == 1


def test_a_file_that_is_no_state_dict_says_what_to_save(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds no dictionary of tensors; save the model's state_d"):
        load_pretrained(timm.create_model("test_resnet"), tmp_path / "w.pth")


@pytest.mark.parametrize(
    "prefix", ["model.", "net.", "encoder.", "backbone.", "module.model.", "_orig_mod.", "a.b.c."]
)
def test_a_prefix_that_other_tools_write_is_taken_off(tmp_path: Path, prefix: str) -> None:
    backbone = timm.create_model("test_resnet", num_classes=7)
    state = {prefix + name: tensor for name, tensor in backbone.state_dict().items()}
    state |= {"decoder.weight": torch.zeros(2), "teacher.conv1.0.weight": torch.zeros(2)}
    torch.save({"state_dict": state, "epoch": 3, "best": np.float64(0.9)}, tmp_path / "w.pth")
    assert loads(tmp_path / "w.pth", backbone)


@pytest.mark.parametrize("part", ["model_state_dict", "net", "network", "params_ema", "odd"])
def test_the_network_is_found_in_a_checkpoint(tmp_path: Path, part: str) -> None:
    backbone = timm.create_model("test_resnet", num_classes=7)
    moments = {0: {"exp_avg": torch.zeros(3), "step": torch.tensor(1.0)}}
    content = {part: backbone.state_dict(), "optimizer": {"state": moments}, "acc": 91.0}
    torch.save(content, tmp_path / "w.pth")
    assert loads(tmp_path / "w.pth", backbone)


def test_averaged_weights_go_before_raw_ones(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "model_ema": {"a": torch.ones(1)}}, tmp_path / "w")
    assert read_state(tmp_path / "w")["a"].item() == 1


@pytest.mark.parametrize("inside", [False, True])
def test_a_pickled_network_is_refused_with_a_command_that_works(
    tmp_path: Path, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = timm.create_model("test_resnet", num_classes=7)
    path = tmp_path / "w.pth"
    torch.save({"model": network, "epoch": 1} if inside else network, path)
    with pytest.raises(UserError, match="if you trust the file, take the tensors out") as caught:
        read_state(path)
    command = re.search(r'python -c "(.*)" and give (\S+)$', str(caught.value))
    assert command is not None
    exec(command[1], {})
    assert loads(Path(command[2]), network)


def loads(path: Path, network: torch.nn.Module) -> bool:
    """Tell whether a file fills a backbone of the same kind with the very tensors of another."""
    model = build_classifier("test_resnet", 4, image_size=64, weights=None, pool="native")
    share = load_pretrained(model.backbone, path)
    own, other = model.backbone.state_dict(), network.state_dict()
    return share == 1 and all(torch.equal(own[name], other[name]) for name in own)


def test_an_architecture_without_published_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights of ghostnet_050: say --pretrained none"):
        find_weights("ghostnet_050", "auto", tmp_path)
    assert find_weights("ghostnet_050", "none") is None
    path = touch(tmp_path / "weights" / "ghostnet_050.safetensors")
    assert find_weights("ghostnet_050", "auto", tmp_path) == path
