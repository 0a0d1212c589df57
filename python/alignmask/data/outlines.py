"""Masks as polygons along the edges of their pixels.

H x W pixels. A corner (x, y) is the upper left one of pixel (x, y); a ring is a closed line of
corners, of which the first is not repeated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from scipy import ndimage

Corner = tuple[int, int]
Ring = list[Corner]
Edges = dict[tuple[int, int, int], int]
"""Of edges along lines: where one starts, its line, its direction (1 or -1) -> where it ends."""


def outlines(mask_HW: np.ndarray) -> list[list[Ring]]:
    """The polygons of a mask, each an outer ring and the rings of its holes.

    There is a polygon for each group of pixels that are connected by their sides. It covers exactly
    these pixels, and no ring touches itself. With y downwards, outer rings go clockwise, and rings
    of holes the other way.
    """
    windows = ndimage.find_objects(np.asarray(mask_HW, np.uint8))
    if not windows:
        return []
    rows, columns = windows[0]
    part_HW = np.asarray(mask_HW[windows[0]], bool)
    component_HW, count = ndimage.label(part_HW)
    outer: dict[int, Ring] = {}
    holes: dict[int, list[Ring]] = defaultdict(list)
    for traced in _trace(part_HW):
        for ring in _split(traced):
            component = int(component_HW[_pixel_at_the_right(*ring[:2])])
            moved = [(x + columns.start, y + rows.start) for x, y in ring]
            if _area(ring) > 0:
                outer[component] = moved
            else:
                holes[component].append(moved)
    return [[outer[component], *holes[component]] for component in range(1, count + 1)]


def _trace(mask_HW: np.ndarray) -> Iterator[Ring]:
    """The lines around the mask, which lies at their right. Where two pixels meet at a corner, a
    line goes through it twice."""
    padded = np.pad(mask_HW, 1)
    above_left, above_right = padded[:-1, :-1], padded[:-1, 1:]
    below_left, below_right = padded[1:, :-1], padded[1:, 1:]
    turns = (above_left ^ above_right ^ below_left ^ below_right).astype(np.uint8)
    turns[
        (above_left == below_right) & (below_left == above_right) & (above_left != above_right)
    ] = 2
    horizontal = _edges(turns, below_right)
    vertical = _edges(turns.T, below_left.T)
    while horizontal:
        (x, y, direction), end = horizontal.popitem()
        ring = [(x, y)]
        x = end
        while True:
            ring.append((x, y))
            # A turn to the right, where there is a choice, stays with the same pixel.
            direction = direction if (y, x, direction) in vertical else -direction
            y = vertical.pop((y, x, direction))
            to_the_right = (x, y, -direction) in horizontal
            if (x, y) == ring[0] and not to_the_right:
                break
            ring.append((x, y))
            direction = -direction if to_the_right else direction
            x = horizontal.pop((x, y, direction))
        yield ring


def _edges(turns: np.ndarray, forward: np.ndarray) -> Edges:
    """The edges along the rows of an array of corners.

    Args:
        turns: How many lines turn at the corner; in a row, an edge ends at every second turn.
        forward: Whether an edge that begins at the corner has the mask at its right.
    """
    row_K, column_K = np.nonzero(turns)
    times_K = turns[row_K, column_K]
    row_T, column_T = np.repeat(row_K, times_K), np.repeat(column_K, times_K)
    row_E, first_E, last_E = row_T[::2], column_T[::2], column_T[1::2]
    lines = zip(
        row_E.tolist(),
        first_E.tolist(),
        last_E.tolist(),
        forward[row_E, first_E].tolist(),
        strict=True,
    )
    return dict(
        ((first, row, 1), last) if ahead else ((last, row, -1), first)
        for row, first, last, ahead in lines
    )


def _split(ring: Ring) -> Iterator[Ring]:
    """The ring, cut where it touches itself."""
    line: Ring = []
    place: dict[Corner, int] = {}
    for corner in ring:
        if corner in place:
            loop = line[place[corner] :]
            yield loop
            for passed in loop[1:]:
                del place[passed]
            del line[place[corner] + 1 :]
        else:
            place[corner] = len(line)
            line.append(corner)
    yield line


def _pixel_at_the_right(start: Corner, end: Corner) -> tuple[int, int]:
    """The row and column of the first pixel at the right of an edge."""
    (x, y), right, down = start, end[0] - start[0], end[1] - start[1]
    return (y - (right < 0 or down < 0), x - (right < 0 or down > 0))


def _area(ring: Ring) -> float:
    """Positive for a ring that goes clockwise, with y downwards."""
    return (
        sum(
            x * next_y - next_x * y
            for (x, y), (next_x, next_y) in zip(ring, [*ring[1:], ring[0]], strict=True)
        )
        / 2
    )
