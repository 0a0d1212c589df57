"""One call of every kernel at the paper's shapes, forward and backward, for NVIDIA's profiler."""

from __future__ import annotations

import torch
from common import DEVICE, SIDE, B, attention, generator, masks, say, smooth_maps, synchronize
from ops_times import CLASSES, HALF_SIDE, MASKS, OUTPUTS, POINTS, QUERIES, SETS

from alignmask import ops


def main() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        value, levels, reference, offsets, logits = attention(dtype)
        leaves = [x.requires_grad_() for x in (value, offsets, logits)]
        out = ops.ms_deform_attn_from_offsets(value, levels, reference, offsets, logits)
        torch.autograd.grad(out, leaves, torch.ones_like(out))
    instances, owner = masks(MASKS * B, SIDE), torch.arange(MASKS * B, device=DEVICE) % B
    embedding = torch.randn(B, 256, HALF_SIDE, HALF_SIDE, device=DEVICE)
    where = torch.rand(B, SETS, POINTS, 2, device=DEVICE, generator=generator())
    for layout in (torch.channels_last, torch.contiguous_format):
        features = embedding.contiguous(memory_format=layout).requires_grad_()
        torch.autograd.grad(
            ops.masked_point_pool(features, instances, owner, where)[0].sum(), features
        )
    size = (B, QUERIES, HALF_SIDE, HALF_SIDE)
    for predictions in (smooth_maps(*size), torch.randn(size, device=DEVICE)):
        ops.mask_iou(predictions, instances, owner)
    smooth = (5 * smooth_maps(400, HALF_SIDE, HALF_SIDE)).requires_grad_()
    sampled = ops.mask_points(
        smooth, instances, torch.arange(400, device=DEVICE) % len(instances), POINTS, 1
    )[0]
    torch.autograd.grad(sampled.sum(), smooth)
    ops.mask_rle(smooth[:100].detach(), (SIDE, SIDE))
    rows = OUTPUTS * B * QUERIES
    label = torch.randint(-1, CLASSES, (rows,), device=DEVICE)
    ops.quality_focal_loss(
        torch.randn(rows, CLASSES, device=DEVICE), label, torch.rand(rows, device=DEVICE)
    )
    synchronize()
    say("every kernel was called")


if __name__ == "__main__":
    main()
