"""Every kernel that is compiled for GPUs is run here, and each is chosen by some call."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from alignmask import ops
from tests.conftest import REPOSITORY
from tests.ops import cases
from tests.simt import _simt


def test_the_module_is_newer_than_its_sources() -> None:
    sources = [path for folder in ("core", "bindings", "tests/simt") for path in (REPOSITORY / folder).rglob("*")]
    newest = max((p for p in sources if p.suffix in (".h", ".cpp", ".cuh", ".cu")), key=lambda p: p.stat().st_mtime)
    assert newest.stat().st_mtime <= Path(_simt.__file__).stat().st_mtime, f"{newest} has changed: run `make simt`"


def run_ms_deform_attn(D: int, dtype: torch.dtype) -> None:
    shape = cases.DeformShape(1, ((3, 4), (2, 2)), 2, D, 3, 2)
    value, levels, *points = cases.ms_deform_attn_from_offsets(shape, "local", dtype)
    leaves = [tensor.requires_grad_() for tensor in (value, *points)]
    ops.ms_deform_attn_from_offsets(leaves[0], levels, *leaves[1:]).square().sum().backward()


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_strided_gradients_of_ms_deform_attn(dtype: torch.dtype) -> None:
    """The core writes gradients of any strides; torch only ever asks for contiguous ones."""
    value, levels, locations, weights = cases.ms_deform_attn(cases.MS_DEFORM_ATTN["odd"], "local", dtype)
    grad = torch.randn(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3]).to(dtype)
    sizes = [size for level in levels for size in level]
    results = []
    for turn in (lambda t: t, lambda t: t.permute(*reversed(range(t.dim())))):
        gradients = [turn(torch.full(turn(t).shape, 7, dtype=dtype)) for t in (value, locations, weights)]
        call = (*gradients, grad, value, sizes, locations, weights)
        workspace = torch.full((_simt.ms_deform_attn_backward_workspace(*call),), 255, dtype=torch.uint8)
        _simt.ms_deform_attn_backward(*call, workspace=workspace)
        results.append(gradients)
    for plain, strided in zip(*results, strict=True):
        assert torch.equal(plain, strided)


def run_mask_iou(width: int, scale: int, dtype: torch.dtype) -> None:
    ops.mask_iou(*cases.mask_iou(cases.IouShape(1, 2, (3, width), scale, 2), dtype))


def run_masked_point_pool(C: int, channels_last: bool, dtype: torch.dtype) -> None:
    features, *rest = cases.masked_point_pool(cases.PoolShape(2, C, (5, 4), (7, 9), 3, 2, 40), dtype=dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    features = features.to(memory_format=layout).requires_grad_()
    ops.masked_point_pool(features, *rest)[0].square().sum().backward()


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
            for width, scale in ((16, 1), (5, 1), (16, 2)):
                run_mask_iou(width, scale, dtype)
            for C, channels_last in ((8, True), (3, True), (8, False)):
                run_masked_point_pool(C, channels_last, dtype)
            for C in (5, 8):
                run_quality_focal_loss(C, dtype)
    test_strided_gradients_of_ms_deform_attn(torch.float32)
    test_strided_gradients_of_ms_deform_attn(torch.float64)
    assert set(_simt.all_kernels()) == set(_simt.launched_kernels())
