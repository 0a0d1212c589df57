"""The ops written once more, from their public docstrings alone: loops over scalars in float64, and
gradients by hand.

Compiled by numba (and cached), else as plain as possible: they know neither torch's samplers nor
the shipped references. ms_deform_attn has a file of its own. Shapes: as in `alignmask.ops`.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from tests.ops.oracle_mask_points import mask_points
from tests.ops.oracle_ms_deform_attn import ms_deform_attn, ms_deform_attn_from_offsets

__all__ = [
    "Array",
    "mask_iou",
    "mask_points",
    "mask_rle",
    "masked_point_pool",
    "ms_deform_attn",
    "ms_deform_attn_from_offsets",
    "quality_focal_loss",
    "upsample",
]

Array = np.ndarray[Any, Any]


@numba.njit(cache=True)
def _corners(x: float, y: float, height: int, width: int) -> tuple[Array, Array]:
    """Pixels around the normalised (x, y) that exist: (row, column) [n, 2], bilinear weights
    [n]."""
    pixels, weights = np.zeros((4, 2), np.int64), np.zeros(4)
    if math.isinf(x) or math.isinf(y):
        return pixels[:0], weights[:0]
    column, row = x * width - 0.5, y * height - 0.5
    found = 0
    for i in range(2):
        for j in range(2):
            r, c = math.floor(row) + i, math.floor(column) + j
            if 0 <= r < height and 0 <= c < width:
                pixels[found, 0], pixels[found, 1] = r, c
                weights[found] = (1 - abs(row - r)) * (1 - abs(column - c))
                found += 1
    return pixels[:found], weights[:found]


@numba.njit(cache=True)
def _hit(mask: Array, x: float, y: float) -> float:
    hit = 0.0
    pixels, weights = _corners(x, y, *mask.shape)
    for i in range(len(weights)):
        if mask[pixels[i, 0], pixels[i, 1]]:
            hit += weights[i]
    return hit


@numba.njit(cache=True)
def _pool(
    features: Array, masks: Array, owner: Array, points: Array, by_mask: bool, gradient: Array,
    pooled: Array, weight: Array, grad_features: Array,
) -> None:  # fmt: skip
    _, C, H, W = features.shape
    G, T, _ = pooled.shape
    K = points.shape[2]
    for g in range(G):
        b = owner[g]
        for t in range(T):
            for k in range(K):
                weight[g, t] += _hit(masks[g], points[b, t, k, 0], points[b, t, k, 1])
            if weight[g, t] == 0:
                continue
            denominator = weight[g, t] if by_mask else float(K)
            for k in range(K):
                x, y = points[b, t, k]
                hit = _hit(masks[g], x, y)
                pixels, weights = _corners(x, y, H, W)
                for i in range(len(weights)):
                    r, c = pixels[i]
                    for channel in range(C):
                        part = hit * weights[i] / denominator
                        pooled[g, t, channel] += part * features[b, channel, r, c]
                        grad_features[b, channel, r, c] += part * gradient[g, t, channel]


def masked_point_pool(
    features: Array,
    masks: Array,
    owner: Array,
    points: Array,
    normalize: str,
    grad_pooled: Array | None = None,
) -> tuple[Array, Array, Array]:
    """pooled, weight and, for `grad_pooled` (ones by default), the gradient of features."""
    G, T, C = len(masks), points.shape[1], features.shape[1]
    pooled, weight, grad_features = np.zeros((G, T, C)), np.zeros((G, T)), np.zeros(features.shape)
    gradient = np.ones(pooled.shape) if grad_pooled is None else np.ascontiguousarray(grad_pooled)
    inputs = (
        np.ascontiguousarray(features),
        np.ascontiguousarray(masks),
        owner,
        np.ascontiguousarray(points),
    )
    _pool(*inputs, normalize == "mask", gradient, pooled, weight, grad_features)
    return pooled, weight, grad_features


@numba.njit(cache=True)
def _upsampled(logits: Array, scale: int, i: int, j: int) -> float:
    """Bilinear, pixel centres aligned, the outermost pixels continued: pixel (i, j) of the larger
    map."""
    if scale == 1:
        return logits[i, j]
    h, w = logits.shape
    y, x = (i + 0.5) / scale - 0.5, (j + 0.5) / scale - 0.5
    total = 0.0
    for r in (math.floor(y), math.floor(y) + 1):
        for c in (math.floor(x), math.floor(x) + 1):
            pixel = logits[min(max(r, 0), h - 1), min(max(c, 0), w - 1)]
            total += (1 - abs(y - r)) * (1 - abs(x - c)) * pixel
    return total


@numba.njit(cache=True)
def upsample(logits: Array, scale: int) -> Array:
    """[h, w] -> [h * scale, w * scale]."""
    h, w = logits.shape
    out = np.zeros((h * scale, w * scale))
    for i in range(h * scale):
        for j in range(w * scale):
            out[i, j] = _upsampled(logits, scale, i, j)
    return out


@numba.njit(cache=True)
def _iou(predictions: Array, targets: Array, owner: Array, threshold: float, iou: Array) -> None:
    G, H, W = targets.shape
    for g in range(G):
        for q in range(predictions.shape[1]):
            logits = predictions[owner[g], q]
            scale = H // logits.shape[0] if logits.size else 1
            both = either = 0
            for i in range(H):
                for j in range(W):
                    predicted, wanted = (
                        _upsampled(logits, scale, i, j) > threshold,
                        targets[g, i, j] != 0,
                    )
                    both += predicted and wanted
                    either += predicted or wanted
            if either:
                iou[g, q] = both / either


def mask_iou(predictions: Array, targets: Array, owner: Array, threshold: float = 0.0) -> Array:
    """iou [G, Q]."""
    iou = np.zeros((len(targets), predictions.shape[1]))
    _iou(np.ascontiguousarray(predictions), np.ascontiguousarray(targets), owner, threshold, iou)
    return iou


@numba.njit(cache=True)
def resize(logits: Array, height: int, width: int) -> Array:
    """Bilinear, pixel centres aligned, the outermost pixels continued."""
    h, w = logits.shape
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * h / height - 0.5, 0.0), h - 1.0)
            x = min(max((j + 0.5) * w / width - 0.5, 0.0), w - 1.0)
            r, c = int(y), int(x)
            for dr in range(2):
                for dc in range(2):
                    weight = (1 - abs(y - r - dr)) * (1 - abs(x - c - dc))
                    if weight > 0:
                        out[i, j] += weight * logits[r + dr, c + dc]
    return out


@numba.njit(cache=True)
def _rle(full: Array) -> tuple[list[int], int, list[int], float]:
    """counts, area, box and the sum of the probabilities of one map."""
    H, W = full.shape
    counts, value, area, total = [0], False, 0, 0.0
    box = [W, H, 0, 0]
    for x in range(W):
        for y in range(H):
            inside = full[y, x] > 0
            if inside == value:
                counts[-1] += 1
            else:
                counts.append(1)
                value = inside
            if inside:
                area += 1
                total += 1 / (1 + math.exp(-full[y, x]))
                box = [min(box[0], x), min(box[1], y), max(box[2], x + 1), max(box[3], y + 1)]
    return counts, area, box if area else [0, 0, 0, 0], total


def mask_rle(
    logits: Array, size: tuple[int, int], padded: tuple[int, int], valid: tuple[int, int]
) -> list[tuple[Array, list[int], int, list[int], float]]:
    """Of every mask: the logits at the image's size, counts, area, box, mean probability."""
    found = []
    for logits_hw in np.ascontiguousarray(logits):
        full = np.ascontiguousarray(resize(logits_hw, *padded)[: valid[0], : valid[1]])
        full = full if valid == size else resize(full, *size)
        counts, area, box, total = _rle(full)
        found.append((full, list(counts), area, list(box), total / max(area, 1)))
    return found


@numba.njit(cache=True)
def _loss(
    logits: Array, label: Array, iou: Array, gamma: float, theta: float, loss: Array, grad: Array
) -> None:
    R, C = logits.shape
    for r in range(R):
        for c in range(C):
            x = logits[r, c]
            s = 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
            t = iou[r] if label[r] == c else 0.0
            weight = 1.0
            if label[r] == -1 and iou[r] >= theta:
                k = 1 / (1 - theta**gamma)
                weight = k - k * iou[r] ** gamma
            bce = max(x, 0.0) - x * t + math.log1p(math.exp(-abs(x)))
            distance, sign = abs(s - t), math.copysign(1, s - t)
            loss[r] += weight * distance**gamma * bce
            # Of s; 1 - s would lose its digits.
            slope = s * (1 / (1 + math.exp(x)) if x < 700 else 0.0)
            grad[r, c] = (
                weight * distance ** (gamma - 1) * (gamma * sign * slope * bce + distance * (s - t))
            )


def quality_focal_loss(
    logits: Array, label: Array, iou: Array, gamma: float, theta: float
) -> tuple[Array, Array]:
    """loss [R], and the gradient of its sum, [R, C]."""
    loss, grad = np.zeros(len(logits)), np.zeros(logits.shape)
    _loss(np.ascontiguousarray(logits), label, iou, gamma, theta, loss, grad)
    return loss, grad
