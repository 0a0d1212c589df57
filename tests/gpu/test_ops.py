"""The ops against their references in float64 on the CPU, their determinism, their layouts."""

from __future__ import annotations

import pytest
import torch

from alignmask import ops
from tests.gpu import calls

OPS = list(calls.SHAPES)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("large", [False, True], ids=["odd", "model"])
@pytest.mark.parametrize("op", OPS)
def test_equals_the_reference_in_float64(
    device: str, op: str, large: bool, dtype: torch.dtype
) -> None:
    """Relative to the largest element: what cancels is not counted against half precision."""
    given = calls.inputs(op, large, dtype)
    with ops.use_reference():
        expected = calls.run(op, calls.to(given, "cpu", torch.float64))
    results = calls.run(op, calls.to(given, device))
    for result, wanted in zip(results, expected, strict=True):
        assert result.device.type == device
        error = (result.cpu().double() - wanted).abs().max() if wanted.numel() else torch.zeros(())
        assert error <= TOLERANCE[dtype] * (1 + wanted.abs().max()), (op, error)


@pytest.mark.parametrize("op", OPS)
def test_deterministic(device: str, deterministic: None, op: str) -> None:
    """Bit for bit the same in 20 runs."""
    given = calls.to(calls.inputs(op, True, torch.float32), device)
    first = calls.run(op, given)
    for _ in range(19):
        for again, before in zip(calls.run(op, given), first, strict=True):
            assert torch.equal(again, before)


@pytest.mark.parametrize("op", OPS)
def test_any_strides(device: str, op: str) -> None:
    given = calls.to(calls.inputs(op, False, torch.float32), device)
    spread = [
        torch.stack([x, x], -1)[..., 0] if isinstance(x, torch.Tensor) else x for x in given
    ]  # every element has a neighbour that is not its own
    for result, wanted in zip(calls.run(op, spread), calls.run(op, given), strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-4)


def test_nothing_at_all(device: str) -> None:
    value = torch.zeros(0, 4, 1, 32, device=device)
    locations, weights = (
        torch.zeros(0, 3, 1, 1, 2, 2, device=device),
        torch.zeros(0, 3, 1, 1, 2, device=device),
    )
    assert ops.ms_deform_attn(value, [(2, 2)], locations, weights).shape == (0, 3, 32)
    logits = torch.zeros(0, 5, device=device)
    empty = torch.zeros(0, device=device)
    assert ops.quality_focal_loss(logits, empty.long(), empty).shape == (0,)
