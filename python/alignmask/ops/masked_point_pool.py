"""Point sampling and masked average pooling: public function, operators, gradient.

Shapes: B images, C channels, H x W, G instances of the batch, T point sets, K points in a set.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from alignmask.ops import _check, _library, reference
from alignmask.ops._arrays import accepts_arrays
from alignmask.ops.reference.masked_point_pool import check, check_normalize


@accepts_arrays
def masked_point_pool(
    features_BCHW: Tensor,
    masks_GHW: Tensor,
    owner_G: Tensor,
    points_BTK2: Tensor,
    normalize: Literal["mask", "points"] = "mask",
) -> tuple[Tensor, Tensor]:
    """Average of point-sampled features under every instance's mask (Eq. 1 up to GAP).

    pooled[g, t] = Σ_k mask_g(points[b, t, k]) · features_b(points[b, t, k]) / denominator, with b =
    owner[g]; both samplings are bilinear, `align_corners=False`, zero outside.

    Args:
        features_BCHW: Pixel embedding. fp64, fp32, fp16 or bf16; channels-last is the fast layout.
        masks_GHW: Masks of all instances of the batch, bool or uint8 (non-zero counts as 1); any
            size, not that of features.
        owner_G: Index of every instance's image, int64 or int32.
        points_BTK2: (x, y), normalised to [0, 1] over the image. Dtype of `features`, or float32
            beside half precision.
        normalize: "mask": divide by the mask weight that was hit. "points": divide by K (Eq. 1 to
            the letter).

    Returns:
        pooled_GTC: Dtype of `features`; differentiable in `features`. 0 (never NaN) for a set that
            missed the instance.
        weight_GT: Σ_k mask samples, float32 (float64 for float64), without gradient: 0 marks a set
            that missed the instance.

    Raises:
        TypeError: A wrong type or dtype.
        ValueError: A wrong shape, device or `normalize`; on the CPU also an owner outside [0, B).
    """
    op = "masked_point_pool"
    _check.tensors(op, features=features_BCHW, masks=masks_GHW, owner=owner_G, points=points_BTK2)
    if not _library.has_kernel(op, features_BCHW.device):
        return reference.masked_point_pool(
            features_BCHW, masks_GHW, owner_G, points_BTK2, normalize
        )
    check_normalize(normalize)
    _library.refuse_tangents(op, features_BCHW)
    pooled_GTC, weight_GT = _forward(
        features_BCHW, masks_GHW, owner_G, points_BTK2.detach(), normalize == "points"
    )
    return pooled_GTC, weight_GT


def _forward_kernel(
    features: Tensor, masks: Tensor, owner: Tensor, points: Tensor, divide_by_points: bool
) -> tuple[Tensor, Tensor]:
    pooled, weight = _empty(features, owner, points)
    _library.core.masked_point_pool_forward(
        pooled,
        weight,
        features,
        masks,
        owner,
        points,
        divide_by_points,
        torch.get_num_threads(),
        _library.stream(features),
    )
    return pooled, weight


def _forward_fake(
    features: Tensor, masks: Tensor, owner: Tensor, points: Tensor, divide_by_points: bool
) -> tuple[Tensor, Tensor]:
    check(features, masks, owner, points, "points" if divide_by_points else "mask")
    return _empty(features, owner, points)


def _empty(features: Tensor, owner: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    if (features.dim(), owner.dim(), points.dim()) != (4, 1, 4):
        return features.new_empty(0), features.new_empty(0)  # the kernel's checks say what is wrong
    sets = (owner.shape[0], points.shape[1])
    weight = features.new_empty(sets, dtype=_check.compute_dtype(features.dtype))
    return features.new_empty(*sets, features.shape[1]), weight


def _backward_kernel(
    grad_pooled: Tensor,
    weight: Tensor,
    masks: Tensor,
    owner: Tensor,
    points: Tensor,
    size: list[int],
    channels_last: bool,
    divide_by_points: bool,
) -> Tensor:
    grad_features = _empty_gradient(
        grad_pooled, weight, masks, owner, points, size, channels_last, divide_by_points
    )
    _library.core.masked_point_pool_backward(
        grad_features,
        grad_pooled,
        weight,
        masks,
        owner,
        points,
        divide_by_points,
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        _library.workspace(grad_features),
        _library.stream(grad_features),
    )
    return grad_features


def _empty_gradient(
    grad_pooled: Tensor,
    weight: Tensor,
    masks: Tensor,
    owner: Tensor,
    points: Tensor,
    size: list[int],
    channels_last: bool,
    divide_by_points: bool,
) -> Tensor:
    """In the layout of the features, which the model's next operation will like best."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(
        size, dtype=grad_pooled.dtype, device=grad_pooled.device, memory_format=layout
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, masks, owner, points, ctx.divide_by_points = inputs
    ctx.size = features.shape
    ctx.channels_last = features.is_contiguous(memory_format=torch.channels_last)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], masks, owner, points)


def _gradient(ctx: Any, grad_pooled: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    grad_features = _backward(
        grad_pooled, *ctx.saved_tensors, ctx.size, ctx.channels_last, ctx.divide_by_points
    )
    return grad_features, None, None, None, None


_forward = _library.define(
    "masked_point_pool",
    "(Tensor features, Tensor masks, Tensor owner, Tensor points, bool divide_by_points) -> "
    "(Tensor, Tensor)",
    kernels={"cpu": _forward_kernel, "cuda": _forward_kernel},
    fake=_forward_fake,
    backward=_gradient,
    setup_context=_setup_context,
)
_backward = _library.define(
    "masked_point_pool_backward",
    "(Tensor grad_pooled, Tensor weight, Tensor masks, Tensor owner, Tensor points, SymInt[] size, "
    "bool channels_last,"
    " bool divide_by_points) -> Tensor",
    kernels={"cpu": _backward_kernel, "cuda": _backward_kernel},
    fake=_empty_gradient,
)
