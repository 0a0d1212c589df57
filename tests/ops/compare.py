"""How close is close enough, derived from the contract: arithmetic in float32 (float64 for
float64), rounded once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests.ops.oracles import Array


def array(tensor: Tensor) -> Array:
    """A tensor's values in float64, for the oracles; masks and indices as they are."""
    tensor = tensor.detach()
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def assert_near(found: Tensor, expected: Array, scale: float | Array, name: str = "output") -> None:
    """Check `found` against float64 values, element by element.

    Args:
        found: Of any floating dtype; its last rounding may cost half a unit in the last place.
        expected: Same shape, finite.
        scale: Size of the sums behind an element (Σ of absolute terms); their arithmetic may cost 4
            epsilons of it. For half precision this stands where other projects compare with their
            reference's own error: ours is never larger, since both accumulate in float32.
    """
    assert found.shape == expected.shape, (
        f"{name}: {tuple(found.shape)} instead of {expected.shape}"
    )
    arithmetic = torch.float64 if found.dtype == torch.float64 else torch.float32
    rounding, least = (
        torch.finfo(found.dtype).eps / 2,
        torch.finfo(found.dtype).smallest_normal * torch.finfo(found.dtype).eps,
    )
    allowed = 1.01 * rounding * np.abs(expected) + 4 * torch.finfo(arithmetic).eps * scale + least
    wrong = ~(np.abs(array(found) - expected) <= allowed)  # true for NaN, too
    if wrong.any():
        at = tuple(int(i[0]) for i in wrong.nonzero())
        raise AssertionError(
            f"{name}: {wrong.sum()} of {wrong.size} elements are off; the first at {at}: "
            f"{array(found)[at]} instead of {expected[at]} ± "
            f"{np.broadcast_to(allowed, expected.shape)[at]:.2g}"
        )


def assert_same(found: Tensor, expected: Tensor, repeats: bool = True) -> None:
    """Check that two results are equal bit for bit; not `repeats`: that they differ by the order of
    their sums alone.

    Then every element may differ by a rounding of its dtype and 32 epsilons of the largest, for
    sums of terms that cancel.
    """
    if repeats:
        assert torch.equal(found, expected)
        return
    arithmetic = torch.float64 if found.dtype == torch.float64 else torch.float32
    largest = float(expected.detach().abs().max()) if expected.numel() else 0.0
    rounding = torch.finfo(found.dtype).eps if found.dtype != arithmetic else 0.0
    torch.testing.assert_close(
        found, expected, rtol=rounding, atol=32 * torch.finfo(arithmetic).eps * max(largest, 1)
    )


NONDETERMINISM = 1e-12
"""By how much gradients in float64 may differ from run to run where atomics add in any order
(`nondet_tol` of gradcheck)."""
