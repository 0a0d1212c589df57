"""Weights, gradients, moments and the moving average shared out among the processes: each holds a
part of every tensor (torch's FSDP2, `torch.distributed.fsdp.fully_shard`).

Checkpoints have whole tensors, so that a run can be continued with and without this, and by any
number of processes. All processes must call what puts parts together.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from alignmask.config import Config
from alignmask.config_files import without_pretrained
from alignmask.model import AlignMask, build_model


def share_out(model: AlignMask, device: torch.device) -> None:
    """From here on the model's parameters are parts. Its backbone and its layers are whole one
    after another, while they compute.

    Raises ValueError if there is one process alone.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not torch.distributed.is_initialized():
        raise ValueError(
            "train.shard: there is one process, and nobody to share with: start several "
            "(torchrun --nproc-per-node), or leave it out"
        )
    # Our models give views, which nobody changes in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.contiguous()  # fully_shard refuses channels-last
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for part in (model.backbone, *model.pixel_decoder.layers, *model.query_decoder.layers, model):
        fully_shard(part, mesh=mesh)


def whole(value: Tensor) -> Tensor:
    """The tensor of which this process may have a part."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: whole(value) for name, value in model.state_dict().items()}


def whole_model(model: torch.nn.Module, config: Config) -> AlignMask:
    """A copy that no process shares."""
    copy = build_model(without_pretrained(config).model)
    copy.load_state_dict(whole_weights(model))
    return copy


def whole_state(optimizer: Optimizer) -> dict[str, Any]:
    """`optimizer.state_dict()`, of whole tensors."""
    state = optimizer.state_dict()
    values = {
        number: {name: _whole_if_tensor(value) for name, value in of_parameter.items()}
        for number, of_parameter in state["state"].items()
    }
    return {**state, "state": values}


def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Whole tensors into a model that may have parts of them."""
    own = model.state_dict()
    model.load_state_dict(
        {name: _part(value, own[name]) if name in own else value for name, value in weights.items()}
    )


def state_parts(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """Of a `state_dict` of whole tensors, what this process takes."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    values = {
        number: {name: _part(value, parameters[number]) for name, value in of_parameter.items()}
        for number, of_parameter in state["state"].items()
    }
    return {**state, "state": values}


def _whole_if_tensor(value: Any) -> Any:
    return whole(value) if isinstance(value, Tensor) else value


def _part(value: Any, like: Tensor) -> Any:
    """Of a tensor that all processes have, the part that this one has of `like`, or else all of it.
    A number of steps has no parts.

    It lies in memory as `like` does: AdamW's fused kernel takes weights and moments one after
    another as they lie, and those of a convolution may have been stored in another order.
    """
    if not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    if isinstance(like, DTensor):
        value = value.to(like.device).contiguous()
        return distribute_tensor(value, like.device_mesh, like.placements)
    return torch.empty_like(like, dtype=value.dtype).copy_(value)
