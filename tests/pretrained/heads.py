"""Models whose class heads show which row is which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignmask import checkpoint
from alignmask.config import Config
from alignmask.model import AlignMask
from tests import tiny


def with_rows(count: int, softmax: bool = False, seed: int = 0, **changes: Any) -> AlignMask:
    """A model whose head has row number i full of i + 1, and -1 for no object."""
    kind = "softmax" if softmax else "quality_focal"
    more = {"classification": kind, "aligned_queries": None, "num_classes": count, **changes}
    model = tiny.model(seed, **more)
    values = [float(n + 1) for n in range(count)] + [-1.0] * softmax
    with torch.no_grad():
        model.query_decoder.heads.classify.weight.copy_(torch.tensor(values)[:, None])
        model.query_decoder.heads.classify.bias.copy_(torch.tensor(values))
    return model


def head(model: AlignMask) -> Tensor:
    """Weights and bias as columns of one matrix."""
    classify = model.query_decoder.heads.classify
    return torch.cat([classify.weight, classify.bias[:, None]], dim=1).detach().clone()


def saved(model: AlignMask, names: list[str], folder: Path) -> Path:
    meta = {"class_names": names, "category_ids": list(range(len(names)))}
    checkpoint.save(folder, Config(model=model.config), model.state_dict(), meta)
    return folder
