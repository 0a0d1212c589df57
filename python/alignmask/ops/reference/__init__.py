"""The ops in plain torch: the oracle for the kernels, shipped and selectable, never a silent
fallback.

Same signatures, contracts and errors as in `alignmask.ops`; any device; differentiable by autograd.
"""

from __future__ import annotations

from alignmask.ops.reference.mask_iou import mask_iou
from alignmask.ops.reference.mask_points import mask_points
from alignmask.ops.reference.mask_rle import mask_rle
from alignmask.ops.reference.masked_point_pool import masked_point_pool
from alignmask.ops.reference.ms_deform_attn import ms_deform_attn, ms_deform_attn_from_offsets
from alignmask.ops.reference.quality_focal_loss import quality_focal_loss

__all__ = [
    "mask_iou",
    "mask_points",
    "mask_rle",
    "masked_point_pool",
    "ms_deform_attn",
    "ms_deform_attn_from_offsets",
    "quality_focal_loss",
]
