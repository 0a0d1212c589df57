"""mask_points written once more, from its public docstring and the paper of its generator: loops
over scalars in float64.

Shapes: as in `alignmask.ops`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np

Array = np.ndarray[Any, Any]


@numba.njit(cache=True)
def philox(counter: Array, key: Array) -> Array:
    """Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3); its
    words as uint64."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x, k = counter.copy(), key.copy()
    for step in range(10):
        if step:
            k[0] = (k[0] + np.uint64(0x9E3779B9)) & low
            k[1] = (k[1] + np.uint64(0xBB67AE85)) & low
        left, right = x[0] * np.uint64(0xD2511F53), x[2] * np.uint64(0xCD9E8D57)
        x = np.array(
            [(right >> half) ^ x[1] ^ k[0], right & low, (left >> half) ^ x[3] ^ k[1], left & low]
        )
    return x


@numba.njit(cache=True)
def _sample(pixels: Array, x: float, y: float, gradient: Array, grad: float) -> float:
    """Bilinear, zero outside; adds `grad` times the derivatives to `gradient`."""
    height, width = pixels.shape
    column, row = x * width - 0.5, y * height - 0.5
    total = 0.0
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(column), math.floor(column) + 1):
            if 0 <= r < height and 0 <= c < width:
                weight = (1 - abs(row - r)) * (1 - abs(column - c))
                total += weight * pixels[r, c]
                gradient[r, c] += weight * grad
    return total


@numba.njit(cache=True)
def _candidates(rows: int, count: int, seed: int) -> Array:
    points = np.zeros((rows, count, 2))
    bits = np.uint64(seed)
    key = np.array([bits & np.uint64(0xFFFFFFFF), bits >> np.uint64(32)])
    counter = np.zeros(4, np.uint64)
    for r in range(rows):
        counter[1] = r
        for i in range(count):
            counter[0] = i // 2
            words = philox(counter, key)
            for axis in range(2):
                points[r, i, axis] = (words[2 * (i % 2) + axis] >> np.uint64(8)) / 2**24
    return points


@numba.njit(cache=True)
def _samples(
    maps: Array, index: Array, points: Array, found: Array, gradient: Array, grad: Array
) -> None:
    for r in range(points.shape[0]):
        for k in range(points.shape[1]):
            found[r, k] = _sample(
                maps[index[r]], points[r, k, 0], points[r, k, 1], gradient[index[r]], grad[r, k]
            )


def sample(maps: Array, index: Array, points: Array, grad: Array) -> tuple[Array, Array]:
    """Map `index[r]` at the points of row r, and the gradient of the maps."""
    maps = np.ascontiguousarray(maps, np.float64)
    found, gradient = np.zeros(points.shape[:2]), np.zeros(maps.shape)
    _samples(maps, index, points, found, gradient, np.ascontiguousarray(grad))
    return found, gradient


class Choice(NamedTuple):
    candidates: Array
    """[R, M + K - kept, 2]; those from M on are the fresh points."""
    distances: Array
    """[R, M]: |logit| there."""
    chosen: Array
    """[R, kept]: indices of the nearest to 0, ascending; of equals, the first."""


def choose(
    logits: Array, points: int, seed: int, oversample: float = 3.0, importance: float = 0.75
) -> Choice:
    rows, count, kept = len(logits), int(points * oversample), int(points * importance)
    candidates = _candidates(rows, count + points - kept, seed % 2**64)
    nothing = np.zeros((rows, count))
    values, _ = sample(logits, np.arange(rows), candidates[:, :count].copy(), nothing)
    nearest = np.argsort(np.abs(values), axis=1, kind="stable")[:, :kept]
    return Choice(candidates, np.abs(values), np.sort(nearest, axis=1))


def mask_points(
    logits: Array,
    masks: Array,
    index: Array,
    points: int,
    seed: int,
    oversample: float = 3.0,
    importance: float = 0.75,
) -> tuple[Array, Array, Array]:
    """logits and targets at the points, and these."""
    choice = choose(logits, points, seed, oversample, importance)
    chosen = np.take_along_axis(choice.candidates, choice.chosen[..., None], 1)
    where = np.concatenate([chosen, choice.candidates[:, choice.distances.shape[1] :]], 1)
    nothing = np.zeros(where.shape[:2])
    found, _ = sample(logits, np.arange(len(logits)), where, nothing)
    return found, sample(masks != 0, index, where, nothing)[0], where
