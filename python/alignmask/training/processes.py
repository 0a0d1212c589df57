"""The processes of one run: how they find each other, share a batch, and agree."""

from __future__ import annotations

import os
import warnings

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import nn

from alignmask.config import TrainConfig
from alignmask.training.precision import Precision


def join(t: TrainConfig, precision: Precision) -> Accelerator:
    """This process's place among those that torchrun, `accelerate launch` or nothing started.

    Raises ValueError where Accelerate was asked for FSDP. Warns if torchrun's restarts may hang.
    """
    # On a CPU, Accelerate would ignore it and copy the model to all processes after all.
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1", "yes"):
        raise ValueError(
            "accelerate launch --use_fsdp is not supported: the moving average, checkpoints and "
            "evaluation would not know of it; launch without it, and give --train.shard"
        )
    _warn_of_restarts()
    # An earlier run of this process may have had another precision.
    AcceleratorState._reset_state()
    # Without GPUs, Accelerate ignores torchrun's other processes unless it is asked for the CPU
    # explicitly.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return Accelerator(
        cpu=several and not torch.cuda.is_available(),
        mixed_precision=precision.autocast,
        gradient_accumulation_steps=t.accumulate,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def _warn_of_restarts() -> None:
    """By default torchrun keeps one store for all its attempts, where a restarted process may find
    the address of one that has died (https://github.com/pytorch/pytorch/issues/135712)."""
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if restarts and shared and os.environ.get("RANK", "0") == "0":
        warnings.warn(
            "torchrun may restart this run, and restarts can fail or hang, because its processes "
            "may look for ones that have died (pytorch issue 135712); start it with the "
            "environment variable TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, and with --standalone or "
            "--rdzv-backend c10d",
            stacklevel=2,
        )


def images_together(t: TrainConfig, processes: int) -> int:
    """Images in a micro-batch of one process. Raises ValueError if the batch cannot be shared."""
    images, rest = divmod(t.images_per_step, processes * t.accumulate)
    if rest or not images:
        raise ValueError(
            f"train.batch_size {t.batch_size} is not a multiple of {processes} processes x "
            f"{t.accumulate} accumulation steps"
        )
    return images


def on_any(accelerator: Accelerator, flag: bool) -> bool:
    """True on all processes if it is on one."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)) > 0)


def share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """The main process's for all: parameters are equal, but BatchNorm's statistics are of each
    process's own images."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
