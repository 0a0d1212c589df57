"""What torch asks of an operator, of every op: opcheck, compilation, export, transforms, threads,
instruction sets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from alignmask import _core, ops
from tests.ops import cases


class Op(NamedTuple):
    """An op as a function of tensors alone; the first `leaves` of them have gradients."""

    call: Callable[..., Tensor]
    tensors: list[Tensor]
    leaves: int
    operator: str
    arguments: Callable[..., tuple[Any, ...]]
    """Of the operator torch.ops.alignmask.<operator>, from the tensors."""


def all_ops(size: str = "odd", dtype: torch.dtype = torch.float32) -> dict[str, Op]:
    """The second form of ms_deform_attn under the name of its function."""
    value, levels, *points = cases.ms_deform_attn(cases.MS_DEFORM_ATTN[size], dtype=dtype)
    second, _, *from_offsets = cases.ms_deform_attn_from_offsets(
        cases.MS_DEFORM_ATTN[size], dtype=dtype
    )
    flat = [length for level in levels for length in level]
    pool = list(cases.masked_point_pool(cases.MASKED_POINT_POOL[size], dtype=dtype))
    iou = list(cases.mask_iou(cases.MASK_IOU[size], dtype))
    *looked_at, count, seed = cases.mask_points(cases.MASK_POINTS[size], dtype)
    rle = [cases.mask_rle(cases.MASK_RLE[size], dtype)]
    rle_sizes = [side for pair in cases.MASK_RLE[size].sizes for side in pair]
    loss = list(cases.quality_focal_loss(cases.QUALITY_FOCAL_LOSS[size], dtype))
    return {
        "ms_deform_attn": Op(
            lambda v, *t: ops.ms_deform_attn(v, levels, *t),
            [value, *points],
            3,
            "ms_deform_attn",
            lambda v, locations, weights: (v, flat, locations, weights, None),
        ),
        "ms_deform_attn_from_offsets": Op(
            lambda v, *t: ops.ms_deform_attn_from_offsets(v, levels, *t),
            [second, *from_offsets],
            4,
            "ms_deform_attn",
            lambda v, reference, offsets, logits: (v, flat, offsets, logits, reference),
        ),
        "masked_point_pool": Op(
            lambda *t: ops.masked_point_pool(*t)[0],
            pool,
            1,
            "masked_point_pool",
            lambda *t: (*t, False),
        ),
        "mask_iou": Op(ops.mask_iou, iou, 0, "mask_iou", lambda *t: (*t, 0.0)),
        "mask_points": Op(
            lambda *t: ops.mask_points(*t, count, seed)[0],
            looked_at,
            1,
            "mask_points",
            lambda *t: (*t, seed, count, 3 * count, count // 2),
        ),
        # Of the function, the number of counts depends on the logits; see test_mask_rle.py.
        "mask_rle": Op(
            lambda x: torch.ops.alignmask.mask_rle(x.detach(), rle_sizes)[3],
            rle,
            0,
            "mask_rle",
            lambda x: (x, rle_sizes),
        ),
        "quality_focal_loss": Op(
            ops.quality_focal_loss, loss, 1, "quality_focal_loss", lambda *t: (*t, 2.0, 0.5, True)
        ),
    }


OPS = list(all_ops())
DIFFERENTIABLE = [name for name, op in all_ops().items() if op.leaves]


def leaves_of(op: Op) -> list[Tensor]:
    return [t.clone().requires_grad_(i < op.leaves) for i, t in enumerate(op.tensors)]


def run(call: Callable[..., Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Result and gradients."""
    leaves = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
    out = call(*leaves)
    needed = [t for t in leaves if t.requires_grad]
    return (
        [out.detach(), *torch.autograd.grad(out.float().square().sum(), needed)]
        if needed
        else [out]
    )


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("size", ["tiny", "odd"])
@pytest.mark.parametrize("name", OPS)
def test_opcheck(name: str, size: str, dtype: torch.dtype) -> None:
    op = all_ops(size, dtype)[name]
    torch.library.opcheck(
        getattr(torch.ops.alignmask, op.operator).default, op.arguments(*leaves_of(op))
    )


@pytest.mark.parametrize("needed", [(1, 1, 1, 1), (0, 0, 0, 1), (0, 1, 0, 0), (1, 0, 1, 0)])
@pytest.mark.parametrize("name", ["ms_deform_attn", "ms_deform_attn_from_offsets"])
def test_opcheck_of_the_backward_of_ms_deform_attn(name: str, needed: tuple[int, ...]) -> None:
    op = all_ops()[name]
    arguments = op.arguments(*op.tensors)
    mask = [
        bool(need) and tensor is not None
        for need, tensor in zip(needed, (*arguments[:1], *arguments[2:]), strict=True)
    ]
    grad = torch.randn_like(op.call(*op.tensors))
    torch.library.opcheck(
        torch.ops.alignmask.ms_deform_attn_backward.default, (grad, *arguments, mask)
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck_of_the_backward_of_masked_point_pool(channels_last: bool) -> None:
    features, masks, owner, points = cases.masked_point_pool(cases.MASKED_POINT_POOL["odd"])
    pooled, weight = ops.masked_point_pool(features, masks, owner, points)
    arguments = (
        torch.randn_like(pooled),
        weight,
        masks,
        owner,
        points,
        list(features.shape),
        channels_last,
        True,
    )
    torch.library.opcheck(torch.ops.alignmask.masked_point_pool_backward.default, arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_opcheck_of_the_backward_of_mask_points(dtype: torch.dtype) -> None:
    *arguments, count, seed = cases.mask_points(cases.MASK_POINTS["odd"], dtype)
    sampled, _, points = ops.mask_points(*arguments, count, seed)
    torch.library.opcheck(
        torch.ops.alignmask.mask_points_backward.default,
        (torch.randn_like(sampled), points, list(arguments[0].shape)),
    )


def test_opcheck_of_the_backward_of_quality_focal_loss() -> None:
    arguments = (torch.randn(5), torch.randn(5, 3), torch.randn(5, 3, dtype=torch.float16))
    torch.library.opcheck(torch.ops.alignmask.quality_focal_loss_backward.default, arguments)


COMPILERS = [
    ("aot_eager", None),
    ("aot_eager", True),
    pytest.param("inductor", None, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("backend", "dynamic"), COMPILERS)
@pytest.mark.parametrize("name", OPS)
def test_compiles_as_one_graph(name: str, backend: str, dynamic: bool | None) -> None:
    torch.compiler.reset()
    op = all_ops()[name]

    def between(first: Tensor, *rest: Tensor) -> Tensor:
        return op.call(first * 2, *rest).relu()

    compiled = torch.compile(between, backend=backend, fullgraph=True, dynamic=dynamic)
    for count in (len(op.tensors[0]), len(op.tensors[0]) - 1):
        tensors = leaves_of(op)
        # Whose instances belong to an image, and whose rows to a mask.
        if name not in ("masked_point_pool", "mask_iou", "mask_points"):
            tensors = [t[:count].detach().requires_grad_(t.requires_grad) for t in tensors]
        for a, b in zip(run(compiled, tensors), run(between, tensors), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", OPS)
def test_exports(name: str) -> None:
    op = all_ops()[name]

    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return op.call(*tensors)

    program = torch.export.export(Module(), tuple(op.tensors))
    assert f"alignmask.{op.operator}" in str(program.graph)
    torch.testing.assert_close(program.module()(*op.tensors), op.call(*op.tensors))


@pytest.mark.parametrize("name", OPS)
def test_meta_tensors_give_shapes(name: str) -> None:
    op = all_ops(dtype=torch.float16)[name]
    real, meta = op.call(*op.tensors), op.call(*(t.to("meta") for t in op.tensors))
    assert (meta.shape, meta.dtype, meta.device.type) == (real.shape, real.dtype, "meta")


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_checkpointing_recomputes_the_same(name: str) -> None:
    op = all_ops()[name]
    tensors = leaves_of(op)
    for a, b in zip(
        run(lambda *t: checkpoint(op.call, *t, use_reentrant=False), tensors),
        run(op.call, tensors),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", OPS)
def test_vmap_is_a_loop(name: str) -> None:
    op = all_ops()[name]
    first, *rest = op.tensors
    stack = torch.stack([first, first.flip(0), first * 0.5])
    mapped = torch.vmap(lambda x: op.call(x, *rest))(stack)
    assert torch.equal(mapped, torch.stack([op.call(x, *rest) for x in stack]))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_pass_through_vmap(name: str) -> None:
    """With every leaf mapped. (torch.func.grad says that no operator of torch.library's can do
    it.)"""
    op = all_ops(dtype=torch.float64)[name]
    rest = op.tensors[op.leaves :]
    stacks = [
        torch.stack([t, t.flip(0), t * 0.5]).requires_grad_() for t in op.tensors[: op.leaves]
    ]
    mapped = run(torch.vmap(lambda *t: op.call(*t, *rest)), stacks)
    looped = run(lambda *s: torch.stack([op.call(*t, *rest) for t in zip(*s, strict=True)]), stacks)
    for a, b in zip(mapped, looped, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("needs_gradient", [False, True])
@pytest.mark.parametrize("name", OPS)
def test_dispatch_modes_see_the_operators(name: str, needs_gradient: bool) -> None:
    """The short way to a kernel is for calls that nobody listens to."""
    op, seen = all_ops()[name], []

    class Listen(TorchDispatchMode):
        def __torch_dispatch__(
            self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(str(operator))
            return operator(*args, **kwargs or {})

    tensors = leaves_of(op) if needs_gradient else op.tensors
    with Listen():
        heard = run(op.call, tensors)
    backward = [f"alignmask.{op.operator}_backward.default"] if needs_gradient and op.leaves else []
    assert [name for name in seen if "alignmask" in name] == [
        f"alignmask.{op.operator}.default",
        *backward,
    ]
    for a, b in zip(heard, run(op.call, tensors), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_second_derivatives_say_that_there_are_none(name: str) -> None:
    op = all_ops()[name]
    leaf, *rest = leaves_of(op)
    grad, *_ = torch.autograd.grad(op.call(leaf, *rest).square().sum(), leaf, create_graph=True)
    with pytest.raises(
        NotImplementedError, match=f"alignmask::{op.operator}_backward has no derivative"
    ):
        grad.sum().backward()


def test_a_gradient_penalty_on_quality_focal_loss_is_refused() -> None:
    """The gradient of a sum depends on the logits alone, of which the operator keeps but the
    gradient."""
    logits, label, iou = all_ops()["quality_focal_loss"].tensors
    (grad,) = torch.autograd.grad(
        ops.quality_focal_loss(logits.requires_grad_(), label, iou).sum(), logits, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="quality_focal_loss_backward has no derivative"):
        grad.pow(2).sum().backward()


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("needs_gradient", [False, True])
def test_forward_mode_is_refused(name: str, needs_gradient: bool) -> None:
    """torch's own answer for an operator without a formula for it is a tangent of 0, or none."""
    op = all_ops()[name]
    leaf, *rest = leaves_of(op) if needs_gradient else op.tensors
    with pytest.raises(NotImplementedError, match=f"{op.operator}.*: no forward-mode derivative"):
        torch.func.jvp(lambda x: op.call(x, *rest).sum(), (leaf,), (torch.ones_like(leaf),))
    with forward_ad.dual_level():
        op.call(leaf, *rest)  # no tangent: nothing is asked for


@pytest.mark.parametrize("name", OPS)
def test_the_arguments_stay_as_they_were(name: str) -> None:
    op = all_ops()[name]
    copies = [t.clone() for t in op.tensors]
    run(op.call, [t.requires_grad_(i < op.leaves) for i, t in enumerate(op.tensors)])
    for tensor, copy in zip(op.tensors, copies, strict=True):
        assert torch.equal(tensor, copy)


@pytest.fixture
def instruction_sets() -> Iterator[list[str]]:
    before = _core.cpu_instruction_set()
    yield _core.cpu_instruction_sets()
    _core.select_cpu_instruction_set(before)


LARGER: dict[str, Callable[[torch.dtype], tuple[Tensor, ...]]] = {
    "masked_point_pool": lambda dtype: cases.masked_point_pool(
        cases.PoolShape(2, 70, (40, 50), (80, 100), 7, 2, 900), "uniform", dtype
    ),
    "mask_iou": lambda dtype: cases.mask_iou(cases.IouShape(2, 19, (50, 70), 2, 7), dtype),
    "mask_points": lambda dtype: cases.mask_points(
        cases.PointsShape(9, (40, 50), (80, 100), 7, 21), dtype
    )[:3],
    "mask_rle": lambda dtype: (
        cases.mask_rle(cases.RleShape(40, (50, 60), (60, 41), (36, 52), (36, 41)), dtype),
    ),
    "quality_focal_loss": lambda dtype: cases.quality_focal_loss(cases.LossShape(700, 85), dtype),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(LARGER))
def test_threads_and_repetition_do_not_change_a_bit(name: str, dtype: torch.dtype) -> None:
    op = all_ops()[name]
    tensors = [t.requires_grad_(i < op.leaves) for i, t in enumerate(LARGER[name](dtype))]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5, 16, 16):
            torch.set_num_threads(threads)
            results.append(run(op.call, tensors))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("name", list(LARGER))
def test_every_instruction_set_agrees(
    name: str, dtype: torch.dtype, instruction_sets: list[str]
) -> None:
    """Within rounding of fused multiply-adds."""
    op = all_ops()[name]
    tensors = [t.requires_grad_(i < op.leaves) for i, t in enumerate(LARGER[name](dtype))]
    results = []
    for instruction_set in instruction_sets:
        _core.select_cpu_instruction_set(instruction_set)
        results.append(run(op.call, tensors))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5 if dtype == torch.float32 else 2e-2
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize("op", ops.OPS)
def test_the_plain_form_has_the_ops_defaults(op: str) -> None:
    """Under the same names, wherever both have one."""
    mine, plain = (
        {name: p.default for name, p in inspect.signature(getattr(place, op)).parameters.items()}
        for place in (ops, ops.reference)
    )
    common = mine.keys() & plain.keys()
    assert common
    assert {name: mine[name] for name in common} == {name: plain[name] for name in common}
