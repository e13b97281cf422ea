"""A trained net in, the same function with fewer passes over memory out: norms inside convolutions.

BatchNorm in evaluation is a fixed scale and shift, which the convolution right before it can do
itself. Which norm follows which convolution is seen by running the net once, not guessed from
names, and the result is compared with the net: where they differ, the net stays as it is.
"""

from __future__ import annotations

import copy

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

FOLDING_SIDE = 128  # of the image that shows a mask net's pairs: any size will do, px
TOLERANCE = 1e-2  # of the outputs' spread: TF32 rounds to 1e-3, a wrong fold is off by 1


@torch.no_grad()
def fold_norms(net: nn.Module, side: int) -> nn.Module:
    """Return a copy of ``net`` in evaluation mode without the norms that convolutions can hold.

    Args:
        net: takes images (B, 3, H, W) in [0, 255]; left as it was.
        side: of a square image that it can take, px.
    """
    wave = torch.sin(torch.arange(3.0 * side * side)).view(1, 3, side, side)
    image = (127.5 * (1 + wave)).to(next(net.parameters()).device)
    folded = copy.deepcopy(net).eval()
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
    was_training = net.training
    before, after = net.eval()(image), folded(image)
    net.train(was_training)
    worst = float((before - after).abs().max())
    return folded if worst <= TOLERANCE * float(before.std()) else copy.deepcopy(net).eval()


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
