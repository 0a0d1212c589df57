"""A training step, which several tests take."""

from __future__ import annotations

from torch import Tensor

from alignmask.config import LossConfig
from alignmask.data import Batch
from alignmask.loss import Criterion
from alignmask.model import AlignMask

LOSS = LossConfig(points=64)


def gradients(model: AlignMask, batch: Batch) -> dict[str, Tensor]:
    """Of a training step in fp32, and its loss."""
    model.train().zero_grad()
    loss = Criterion(model.config, LOSS)(model(batch), batch).total(LOSS)
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found}
