"""Every CUDA kernel is run here, and each is chosen by some call."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignmask import ops
from tests.conftest import REPOSITORY
from tests.ops import cases
from tests.simt import _simt


def test_the_module_is_newer_than_its_sources() -> None:
    sources = [
        path
        for folder in ("core", "bindings", "tests/simt")
        for path in (REPOSITORY / folder).rglob("*")
    ]
    newest = max(
        (p for p in sources if p.suffix in (".h", ".cpp", ".cuh", ".cu")),
        key=lambda p: p.stat().st_mtime,
    )
    assert newest.stat().st_mtime <= Path(_simt.__file__).stat().st_mtime, (
        f"{newest} has changed: run `make simt`"
    )


def run_ms_deform_attn(D: int, dtype: torch.dtype) -> None:
    shape = cases.DeformShape(1, ((3, 4), (2, 2)), 2, D, 3, 2)
    value, levels, *points = cases.ms_deform_attn_from_offsets(shape, "local", dtype)
    leaves = [tensor.requires_grad_() for tensor in (value, *points)]
    ops.ms_deform_attn_from_offsets(leaves[0], levels, *leaves[1:]).square().sum().backward()


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_strided_gradients_of_ms_deform_attn(dtype: torch.dtype) -> None:
    """The core writes gradients of any strides; torch only ever asks for contiguous ones."""
    value, levels, locations, weights = cases.ms_deform_attn(
        cases.MS_DEFORM_ATTN["odd"], "local", dtype
    )
    grad = torch.randn(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3]).to(
        dtype
    )
    sizes = [size for level in levels for size in level]
    results = []
    for turn in (lambda t: t, lambda t: t.permute(*reversed(range(t.dim())))):
        gradients = [
            turn(torch.full(turn(t).shape, 7, dtype=dtype)) for t in (value, locations, weights)
        ]
        call = (*gradients, grad, value, sizes, locations, weights)
        workspace = torch.full(
            (_simt.ms_deform_attn_backward_workspace(*call),), 255, dtype=torch.uint8
        )
        _simt.ms_deform_attn_backward(*call, workspace=workspace)
        results.append(gradients)
    for plain, strided in zip(*results, strict=True):
        assert torch.equal(plain, strided)


def run_mask_iou(width: int, scale: int, dtype: torch.dtype) -> None:
    predictions, targets, owner = cases.mask_iou(cases.IouShape(1, 16, (3, width), scale, 2), dtype)
    ops.mask_iou(predictions, targets, owner)
    ops.mask_iou(predictions, targets.mT.contiguous().mT, owner)


def run_mask_rle(dtype: torch.dtype) -> None:
    shape = cases.MASK_RLE["odd"]
    ops.mask_rle(cases.mask_rle(shape, dtype), *shape.sizes)


def run_masked_point_pool(C: int, channels_last: bool, dtype: torch.dtype) -> None:
    features, *rest = cases.masked_point_pool(
        cases.PoolShape(2, C, (5, 4), (7, 9), 3, 2, 40), dtype=dtype
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    features = features.to(memory_format=layout).requires_grad_()
    ops.masked_point_pool(features, *rest)[0].square().sum().backward()


def run_mask_points(dtype: torch.dtype) -> None:
    for layout in (lambda t: t, lambda t: t.mT.contiguous().mT):
        logits, *rest = cases.mask_points(cases.MASK_POINTS["odd"], dtype)
        leaf = layout(logits).requires_grad_()
        ops.mask_points(leaf, *rest)[0].square().sum().backward()


def test_strided_gradients_of_mask_points() -> None:
    """The core writes gradients of any strides; torch only ever asks for contiguous ones."""
    for dtype in cases.DTYPES:
        logits, *rest = cases.mask_points(cases.MASK_POINTS["odd"], dtype)
        sampled, _, points = ops.mask_points(logits, *rest)
        results = []
        for turn in (lambda t: t, lambda t: t.permute(2, 1, 0)):
            gradient = turn(torch.full(turn(logits).shape, 7, dtype=dtype))
            call = (gradient, sampled, points)
            size = _simt.mask_points_backward_workspace(*call)
            _simt.mask_points_backward(*call, workspace=torch.full((size,), 255, dtype=torch.uint8))
            results.append(gradient)
        assert torch.equal(*results)


def run_quality_focal_loss(C: int, dtype: torch.dtype) -> None:
    logits, label, iou = cases.quality_focal_loss(cases.LossShape(3, C), dtype)
    for gamma in (1.5, 2.0):
        ops.quality_focal_loss(logits, label, iou, gamma)


def test_every_kernel_runs() -> None:
    _simt.launched_kernels()
    for implementation, dtype in itertools.product(cases.EMULATIONS, cases.DTYPES):
        with cases.using(implementation, "any"):
            for D in (16, 32, 64, 5):
                run_ms_deform_attn(D, dtype)
            for width, scale in ((16, 1), (16, 2), (16, 4)):
                run_mask_iou(width, scale, dtype)
            run_mask_rle(dtype)
            for C, channels_last in ((8, True), (3, True), (8, False)):
                run_masked_point_pool(C, channels_last, dtype)
            run_mask_points(dtype)
            for C in (5, 8):
                run_quality_focal_loss(C, dtype)
    test_strided_gradients_of_ms_deform_attn(torch.float32)
    test_strided_gradients_of_ms_deform_attn(torch.float64)
    test_strided_gradients_of_mask_points()
    assert set(_simt.all_kernels()) == set(_simt.launched_kernels())


def test_gradients_need_no_alignment() -> None:
    """Beyond that of an element. Zeros are written 16 bytes at a time, so such a gradient is not
    added up in place."""
    _, masks, owner, points = cases.masked_point_pool(
        cases.PoolShape(2, 8, (5, 4), (7, 9), 3, 2, 40)
    )
    grad, weight, results = torch.randn(3, 2, 8), torch.ones(3, 2), []
    for offset in range(4):
        memory = torch.full((2 * 5 * 4 * 8 + 4,), 7.0)
        gradient = memory[offset : offset - 4].view(2, 5, 4, 8).permute(0, 3, 1, 2)
        call = (gradient, grad, weight, masks, owner, points, False)
        workspace = torch.full(
            (_simt.masked_point_pool_backward_workspace(*call),), 255, dtype=torch.uint8
        )
        assert (offset == 0) == (len(workspace) == 0)
        _simt.masked_point_pool_backward(*call, workspace=workspace)
        results.append(gradient)
    for result in results:
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("op", ["ms_deform_attn", "ms_deform_attn_from_offsets"])
def test_errors_of_launches_name_the_op_that_was_called(op: str) -> None:
    shape = cases.DeformShape(1, ((1, 1),) * 65, 1, 4, 2, 1)
    with (
        cases.using(cases.EMULATIONS[0], op),
        pytest.raises(ValueError, match=rf"^{op}: L = 65 levels, at most 64 are supported"),
    ):
        getattr(ops, op)(*getattr(cases, op)(shape, "local"))


class TestWorkspace:
    """What is lent to a call: checked like its tensors."""

    def call(
        self,
        lend: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor | None],
        on_demand: bool,
    ) -> None:
        """mask_iou with the workspace that `lend(size, iou, targets)` returns, before the call or
        when it asks for it."""
        predictions, _, owner = cases.mask_iou(cases.IouShape(1, 2, (3, 16), 1, 2))
        memory = torch.zeros(1 << 12, dtype=torch.uint8)
        targets = memory[:96].view(2, 3, 16)
        iou = memory[96:112].view(torch.float32).view(2, 2)
        size = _simt.mask_iou_forward_workspace(iou, predictions, targets, owner)
        workspace: Any = (
            (lambda asked: lend(asked, iou, targets)) if on_demand else lend(size, iou, targets)
        )
        _simt.mask_iou_forward(iou, predictions, targets, owner, 0.0, workspace=workspace)

    @pytest.mark.parametrize("on_demand", [False, True])
    def test_behind_the_tensors_it_is_taken(self, on_demand: bool) -> None:
        asked = []
        self.call(lambda size, iou, _: asked.append(size) or behind(iou, 16, size), on_demand)
        assert len(asked) == 1

    def test_what_a_lender_raises_comes_through(self) -> None:
        def fail(*_: Any) -> None:
            raise KeyError("no memory today")

        with pytest.raises(KeyError, match="no memory today"):
            self.call(fail, on_demand=True)

    @pytest.mark.parametrize("on_demand", [False, True])
    @pytest.mark.parametrize(
        ("lend", "error", "message"),
        [
            (lambda size, iou, _: None, TypeError, r"workspace is missing: \d+ bytes are needed"),
            (lambda size, iou, _: behind(iou, 16, size).view(torch.int8), ValueError, "unsupported dtype"),
            (lambda size, iou, _: behind(iou, 16, 4 * size).view(torch.float32), TypeError, "of dtype uint8, got float32"),
            (lambda size, iou, _: behind(iou, 16, size - 1), ValueError, r"must be \d+ contiguous bytes"),
            (lambda size, iou, _: behind(iou, 16, 2 * size)[::2], ValueError, r"must be \d+ contiguous bytes"),
            (lambda size, iou, _: behind(iou, 17, size), ValueError, "not aligned to 16 bytes"),
            (lambda size, iou, _: behind(iou, 0, size), ValueError, "mask_iou: workspace overlaps iou in memory"),
            (lambda size, iou, targets: behind(targets, 0, size), ValueError, "workspace overlaps .* in memory"),
        ],
    )  # fmt: skip
    def test_errors(
        self,
        lend: Callable[..., torch.Tensor | None],
        error: type[Exception],
        message: str,
        on_demand: bool,
    ) -> None:
        with pytest.raises(error, match=message):
            self.call(lend, on_demand)


def behind(tensor: torch.Tensor, offset: int, size: int) -> torch.Tensor:
    """`size` bytes from `offset` bytes behind the start of `tensor` on, in its storage."""
    memory = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    start = tensor.storage_offset() * tensor.element_size() + offset
    return memory[start : start + size]
