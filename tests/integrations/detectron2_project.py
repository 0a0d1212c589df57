"""Stands for a detectron2 project that was written for the compiled extension: it knows nothing of
us.

Written after the interface that Deformable DETR and the projects built on it publish: the
extension's two functions, an autograd function around them, a module with these parameters and
arguments. B images, Q queries, S tokens, L levels, C channels.
"""

from __future__ import annotations

from typing import Any

import MultiScaleDeformableAttention as MSDA
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class MSDeformAttnFunction(Function):
    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        ctx.im2col_step = im2col_step
        inputs = (
            value,
            value_spatial_shapes,
            value_level_start_index,
            sampling_locations,
            attention_weights,
        )
        ctx.save_for_backward(*inputs)
        return MSDA.ms_deform_attn_forward(*inputs, ctx.im2col_step)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad_value, grad_locations, grad_weights = MSDA.ms_deform_attn_backward(
            *ctx.saved_tensors, grad_output, ctx.im2col_step
        )
        return grad_value, None, None, grad_locations, grad_weights, None


class MSDeformAttn(nn.Module):
    def __init__(self, d_model: int, n_levels: int, n_heads: int, n_points: int) -> None:
        super().__init__()
        self.n_levels, self.n_heads, self.n_points, self.im2col_step = (
            n_levels,
            n_heads,
            n_points,
            128,
        )
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Tensor,
        input_level_start_index: Tensor,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """query [B, Q, C]; reference_points [B, Q, L, 2 or 4]; input_flatten [B, S, C];
        input_padding_mask [B, S]."""
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], 0.0)
        value = value.unflatten(-1, (self.n_heads, -1))
        points = (self.n_heads, self.n_levels, self.n_points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*points, 2))
        weights = (
            self.attention_weights(query)
            .unflatten(-1, (self.n_heads, -1))
            .softmax(-1)
            .unflatten(-1, points[1:])
        )
        centre = reference_points[:, :, None, :, None, :2]
        if reference_points.shape[-1] == 2:
            locations = centre + offsets / input_spatial_shapes.flip(-1)[:, None]
        else:
            locations = (
                centre + offsets / self.n_points * reference_points[:, :, None, :, None, 2:] * 0.5
            )
        out = MSDeformAttnFunction.apply(
            value,
            input_spatial_shapes,
            input_level_start_index,
            locations,
            weights,
            self.im2col_step,
        )
        return self.output_proj(torch.as_tensor(out))
