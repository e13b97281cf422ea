"""Conv-BN fusion, and fp32 gradients of depthwise convolutions under CPU bf16 autocast.

BatchNorm at its running statistics is a fixed scale and shift, which the convolution right before
it can do itself: for good in a trained net (:func:`fold_norms`), step by step in one that trains
with frozen norms (:func:`hold_norms`). Which norm follows which convolution is seen by running
the net once, not guessed from names, and the result is compared with the net: where they differ,
the net stays as it is.

In bf16 on the CPU, the gradients of depthwise convolutions of more than 3x3, with strides or with
dilation take 3 to 100 times as long as in fp32, and make whole networks slower in bf16 than in
fp32. :func:`widen_gradients` has their backward pass done in fp32, which is also more exact.
"""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.backends import cudnn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

FOLDING_SIDE = 128  # of the image that shows a mask net's pairs: any size will do, px
TOLERANCE = 1e-2  # of the outputs' spread: TF32 rounds to 1e-3, a wrong fold is off by 1
# A kernel is scaled instead of a map where the map is this many times as large: the kernel is
# passed over as often, and its product with the scale has a gradient of its own.
MIN_MAP = 4
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


@torch.no_grad()
@cudnn.flags(enabled=False)  # which would prepare itself for one image, for seconds
def fold_norms(net: nn.Module, side: int) -> nn.Module:
    """Return a copy of ``net`` in evaluation mode without the norms that convolutions can hold.

    ``net`` takes images (B, 3, H, W) in [0, 255], also a square one of ``side`` px, and is left as
    it was.
    """
    image = _wave(net, side)
    plain, folded = copy.deepcopy(net).eval(), copy.deepcopy(net).eval()  # neither is compiled
    release_norms(folded)
    names = {module: name for name, module in folded.named_modules()}
    for conv, norm in _find_pairs(folded, image):
        assert norm.running_mean is not None and norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight,
            norm.bias,
        )  # fmt: skip
        conv.weight, conv.bias = weight, bias
        rest = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
        folded.set_submodule(names[norm], rest)
    return folded if _same_answer(plain, folded, image) else plain


@torch.no_grad()
def hold_norms(net: nn.Module, side: int) -> int:
    """Let convolutions apply the norms behind them, in place, wherever these are in evaluation.

    Parameters, buffers and gradients stay where they are; only the order of the products changes,
    and with it the last bits. In training mode a norm is applied as ever. ``net`` takes images (B,
    3, H, W) in [0, 255], also a square one of ``side`` px. Return the number of norms held, 0 where
    the answer would be another.
    """
    image = _wave(net, side)
    plain, was_training = copy.deepcopy(net), net.training
    pairs = [pair for pair in _find_pairs(net.eval(), image) if type(pair[0]) in PLAIN]
    for conv, norm in pairs:
        conv.held = (norm,)  # type: ignore[assignment]  # a tuple: not to be registered twice
        conv.forward = MethodType(_convolve_and_normalise, conv)  # type: ignore[method-assign]
        norm.forward = MethodType(_activate, norm)  # type: ignore[method-assign]
    if not _same_answer(plain, net, image):
        release_norms(net)
        pairs = []
    net.train(was_training)
    return len(pairs)


def release_norms(net: nn.Module) -> None:
    """Undo :func:`hold_norms`."""
    for module in net.modules():
        held = vars(module).pop("held", None)
        if held is not None:
            del module.forward, held[0].forward


def _convolve_and_normalise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Do the work of a convolution and of the norm that it holds, without the activation."""
    (norm,) = conv.held  # type: ignore[misc]
    if norm.training:
        return convolve(conv, x, conv.weight, conv.bias)
    places = x.numel() // x.shape[1] // (conv.stride[0] * conv.stride[1])
    if places < MIN_MAP * conv.weight[0].numel():
        y = convolve(conv, x, conv.weight, conv.bias)
        return F.batch_norm(
            y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    return convolve(conv, x, conv.weight * scale.view(-1, 1, 1, 1), norm.bias - mean * scale)


def _activate(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Do what a norm's class does beside normalising."""
    if norm.training:
        return type(norm).forward(norm, x)
    return norm.act(norm.drop(x)) if isinstance(norm, BatchNormAct2d) else x


def _wave(net: nn.Module, side: int) -> Tensor:
    """Return an image (1, 3, side, side) in [0, 255] on the net's device."""
    wave = torch.sin(torch.arange(3.0 * side * side)).view(1, 3, side, side)
    return (127.5 * (1 + wave)).to(next(net.parameters()).device)


def _same_answer(net: nn.Module, other: nn.Module, image: Tensor) -> bool:
    was_training = net.training
    before, after = net.eval()(image), other.eval()(image)
    net.train(was_training)
    return float((before - after).abs().max()) <= TOLERANCE * float(before.std())


def _find_pairs(net: nn.Module, image: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Run the net and return each norm whose input is, untouched, the output of one convolution.

    Both must be used once: a kernel shared between places has several norms.
    """
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # tensors are kept, so that no id is used twice
    calls: dict[nn.Module, int] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after_conv(module: nn.Module, _: object, output: Tensor) -> None:
        calls[module] = calls.get(module, 0) + 1
        made[id(output)] = module, output  # type: ignore[assignment]

    def before_norm(module: nn.Module, inputs: tuple[Tensor]) -> None:
        calls[module] = calls.get(module, 0) + 1
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], module))  # type: ignore[arg-type]

    hooks = [
        module.register_forward_hook(after_conv)
        if isinstance(module, nn.Conv2d)
        else module.register_forward_pre_hook(before_norm)
        for module in net.modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    net(image)
    for hook in hooks:
        hook.remove()
    return [
        (conv, norm)
        for conv, norm in pairs
        if calls[conv] == calls[norm] == 1 and norm.track_running_stats and norm.affine
    ]
