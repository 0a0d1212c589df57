"""Quality focal loss against loops in float64.

Shapes: R rows, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignmask import ops
from tests.ops import cases, oracles, strategies
from tests.ops.compare import array, assert_near

OP = "quality_focal_loss"


@pytest.fixture(params=cases.implementations(OP))
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with cases.using(request.param, OP):
        yield request.param


def case(name: str = "odd", **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    return cases.quality_focal_loss(cases.QUALITY_FOCAL_LOSS[name], **options)


def check(arguments: tuple[Tensor, Tensor, Tensor], gamma: float, theta: float) -> None:
    logits, label, iou = arguments
    logits = logits.detach().requires_grad_()
    loss = ops.quality_focal_loss(logits, label, iou, gamma, theta)
    assert (loss.shape, loss.dtype) == ((len(logits),), logits.dtype)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    expected, expected_grad = oracles.quality_focal_loss(
        array(logits), array(label), array(iou), gamma, theta
    )
    largest = 1 + float(logits.detach().abs().max()) if logits.numel() else 1
    # |t - s|^gamma costs gamma roundings of its base, and w_neg those of a difference of two ks
    k = 1 / (1 - theta**gamma)
    terms = np.maximum(expected, largest * math.sqrt(max(logits.shape[1], 1)))
    assert_near(loss, expected, (1 + gamma) * k * terms, "loss")
    assert_near(grad, expected_grad, (1 + gamma) ** 2 * k * largest, "gradient")


@given(
    strategies.loss_shapes(),
    strategies.dtypes,
    strategies.seeds,
    st.sampled_from((0.1, 3.0, 30.0)),
    st.sampled_from((1.0, 1.5, 2.0, 4.0)),
    st.sampled_from((0.0, 0.5, 0.9)),
)
def test_equals_the_oracle(
    shape: cases.LossShape, dtype: torch.dtype, seed: int, spread: float, gamma: float, theta: float
) -> None:
    for implementation in cases.implementations(OP):
        with cases.using(implementation, OP):
            check(cases.quality_focal_loss(shape, dtype, spread, seed), gamma, theta)


def test_by_hand(implementation: str) -> None:
    """At logit 0, s = 1/2 and BCE = ln 2 for any target."""
    logits = torch.zeros(4, 2, dtype=torch.float64)
    label, iou = (
        torch.tensor([0, 1, -1, -1]),
        torch.tensor([0.5, 1.0, 0.4999, 0.75], dtype=torch.float64),
    )
    loss = ops.quality_focal_loss(logits, label, iou)
    ln2, w_neg = math.log(2), 4 / 3 - 4 / 3 * 0.75**2
    expected = torch.tensor(
        [0 + ln2 / 4, 2 * ln2 / 4, 2 * ln2 / 4, w_neg * 2 * ln2 / 4], dtype=torch.float64
    )
    torch.testing.assert_close(loss, expected)


def test_negative_weight_is_continuous_at_theta_and_zero_at_one(implementation: str) -> None:
    iou = torch.tensor([0.0, 0.49999, 0.5, 0.50001, 1.0], dtype=torch.float64)
    loss = ops.quality_focal_loss(torch.zeros(5, 1, dtype=torch.float64), torch.full((5,), -1), iou)
    weight = loss / loss[0]
    torch.testing.assert_close(
        weight, torch.tensor([1, 1, 1, 1, 0.0], dtype=torch.float64), atol=1e-4, rtol=0
    )
    assert weight[2] == 1  # at theta, b - k theta^2 = 1
    assert weight[3] < 1


def test_negatives_alone_are_the_focal_loss(implementation: str) -> None:
    """Without a label and far from every instance: s^2 · BCE(s, 0)."""
    logits, _, iou = case(dtype=torch.float64)
    loss = ops.quality_focal_loss(logits, torch.full((17,), -1), iou * 0)
    zeros = torch.zeros_like(logits)
    bce = F.binary_cross_entropy_with_logits(logits, zeros, reduction="none")
    torch.testing.assert_close(loss, (logits.sigmoid() ** 2 * bce).sum(1))


@pytest.mark.parametrize("gamma", [1.0, 2.0, 2.5])
def test_gradcheck(implementation: str, gamma: float) -> None:
    logits, label, iou = case(dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: ops.quality_focal_loss(x, label, iou, gamma),
        logits.requires_grad_(),
        fast_mode=True,
    )


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_huge_logits(implementation: str, dtype: torch.dtype) -> None:
    """|logit| = 1e4: losses grow linearly where the class is wrong and vanish where it is right;
    gradients stay finite."""
    big = torch.tensor([1e4, -1e4], dtype=dtype)
    logits = torch.cartesian_prod(big, big).requires_grad_()
    label, iou = torch.tensor([-1, 0, 0, 0]), torch.ones(4, dtype=dtype)
    iou[0] = 0
    loss = ops.quality_focal_loss(logits, label, iou)
    b = float(big[0])
    torch.testing.assert_close(
        loss.double(), torch.tensor([2 * b, 0, 2 * b, b]).double(), rtol=1e-2, atol=0
    )
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    expected = torch.tensor([[1, 1], [0, 0], [-1, 1], [-1, 0]], dtype=dtype)
    torch.testing.assert_close(grad, expected)


def test_a_confident_right_answer_keeps_a_relative_precision(implementation: str) -> None:
    """float32 at logit -20: s^2 · softplus is 8.8e-27, and must not become 0 through 1 - s."""
    logits = torch.tensor([[-20.0]], requires_grad=True)
    loss = ops.quality_focal_loss(logits, torch.tensor([-1]), torch.zeros(1))
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    s = 1 / (1 + math.exp(20))
    np.testing.assert_allclose(loss.item(), s**2 * math.log1p(math.exp(-20)), rtol=1e-4)
    np.testing.assert_allclose(
        grad.item(), s**2 * (2 * (1 - s) * math.log1p(math.exp(-20)) + s), rtol=1e-4
    )


def test_target_equal_to_score_has_no_loss_and_no_nan(implementation: str) -> None:
    logits = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    for gamma in (1.0, 1.5, 2.0):
        loss = ops.quality_focal_loss(
            logits, torch.tensor([0]), torch.tensor([0.5], dtype=torch.float64), gamma
        )
        (grad,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.item() == 0
        # At gamma = 1 the loss has a kink there.
        assert abs(grad.item()) <= (math.log(2) / 4 if gamma == 1 else 0)


def test_nan_stays_in_its_row(implementation: str) -> None:
    logits, label, iou = case()
    expected = ops.quality_focal_loss(logits, label, iou)
    for row in (0, 5):
        broken = logits.clone()
        broken[row, 1] = math.nan
        loss = ops.quality_focal_loss(broken, label, iou)
        assert loss[row].isnan()
        loss[row] = expected[row]
        assert torch.equal(loss, expected)


def test_no_rows_and_no_classes(implementation: str) -> None:
    for rows, classes in ((0, 3), (2, 0), (0, 0)):
        logits = torch.zeros(rows, classes, requires_grad=True)
        loss = ops.quality_focal_loss(logits, torch.full((rows,), -1), torch.zeros(rows))
        assert loss.tolist() == [0] * rows
        assert torch.autograd.grad(loss.sum(), logits)[0].shape == (rows, classes)


def test_iou_gets_no_gradient_and_may_be_of_another_precision(implementation: str) -> None:
    logits, label, iou = case()
    iou.requires_grad_()
    assert not ops.quality_focal_loss(logits, label, iou).requires_grad
    loss = ops.quality_focal_loss(logits.half(), label.int(), iou)
    assert loss.dtype == torch.float16
    torch.testing.assert_close(
        loss.float(), ops.quality_focal_loss(logits, label, iou), rtol=5e-3, atol=5e-3
    )


def test_strides_do_not_matter(implementation: str) -> None:
    logits, label, iou = case()
    expected = ops.quality_focal_loss(logits, label, iou)
    spread = torch.stack([logits, logits * math.nan], -1)[..., 0]
    for x in (logits.T.contiguous().T, spread, logits.flip(1).contiguous().flip(1)):
        found = ops.quality_focal_loss(
            x, label.repeat_interleave(2)[::2], iou.repeat_interleave(2)[::2]
        )
        torch.testing.assert_close(found, expected)
    row = logits[:1].expand_as(logits)
    torch.testing.assert_close(
        ops.quality_focal_loss(row, label, iou),
        ops.quality_focal_loss(row.contiguous(), label, iou),
    )


@pytest.mark.parametrize("gamma", [1.5, 2.0])
@pytest.mark.parametrize(
    ("R", "C"),
    [
        *((R, 8) for R in (31, 32, 33, 1023, 1024, 1025, 2050)),
        *((3, C) for C in (7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 8191, 8192, 8193)),
        *((R, 1) for R in (8191, 8192, 8193)),
    ],
)
def test_blocks_of_rows_and_rounds_of_classes(
    implementation: str, R: int, C: int, gamma: float
) -> None:
    """One below, at and one above what kernels count in: 8192 logits of a task on the CPU, 32 rows
    of a block on the GPU."""
    for dtype in (torch.float64, torch.bfloat16):
        check(cases.quality_focal_loss(cases.LossShape(R, C), dtype), gamma, 0.5)


ERRORS: dict[str, tuple[type[Exception], str, int, Callable[[Any], Any]]] = {
    "no tensor": (TypeError, "label must be a torch.Tensor, got int", 1, lambda _: 1),
    "integers": (TypeError, "logits must be of dtype .*, got int64", 0, lambda a: a.long()),
    "rank": (
        ValueError,
        r"logits must have the 2 dimensions RC, got \(85,\)",
        0,
        lambda a: a.flatten(),
    ),
    "label float": (
        TypeError,
        "label must be of dtype int64, int32, got float32",
        1,
        lambda a: a.float(),
    ),
    "rows": (
        ValueError,
        r"iou \(R\) has R = 16 in \(16,\), but logits has R = 17",
        2,
        lambda a: a[1:],
    ),
    "gamma": (ValueError, "gamma must be finite and at least 1 .*, got 0.5", 3, lambda _: 0.5),
    "gamma nan": (
        ValueError,
        "gamma must be finite and at least 1 .*, got nan",
        3,
        lambda _: math.nan,
    ),
    "theta": (ValueError, r"theta must be in \[0, 1\), got 1", 4, lambda _: 1.0),
    "theta negative": (ValueError, r"theta must be in \[0, 1\), got -0.1", 4, lambda _: -0.1),
}


@pytest.mark.parametrize("name", list(ERRORS))
def test_errors_name_op_and_argument(implementation: str, name: str) -> None:
    error, message, position, change = ERRORS[name]
    arguments: list[Any] = [*case(), 2.0, 0.5]
    arguments[position] = change(arguments[position])
    with pytest.raises(error, match=f"^{OP}: {message}"):
        ops.quality_focal_loss(*arguments)


@pytest.mark.parametrize("wrong", [5, -2])
def test_a_label_out_of_range(implementation: str, wrong: int) -> None:
    """An error; on a GPU, where nothing waits to look at it, it counts as -1."""
    logits, label, iou = case()
    label[1] = wrong
    if cases.looks_at_indices(implementation):
        with pytest.raises(ValueError, match=rf"^{OP}: label\[1\] = {wrong} is outside \[-1, 4\]"):
            ops.quality_focal_loss(logits, label, iou)
        return
    gradients = []
    for of_row in (wrong, -1):
        label[1] = of_row
        leaf = logits.clone().requires_grad_()
        loss = ops.quality_focal_loss(leaf, label, iou)
        gradients.append((loss.detach(), *torch.autograd.grad(loss.sum(), leaf)))
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)
