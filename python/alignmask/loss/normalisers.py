"""What sums of losses are divided by: counts of a whole step, over all its processes and
micro-batches.

A step adds up the gradients of its parts (a part is one process's micro-batch) and divides by their
number. So each part divides its sums by the mean count of the parts, and the step is that of one
process with all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignmask.config import LossConfig, ModelConfig
from alignmask.data.batch import Batch, sent


@dataclass(frozen=True)
class Normalisers:
    """Divisors of the object queries' sums and of the aligned queries' sums."""

    classification_2: Tensor
    masks_2: Tensor

    @classmethod
    def of_step(cls, counts: Sequence[Tensor]) -> Normalisers:
        """Of the counts [3] of a process's micro-batches, with one all-reduce.

        A count of nothing is taken as 1, so that no sum (which is then 0) is divided by 0.
        """
        total_3, parts = torch.stack(list(counts)).sum(0), len(counts)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total_3)
            parts *= torch.distributed.get_world_size()
        mean_3 = torch.where(total_3 > 0, total_3, 1) / parts
        return cls(mean_3[[0, 2]], mean_3[[1, 2]])


def count(
    batch: Batch, live: Tensor | int, model_config: ModelConfig, loss_config: LossConfig
) -> Tensor:
    """-> [3], of one micro-batch: the weight of the object queries' classification, the number of
    instances, and `live`, the number of live aligned queries.

    Only `live` needs more than the batch. It may be on a GPU, which nothing waits for.
    """
    instances = len(batch.labels_G)
    classification: float = instances
    if model_config.classification == "softmax":  # a weighted mean of the rows' cross-entropy
        queries = model_config.query_decoder.queries
        positives = sum(min(number, queries) for number in batch.counts)
        negatives = batch.batch_size * queries - positives
        classification = positives + negatives * loss_config.no_object_weight
    counts_2 = torch.tensor([classification, instances], dtype=torch.float32, device="cpu")
    live_1 = torch.zeros(1, device=batch.labels_G.device) + live
    return torch.cat([sent(counts_2, live_1.device), live_1])
