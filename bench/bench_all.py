"""Every op against its peers, in one table."""

from __future__ import annotations

import bench_mask_iou
import bench_mask_points
import bench_mask_rle
import bench_masked_point_pool
import bench_ms_deform_attn
import bench_quality_focal_loss
from harness import main

if __name__ == "__main__":
    main(
        bench_ms_deform_attn.measurements,
        bench_masked_point_pool.measurements,
        bench_mask_iou.measurements,
        bench_mask_points.measurements,
        bench_mask_rle.measurements,
        bench_quality_focal_loss.measurements,
    )
