"""Kernels compiled on first use: real NVRTC and real launches, on a driver that hands them to the
SIMT runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignmask import _core, ops
from alignmask.ops import _backend
from alignmask.ops.jit import nvrtc
from alignmask.ops.jit.cache import Cache, Cubin, fingerprint
from alignmask.ops.jit.launcher import Launcher
from tests.ops import cases
from tests.simt import _simt

SOURCES = _backend.sources(_core)
LIBRARY = nvrtc.find(13) or nvrtc.find(12)
needs_nvrtc = pytest.mark.skipif(
    LIBRARY is None, reason="no NVRTC: torch without CUDA does not bring it"
)


class OnCuda(torch.Tensor):
    """A CPU tensor that says it is on a GPU."""

    __dlpack_c_exchange_api__ = None  # which would say where it really is
    index: int

    def __new__(cls, tensor: Tensor, index: int = 3) -> OnCuda:
        made = tensor.as_subclass(cls)
        made.index = index
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", self.index)


class SimtDriver:
    """Takes launches to the SIMT runtime, by the name that NVRTC gave the kernel."""

    def __init__(self, library: nvrtc.Nvrtc) -> None:
        self.names: dict[str, str] = {}
        self.streams: list[int] = []
        self.compiled: list[tuple[str, int]] = []
        compile_really = library.compile

        def remember(
            header: str, kernels: list[str], architecture: int, sources: Path
        ) -> nvrtc.Compiled:
            done = compile_really(header, kernels, architecture, sources)
            self.names |= {symbol: kernel for kernel, symbol in done.symbols.items()}
            self.compiled += [(kernel, architecture) for kernel in kernels]
            return done

        library.compile = remember  # type: ignore[method-assign]

    def architecture(self, device: int) -> int:
        return 86

    def load(self, device: int, cubin: Cubin) -> str:
        assert cubin.code.startswith(b"\x7fELF")
        assert cubin.symbol.encode() in cubin.code
        return cubin.symbol

    def launch(
        self, device: int, function: str, blocks: int, threads: int, params: bytes, stream: int
    ) -> None:
        self.streams.append(stream)
        _simt.launch(self.names[function], blocks, threads, params)


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    assert LIBRARY is not None
    library = nvrtc.Nvrtc(LIBRARY._library._name)
    launcher = Launcher(SimtDriver(library), library, Cache(tmp_path), SOURCES, ops.OPS)
    _core.set_launcher(3, launcher)
    yield launcher
    _core.set_launcher(3, None)


def calls() -> dict[str, Callable[[Any, Callable[[Tensor], Any]], Tensor]]:
    """Per op: call(module, wrap) -> the output, computed from the same memory every time."""
    value, levels, locations, weights = cases.ms_deform_attn(
        cases.DeformShape(1, ((4, 8), (2, 3)), 2, 32, 7, 4)
    )
    sizes = [size for level in levels for size in level]
    features, masks, owner, points = cases.masked_point_pool(cases.MASKED_POINT_POOL["odd"])
    predictions, targets, owner_iou = cases.mask_iou(cases.MASK_IOU["odd"])
    maps, targets_of_rows, row, _, seed = cases.mask_points(cases.MASK_POINTS["odd"])
    maps = cases.mask_rle(cases.MASK_RLE["odd"])
    sides = [side for pair in cases.MASK_RLE["odd"].sizes for side in pair]
    measured = [
        torch.empty(5, 33, dtype=torch.int32),
        torch.empty(5, dtype=torch.int64),
        torch.empty(5, 4, dtype=torch.int64),
        torch.empty(5),
    ]
    logits, label, quality = cases.quality_focal_loss(cases.QUALITY_FOCAL_LOSS["odd"])
    attended = torch.empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    pooled, weight = torch.empty(4, 2, 5), torch.empty(4, 2)
    iou, loss = torch.empty(4, 5), torch.empty(17)
    sampled, sampled_target, at = torch.empty(5, 21), torch.empty(5, 21), torch.empty(5, 21, 2)
    room = torch.empty(1 << 20, dtype=torch.uint8)

    def ms_deform_attn(module: Any, wrap: Callable[[Tensor], Any]) -> Tensor:
        tensors = (wrap(attended), wrap(value), sizes, wrap(locations), wrap(weights))
        module.ms_deform_attn_forward(*tensors, stream=77)
        return attended

    def masked_point_pool(module: Any, wrap: Callable[[Tensor], Any]) -> Tensor:
        tensors = map(wrap, (pooled, weight, features, masks, owner, points))
        module.masked_point_pool_forward(*tensors, False, stream=77)
        return pooled

    def mask_iou(module: Any, wrap: Callable[[Tensor], Any]) -> Tensor:
        tensors = [wrap(tensor) for tensor in (iou, predictions, targets, owner_iou)]
        size = module.mask_iou_forward_workspace(*tensors)
        workspace = wrap(room[:size]) if size else None
        module.mask_iou_forward(*tensors, 0.0, workspace=workspace, stream=77)
        return iou

    def mask_points(module: Any, wrap: Callable[[Tensor], Any]) -> Tensor:
        tensors = map(wrap, (sampled, sampled_target, at, maps, targets_of_rows, row))
        module.mask_points_forward(*tensors, seed, 63, 15, stream=77)
        return sampled

    def mask_rle(module: Any, wrap: Callable[[Tensor], Any]) -> Tensor:
        given = [*map(wrap, (*measured, maps)), *sides]
        size = module.mask_rle_forward_workspace(*given)
        workspace = wrap(room[:size]) if size else None
        module.mask_rle_forward(*given, workspace=workspace, stream=77)
        return measured[3]

    def quality_focal_loss(module: Any, wrap: Callable[[Tensor], Any]) -> Tensor:
        tensors = map(wrap, (logits, label, quality))
        module.quality_focal_loss_forward(wrap(loss), None, *tensors, 2.0, 0.5, stream=77)
        return loss

    named = (
        ms_deform_attn, masked_point_pool, mask_iou, mask_points, mask_rle, quality_focal_loss,
    )  # fmt: skip
    return {call.__name__: call for call in named}


@needs_nvrtc
@pytest.mark.parametrize("op", ops.OPS)
def test_launches_are_those_of_compiled_kernels(launcher: Launcher, op: str) -> None:
    """Byte for byte, and they compute what the CPU's kernel computes."""
    call = calls()[op]
    expected = call(_core, lambda tensor: tensor).clone()
    compiled = _simt.record(lambda: call(_simt, lambda tensor: tensor))

    given: list[tuple[Any, ...]] = []
    _core.set_launcher(3, lambda *arguments: given.append(arguments))
    call(_core, OnCuda)
    assert [(name, index, stream) for name, index, stream, _ in given] == [(op, 3, 77)]
    assert given[0][3] == compiled
    assert compiled

    _core.set_launcher(3, launcher)
    call(_core, lambda tensor: tensor).fill_(float("nan"))
    torch.testing.assert_close(call(_core, OnCuda), expected, rtol=1e-5, atol=1e-6)
    assert set(launcher.driver.streams) == {77}
    assert [kernel for kernel, _ in launcher.driver.compiled] == list(
        dict.fromkeys(kernel for kernel, *_ in compiled)
    )


def gradient_calls(
    deterministic: bool,
) -> dict[str, Callable[[Any, Callable[[Tensor], Any]], None]]:
    """Likewise for gradients; in half precision, which takes most launches."""
    dtype, options = torch.float16, {"deterministic": deterministic}
    value, levels, *points = cases.ms_deform_attn_from_offsets(
        cases.MS_DEFORM_ATTN["odd"], dtype=dtype
    )
    reference, offsets, logits = points
    sizes = [size for level in levels for size in level]
    features, masks, owner, places = cases.masked_point_pool(
        cases.MASKED_POINT_POOL["odd"], dtype=dtype
    )
    G, T, C = masks.shape[0], places.shape[1], features.shape[1]
    grad = torch.ones(value.shape[0], offsets.shape[1], value.shape[2] * value.shape[3]).to(dtype)
    grad_pooled, weight = torch.ones(G, T, C).to(dtype), torch.ones(G, T)
    outputs = [torch.empty_like(tensor) for tensor in (value, offsets, logits, features, reference)]
    room = torch.empty(1 << 20, dtype=torch.uint8)

    def ms_deform_attn_from_offsets(module: Any, wrap: Callable[[Tensor], Any]) -> None:
        given = (*map(wrap, (*outputs[:3], grad, value)), sizes, wrap(offsets), wrap(logits))
        named = {"reference": wrap(reference), "grad_reference": wrap(outputs[4])} | options
        size = module.ms_deform_attn_backward_workspace(*given, **named)
        module.ms_deform_attn_backward(*given, **named, workspace=wrap(room[:size]), stream=77)

    def masked_point_pool(module: Any, wrap: Callable[[Tensor], Any]) -> None:
        given = tuple(map(wrap, (outputs[3], grad_pooled, weight, masks, owner, places)))
        size = module.masked_point_pool_backward_workspace(*given, **options)
        workspace = wrap(room[:size]) if size else None
        module.masked_point_pool_backward(*given, **options, workspace=workspace, stream=77)

    return {call.__name__: call for call in (ms_deform_attn_from_offsets, masked_point_pool)}


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("op", ["ms_deform_attn_from_offsets", "masked_point_pool"])
def test_launches_of_gradients_are_those_of_compiled_kernels(op: str, deterministic: bool) -> None:
    call = gradient_calls(deterministic)[op]
    compiled = _simt.record(lambda: call(_simt, lambda tensor: tensor))
    given: list[tuple[Any, ...]] = []
    _core.set_launcher(3, lambda *arguments: given.append(arguments))
    try:
        call(_core, OnCuda)
    finally:
        _core.set_launcher(3, None)
    assert given == [(op, 3, 77, compiled)]
    assert len(compiled) >= (1 if deterministic else 3)


@needs_nvrtc
def test_each_kernel_is_compiled_once(launcher: Launcher) -> None:
    call = calls()["quality_focal_loss"]
    call(_core, OnCuda)
    call(_core, OnCuda)
    assert len(launcher.driver.compiled) == 1
    # As in the next process.
    other = Launcher(launcher.driver, launcher.nvrtc, launcher.cache, SOURCES, ops.OPS)
    _core.set_launcher(3, other)
    call(_core, OnCuda)
    assert len(launcher.driver.compiled) == 1
    (entry,) = launcher.cache.folder.iterdir()
    for damage in (
        b"",
        entry.read_bytes()[:-1],
        entry.read_bytes()[:100] + b"?" + entry.read_bytes()[101:],
    ):
        entry.write_bytes(damage)
        _core.set_launcher(
            3, Launcher(launcher.driver, launcher.nvrtc, launcher.cache, SOURCES, ops.OPS)
        )
        compiled = len(launcher.driver.compiled)
        call(_core, OnCuda)
        assert len(launcher.driver.compiled) == compiled + 1
        assert launcher.cache.read(entry.stem) is not None


@needs_nvrtc
def test_two_processes_at_once(tmp_path: Path) -> None:
    """They share a cache that is empty at first; both get the same code, and one entry is left."""
    assert LIBRARY is not None
    script = f"""
from pathlib import Path
from alignmask.ops.jit import Launcher, nvrtc
from alignmask.ops.jit.cache import Cache
library, cache = nvrtc.Nvrtc({LIBRARY._library._name!r}), Cache(Path({str(tmp_path)!r}))
launcher = Launcher(None, library, cache, Path({str(SOURCES)!r}), {ops.OPS!r})
cubin = launcher.cubin("quality_focal_loss", {_first_kernel("quality_focal_loss")!r}, 80)
print(cubin.symbol, len(cubin.code))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    outputs = [process.communicate()[0] for process in both]
    assert all(process.returncode == 0 for process in both)
    assert outputs[0] == outputs[1]
    assert len(list(tmp_path.iterdir())) == 1


def _first_kernel(op: str) -> str:
    return next(name for name in sorted(_simt.all_kernels()) if name.startswith(op))


def test_what_a_cache_entry_depends_on(tmp_path: Path) -> None:
    for folder in ("common", "op", "other"):
        (tmp_path / folder / "cuda").mkdir(parents=True)
        (tmp_path / folder / "cuda" / "a.cuh").write_text("old")

    def key(
        kernel: str = "f<float>", architecture: int = 80, version: tuple[int, int] = (13, 0)
    ) -> str:
        from alignmask.ops.jit import cache

        cache._hash.cache_clear()
        return fingerprint(tmp_path, "op", kernel, architecture, version)

    before = key()
    assert len({before, key("f<double>"), key(architecture=86), key(version=(12, 9))}) == 4
    (tmp_path / "other" / "cuda" / "a.cuh").write_text("new")
    assert key() == before
    for folder in ("op", "common"):
        (tmp_path / folder / "cuda" / "a.cuh").write_text("new")
        assert key() != before
        before = key()


def test_a_cache_that_cannot_be_written_warns(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "folder")
    with pytest.warns(UserWarning, match="ALIGNMASK_CACHE"):
        cache.write("key", Cubin("symbol", b"code"))
    assert cache.read("key") is None


@needs_nvrtc
def test_errors_name_op_sizes_and_launch(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("CUDA_ERROR_INVALID_VALUE")

    monkeypatch.setattr(launcher.driver, "launch", refuse)
    message = (
        r"quality_focal_loss on cuda:3 \(C = 5, R = 17\): "
        r"launch of quality_focal_loss\S*.* with \d+ blocks of \d+ threads failed: "
        r"CUDA_ERROR_INVALID_VALUE"
    )
    with pytest.raises(RuntimeError, match=message):
        calls()["quality_focal_loss"](_core, OnCuda)


def test_without_a_launcher_the_device_is_named() -> None:
    if _core.cuda_build()["architectures"]:
        pytest.skip("this build has CUDA kernels")
    with pytest.raises(
        ValueError, match="quality_focal_loss: no kernel for device cuda:3 in this build"
    ):
        calls()["quality_focal_loss"](_core, OnCuda)


@needs_nvrtc
def test_nvrtc_says_what_it_cannot_compile() -> None:
    assert LIBRARY is not None
    with pytest.raises(RuntimeError, match=r"cannot compile .* for sm_80:\n(.*\n)*.*nothing"):
        LIBRARY.compile("quality_focal_loss/cuda/kernels.cuh", ["nothing<float>"], 80, SOURCES)
    assert LIBRARY.target(87) == 87 if 87 in LIBRARY.architectures else 86
    with pytest.raises(RuntimeError, match="sm_52"):
        LIBRARY.target(52)
