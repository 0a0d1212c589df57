"""AdamW with Mask2Former's parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from alignmask.config import TrainConfig
from alignmask.model.alignmask import AlignMask
from alignmask.model.stages import STAGES

# Parameters that are embeddings or position tables, by the last part of their name: no weight
# decay, like norms.
EMBEDDINGS = (
    "query",
    "query_position",
    "level_embedding",
    "aligned_position",
    "relative_position_bias_table",
    "absolute_pos_embed",
    "pos_embed",
)


def build_optimizer(model: AlignMask, config: TrainConfig) -> torch.optim.AdamW:
    """The backbone's rate is `backbone_multiplier` times the learning rate, and `layer_decay` times
    less in each stage before its last. Weight decay leaves out norms, embeddings and position
    tables."""
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    norms = {
        id(p)
        for m in model.modules()
        if isinstance(m, (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm))
        for p in m.parameters(recurse=False)
    }
    decay_of = layer_decays(model, config.layer_decay)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = id(parameter) not in norms and name.rsplit(".", 1)[-1] not in EMBEDDINGS
        kind = (name.startswith("backbone."), decay_of.get(name, 1.0), decays)
        groups.setdefault(kind, []).append(parameter)
    rate = learning_rate(config)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": rate * layer * (config.backbone_multiplier if backbone else 1.0),
                "initial_lr": rate * layer * (config.backbone_multiplier if backbone else 1.0),
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for (backbone, layer, decays), parameters in groups.items()
        ],
        fused=True,
    )


def learning_rate(config: TrainConfig) -> float:
    """The rate for the batch size at hand."""
    reference = config.scale_learning_rate_from
    return config.learning_rate * (1 if reference is None else config.images_per_step / reference)


def describe_rates(config: TrainConfig) -> Iterator[str]:
    """Sentences for the log, of what differs from the usual."""
    rate, reference = learning_rate(config), config.scale_learning_rate_from
    if reference is not None:
        yield (
            f"learning rate {rate:g} for batches of {config.images_per_step}: that of batches of "
            f"{reference} is {config.learning_rate:g}"
        )
    if config.layer_decay != 1:
        last = rate * config.backbone_multiplier
        rates = (f"{last * config.layer_decay ** (STAGES - n):g}" for n in range(1, STAGES + 1))
        yield f"learning rates of the backbone's stages: {', '.join(rates)}"
    if config.freeze_backbone:
        yield f"not trained: stages 1 to {config.freeze_backbone} of the backbone's {STAGES}"


def layer_decays(model: AlignMask, decay: float) -> dict[str, float]:
    """Factor on the rate of each parameter of the backbone. The norms that are put on a Swin
    Transformer's maps are new, and not part of a stage."""
    if decay == 1:
        return {}
    stages = model.backbone.stages()
    return {
        f"backbone.body.{name}": decay ** (STAGES - stages.of_parameter(name))
        for name, _ in model.backbone.body.named_parameters()
    }


def learning_rate_factor(config: TrainConfig, step: int, progress: float) -> float:
    """Factor on the initial rates at iteration `step`; progress is the share of the run that is
    done, in [0, 1]."""
    warmup = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.schedule == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return warmup * 0.1 ** sum(progress >= milestone for milestone in config.milestones)
