"""The ops on NumPy arrays and other DLPack arrays: the same numbers, nothing copied, an answer in
kind."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alignmask import ops
from alignmask.ops import _arrays
from tests.ops import cases

Call = Callable[..., Any]


def calls(dtype: torch.dtype = torch.float32) -> dict[str, tuple[Call, list[Tensor]]]:
    """Op -> what takes its tensors, and them."""
    value, levels, locations, weights = cases.ms_deform_attn(
        cases.MS_DEFORM_ATTN["odd"], dtype=dtype
    )
    reference = locations[:, :, 0, :, 0].contiguous()
    return {
        "ms_deform_attn": (
            lambda v, x, w: ops.ms_deform_attn(v, levels, x, w),
            [value, locations, weights],
        ),
        "ms_deform_attn_from_offsets": (
            lambda v, r, x, w: ops.ms_deform_attn_from_offsets(v, levels, r, x, w),
            [value, reference, locations, weights],
        ),
        "masked_point_pool": (
            ops.masked_point_pool,
            list(cases.masked_point_pool(cases.MASKED_POINT_POOL["odd"], dtype=dtype)),
        ),
        "mask_iou": (ops.mask_iou, list(cases.mask_iou(cases.MASK_IOU["odd"], dtype))),
        "mask_points": (
            lambda *t: ops.mask_points(*t, 21, 5),
            list(cases.mask_points(cases.MASK_POINTS["odd"], dtype)[:3]),
        ),
        "mask_rle": (
            lambda x: ops.mask_rle(x, *cases.MASK_RLE["odd"].sizes),
            [cases.mask_rle(cases.MASK_RLE["odd"], dtype)],
        ),
        "quality_focal_loss": (
            ops.quality_focal_loss,
            list(cases.quality_focal_loss(cases.QUALITY_FOCAL_LOSS["odd"], dtype)),
        ),
    }


OPS = list(calls())


class Wrapped:
    """Speaks DLPack, and the array API standard as far as an answer in kind needs it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()

    @classmethod
    def from_dlpack(cls, array: Any) -> Wrapped:
        return cls(torch.from_dlpack(array))

    def __array_namespace__(self) -> Any:
        return type(self)


def as_tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("op", OPS)
def test_numpy_in_numpy_out(op: str, dtype: torch.dtype) -> None:
    call, tensors = calls(dtype)[op]
    expected = as_tuple(call(*tensors))
    found = as_tuple(call(*(tensor.numpy() for tensor in tensors)))
    for a, b in zip(found, expected, strict=True):
        assert isinstance(a, np.ndarray)
        np.testing.assert_array_equal(a, b.numpy())


@pytest.mark.parametrize("op", OPS)
def test_dlpack_in_the_like_out(op: str) -> None:
    call, tensors = calls(torch.bfloat16)[op]
    for a, b in zip(as_tuple(call(*map(Wrapped, tensors))), as_tuple(call(*tensors)), strict=True):
        assert isinstance(a, Wrapped)
        assert torch.equal(a.tensor, b)


def test_an_array_is_answered_by_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CuPy's: without the array API standard, but with a `from_dlpack` in its library."""

    class Array(Wrapped):
        __array_namespace__ = None
        __module__ = "library.arrays"

    call, tensors = calls()["mask_iou"]
    assert isinstance(call(*map(Array, tensors)), Tensor)  # nobody knows how to make another
    monkeypatch.setitem(sys.modules, "library", SimpleNamespace(from_dlpack=Array.from_dlpack))
    found = call(*map(Array, tensors))
    assert isinstance(found, Array)
    assert torch.equal(found.tensor, call(*tensors))


@pytest.mark.parametrize("op", OPS)
def test_any_strides_and_read_only_memory(op: str) -> None:
    call, tensors = calls()[op]
    expected = as_tuple(call(*tensors))

    def backwards(array: Any) -> Any:
        flip = (slice(None, None, -1),) * array.ndim
        return np.ascontiguousarray(array[flip])[flip]

    def first_axis_backwards(array: Any) -> Any:
        return np.ascontiguousarray(array[::-1])[::-1]

    def read_only(array: Any) -> Any:
        array = array.copy()
        array.flags.writeable = False
        return array

    for layout in (backwards, first_axis_backwards, np.asfortranarray, read_only):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = as_tuple(call(*(layout(tensor.numpy()) for tensor in tensors)))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-6, atol=1e-6)


def test_arrays_are_not_copied() -> None:
    array = np.zeros((6, 4), np.float32)
    for view in (array, array[::2, 1:], array.T, np.broadcast_to(array, (10**9, 6, 4))):
        assert _arrays._tensor("op", "x", view).data_ptr() == view.ctypes.data
    wrapped = Wrapped(torch.from_numpy(array))
    assert _arrays._tensor("op", "x", wrapped).data_ptr() == array.ctypes.data


def test_errors_name_op_and_argument() -> None:
    predictions, targets, owner = cases.mask_iou(cases.MASK_IOU["odd"])
    with pytest.raises(
        TypeError,
        match=r"^mask_iou: targets must be a torch.Tensor, got ndarray, as predictions is one",
    ):
        ops.mask_iou(predictions, targets.numpy(), owner)
    with pytest.raises(ValueError, match=r"^mask_iou: owner\[0\] = 7 is outside \[0, 2\]"):
        ops.mask_iou(predictions.numpy(), targets.numpy(), np.full(4, 7))
    with pytest.raises(
        TypeError, match=r"^mask_iou: predictions cannot be read as a tensor: .*byte order"
    ):
        ops.mask_iou(predictions.numpy().astype(">f4"), targets.numpy(), owner.numpy())
    with pytest.raises(
        TypeError, match=r"^mask_iou: predictions cannot be read as a tensor: .*object"
    ):
        ops.mask_iou(predictions.numpy().astype(object), targets.numpy(), owner.numpy())
    value, levels, locations, weights = cases.ms_deform_attn(cases.MS_DEFORM_ATTN["odd"])
    for tensors in (
        (value, locations, weights),
        (value.numpy(), locations.numpy(), weights.numpy()),
    ):
        with pytest.raises(
            TypeError, match=r"^ms_deform_attn: level_shapes must be a sequence .*, got ndarray"
        ):
            ops.ms_deform_attn(tensors[0], np.array(levels), *tensors[1:])
    with pytest.raises(TypeError, match=r"^mask_iou: owner must be a torch.Tensor, got list"):
        ops.mask_iou(predictions.numpy(), targets.numpy(), owner.tolist())
