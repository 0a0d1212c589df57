"""The two processes of tests/loss/test_normalisers.py: FOLDER -> FOLDER/0.json and 1.json, their
losses of every case.

The second is forked from the first before either computes anything: what is imported is imported
once.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch

from alignmask.config import LossConfig
from alignmask.data import Batch
from alignmask.loss import Criterion, criterion
from alignmask.model.heads import Prediction
from tests import tiny
from tests.loss.oracle import by_name
from tests.loss.scenes import samples_at_row_points, scene

CONFIG = LossConfig(points=30)
KINDS = ("softmax", "focal", "quality_focal")
CASES = {
    "1 and 3 instances": ((1, 3), 5),
    # Half an instance for each process.
    "0 and 1 instances": ((0, 1), 4),
    "no instance anywhere": ((0, 0), 3),
    "no aligned queries": ((1, 3), 0),
}


def image(prediction: Prediction, batch: Batch, b: int) -> tuple[Prediction, Batch]:
    """Image b alone."""
    mine, first = batch.owner_G == b, sum(batch.counts[:b])
    aligned = prediction.aligned
    if aligned is not None:
        instance_BA = aligned.instance_BA[b : b + 1]
        instance_BA = torch.where(instance_BA >= 0, instance_BA - first, -1)
        aligned = replace(
            aligned, instance_BA=instance_BA, features_BAE=aligned.features_BAE[b : b + 1]
        )
    return replace(
        prediction,
        class_logits_LBRC=prediction.class_logits_LBRC[:, b : b + 1],
        mask_embedding_LBRE=prediction.mask_embedding_LBRE[:, b : b + 1],
        pixel_embedding_BEHW=prediction.pixel_embedding_BEHW[b : b + 1],
        aligned=aligned,
    ), replace(
        batch,
        image_BCHW=batch.image_BCHW[b : b + 1],
        masks_GHW=batch.masks_GHW[mine],
        labels_G=batch.labels_G[mine],
        owner_G=batch.owner_G[mine] - b,
        counts=[batch.counts[b]],
    )


def losses(prediction: Prediction, batch: Batch, classification: str) -> dict[str, list[float]]:
    """With points that depend on nothing that two processes have otherwise than one."""
    shared = torch.rand(CONFIG.points, 2, generator=torch.Generator().manual_seed(1))
    points_BK2 = shared.expand(batch.batch_size, -1, -1)
    with (
        patch.object(criterion, "match", partial(criterion.match, points_BK2=points_BK2)),
        patch.object(criterion, "uncertain_samples", samples_at_row_points),
    ):
        found = Criterion(tiny.model_config(classification=classification), CONFIG)(
            prediction, batch
        )
    return {name: value.tolist() for name, value in by_name(found).items()}


def of_case(name: str, classification: str) -> tuple[Prediction, Batch]:
    counts, slots = CASES[name]
    return scene(counts, slots=slots, softmax=classification == "softmax")


def run(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    found = {
        name: {kind: losses(*image(*of_case(name, kind), rank), kind) for kind in KINDS}
        for name in CASES
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    second = multiprocessing.get_context("fork").Process(target=run, args=(1, Path(sys.argv[1])))
    second.start()
    run(0, Path(sys.argv[1]))
    second.join()
    sys.exit(second.exitcode)
