"""Which implementation an op uses; the only file that knows torch.library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

OPS = ("ms_deform_attn", "masked_point_pool", "mask_iou", "quality_focal_loss")

_forced_reference: set[str] = set()


def implementation(op: str, device_type: str) -> str:
    """Name what runs `op` on tensors of `device_type` ("cpu", "cuda", ...): a kernel, or "reference" (plain torch).

    Raises:
        ValueError: `op` is none of `OPS`.
    """
    _known(op)
    return "reference"


@contextmanager
def use_reference(*ops: str) -> Iterator[None]:
    """Run the named ops (all, if none is named) on their plain torch reference inside the `with` block.

    Raises:
        ValueError: A name that is none of `OPS`.
    """
    added = {_known(op) for op in ops or OPS} - _forced_reference
    _forced_reference.update(added)
    try:
        yield
    finally:
        _forced_reference.difference_update(added)


def _known(op: str) -> str:
    if op not in OPS:
        raise ValueError(f"unknown op {op!r}: expected one of {', '.join(OPS)}")
    return op
