"""Mask IoU against loops in float64.

Shapes: B images, Q predictions per image, h x w, G targets of H x W.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from alignmask import ops
from tests.ops import cases, oracles, strategies
from tests.ops.compare import array

OP = "mask_iou"


@pytest.fixture(params=cases.implementations(OP))
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with cases.using(request.param, OP):
        yield request.param


def case(name: str = "odd", **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    return cases.mask_iou(cases.MASK_IOU[name], **options)


def closest_to(threshold: float, predictions: Tensor, scale: int) -> float:
    """Smallest distance of an upsampled logit to the threshold: below rounding, either side is
    right."""
    distances = [
        np.abs(oracles.upsample(logits, scale) - threshold).min(initial=math.inf)
        for image in array(predictions)
        for logits in image
    ]
    return min(distances, default=math.inf)


@given(
    strategies.iou_shapes(), strategies.dtypes, strategies.seeds, st.sampled_from((0.0, 0.4, -1.0))
)
def test_equals_the_oracle(
    shape: cases.IouShape, dtype: torch.dtype, seed: int, threshold: float
) -> None:
    predictions, targets, owner = cases.mask_iou(shape, dtype, seed)
    if shape.scale > 1 or threshold == 0.4:
        assume(closest_to(threshold, predictions, shape.scale) > 1e-6)
    expected = oracles.mask_iou(array(predictions), array(targets), array(owner), threshold)
    for implementation in cases.implementations(OP):
        with cases.using(implementation, OP):
            iou = ops.mask_iou(predictions, targets, owner, threshold)
            assert iou.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            torch.testing.assert_close(
                iou, torch.from_numpy(expected).to(iou.dtype), rtol=1e-6, atol=0
            )


@given(strategies.seeds, st.sampled_from((1, 2, 4)))
def test_the_threshold_itself_is_background(seed: int, scale: int) -> None:
    """Small integers, upsampled by powers of two: every logit is exact, and many equal the
    threshold."""
    shape = cases.IouShape(1, 6, (5, 4), scale, 3)
    predictions, targets, owner = cases.mask_iou(shape, torch.float32, seed)
    predictions = predictions.round()
    expected = oracles.mask_iou(array(predictions), array(targets), array(owner))
    for implementation in cases.implementations(OP):
        with cases.using(implementation, OP):
            np.testing.assert_allclose(
                ops.mask_iou(predictions, targets, owner).numpy(), expected, rtol=1e-6
            )


def test_by_hand(implementation: str) -> None:
    predictions = torch.tensor([[[[1.0, 1.0], [-1.0, 0.0]], [[-1.0, -1.0], [-1.0, -1.0]]]])
    targets = torch.tensor(
        [[[1, 0], [1, 0]], [[0, 0], [0, 0]], [[1, 1], [0, 0]]], dtype=torch.uint8
    )
    iou = ops.mask_iou(predictions, targets, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(iou, torch.tensor([[1 / 3, 0], [0, 0], [1, 0]]))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_upsampling_is_that_of_the_evaluation(implementation: str, scale: int) -> None:
    """Equal to thresholding what `F.interpolate` makes of the logits, away from ties."""
    predictions, targets, owner = cases.mask_iou(
        cases.IouShape(2, 7, (20, 31), scale, 5), torch.float64
    )
    full = F.interpolate(predictions, scale_factor=scale, mode="bilinear", align_corners=False)
    assert full.abs().min() > 1e-9
    found, expected = ops.mask_iou(predictions, targets, owner), ops.mask_iou(full, targets, owner)
    assert torch.equal(found, expected)
    assert expected.max() > 0.1


@pytest.mark.parametrize("implementation", cases.implementations(OP, emulated=False), indirect=True)
def test_counts_are_exact_beyond_float32(implementation: str) -> None:
    """2^24 + 1 foreground pixels are not a float32."""
    side = 4100
    predictions = torch.ones(1, 1, side, side, dtype=torch.float16)
    targets = torch.zeros(1, side, side, dtype=torch.bool)
    targets.view(-1)[: 2**24 + 1] = True
    predictions.view(-1)[2**24 + 1 :] = -1
    assert ops.mask_iou(predictions, targets, torch.tensor([0])).item() == 1.0
    predictions.view(-1)[0] = -1
    iou = ops.mask_iou(predictions.float(), targets, torch.tensor([0]))
    assert iou.item() == np.float32(2**24 / (2**24 + 1))


def test_nan_is_background_and_infinity_foreground(implementation: str) -> None:
    predictions, targets, owner = case("tiny")
    unclear = predictions.clone()
    unclear[0, 0, 0, :2] = torch.tensor([math.nan, math.inf])
    clear = predictions.clone()
    clear[0, 0, 0, :2] = torch.tensor([-1.0, 1.0])
    assert torch.equal(ops.mask_iou(unclear, targets, owner), ops.mask_iou(clear, targets, owner))
    everything = torch.full_like(predictions, math.nan)
    assert not ops.mask_iou(everything, targets, owner).any()


def test_no_target_no_prediction_no_pixel(implementation: str) -> None:
    predictions, targets, owner = case("tiny")
    assert ops.mask_iou(predictions, targets[:0], owner[:0]).shape == (0, 2)
    assert ops.mask_iou(predictions[:, :0], targets, owner).shape == (2, 0)
    nothing = ops.mask_iou(predictions[..., :0], targets[..., :0], owner)
    assert torch.equal(nothing, torch.zeros(2, 2))


def test_predictions_get_no_gradient(implementation: str) -> None:
    predictions, targets, owner = case()
    assert not ops.mask_iou(predictions.requires_grad_(), targets, owner).requires_grad


def test_masks_are_bool_or_bytes_and_owners_of_32_or_64_bits(implementation: str) -> None:
    predictions, targets, owner = case()
    expected = ops.mask_iou(predictions, targets, owner)
    for m, o in (
        (targets.byte(), owner.int()),
        (targets.byte() * 255, owner),
        (targets.byte() * 2, owner),
    ):
        assert torch.equal(ops.mask_iou(predictions, m, o), expected)


def test_strides_do_not_matter(implementation: str) -> None:
    predictions, targets, owner = case()
    expected = ops.mask_iou(predictions, targets, owner)
    swapped = predictions.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    spread = torch.stack([targets, ~targets], -1)[..., 0]
    assert torch.equal(ops.mask_iou(swapped, spread, owner.repeat_interleave(3)[::3]), expected)
    one = targets[:1].expand_as(targets)
    assert torch.equal(
        ops.mask_iou(predictions, one, owner), ops.mask_iou(predictions, one.contiguous(), owner)
    )


# ---- sizes one below, at and one above what kernels count in


def check_borders(Q: int, size: tuple[int, int], scale: int, G: int) -> None:
    """Compare with the oracle: G targets of one image, and three of another between them."""
    predictions, targets, _ = cases.mask_iou(
        cases.IouShape(2, Q, size, scale, G + 3), torch.float64
    )
    owner = torch.zeros(G + 3, dtype=torch.long)
    owner[[0, G // 2, G]] = 1
    assert scale == 1 or closest_to(0, predictions, scale) > 1e-12
    expected = oracles.mask_iou(array(predictions), array(targets), array(owner))
    np.testing.assert_allclose(
        ops.mask_iou(predictions, targets, owner).numpy(), expected, rtol=1e-12
    )
    assert expected.max() > 0.1


@pytest.mark.parametrize("Q", [7, 8, 9, 16, 17])
@pytest.mark.parametrize("G", [30, 31, 32, 33, 63])
def test_blocks_of_queries_and_targets(implementation: str, Q: int, G: int) -> None:
    check_borders(Q, (5, 13), 1, G)


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("w", [15, 16, 17, 31, 32, 33, 63, 64, 65, 257])
def test_words_of_columns(implementation: str, w: int, scale: int) -> None:
    check_borders(3, (6, w), scale, 4)


@pytest.mark.parametrize(
    ("h", "w", "scale"),
    [
        *((h, 5, 1) for h in (63, 64, 65, 127, 128, 129, 511, 512, 513)),
        *((h, 5, 2) for h in (31, 32, 33, 255, 256, 257)),
        *((h, 5, 4) for h in (15, 16, 17, 127, 128, 129)),
        *((h, 1025, 1) for h in (29, 30, 31, 61)),
        *((h, 2, 65) for h in (1, 2, 3)),
        (2, 32769, 1),
    ],
)
def test_bands_of_rows(implementation: str, h: int, w: int, scale: int) -> None:
    """On the CPU bands have 512 words of 64 pixels, thus up to 512 rows; on the GPU some 64 rows of
    targets."""
    check_borders(3, (h, w), scale, 4)


def test_more_than_one_of_everything(implementation: str) -> None:
    """Two bands of rows (on the GPU more) times three blocks of queries times two of targets."""
    check_borders(17, (131, 200), 1, 33)


ERRORS: dict[str, tuple[type[Exception], str, int, Callable[[Any], Any]]] = {
    "no tensor": (TypeError, "predictions must be a torch.Tensor, got NoneType", 0, lambda _: None),
    "boolean predictions": (
        TypeError,
        "predictions must be of dtype .*, got bool",
        0,
        lambda a: a > 0,
    ),
    "rank": (
        ValueError,
        r"predictions must have the 4 dimensions BQhw, got \(3, 5, 65\)",
        0,
        lambda a: a.flatten(2),
    ),
    "float targets": (
        TypeError,
        "targets must be of dtype bool, uint8, got float32",
        1,
        lambda a: a.float(),
    ),
    "count": (
        ValueError,
        r"targets \(GHW\) has G = 3 in .*, but owner has G = 4",
        1,
        lambda a: a[:3],
    ),
    "no multiple": (
        ValueError,
        r"targets must have .* integer multiple .*, got \(14, 39\)",
        1,
        lambda a: a[:, :14],
    ),
    "two multiples": (
        ValueError,
        r"targets must have .* integer multiple .*, got \(10, 39\)",
        1,
        lambda a: a[:, :10],
    ),
    "smaller": (
        ValueError,
        r"targets must have .* integer multiple .*, got \(1, 3\)",
        1,
        lambda a: a[:, :1, :3],
    ),
    "owner rank": (
        ValueError,
        r"owner must have the 1 dimensions G, got \(4, 1\)",
        2,
        lambda a: a[:, None],
    ),
}


@pytest.mark.parametrize("name", list(ERRORS))
def test_errors_name_op_and_argument(implementation: str, name: str) -> None:
    error, message, position, change = ERRORS[name]
    arguments: list[Any] = list(case())
    arguments[position] = change(arguments[position])
    with pytest.raises(error, match=f"^{OP}: {message}"):
        ops.mask_iou(*arguments)


@pytest.mark.parametrize("wrong", [3, -1])
def test_an_owner_out_of_range(implementation: str, wrong: int) -> None:
    """An error; on a GPU, where nothing waits to look at it, a target without predictions."""
    predictions, targets, owner = case()
    expected = ops.mask_iou(predictions, targets, owner)
    owner[1] = wrong
    if cases.looks_at_indices(implementation):
        with pytest.raises(ValueError, match=rf"^{OP}: owner\[1\] = {wrong} is outside \[0, 2\]"):
            ops.mask_iou(predictions, targets, owner)
    else:
        expected[1] = 0
        assert torch.equal(ops.mask_iou(predictions, targets, owner), expected)
