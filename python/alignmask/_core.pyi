"""The compiled module. Every function reads its arguments by name or in this order, and writes into
given outputs.

Tensors may be torch tensors, NumPy arrays, or anything with the DLPack or the buffer protocol; they
are read in place. `workspace` is a function that lends as many bytes as it is asked for, on the
tensors' device; `stream` is a CUDA stream. A function `..._workspace` returns how many bytes its
namesake would ask for, and runs nothing.
"""

from collections.abc import Callable
from typing import Any

Array = Any
Workspace = Callable[[int], Array] | None

def cpu_instruction_set() -> str: ...
def cpu_instruction_sets() -> list[str]: ...
def select_cpu_instruction_set(name: str) -> None: ...
def cuda_build() -> dict[str, Any]: ...
def set_launcher(
    index: int, launch: Callable[[str, int, int, list[tuple[str, int, int, bytes]]], None] | None
) -> None: ...
def mask_iou_forward(
    iou: Array,
    predictions: Array,
    targets: Array,
    owner: Array,
    threshold: float = ...,
    threads: int = ...,
    workspace: Workspace = ...,
    stream: int = ...,
) -> None: ...
def mask_iou_forward_workspace(
    iou: Array,
    predictions: Array,
    targets: Array,
    owner: Array,
    threshold: float = ...,
    threads: int = ...,
    workspace: Workspace = ...,
    stream: int = ...,
) -> int: ...
def mask_points_forward(
    sampled: Array,
    targets: Array,
    points: Array,
    logits: Array,
    masks: Array,
    index: Array,
    seed: int = ...,
    candidates: int = ...,
    kept: int = ...,
    threads: int = ...,
    stream: int = ...,
) -> None: ...
def mask_points_backward(
    grad_logits: Array,
    grad_sampled: Array,
    points: Array,
    threads: int = ...,
    deterministic: bool = ...,
    workspace: Workspace = ...,
    stream: int = ...,
) -> None: ...
def mask_points_backward_workspace(
    grad_logits: Array,
    grad_sampled: Array,
    points: Array,
    threads: int = ...,
    deterministic: bool = ...,
    workspace: Workspace = ...,
    stream: int = ...,
) -> int: ...
def mask_rle_forward(
    runs: Array,
    area: Array,
    box: Array,
    probability: Array,
    logits: Array,
    height: int = ...,
    width: int = ...,
    padded_height: int = ...,
    padded_width: int = ...,
    valid_height: int = ...,
    valid_width: int = ...,
    threads: int = ...,
    workspace: Workspace = ...,
    stream: int = ...,
) -> None: ...
def mask_rle_forward_workspace(
    runs: Array,
    area: Array,
    box: Array,
    probability: Array,
    logits: Array,
    height: int = ...,
    width: int = ...,
    padded_height: int = ...,
    padded_width: int = ...,
    valid_height: int = ...,
    valid_width: int = ...,
    threads: int = ...,
    workspace: Workspace = ...,
    stream: int = ...,
) -> int: ...
def mask_rle_counts_forward(
    counts: Array,
    ends: Array,
    logits: Array,
    height: int = ...,
    width: int = ...,
    padded_height: int = ...,
    padded_width: int = ...,
    valid_height: int = ...,
    valid_width: int = ...,
    threads: int = ...,
    workspace: Workspace = ...,
    stream: int = ...,
) -> None: ...
def mask_rle_counts_forward_workspace(
    counts: Array,
    ends: Array,
    logits: Array,
    height: int = ...,
    width: int = ...,
    padded_height: int = ...,
    padded_width: int = ...,
    valid_height: int = ...,
    valid_width: int = ...,
    threads: int = ...,
    workspace: Workspace = ...,
    stream: int = ...,
) -> int: ...
def masked_point_pool_forward(
    pooled: Array,
    weight: Array,
    features: Array,
    masks: Array,
    owner: Array,
    points: Array,
    divide_by_points: bool = ...,
    threads: int = ...,
    stream: int = ...,
) -> None: ...
def masked_point_pool_backward(
    grad_features: Array,
    grad_pooled: Array,
    weight: Array,
    masks: Array,
    owner: Array,
    points: Array,
    divide_by_points: bool = ...,
    threads: int = ...,
    deterministic: bool = ...,
    workspace: Workspace = ...,
    stream: int = ...,
) -> None: ...
def masked_point_pool_backward_workspace(
    grad_features: Array,
    grad_pooled: Array,
    weight: Array,
    masks: Array,
    owner: Array,
    points: Array,
    divide_by_points: bool = ...,
    threads: int = ...,
    deterministic: bool = ...,
    workspace: Workspace = ...,
    stream: int = ...,
) -> int: ...
def ms_deform_attn_forward(
    out: Array,
    value: Array,
    level_shapes: Array,
    locations: Array,
    weights: Array,
    threads: int = ...,
    reference: Array | None = ...,
    stream: int = ...,
) -> None: ...
def ms_deform_attn_backward(
    grad_value: Array,
    grad_locations: Array,
    grad_weights: Array,
    grad_out: Array,
    value: Array,
    level_shapes: Array,
    locations: Array,
    weights: Array,
    threads: int = ...,
    reference: Array | None = ...,
    grad_reference: Array | None = ...,
    deterministic: bool = ...,
    workspace: Workspace = ...,
    stream: int = ...,
) -> None: ...
def ms_deform_attn_backward_workspace(
    grad_value: Array,
    grad_locations: Array,
    grad_weights: Array,
    grad_out: Array,
    value: Array,
    level_shapes: Array,
    locations: Array,
    weights: Array,
    threads: int = ...,
    reference: Array | None = ...,
    grad_reference: Array | None = ...,
    deterministic: bool = ...,
    workspace: Workspace = ...,
    stream: int = ...,
) -> int: ...
def quality_focal_loss_forward(
    loss: Array,
    grad_logits: Array,
    logits: Array,
    label: Array,
    iou: Array,
    gamma: float = ...,
    theta: float = ...,
    threads: int = ...,
    stream: int = ...,
) -> None: ...
