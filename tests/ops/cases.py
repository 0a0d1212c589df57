"""Inputs of the ops, for tests and benchmarks: named shapes, layouts of points, random tensors from
a seed.

Shapes: as in `alignmask.ops`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignmask import ops
from alignmask.ops import _library
from tests.ops.on_device import OnDevice

try:
    from tests.simt import _simt
except ImportError:  # benchmarks do without; tests/simt says so
    _simt = None

LAYOUTS = ("local", "uniform", "border", "outside")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


EMULATIONS = ("simt", "simt shuffled", "simt deterministic")
ON_GPU = ("cuda", "cuda deterministic")


def implementations(op: str, emulated: bool = True) -> tuple[str, ...]:
    """What can compute `op` for tensors on the CPU, see `using`; `emulated`: also the kernels for
    GPUs, on the host SIMT runtime and, where there is one, on a GPU."""
    if ops.implementation(op, "cpu") == "reference":
        return ("reference",)
    emulations = (
        EMULATIONS if emulated and _simt is not None and hasattr(_simt, f"{op}_forward") else ()
    )
    return ("reference", "kernel", *emulations, *(on_gpu(op) if emulated else ()))


def on_gpu(op: str) -> tuple[str, ...]:
    return (
        ON_GPU
        if torch.cuda.is_available() and ops.implementation(op, "cuda").startswith("kernel")
        else ()
    )


@contextmanager
def using(implementation: str, op: str) -> Iterator[None]:
    """Compute `op` by one of its implementations.

    simt: threads take turns in ascending order. simt shuffled: in a random one, and atomics add
    vectors, as from sm_90 on. simt deterministic: in descending order, and torch is asked for
    deterministic algorithms. cuda: tensors are copied to the GPU and back; cuda deterministic: and
    torch is asked for deterministic algorithms.
    """
    if implementation == "reference":
        with ops.use_reference(op):
            yield
    elif implementation == "kernel":
        yield
    elif implementation in ON_GPU:
        _library._gpus.ways()  # kernels that compile on first use are told to the module
        with _instead_of_the_core(
            OnDevice(_library.core, "cuda"), "deterministic" in implementation
        ):
            yield
    else:
        assert _simt is not None
        order = {
            "simt": "ascending",
            "simt shuffled": "shuffled",
            "simt deterministic": "descending",
        }[implementation]
        _simt.set_order(order)
        _simt.set_vector_atomics(implementation == "simt shuffled")
        with _instead_of_the_core(_simt, "deterministic" in implementation):
            yield


@contextmanager
def _instead_of_the_core(module: Any, deterministic: bool) -> Iterator[None]:
    before, _library.core = _library.core, module
    torch.use_deterministic_algorithms(deterministic)
    try:
        yield
    finally:
        _library.core = before
        torch.use_deterministic_algorithms(False)


def repeats(implementation: str) -> bool:
    """Are gradients the same bit for bit in every run? By default, atomics of a GPU add in any
    order."""
    return implementation != "cuda"


def looks_at_indices(implementation: str) -> bool:
    """Does an owner or a label out of range raise? Nothing waits for what is on a GPU, so there it
    is treated as documented."""
    return implementation not in ON_GPU


class KernelCall(NamedTuple):
    """A call of the compiled module; its tensors as NumPy arrays on the same memory."""

    name: str
    arguments: list[Any]
    options: dict[str, Any]


def kernel_calls(function: Callable[[], object], threads: int) -> list[KernelCall]:
    """The calls of forward and backward kernels that `function` makes."""
    core, calls = _library.core, []

    def array(argument: Any) -> Any:
        if callable(argument):  # lends a workspace, which no kernel for the CPU wants
            return None
        return argument.detach().numpy() if isinstance(argument, Tensor) else argument

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                if name.endswith(("_forward", "_backward")):
                    kept = {key: array(option) for key, option in options.items()}
                    calls.append(KernelCall(name, [array(a) for a in arguments], kept))
                return getattr(core, name)(*arguments, **options)

            return call

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    _library.core = Recorder()
    try:
        function()
    finally:
        _library.core = core
        torch.set_num_threads(before)
    return calls


class DeformShape(NamedTuple):
    B: int
    levels: tuple[tuple[int, int], ...]
    N: int
    D: int
    Q: int
    P: int


def encoder(size: int) -> DeformShape:
    """The pixel decoder's attention on a square image: every token of strides 32, 16 and 8 is a
    query."""
    levels = tuple((size // stride, size // stride) for stride in (32, 16, 8))
    return DeformShape(1, levels, 8, 32, sum(h * w for h, w in levels), 4)


MS_DEFORM_ATTN = {
    "tiny": DeformShape(1, ((2, 4),), 1, 8, 3, 4),
    "odd": DeformShape(2, ((3, 5), (1, 7), (4, 1)), 3, 9, 5, 3),
    "scalar": DeformShape(1, ((4, 4), (2, 2)), 2, 1, 6, 1),
    "wide": DeformShape(2, ((8, 4), (4, 2)), 2, 65, 4, 5),
    "two blocks": DeformShape(1, ((4, 8),), 1, 128, 7, 4),
    # As many queries as tokens, uneven squares.
    "self-attention": DeformShape(1, ((9, 5), (3, 10)), 2, 16, 75, 5),
    "two tiles": DeformShape(1, ((6, 11),), 2, 64, 70, 3),  # of queries
    "encoder_256": encoder(256),
    "encoder_1024": encoder(1024),
}
SMALL = ("tiny", "odd", "scalar", "wide", "two blocks")
TILED = ("self-attention", "two tiles")


def points(
    layout: str, count: tuple[int, ...], size: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Random normalised points (x, y), [*count, 2] in float64, over a map of `size` = (h, w).

    local: within a few pixels of one random place per first dimensions; uniform: all over the map;
    border: pixel centres and edges, from one pixel outside to one pixel outside on the other side;
    outside: mostly off the map, some far away.
    """
    scale = torch.tensor([max(size[1], 1), max(size[0], 1)], dtype=torch.float64)
    uniform = torch.rand(*count, 2, generator=generator, dtype=torch.float64)
    if layout == "uniform":
        return uniform
    if layout == "local":
        offsets = 2 * torch.randn(*count, 2, generator=generator, dtype=torch.float64)
        return uniform[..., :1, :] + offsets / scale
    if layout == "border":
        # In half pixels: from -1 to size + 1 pixels.
        halves = (uniform * (2 * scale + 5)).floor() - 2
        return halves / 2 / scale
    if layout == "outside":
        far = torch.rand(*count, 1, generator=generator, dtype=torch.float64) < 0.1
        return torch.where(far, 1e6, 5) * (uniform - 0.5) + 0.5
    raise ValueError(f"unknown layout {layout!r}")


def ms_deform_attn(
    shape: DeformShape,
    layout: str = "uniform",
    dtype: torch.dtype = torch.float32,
    points_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]:
    """The arguments of `alignmask.ops.ms_deform_attn`."""
    B, levels, N, D, Q, P = shape
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(B, sum(h * w for h, w in levels), N, D, generator=generator)
    locations = [points(layout, (B, Q, N, P), level, generator) for level in levels]
    locations_BQNLP2 = torch.stack(locations, 3) if levels else torch.zeros(B, Q, N, 0, P, 2)
    weights = torch.randn(B, Q, N, len(levels), P, generator=generator)
    second = points_dtype or dtype
    return value.to(dtype), list(levels), locations_BQNLP2.to(second), weights.to(second)


def ms_deform_attn_from_offsets(
    shape: DeformShape,
    layout: str = "uniform",
    dtype: torch.dtype = torch.float32,
    points_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> tuple[Tensor, list[tuple[int, int]], Tensor, Tensor, Tensor]:
    """The arguments of `alignmask.ops.ms_deform_attn_from_offsets`; the locations they make have
    the layout."""
    value, levels, locations, logits = ms_deform_attn(shape, layout, torch.float64, seed=seed)
    size_L12 = torch.tensor([(max(w, 1), max(h, 1)) for h, w in levels], dtype=torch.float64).view(
        -1, 1, 2
    )
    generator = torch.Generator().manual_seed(seed)
    reference = torch.rand(
        shape.B, shape.Q, len(levels), 2, generator=generator, dtype=torch.float64
    )
    second = points_dtype or dtype
    reference = reference.to(second)
    offsets = (locations - reference.double()[:, :, None, :, None]) * size_L12
    return value.to(dtype), levels, reference, offsets.to(second), (2 * logits).to(second)


def encoder_locations(shape: DeformShape, generator: torch.Generator) -> Tensor:
    """Points as a trained encoder has them: some two pixels around every query's own token, in
    float32."""
    centres = []
    for h, w in shape.levels:
        y, x = torch.meshgrid(
            (torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij"
        )
        centres.append(torch.stack([x, y], -1).reshape(-1, 2))
    centres_Q1112 = torch.cat(centres)[:, None, None, None]
    sizes_L12 = torch.tensor([[[w, h]] for h, w in shape.levels])
    offsets = 2 * torch.randn(
        shape.B, shape.Q, shape.N, len(shape.levels), shape.P, 2, generator=generator
    )
    return centres_Q1112 + offsets / sizes_L12


class PoolShape(NamedTuple):
    B: int
    C: int
    features: tuple[int, int]
    masks: tuple[int, int]
    G: int
    T: int
    K: int


MASKED_POINT_POOL = {
    "tiny": PoolShape(1, 2, (4, 4), (4, 4), 1, 1, 5),
    "odd": PoolShape(3, 5, (5, 3), (7, 9), 4, 2, 11),
    "model_1024": PoolShape(2, 256, (256, 256), (1024, 1024), 20, 5, 12544),
}


def blobs(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Random boxes as masks, bool, [count, h, w]; about one in six is empty."""
    h, w = size
    y, x = torch.arange(h)[None, :, None], torch.arange(w)[None, None, :]
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([h, w])
    (low_y, low_x), (high_y, high_x) = (
        [end[:, i, None, None] for i in (0, 1)] for end in corners.sort(1).values.unbind(1)
    )
    full = torch.rand(count, 1, 1, generator=generator) > 1 / 6
    return (
        (y >= low_y.floor())
        & (y < high_y.ceil())
        & (x >= low_x.floor())
        & (x < high_x.ceil())
        & full
    )


def owners(count: int, images: int, generator: torch.Generator) -> Tensor:
    return (
        torch.randint(images, (count,), generator=generator)
        if images
        else torch.zeros(0, dtype=torch.long)
    )


def masked_point_pool(
    shape: PoolShape,
    layout: str = "uniform",
    dtype: torch.dtype = torch.float32,
    points_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The tensors of `alignmask.ops.masked_point_pool`."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(shape.B, shape.C, *shape.features, generator=generator)
    where = points(layout, (shape.B, shape.T, shape.K), shape.features, generator)
    masks = blobs(shape.G, shape.masks, generator)
    return (
        features.to(dtype),
        masks,
        owners(shape.G, shape.B, generator),
        where.to(points_dtype or dtype),
    )


class PointsShape(NamedTuple):
    R: int
    logits: tuple[int, int]
    masks: tuple[int, int]
    G: int
    K: int


MASK_POINTS = {
    "tiny": PointsShape(1, (2, 3), (2, 3), 1, 4),
    "odd": PointsShape(5, (7, 6), (9, 13), 3, 21),
    "model_512": PointsShape(100, (128, 128), (512, 512), 20, 12544),
    "model_1024": PointsShape(100, (256, 256), (1024, 1024), 20, 12544),
}


def mask_points(
    shape: PointsShape, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """The arguments of `alignmask.ops.mask_points` but for the last two. Logits that are smooth
    where there is room, as a model's are; their seed is another one than that of the points."""
    generator = torch.Generator().manual_seed(seed)
    coarse = [(size + 3) // 4 for size in shape.logits]
    logits = 3 * torch.randn(shape.R, 1, *coarse, generator=generator)
    if 0 not in (shape.R, *shape.logits):
        logits = torch.nn.functional.interpolate(logits, size=shape.logits, mode="bilinear")
    logits = logits.view(shape.R, *shape.logits)
    masks = blobs(shape.G, shape.masks, generator)
    return logits.to(dtype), masks, owners(shape.R, shape.G, generator), shape.K, seed + 2**40


class IouShape(NamedTuple):
    B: int
    Q: int
    predictions: tuple[int, int]
    scale: int
    G: int


MASK_IOU = {
    "tiny": IouShape(1, 2, (3, 4), 1, 2),
    "odd": IouShape(3, 5, (5, 13), 3, 4),
    "model_1024": IouShape(2, 200, (256, 256), 4, 20),
    "model_1024 low": IouShape(2, 200, (256, 256), 1, 20),
}


def mask_iou(
    shape: IouShape, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors of `alignmask.ops.mask_iou`."""
    generator = torch.Generator().manual_seed(seed)
    h, w = shape.predictions
    predictions = torch.randn(shape.B, shape.Q, h, w, generator=generator)
    predictions += 2 * blobs(shape.B * shape.Q, (h, w), generator).view(shape.B, shape.Q, h, w) - 1
    targets = blobs(shape.G, (h * shape.scale, w * shape.scale), generator)
    return predictions.to(dtype), targets, owners(shape.G, shape.B, generator)


class RleShape(NamedTuple):
    N: int
    logits: tuple[int, int]
    size: tuple[int, int]
    padded: tuple[int, int]
    valid: tuple[int, int]

    @property
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """What `alignmask.ops.mask_rle` takes after the logits."""
        return self.size, self.padded, self.valid


MASK_RLE = {
    "tiny": RleShape(1, (2, 3), (5, 7), (8, 12), (6, 11)),
    "odd": RleShape(5, (9, 13), (70, 33), (36, 52), (36, 41)),
    "1024x1024": RleShape(100, (256, 256), (1024, 1024), (1024, 1024), (1024, 1024)),
    "photo": RleShape(100, (200, 272), (427, 640), (800, 1088), (800, 1066)),
}


def mask_rle(
    shape: RleShape, dtype: torch.dtype = torch.float32, smooth: bool = False, seed: int = 0
) -> Tensor:
    """The logits of `alignmask.ops.mask_rle`; `smooth`: as those of a model, else noise around
    masks."""
    generator = torch.Generator().manual_seed(seed)
    masks = blobs(shape.N, shape.logits, generator).float()
    if not smooth:
        noise = torch.randn(shape.N, *shape.logits, generator=generator)
        return (noise + 2 * masks - 1).to(dtype)
    near = torch.nn.functional.avg_pool2d(masks[:, None], 9, 1, 4)[:, 0]
    uneven = torch.rand(shape.N, *shape.logits, generator=generator)
    return (12 * near - 6 + uneven).to(dtype)


class LossShape(NamedTuple):
    R: int
    C: int


QUALITY_FOCAL_LOSS = {
    "tiny": LossShape(3, 2),
    "odd": LossShape(17, 5),
    "model": LossShape(10 * 16 * 200, 80),
}


def quality_focal_loss(
    shape: LossShape, dtype: torch.dtype = torch.float32, spread: float = 3, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors of `alignmask.ops.quality_focal_loss`; `spread`: standard deviation of the
    logits."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(shape.R, shape.C, generator=generator)
    label = torch.randint(-1, shape.C, (shape.R,), generator=generator)
    return logits.to(dtype), label, torch.rand(shape.R, generator=generator).to(dtype)
