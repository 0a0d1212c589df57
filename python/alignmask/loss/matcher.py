"""Bipartite matching of object queries and instances, at every output of the decoder.

L outputs, B images, Q object queries, M instances of one image (padded to the batch's maximum), G
instances of the whole batch, C class logits, E channels, K points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from alignmask.config import Classification, LossConfig
from alignmask.data.batch import Batch
from alignmask.loss.points import sample_masks
from alignmask.model.heads import Prediction


@torch.no_grad()
def match(
    prediction: Prediction,
    batch: Batch,
    config: LossConfig,
    classification: Classification,
    points_BK2: Tensor | None = None,
    iou_LGR: Tensor | None = None,
) -> Tensor:
    """-> [L, G]: the object query matched to each instance at each output, -1 where an image has
    more instances than queries.

    points_BK2: the points at which masks are compared, the same for all queries and outputs; random
    if not given. iou_LGR: the rows' mask IoUs, for `config.iou_cost`. All costs are computed at
    once and copied to the host in one transfer. Raises FloatingPointError that names the image if a
    cost is not finite.
    """
    outputs, instances = prediction.outputs, batch.labels_G.shape[0]
    device = prediction.class_logits_LBRC.device
    if instances == 0:
        return torch.empty(outputs, 0, dtype=torch.long, device=device)
    if points_BK2 is None:
        points_BK2 = torch.rand(batch.batch_size, config.points, 2, device=device)
    cost_LBMQ = cost(prediction, batch, config, classification, points_BK2, iou_LGR).cpu()

    query_LG = torch.full((outputs, instances), -1, dtype=torch.long)
    start = 0
    for b, count in enumerate(batch.counts):
        cost_LMQ = cost_LBMQ[:, b, :count]
        if not cost_LMQ.isfinite().all():
            bad = int(cost_LMQ.isfinite().flatten(1).all(1).logical_not().nonzero()[0])
            raise FloatingPointError(
                f"matching: image {batch.image_ids[b]} ({batch.file_names[b]}) has non-finite "
                f"costs at decoder output {bad}"
            )
        for output in range(outputs):
            instance, query = linear_sum_assignment(cost_LMQ[output].numpy())
            query_LG[output, start + torch.from_numpy(instance)] = torch.from_numpy(query)
        start += count
    return query_LG.to(device)


def cost(
    prediction: Prediction,
    batch: Batch,
    config: LossConfig,
    classification: Classification,
    points_BK2: Tensor,
    iou_LGR: Tensor | None = None,
) -> Tensor:
    """-> [L, B, M, Q]: class_weight * class + mask_weight * BCE + dice_weight * dice - iou_cost *
    IoU; padding instances cost 0."""
    objects, outputs, queries = prediction.object_rows, prediction.outputs, prediction.queries
    device, most = points_BK2.device, max(batch.counts)
    count_B = torch.tensor(batch.counts, device=device)
    real_BM = torch.arange(most, device=device) < count_B[:, None]

    # Sampling is linear: the logits at the points are the queries times the pixel embedding at the
    # points.
    embedding_BEHW = prediction.pixel_embedding_BEHW.float()
    grid_BK12 = 2 * points_BK2[:, :, None] - 1
    embedding_BEK = F.grid_sample(embedding_BEHW, grid_BK12, align_corners=False)[..., 0]
    # N = L * Q.
    logits_BNK = objects.mask_embedding_LBRE.float().transpose(0, 1).flatten(1, 2) @ embedding_BEK

    target_GK = sample_masks(
        batch.masks_GHW, torch.arange(len(batch.owner_G), device=device), points_BK2[batch.owner_G]
    )
    target_BMK = target_GK.new_zeros(batch.batch_size, most, target_GK.shape[1])
    target_BMK[real_BM] = target_GK
    label_BM = batch.labels_G.new_zeros(batch.batch_size, most)
    label_BM[real_BM] = batch.labels_G

    target_BKM = target_BMK.transpose(1, 2)
    # BCE(x, t) = softplus(x) - x t
    bce = (
        F.softplus(logits_BNK).sum(2, keepdim=True) - logits_BNK @ target_BKM
    ) / logits_BNK.shape[2]
    probability_BNK = logits_BNK.sigmoid()
    overlap = probability_BNK @ target_BKM
    sizes = probability_BNK.sum(2, keepdim=True) + target_BMK.sum(2)[:, None]
    dice = 1 - (2 * overlap + 1) / (sizes + 1)
    mask_LBMQ = (
        (config.mask_weight * bce + config.dice_weight * dice)
        .unflatten(1, (outputs, queries))
        .permute(1, 0, 3, 2)
    )

    class_LBQC = class_cost(objects.class_logits_LBRC.float(), config, classification)
    class_LBMQ = class_LBQC.transpose(2, 3).gather(
        2, label_BM[None, :, :, None].expand(outputs, -1, -1, queries)
    )
    cost_LBMQ = config.class_weight * class_LBMQ + mask_LBMQ
    if config.iou_cost:
        assert iou_LGR is not None
        cost_LBMQ[:, real_BM] -= config.iou_cost * iou_LGR[:, :, :queries]
    return cost_LBMQ * real_BM[None, :, :, None]


def class_cost(logits: Tensor, config: LossConfig, classification: Classification) -> Tensor:
    """Cost of assigning each class to a query: minus its probability, or the focal cost of
    Deformable DETR."""
    if classification == "softmax":
        return -logits.softmax(-1)
    probability = logits.sigmoid()
    if config.class_cost == "probability":
        return -probability
    alpha, gamma = 0.25, config.gamma
    as_positive = alpha * (1 - probability) ** gamma * F.softplus(-logits)
    as_negative = (1 - alpha) * probability**gamma * F.softplus(logits)
    return as_positive - as_negative
