"""The convolutions of backbones, and batch normalisations with fixed statistics, which the
convolutions before them compute as well.

With fixed statistics a normalisation multiplies each channel by a number and adds another. The
convolution does both at no cost, with its weights multiplied by the one and the other as its bias:
the activations are read and written once less, in training also on the way back. Parameters and
buffers stay where they are, so checkpoints do not change.

K output channels.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn

from alignmask.model.layers import exporting


class SameConv(Conv2dSame):
    """timm's convolution with TensorFlow's "SAME" padding, of maps whose sides the stride divides,
    as they do here: all sides are multiples of 32 at the start.

    The padding is then the same for all sizes. timm computes it from the size, in a way that
    torch.export cannot simplify: with sizes left open, it does not come to an end.
    """

    forward = nn.Conv2d.forward

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        sides = zip(self.kernel_size, self.stride, self.dilation, strict=True)
        down, across = (max(0, (k - 1) * d + 1 - s) for k, s, d in sides)
        padding = (across // 2, across - across // 2, down // 2, down - down // 2)
        return super()._conv_forward(F.pad(input, padding), weight, bias)


class FoldingConv(nn.Conv2d):
    """A convolution that computes the normalisation after it as well, if that has fixed
    statistics."""

    norm_after: tuple[nn.BatchNorm2d]
    """In a tuple, so that it is not a child, and its parameters have one name."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        (norm,) = self.norm_after
        if folds(norm):
            scale_K, shift_K = _scale_and_shift(norm)
            bias = shift_K if bias is None else torch.addcmul(shift_K, bias, scale_K)
            weight = weight * scale_K[:, None, None, None]
        return super()._conv_forward(input, weight, bias)


class FoldingSameConv(SameConv, FoldingConv):
    pass


class FoldedNorm(nn.BatchNorm2d):
    """A normalisation that the convolution before it computes, if it has fixed statistics."""

    def forward(self, input: Tensor) -> Tensor:
        return input if folds(self) else super().forward(input)


class FoldedNormAct(BatchNormAct2d):
    """timm's normalisation with an activation, which is all that is left of it."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.act(self.drop(x)) if folds(self) else super().forward(x)
        return found


def folds(norm: nn.BatchNorm2d) -> bool:
    """Not in an export: a file has the weights as they are, and what runs it folds them for
    good."""
    return not norm.training and not exporting()


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """-> [K] each: the normalisation is x * scale + shift."""
    mean_K, var_K = norm.running_mean, norm.running_var
    assert mean_K is not None  # `fold` takes no others
    assert var_K is not None
    scale_K = norm.weight * (var_K + norm.eps).rsqrt()
    return scale_K, norm.bias - mean_K * scale_K


FORMS: dict[type[nn.Module], Any] = {
    nn.Conv2d: FoldingConv, SameConv: FoldingSameConv,
    nn.BatchNorm2d: FoldedNorm, BatchNormAct2d: FoldedNormAct,
}  # fmt: skip
"""What modules of exactly these classes become."""


def fold(body: nn.Module) -> int:
    """Let convolutions compute the normalisations after them, where nothing else reads what they
    return. Returns how many do."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in body.modules()):
        return 0
    found = _pairs(body)
    for conv, norm in found:
        conv.__class__, norm.__class__ = FORMS[type(conv)], FORMS[type(norm)]
        conv.norm_after = (norm,)  # type: ignore[assignment]
    return len(found)


def _pairs(body: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions, and the normalisation that is the only reader of what each returns: by the
    graph that autograd makes of a small image."""
    made: dict[Any, nn.Conv2d] = {}
    read: list[tuple[Any, nn.BatchNorm2d]] = []

    def after(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            made[output.grad_fn] = module
        elif isinstance(module, nn.BatchNorm2d) and module.affine and module.track_running_stats:
            read.append((inputs[0].grad_fn, module))

    hooks = [m.register_forward_hook(after) for m in body.modules() if type(m) in FORMS]
    training = [module for module in body.modules() if module.training]
    first = next(body.parameters())
    image = torch.zeros(1, 3, 64, 64, dtype=first.dtype, device=first.device)
    body.eval()
    try:
        with torch.enable_grad():
            maps = body(image.requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    uses = Counter(m.grad_fn for m in maps)
    left = list(uses)
    while left:
        for node, _ in left.pop().next_functions:
            if node is not None and node not in uses:
                left.append(node)
            uses[node] += 1
    return [(made[node], norm) for node, norm in read if node in made and uses[node] == 1]
