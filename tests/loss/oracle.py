"""The losses written once more, from the paper's section 2.2, Mask2Former and the docstrings of
`LossConfig`: one query, one instance, one output at a time, in float64. It shares no code with
`alignmask.loss` and none of the kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from alignmask.config import LossConfig
from alignmask.data import Batch
from alignmask.loss import Losses
from alignmask.model.heads import Prediction


def sample(map_HW: Tensor, points_K2: Tensor) -> Tensor:
    """Bilinear: every pixel is a tent around its centre, and there is nothing outside."""

    def tents(at_K: Tensor, size: int) -> Tensor:
        return (1 - (at_K[:, None] * size - 0.5 - torch.arange(size)).abs()).clamp(min=0)

    height, width = map_HW.shape
    x_K, y_K = points_K2.double().unbind(1)
    return torch.einsum("kh,hw,kw->k", tents(y_K, height), map_HW.double(), tents(x_K, width))


def shrink(mask_HW: Tensor, size: tuple[int, int]) -> Tensor:
    """Cells of which at least half is covered; if there is none, the cell that is covered best."""
    rows, columns = mask_HW.shape[0] // size[0], mask_HW.shape[1] // size[1]
    covered = torch.zeros(size, dtype=torch.long)
    for i in range(size[0]):
        for j in range(size[1]):
            covered[i, j] = mask_HW[
                i * rows : (i + 1) * rows, j * columns : (j + 1) * columns
            ].sum()
    enough = 2 * covered >= rows * columns
    if not enough.any() and covered.any():
        enough.view(-1)[covered.argmax()] = True
    return enough


def mask_logits(prediction: Prediction, output: int, b: int, r: int) -> Tensor:
    embedding_E = prediction.mask_embedding_LBRE[output, b, r].double()
    return (embedding_E[:, None, None] * prediction.pixel_embedding_BEHW[b].double()).sum(0)


def iou(
    prediction: Prediction, batch: Batch, config: LossConfig, output: int, r: int, g: int
) -> float:
    """Of row r's mask with instance g, whose image it looks at."""
    logits_HW, mask_HW = (
        mask_logits(prediction, output, int(batch.owner_G[g]), r).detach(),
        batch.masks_GHW[g],
    )
    if config.iou_resolution == "image":
        logits_HW = F.interpolate(logits_HW[None, None], size=mask_HW.shape, mode="bilinear")[0, 0]
    else:
        mask_HW = shrink(mask_HW, (logits_HW.shape[0], logits_HW.shape[1]))
    found_HW = logits_HW > 0
    return float((found_HW & mask_HW).sum() / (found_HW | mask_HW).sum().clamp(min=1))


def mask_terms(logits_HW: Tensor, mask_HW: Tensor, points_K2: Tensor) -> tuple[Tensor, Tensor]:
    """-> BCE and dice at the points."""
    x_K, t_K = sample(logits_HW, points_K2), sample(mask_HW, points_K2)
    p_K = x_K.sigmoid()
    bce = -(t_K * p_K.log() + (1 - t_K) * (1 - p_K).log()).mean()
    return bce, 1 - (2 * (p_K * t_K).sum() + 1) / (p_K.sum() + t_K.sum() + 1)


def class_cost(logits_C: Tensor, label: int, classification: str, config: LossConfig) -> float:
    logits_C = logits_C.detach().double()
    if classification == "softmax":
        return -float(logits_C.exp()[label] / logits_C.exp().sum())
    p = float(1 / (1 + (-logits_C[label]).exp()))
    if config.class_cost == "probability":
        return -p
    log_p, log_not_p = torch.tensor([p, 1 - p]).log().tolist()
    positive, negative = (
        -0.25 * (1 - p) ** config.gamma * log_p,
        -0.75 * p**config.gamma * log_not_p,
    )
    return positive - negative


def instances_of(batch: Batch, b: int) -> list[int]:
    return [g for g in range(len(batch.owner_G)) if batch.owner_G[g] == b]


def cost(
    prediction: Prediction,
    batch: Batch,
    classification: str,
    config: LossConfig,
    points_K2: Tensor,
    output: int,
    b: int,
) -> Tensor:
    """-> [instances of image b, object queries]."""
    mine = instances_of(batch, b)
    found = torch.zeros(len(mine), prediction.queries, dtype=torch.float64)
    for q in range(prediction.queries):
        logits_HW = mask_logits(prediction, output, b, q).detach()
        for m, g in enumerate(mine):
            bce, dice = mask_terms(logits_HW, batch.masks_GHW[g], points_K2)
            of_class = class_cost(
                prediction.class_logits_LBRC[output, b, q],
                int(batch.labels_G[g]),
                classification,
                config,
            )
            found[m, q] = (
                config.class_weight * of_class
                + config.mask_weight * bce
                + config.dice_weight * dice
            )
            if config.iou_cost:
                found[m, q] -= config.iou_cost * iou(prediction, batch, config, output, q, g)
    return found


def match(
    prediction: Prediction,
    batch: Batch,
    classification: str,
    config: LossConfig,
    points_BK2: Tensor,
    output: int,
    b: int,
) -> dict[int, int]:
    """-> instance of every matched object query of image b."""
    mine = instances_of(batch, b)
    instances, queries = linear_sum_assignment(
        cost(prediction, batch, classification, config, points_BK2[b], output, b).numpy()
    )
    return {int(q): mine[m] for m, q in zip(instances, queries, strict=True)}


def classification_loss(
    logits_C: Tensor, label: int, overlap: float, classification: str, config: LossConfig
) -> Tensor:
    """Of one query with a sigmoid per class. overlap: with its instance, or (label -1) the largest
    with any instance."""
    s_C = 1 / (1 + (-logits_C.double()).exp())
    total = s_C.new_zeros(())
    for c, s in enumerate(s_C):
        if classification == "focal":  # Lin et al., Focal Loss, Eq. 5
            p, alpha = (s, 0.25) if c == label else (1 - s, 0.75)
            total = total - alpha * (1 - p) ** config.gamma * p.log()
            continue
        if label >= 0:  # Eq. 3, first sum; classes that are not the instance's have t = 0
            t = 0.0
            if c == label:
                t = s.item() ** config.target_score_share * overlap ** (
                    1 - config.target_score_share
                )
            weight = abs(t - s) ** config.gamma
        else:  # second sum
            t, weight = 0.0, s**config.gamma
            if (
                config.weigh_negatives and overlap >= config.theta
            ):  # Eq. 2: a line in IoU^gamma through (theta, 1), (1, 0)
                weight = weight * (1 - overlap**config.gamma) / (1 - config.theta**config.gamma)
        total = total - weight * (t * s.log() + (1 - t) * (1 - s).log())
    return total


def by_name(losses: Losses) -> dict[str, Tensor]:
    """The losses under the names of this file."""
    kinds = (("", losses.objects), ("aligned_", losses.aligned))
    return {prefix + name: value for prefix, terms in kinds for name, value in vars(terms).items()}


NAMES = (
    "classification_L",
    "mask_L",
    "dice_L",
    "aligned_classification_L",
    "aligned_mask_L",
    "aligned_dice_L",
)


def losses(
    prediction: Prediction,
    batch: Batch,
    classification: str,
    config: LossConfig,
    matcher_points_BK2: Tensor,
    mask_points: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """-> all losses. mask_points: a row's mask logits [H, W] -> where its mask losses look [K,
    2]."""
    outputs, images, rows = prediction.class_logits_LBRC.shape[:3]
    found: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    instance_BA = (
        torch.empty(images, 0) if prediction.aligned is None else prediction.aligned.instance_BA
    )
    live = int((instance_BA >= 0).sum())
    for output in range(outputs):
        sums = {name: torch.zeros((), dtype=torch.float64) for name in NAMES}
        weights = dict.fromkeys(NAMES, 0.0)
        for b in range(images):
            matched = match(
                prediction, batch, classification, config, matcher_points_BK2, output, b
            )
            for r in range(rows):
                kind = "" if r < prediction.queries else "aligned_"
                instance = (
                    matched.get(r, -1) if not kind else int(instance_BA[b, r - prediction.queries])
                )
                if kind and instance < 0:
                    continue  # padding
                label = int(batch.labels_G[instance]) if instance >= 0 else -1
                logits_C = prediction.class_logits_LBRC[output, b, r].double()
                name = f"{kind}classification_L"
                if classification == "softmax":
                    weight = 1.0 if label >= 0 else config.no_object_weight
                    sums[name] = sums[name] - weight * (
                        logits_C[label] - logits_C.exp().sum().log()
                    )
                    weights[name] += weight
                else:
                    mine = [instance] if instance >= 0 else instances_of(batch, b)
                    best = max(
                        (iou(prediction, batch, config, output, r, g) for g in mine), default=0.0
                    )
                    sums[name] = sums[name] + classification_loss(
                        logits_C, label, best, classification, config
                    )
                if instance >= 0:
                    logits_HW = mask_logits(prediction, output, b, r)
                    bce, dice = mask_terms(
                        logits_HW, batch.masks_GHW[instance], mask_points(logits_HW.detach())
                    )
                    sums[f"{kind}mask_L"] = sums[f"{kind}mask_L"] + bce
                    sums[f"{kind}dice_L"] = sums[f"{kind}dice_L"] + dice
        for name in NAMES:
            norm = float(max(live if name.startswith("aligned") else len(batch.labels_G), 1))
            found[name].append(sums[name] / (weights[name] or norm))
    return {name: torch.stack(values) for name, values in found.items()}


def total(losses: dict[str, Tensor], config: LossConfig) -> Tensor:
    weights = (config.class_weight, config.mask_weight, config.dice_weight)
    total = torch.zeros((), dtype=torch.float64)
    for name, weight in zip(NAMES, weights * 2, strict=True):
        total = (
            total
            + weight
            * (config.aligned_weight if name.startswith("aligned") else 1)
            * losses[name].sum()
        )
    return total
