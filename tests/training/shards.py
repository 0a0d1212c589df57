"""What test_sharding.py runs in several processes: `shards.py FOLDER` trains with and without
`train.shard`, and notes in FOLDER how much of the model each process has."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from alignmask import ops
from alignmask.config import Config
from alignmask.training.trainer import Trainer
from tests.same_points import mask_points
from tests.training import two_processes


def settings(root: Path, name: str, shard: bool, iterations: int, accumulate: int = 1) -> Config:
    config = two_processes.settings(root, name)
    train = replace(
        config.train, shard=shard, iterations=iterations, accumulate=accumulate, checkpoint_every=2, keep_checkpoints=9
    )  # fmt: skip
    return replace(config, train=train)


def held(values: list[Tensor]) -> int:
    """Numbers in this process's memory."""
    return sum(v.to_local().numel() if isinstance(v, DTensor) else v.numel() for v in values)


def main(root: Path) -> None:
    torch.rand = two_processes.same_points_for_all
    ops.mask_points = mask_points
    trainers = {
        shard: Trainer(settings(root, f"shard {shard}", shard, 2)) for shard in (True, False)
    }
    for trainer in trainers.values():
        trainer.run()
    found = {}
    for shard, trainer in trainers.items():
        state = trainer.optimizer.optimizer.state
        assert trainer.ema is not None
        found[shard] = {
            "weights": held(list(trainer.plain_model.parameters())),
            "average": held(list(trainer.ema.module.parameters())),
            "moments": held([v["exp_avg"] for v in state.values()]),
        }
    for shard in (True, False):  # each goes on as the other
        parts = 4 // trainers[True].accelerator.num_processes  # images of one process
        Trainer(settings(root, f"shard {shard}", not shard, 4, accumulate=parts)).run()
    torch.save(found, root / f"rank{trainers[True].accelerator.process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
