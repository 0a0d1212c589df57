"""Bipartite matching of object queries and instances, at every output of the decoder.

L outputs, B images, Q object queries, M instances of one image, G instances of the whole batch, C
class logits, E channels, K points.
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
    """-> [L, G], on the CPU: the object query matched to each instance at each output, -1 where an
    image has more instances than queries.

    points_BK2: the points at which masks are compared, the same for all queries and outputs; random
    if not given. iou_LGR: the rows' mask IoUs, for `config.iou_cost`. All costs are computed at
    once and copied to the host in one transfer, the only one of the losses that is waited for.
    Raises FloatingPointError that names the image if a cost is not finite.
    """
    outputs, instances = prediction.outputs, batch.labels_G.shape[0]
    query_LG = torch.full((outputs, instances), -1, device="cpu")
    if instances == 0:
        return query_LG
    if points_BK2 is None:
        device = prediction.class_logits_LBRC.device
        points_BK2 = torch.rand(batch.batch_size, config.points, 2, device=device)
    cost_LGQ = cost(prediction, batch, config, classification, points_BK2, iou_LGR).cpu()

    parts = cost_LGQ.split(batch.counts, 1), query_LG.split(batch.counts, 1)
    for b, (cost_LMQ, query_LM) in enumerate(zip(*parts, strict=True)):
        if not cost_LMQ.isfinite().all():
            bad = int(cost_LMQ.isfinite().flatten(1).all(1).logical_not().nonzero()[0])
            raise FloatingPointError(
                f"matching: image {batch.image_ids[b]} ({batch.file_names[b]}) has non-finite "
                f"costs at decoder output {bad}"
            )
        for cost_MQ, query_M in zip(cost_LMQ, query_LM, strict=True):
            instance, query = linear_sum_assignment(cost_MQ.numpy())
            query_M[torch.from_numpy(instance)] = torch.from_numpy(query)
    return query_LG


def cost(
    prediction: Prediction,
    batch: Batch,
    config: LossConfig,
    classification: Classification,
    points_BK2: Tensor,
    iou_LGR: Tensor | None = None,
) -> Tensor:
    """-> [L, G, Q]: class_weight * class + mask_weight * BCE + dice_weight * dice - iou_cost * IoU,
    of every instance with the queries of its own image."""
    objects, queries = prediction.object_rows, prediction.queries
    # Sampling is linear: the logits at the points are the queries times the pixel embedding at the
    # points.
    embedding_BEHW = prediction.pixel_embedding_BEHW.float()
    grid_BK12 = 2 * points_BK2[:, :, None] - 1
    embedding_BEK = F.grid_sample(embedding_BEHW, grid_BK12, align_corners=False)[..., 0]
    target_GK = sample_masks(
        batch.masks_GHW,
        torch.arange(len(batch.owner_G), device=points_BK2.device),
        points_BK2[batch.owner_G],
    )
    class_LBQC = class_cost(objects.class_logits_LBRC.float(), config, classification)

    # Image by image: of all images at once, the temporary results would have the size of the image
    # with the most instances, and would be needed together.
    costs = []
    parts = target_GK.split(batch.counts), batch.labels_G.split(batch.counts)
    for b, (target_MK, label_M) in enumerate(zip(*parts, strict=True)):
        embedding_LQE = objects.mask_embedding_LBRE[:, b].float()
        class_LMQ = class_LBQC[:, b].index_select(2, label_M).transpose(1, 2)
        mask_LMQ = mask_cost(embedding_LQE, embedding_BEK[b], target_MK, config)
        costs.append(config.class_weight * class_LMQ + mask_LMQ)
    cost_LGQ = torch.cat(costs, dim=1)
    if config.iou_cost:
        assert iou_LGR is not None
        cost_LGQ -= config.iou_cost * iou_LGR[:, :, :queries]
    return cost_LGQ


def mask_cost(
    embedding_LQE: Tensor, embedding_EK: Tensor, target_MK: Tensor, config: LossConfig
) -> Tensor:
    """-> [L, M, Q]: mask_weight * BCE + dice_weight * dice, of one image."""
    outputs, queries = embedding_LQE.shape[:2]
    if len(target_MK) == 0:
        return embedding_LQE.new_zeros(outputs, 0, queries)
    logits_NK = embedding_LQE.flatten(0, 1) @ embedding_EK  # N = L * Q
    target_KM = target_MK.T
    # BCE(x, t) = softplus(x) - x t
    bce_NM = (F.softplus(logits_NK).sum(1, keepdim=True) - logits_NK @ target_KM) / len(target_KM)
    probability_NK = logits_NK.sigmoid()
    overlap_NM = probability_NK @ target_KM
    sizes_NM = probability_NK.sum(1, keepdim=True) + target_MK.sum(1)
    dice_NM = 1 - (2 * overlap_NM + 1) / (sizes_NM + 1)
    cost_NM = config.mask_weight * bce_NM + config.dice_weight * dice_NM
    return cost_NM.unflatten(0, (outputs, queries)).transpose(1, 2)


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
