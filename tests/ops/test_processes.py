"""What the ops do inside of a process: OpenMP, threads, the GIL, forks, workers, memory that cannot
be had.

Most of it runs in processes of its own (`in_a_process`), which import this file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from alignmask import ops
from alignmask.ops import _library
from tests.conftest import REPOSITORY
from tests.ops import cases

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, forks")

# Enough work for three threads; few enough outputs that torch adds none of its own.
DEFORM = cases.DeformShape(1, ((32, 32), (16, 16)), 4, 32, 200, 6)
SECONDS = 40  # until a process counts as hanging


def runs() -> dict[str, Callable[[], list[Tensor]]]:
    """Of every op: what computes its output and gradients."""

    def run(call: Callable[..., Tensor], leaves: int, *tensors: Tensor) -> list[Tensor]:
        arguments = [t.detach().requires_grad_(i < leaves) for i, t in enumerate(tensors)]
        out = call(*arguments)
        return (
            [out.detach(), *torch.autograd.grad(out.sum(), arguments[:leaves])] if leaves else [out]
        )

    value, levels, *points = cases.ms_deform_attn(DEFORM)
    second, _, *from_offsets = cases.ms_deform_attn_from_offsets(DEFORM)
    pool = cases.masked_point_pool(cases.PoolShape(2, 24, (24, 24), (48, 48), 24, 2, 7000))
    iou = cases.mask_iou(cases.IouShape(1, 60, (64, 64), 2, 8))
    *looked_at, count, seed = cases.mask_points(cases.PointsShape(40, (64, 64), (99, 99), 9, 2000))
    rle = cases.MASK_RLE["photo"]._replace(N=4)
    loss = cases.quality_focal_loss(cases.LossShape(400, 80))
    return {
        "ms_deform_attn": lambda: run(
            lambda v, *p: ops.ms_deform_attn(v, levels, *p), 3, value, *points
        ),
        "ms_deform_attn_from_offsets": lambda: run(
            lambda v, *p: ops.ms_deform_attn_from_offsets(v, levels, *p), 4, second, *from_offsets
        ),
        "masked_point_pool": lambda: run(lambda *t: ops.masked_point_pool(*t)[0], 1, *pool),
        "mask_iou": lambda: run(ops.mask_iou, 0, *iou),
        "mask_points": lambda: run(lambda *t: ops.mask_points(*t, count, seed)[0], 1, *looked_at),
        "mask_rle": lambda: run(
            lambda x: ops.mask_rle(x, *rle.sizes)[0], 0, cases.mask_rle(rle, smooth=True)
        ),
        "quality_focal_loss": lambda: run(ops.quality_focal_loss, 1, *loss),
    }


def results() -> dict[str, list[Tensor]]:
    return {name: run() for name, run in runs().items()}


class Kernel(cases.KernelCall):
    """To be made again: without torch, and without an output to allocate."""

    def __call__(self) -> None:
        getattr(_library.core, self.name)(*self.arguments, **self.options)

    def arrays(self) -> list[np.ndarray[Any, Any]]:
        return [
            a.copy() for a in (*self.arguments, *self.options.values()) if isinstance(a, np.ndarray)
        ]


def kernels(threads: int, make: Callable[[], Any] = results) -> list[Kernel]:
    """Those behind `results`: both forms of ms_deform_attn, all forward and backward functions."""
    return [Kernel(*call) for call in cases.kernel_calls(make, threads)]


def in_a_process(body: str, **environment: str) -> str:
    """What a fresh Python prints that runs `body` with the names of this file."""
    code = "from tests.ops.test_processes import *\n" + textwrap.dedent(body)
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        capture_output=True, text=True, timeout=SECONDS, cwd=REPOSITORY, env={**plain, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_a_fork(body: Callable[[], None]) -> None:
    """Ends with an error if `body` does, or does not end."""
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        try:
            body()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"child ended with status {status}"


def assert_same(found: Mapping[str, list[Tensor]], expected: Mapping[str, list[Tensor]]) -> None:
    assert list(found) == list(expected)
    for name, tensors in expected.items():
        for a, b in zip(found[name], tensors, strict=True):
            assert torch.equal(a, b), name


# ---- OpenMP and its threads


def test_one_openmp_runtime() -> None:
    """A wheel brings a copy of libgomp along, and the kernels take torch's: two of them would have
    a second thread each."""
    in_a_process("""
        torch.set_num_threads(2)
        torch.ones(1000, 1000).add(1)
        threads = set(os.listdir("/proc/self/task"))
        assert len(threads) > 1
        results()
        assert set(os.listdir("/proc/self/task")) == threads
        assert "_core." in open("/proc/self/maps").read()
    """)


def check_threads(run: Callable[[], Any]) -> None:
    """One thread for one, two more for three; OpenMP keeps its threads."""
    for threads in (1, 3):
        torch.set_num_threads(threads)
        run()
        found = len(os.listdir("/proc/self/task"))
        assert found == threads, f"{found} threads instead of {threads}"


def test_torchs_number_of_threads_is_respected() -> None:
    """By every op, forked from a process that has no pool of threads yet."""
    in_a_process(
        """
        torch.set_num_threads(1)
        for name, run in runs().items():
            print(name, file=sys.stderr)
            in_a_fork(lambda: check_threads(run))
        """,
        OPENBLAS_NUM_THREADS="1",
    )


def test_the_gil_is_released() -> None:
    """No Python thread gives the GIL away by itself here; a kernel that keeps it would never let
    the other count."""
    in_a_process("""
        import time
        count, started = 0, threading.Event()
        def go_on():
            global count
            started.set()
            while True:
                count += 1
                time.sleep(0)  # gives the GIL back
        made = kernels(1)
        threading.Thread(target=go_on, daemon=True).start()
        started.wait()
        sys.setswitchinterval(1e6)
        for kernel in made:
            before, end = count, time.monotonic() + 10
            while count == before:
                assert time.monotonic() < end, f"{kernel.name} keeps the GIL"
                kernel()
        assert len(made) == 12
        os._exit(0)
    """)


def test_gradients_in_threads() -> None:
    """Four Python threads at once, each with forward and backward passes of every op."""
    expected, found = results(), []
    workers = [threading.Thread(target=lambda: found.append(results())) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(SECONDS)
    assert len(found) == 4
    for each in found:
        assert_same(each, expected)


# ---- processes


def test_forked_processes_go_on_after_threads_were_used() -> None:
    """Every kernel, with the same numbers, and the parent after it."""
    in_a_process("""
        made = kernels(3)
        assert len(os.listdir("/proc/self/task")) >= 3
        expected = [kernel.arrays() for kernel in made]
        def again():
            for kernel, arrays in zip(made, expected):
                kernel()
                for a, b in zip(kernel.arrays(), arrays, strict=True):
                    np.testing.assert_array_equal(a, b, err_msg=kernel.name)
        for _ in range(2):
            in_a_fork(again)
        in_a_fork(lambda: in_a_fork(again))
        again()
    """)


class Results(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, list[Tensor]]:
        torch.set_num_threads(1)
        made = runs()
        # Workers start with one; torch itself would wait for ever for a second after a fork.
        torch.set_num_threads(2)
        return {name: run() for name, run in made.items()}


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_workers_of_a_data_loader(way: str) -> None:
    """From a process that other tests have not used: a fork refuses autograd, or waits for ever, if
    torch has had threads for a GPU or of OpenMP before."""
    in_a_process(
        f"""
        from torch.utils.data import DataLoader

        expected = results()
        loader = DataLoader(
            Results(), batch_size=None, num_workers=1, multiprocessing_context="{way}", timeout=SECONDS
        )
        found = list(loader)
        assert len(found) == 2
        for each in found:
            assert_same(each, expected)
    """,
        OMP_NUM_THREADS="1",
    )


# ---- memory


def large() -> list[Kernel]:
    """Calls whose temporaries take more than 8 MB, each in one thread."""
    one = torch.zeros(1, dtype=torch.long)

    def make() -> None:
        deform = cases.DeformShape(1, ((512, 512),), 1, 33, 2, 4)  # 33 channels are packed first
        value, levels, *points = cases.ms_deform_attn(deform)
        ops.ms_deform_attn(value, levels, *points)
        ops.masked_point_pool(
            torch.rand(1, 1, 8, 8), torch.ones(1, 8, 8).bool(), one, torch.rand(1, 1, 600_000, 2)
        )
        ops.mask_iou(
            torch.rand(1, 1, 1024, 1024),
            torch.ones(1, 1024, 1024).bool().expand(100, -1, -1),
            one.expand(100),
        )
        ops.mask_points(torch.rand(1, 8, 8), torch.ones(1, 8, 8).bool(), one, 400_000, 0)
        torch.ops.alignmask.mask_rle(torch.rand(1, 2000, 1500), [1] * 6)  # columns are copied
        ops.quality_focal_loss(torch.rand(1, 2_000_000), one, torch.rand(1))

    return kernels(1, make)


def test_memory_that_cannot_be_had() -> None:
    """MemoryError that names the op; with memory again, the call succeeds."""
    printed = in_a_process(
        """
        import re, resource
        made = large()
        for kernel in made:
            expected = kernel.arrays()
            used = int(re.search(r"VmSize:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) * 1024
            before = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20), before[1]))
            try:
                kernel()
                print(kernel.name, "had enough")
            except MemoryError as error:
                print(error)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, before)
            kernel()
            for a, b in zip(kernel.arrays(), expected, strict=True):
                np.testing.assert_array_equal(a, b, err_msg=kernel.name)
        """,
        MALLOC_MMAP_THRESHOLD_=str(1 << 20),  # what is freed goes back to the system
        MALLOC_ARENA_MAX="1",
    )
    assert printed.splitlines() == [
        f"{op}: out of memory for the kernel's temporaries" for op in ops.OPS
    ]
