"""Depthwise convolutions with an fp32 backward pass under CPU bf16 autocast.

In bf16 on the CPU, the gradients of depthwise convolutions of more than 3x3, with strides or with
dilation take 3 to 100 times as long as in fp32, and make whole networks slower in bf16 than in
fp32. Their backward pass is done in fp32 here, which is also the more exact way.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn import functional as F

# Kinds whose kernel is what they convolve with; others standardise it first.
PLAIN = (nn.Conv2d, Conv2dSame)


def widen_gradients(net: nn.Module) -> None:
    """Give every depthwise convolution that needs it a backward pass in fp32, in place.

    It shows in CPU autocast alone; parameters and their names stay as they are.
    """
    for module in net.modules():
        if not isinstance(module, nn.Conv2d) or type(module) not in PLAIN:
            continue
        if "forward" not in vars(module) and _narrow_is_slow(module):
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]


def convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what ``conv``, one of `PLAIN`, makes of ``x`` with that weight and bias."""
    device = x.device.type
    wide = device == "cpu" and torch.is_autocast_enabled(device) and _narrow_is_slow(conv)
    padding = conv.padding
    if isinstance(conv, Conv2dSame):
        x = pad_same(x, list(conv.kernel_size), list(conv.stride), list(conv.dilation))
        padding = (0, 0)
    elif not wide:
        return conv._conv_forward(x, weight, bias)
    if not wide:
        return F.conv2d(x, weight, bias, conv.stride, padding, conv.dilation, conv.groups)
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return _WideGradient.apply(  # type: ignore[no-any-return,no-untyped-call]
            x.to(dtype), weight, bias, conv.stride, padding, conv.dilation
        )


def _forward(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return convolve(conv, x, conv.weight, conv.bias)


def _narrow_is_slow(conv: nn.Conv2d) -> bool:
    depthwise = conv.groups == conv.in_channels == conv.out_channels > 1
    slow = max(conv.kernel_size) > 3 or max(*conv.stride, *conv.dilation) > 1
    plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return depthwise and slow and (plain or isinstance(conv, Conv2dSame))


class _WideGradient(torch.autograd.Function):
    """A depthwise convolution in the type of its input, differentiated in fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = stride, padding, dilation
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        kernel, shift = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        return F.conv2d(x, kernel, shift, stride, padding, dilation, len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient.float(), x.float(), weight.float(), ctx.bias_sizes, *ctx.how,
            False, (0, 0), len(weight), ctx.needs_input_grad[:3],
        )  # fmt: skip
        return None if of_x is None else of_x.to(x.dtype), of_weight, of_bias, None, None, None
