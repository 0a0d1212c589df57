"""The ops written once more, from their public docstrings alone: loops over scalars in float64, and gradients by hand.

Slow, and as plain as possible. They know neither torch's samplers nor the shipped references. Shapes: as in `alignmask.ops`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.ops.oracle_ms_deform_attn import ms_deform_attn, ms_deform_attn_from_offsets

__all__ = [
    "Array",
    "mask_iou",
    "masked_point_pool",
    "ms_deform_attn",
    "ms_deform_attn_from_offsets",
    "quality_focal_loss",
]

Array = np.ndarray[Any, Any]


def _corners(x: float, y: float, height: int, width: int) -> Iterator[tuple[int, int, float, float, float]]:
    """Pixels around the normalised (x, y) that exist: row, column, bilinear weight, its derivatives in x and y."""
    if math.isinf(x) or math.isinf(y):
        return
    column, row = x * width - 0.5, y * height - 0.5
    for i, j in itertools.product((0, 1), (0, 1)):
        r, c = math.floor(row) + i, math.floor(column) + j
        if 0 <= r < height and 0 <= c < width:
            in_row, in_column = 1 - abs(row - r), 1 - abs(column - c)
            d_row, d_column = (1 if i else -1), (1 if j else -1)
            yield r, c, in_row * in_column, in_row * d_column * width, d_row * height * in_column


def masked_point_pool(
    features: Array,
    masks: Array,
    owner: Array,
    points: Array,
    normalize: str,
    grad_pooled: Array | None = None,
) -> tuple[Array, Array, Array]:
    """pooled, weight and, for `grad_pooled` (ones by default), the gradient of features."""
    _, C, H, W = features.shape
    G, mask_height, mask_width = masks.shape
    _, T, K, _ = points.shape
    pooled, weight, grad_features = np.zeros((G, T, C)), np.zeros((G, T)), np.zeros(features.shape)
    for g, t in itertools.product(range(G), range(T)):
        b = int(owner[g])
        total, parts = np.zeros(C), []
        for x, y in points[b, t]:
            hit = sum(part for r, c, part, _, _ in _corners(x, y, mask_height, mask_width) if masks[g, r, c])
            weight[g, t] += hit
            for r, c, part, _, _ in _corners(x, y, H, W):
                total += hit * part * features[b, :, r, c]
                parts.append((r, c, hit * part))
        denominator = weight[g, t] if normalize == "mask" else K
        if weight[g, t] == 0:
            continue
        pooled[g, t] = total / denominator
        for r, c, part in parts:
            grad_features[b, :, r, c] += part / denominator * (1 if grad_pooled is None else grad_pooled[g, t])
    return pooled, weight, grad_features


def upsample(logits: Array, scale: int) -> Array:
    """Bilinear, pixel centres aligned, the outermost pixels continued: [h, w] -> [h * scale, w * scale]."""
    h, w = logits.shape

    def taps(index: int, size: int) -> list[tuple[int, float]]:
        position = (index + 0.5) / scale - 0.5
        low = math.floor(position)
        return [(min(max(low + i, 0), size - 1), 1 - abs(position - low - i)) for i in (0, 1)]

    out = np.zeros((h * scale, w * scale))
    for i, j in itertools.product(range(h * scale), range(w * scale)):
        out[i, j] = sum(a * b * logits[r, c] for r, a in taps(i, h) for c, b in taps(j, w))
    return out


def mask_iou(predictions: Array, targets: Array, owner: Array, threshold: float = 0.0) -> Array:
    """iou [G, Q]."""
    Q, h = predictions.shape[1:3]
    G, H, _ = targets.shape
    iou = np.zeros((G, Q))
    for g, q in itertools.product(range(G), range(Q)):
        logits = predictions[int(owner[g]), q]
        foreground = (upsample(logits, H // h) if H != h else logits) > threshold
        both, either = np.sum(foreground & (targets[g] != 0)), np.sum(foreground | (targets[g] != 0))
        iou[g, q] = both / either if either else 0
    return iou


def quality_focal_loss(logits: Array, label: Array, iou: Array, gamma: float, theta: float) -> tuple[Array, Array]:
    """loss [R], and the gradient of its sum, [R, C]."""
    R, C = logits.shape
    loss, grad = np.zeros(R), np.zeros((R, C))
    for r, c in itertools.product(range(R), range(C)):
        x = float(logits[r, c])
        s = 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
        t = float(iou[r]) if label[r] == c else 0.0
        weight = 1.0
        if label[r] == -1 and iou[r] >= theta:
            k = 1 / (1 - theta**gamma)
            weight = k - k * float(iou[r]) ** gamma
        bce = max(x, 0) - x * t + math.log1p(math.exp(-abs(x)))
        distance, sign = abs(s - t), math.copysign(1, s - t)
        loss[r] += weight * distance**gamma * bce
        slope = s * (1 / (1 + math.exp(x)) if x < 700 else 0.0)  # of s; 1 - s would lose its digits
        grad[r, c] = weight * distance ** (gamma - 1) * (gamma * sign * slope * bce + distance * (s - t))
    return loss, grad
