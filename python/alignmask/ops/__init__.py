"""The operations of AlignMask, usable without the rest of the package.

Coordinates are normalised to [0, 1], `align_corners=False`, zero outside. All ops take fp64, fp32,
fp16 and bf16, compute in float32 (float64 for float64), accept any strides and zero-size
dimensions, and name op and argument in their errors. `implementation` tells what runs where;
`reference` holds the plain torch forms, `use_reference` selects them.
"""

from __future__ import annotations

from alignmask.ops import reference
from alignmask.ops._library import OPS, gpu_build, implementation, use_reference
from alignmask.ops.mask_iou import mask_iou
from alignmask.ops.mask_points import mask_points
from alignmask.ops.mask_rle import mask_rle
from alignmask.ops.masked_point_pool import masked_point_pool
from alignmask.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_from_offsets
from alignmask.ops.quality_focal_loss import quality_focal_loss

__all__ = [
    "OPS",
    "gpu_build",
    "implementation",
    "mask_iou",
    "mask_points",
    "mask_rle",
    "masked_point_pool",
    "ms_deform_attn",
    "ms_deform_attn_from_offsets",
    "quality_focal_loss",
    "reference",
    "use_reference",
]
