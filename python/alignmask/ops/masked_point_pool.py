"""Point sampling and masked average pooling: public function.

Shapes: B images, C channels, H x W, G instances of the batch, T point sets, K points in a set.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from alignmask.ops import reference


def masked_point_pool(
    features_BCHW: Tensor,
    masks_GHW: Tensor,
    owner_G: Tensor,
    points_BTK2: Tensor,
    normalize: Literal["mask", "points"] = "mask",
) -> tuple[Tensor, Tensor]:
    """Average of point-sampled features under every instance's mask (Eq. 1 up to GAP).

    pooled[g, t] = Σ_k mask_g(points[b, t, k]) · features_b(points[b, t, k]) / denominator, with b = owner[g]; both samplings
    are bilinear, `align_corners=False`, zero outside.

    Args:
        features_BCHW: Pixel embedding. fp64, fp32, fp16 or bf16; channels-last is the fast layout.
        masks_GHW: Masks of all instances of the batch, bool or uint8 (non-zero counts as 1); any size, not that of features.
        owner_G: Index of every instance's image, int64 or int32.
        points_BTK2: (x, y), normalised to [0, 1] over the image. Dtype of `features`, or float32 beside half precision.
        normalize: "mask": divide by the mask weight that was hit. "points": divide by K (Eq. 1 to the letter).

    Returns:
        pooled_GTC: Dtype of `features`; differentiable in `features`. 0 (never NaN) for a set that missed the instance.
        weight_GT: Σ_k mask samples, float32 (float64 for float64), without gradient: 0 marks a set that missed the instance.

    Raises:
        TypeError: A wrong type or dtype.
        ValueError: A wrong shape, device or `normalize`; on the CPU also an owner outside [0, B).
    """
    return reference.masked_point_pool(features_BCHW, masks_GHW, owner_G, points_BTK2, normalize)
