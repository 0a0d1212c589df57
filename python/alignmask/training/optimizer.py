"""AdamW with Mask2Former's parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from alignmask.config import TrainConfig
from alignmask.model.alignmask import AlignMask

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
    """The backbone's rate is `backbone_multiplier` times the learning rate. Weight decay leaves out
    norms, embeddings and position tables."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    norms = {
        id(p)
        for m in model.modules()
        if isinstance(m, (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm))
        for p in m.parameters(recurse=False)
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = id(parameter) not in norms and name.rsplit(".", 1)[-1] not in EMBEDDINGS
        groups.setdefault((name.startswith("backbone."), decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": config.learning_rate * (config.backbone_multiplier if backbone else 1.0),
                "initial_lr": config.learning_rate
                * (config.backbone_multiplier if backbone else 1.0),
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for (backbone, decays), parameters in groups.items()
        ],
        fused=True,
    )


def learning_rate_factor(config: TrainConfig, step: int, progress: float) -> float:
    """Factor on the initial rates at iteration `step`; progress is the share of the run that is
    done, in [0, 1]."""
    warmup = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.schedule == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return warmup * 0.1 ** sum(progress >= milestone for milestone in config.milestones)
