"""A Mac's GPU played by the CPU: numbers are computed, and what MPS refuses is refused.

Tensors there are the CPU's, known by their storage; Python is told that their device is "mps".
Refused are float64, tensors of two devices, numpy, pooling into uneven cells, what torch.cuda
knows of a card, and what was silently wrong in another layout: BatchNorm (PyTorch #175189), sorting
(#175187), gradients of activations in permuted maps (#175188).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch._dynamo  # before anything is replaced
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST, MPS = torch.device("cpu"), torch.device("mps:0")
PLACING = {"to", "cpu", "tensor", "as_tensor", "zeros", "ones", "empty", "full", "arange", "eye",
           "linspace", "rand", "randn", "zeros_like", "ones_like", "empty_like", "full_like",
           "new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"}  # fmt: skip
WRITES_ACROSS = {"aten::copy_", "aten::_foreach_copy_", "aten::index_put_", "aten::set_"}
ACTIVATIONS = {f"aten::{name}_backward" for name in ("threshold", "hardtanh", "sigmoid", "silu",
               "hardswish", "hardsigmoid", "tanh", "softplus")}  # fmt: skip
OF_CARDS = ("Event", "synchronize", "mem_get_info", "memory_reserved", "empty_cache",
            "get_device_name", "get_device_capability")  # fmt: skip


class Mac:
    """The storages that are there; a weak reference keeps an address from being used again."""

    def __init__(self) -> None:
        self.there: dict[int, StorageWeakRef] = {}
        self.inside = False  # a function that was called with tensors from there

    def has(self, x: Tensor) -> bool:
        return x.untyped_storage()._cdata in self.there

    def put(self, x: Tensor, there: bool) -> None:
        storage = x.untyped_storage()
        self.there.pop(storage._cdata, None)
        if there and x.dtype == torch.float64:
            raise TypeError("the MPS framework doesn't support float64")
        if there:
            self.there[storage._cdata] = StorageWeakRef(storage)


class Operators(TorchDispatchMode):
    """Every operator, those of backward passes and optimizers too."""

    def __init__(self, mac: Mac) -> None:
        super().__init__()
        self.mac = mac

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = func._schema.name, _tensors((args, kwargs))
        there = any(map(self.mac.has, given[:1] if name == "aten::index" else given))
        if there and name not in (*WRITES_ACROSS, "aten::index"):
            here = [tuple(x.shape) for x in given if x.ndim and x.numel() and not self.mac.has(x)]
            assert not here, f"tensors on mps and cpu: {name} {here}"
            _refuse(name, given, args)
        made = func(*args, **(kwargs or {}))
        for x in _tensors(made) if name not in WRITES_ACROSS else ():
            if there or not any(_share(x, y) for y in given):
                self.mac.put(x, there or (self.mac.inside and not given))
        return made


def _refuse(name: str, given: list[Tensor], args: Any) -> None:
    if name == "aten::_adaptive_avg_pool2d":
        sizes = zip(given[0].shape[-2:], args[1], strict=True)
        if any(size % wanted for size, wanted in sizes):
            raise RuntimeError("Adaptive pool MPS: input sizes must be divisible by output sizes")
    if name == "aten::native_batch_norm":
        assert given[0].is_contiguous(), "BatchNorm of maps that are not contiguous"
    if name == "aten::sort":
        assert given[0].is_contiguous(), "sorting of numbers that are not contiguous"
    for x in given if name in ACTIVATIONS else ():
        strides = [step for step, size in zip(x.stride(), x.shape, strict=True) if size > 1]
        assert strides == sorted(strides, reverse=True), f"{name} of permuted maps"


class Functions(TorchFunctionMode):
    """Every function of torch: those that are told a device compute on the CPU."""

    def __init__(self, mac: Mac) -> None:
        super().__init__()
        self.mac = mac

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name, before = kwargs or {}, getattr(func, "__name__", ""), self.mac.inside
        if name == "numpy" and self.mac.has(args[0]):
            raise TypeError("can't convert mps:0 device type tensor to numpy")
        asked = self._asked(name, (*args, *kwargs.values())) if name in PLACING else None
        if asked is not None:
            args, kwargs = map(_on_host, args), {k: _on_host(v) for k, v in kwargs.items()}
        args = tuple(args)
        self.mac.inside = name not in PLACING and any(map(self.mac.has, _tensors(args)))
        try:
            made = func(*args, **kwargs)
        finally:
            self.mac.inside = before
        if asked is None:
            return made
        sources = _tensors(args[:1]) if name in ("to", "cpu", "tensor", "as_tensor") else []
        if [asked] != [self.mac.has(x) for x in sources]:
            if any(_share(made, x) for x in sources):
                made = made.clone()
            self.mac.put(made, asked)
        return made

    def _asked(self, name: str, values: tuple[Any, ...]) -> bool | None:
        """Tell whether MPS is asked for; None where no device is."""
        if name == "cpu":
            return False
        if name == "to" and isinstance(values[1], Tensor):
            return self.mac.has(values[1])
        kinds = [str(v).split(":")[0] for v in values if isinstance(v, str | torch.device)]
        return next((kind == "mps" for kind in kinds if kind in ("mps", "cpu")), None)


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def _share(x: Tensor, y: Tensor) -> bool:
    return x.untyped_storage()._cdata == y.untyped_storage()._cdata


def _on_host(value: Any) -> Any:
    is_mps = isinstance(value, str | torch.device) and str(value).split(":")[0] == "mps"
    return HOST if is_mps else value


@contextmanager
def playing_mac() -> Iterator[None]:
    """Be a Mac while the block lasts."""
    mac, device_of = Mac(), torch._C.TensorBase.device.__get__  # type: ignore[attr-defined]
    autocast, generator = torch.autocast, torch.Generator

    class Autocast(autocast):  # type: ignore[misc, valid-type]
        def __init__(self, kind: str, *args: Any, **options: Any) -> None:
            super().__init__("cpu" if kind == "mps" else kind, *args, **options)

    def no_card(*_: Any, **__: Any) -> None:
        raise AssertionError("a card of CUDA is asked for on a Mac")

    with pytest.MonkeyPatch.context() as patch:
        device = property(lambda x: MPS if mac.has(x) else device_of(x))
        patch.setattr(torch.Tensor, "device", device)
        for name in OF_CARDS:
            patch.setattr(torch.cuda, name, no_card)
        patch.setattr(torch, "autocast", Autocast)
        patch.setattr(torch, "Generator", lambda device="cpu": generator(_on_host(device)))
        patch.setattr(torch.mps, "manual_seed", lambda _: None)
        patch.setattr(torch.mps, "empty_cache", lambda: None)
        patch.setattr(torch.mps, "device_count", lambda: 1)
        patch.setattr(torch.backends.mps, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        with Operators(mac), Functions(mac):
            yield
