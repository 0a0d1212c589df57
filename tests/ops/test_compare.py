"""The tolerance itself: what it lets through, and what not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.ops import cases
from tests.ops.compare import assert_near


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_rounding_passes_and_the_next_number_does_not(dtype: torch.dtype) -> None:
    exact = 1 + torch.rand(1000, dtype=torch.float64) / 200
    rounded = exact.to(dtype)
    assert_near(rounded, exact.numpy(), scale=0)
    if dtype != torch.float64:
        with pytest.raises(AssertionError, match="1000 of 1000 elements are off"):
            assert_near((exact + torch.finfo(dtype).eps * 1.1).to(dtype), exact.numpy(), scale=0)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_cancellation_may_cost_a_few_epsilons_of_the_terms(dtype: torch.dtype) -> None:
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    assert_near(torch.tensor([3 * eps], dtype=dtype), np.zeros(1), scale=1)
    with pytest.raises(AssertionError):
        assert_near(torch.tensor([5 * eps], dtype=dtype), np.zeros(1), scale=1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_are_off(bad: float) -> None:
    with pytest.raises(
        AssertionError, match=r"gradient: 1 of 2 elements are off; the first at \(1,\)"
    ):
        assert_near(torch.tensor([0.0, bad]), np.zeros(2), 1.0, "gradient")


def test_shapes_must_agree() -> None:
    with pytest.raises(AssertionError, match=r"\(2, 1\) instead of \(2,\)"):
        assert_near(torch.zeros(2, 1), np.zeros(2), 1)
