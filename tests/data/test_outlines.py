"""Polygons of masks: they cover the mask's pixels and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from matplotlib.path import Path as Line
from scipy import ndimage

from alignmask.data.outlines import Ring, outlines


def mask(*rows: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def inside(ring: Ring, size: tuple[int, int]) -> np.ndarray:
    """The pixels whose centre is inside a ring, as matplotlib counts."""
    centres = np.argwhere(np.ones(size, bool))[:, ::-1] + 0.5
    return Line([*ring, ring[0]]).contains_points(centres).reshape(size)


def area(ring: Ring) -> float:
    x, y = np.array(ring, float).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def test_a_rectangle_has_its_four_corners() -> None:
    found = outlines(mask("....", ".##.", ".##."))
    ((ring,),) = found
    assert sorted(ring) == [(1, 1), (1, 3), (3, 1), (3, 3)]
    assert area(ring) == 4
    assert outlines(mask("..", "..")) == []


@pytest.mark.parametrize(
    ("rows", "areas"),
    [
        (("###", "#.#", "###"), [[9, -1]]),
        (("#.", ".#"), [[1], [1]]),  # they meet at a corner
        (("####", "##.#", "#.##", "####"), [[16, -1, -1]]),  # holes that meet
        (("###.", "#.#.", "##.#", "####"), [[14, -1, -1]]),  # the border touches itself
        (("#####", "#...#", "#.#.#", "#...#", "#####"), [[25, -9], [1]]),  # an island in a hole
    ],
)
def test_holes_and_parts(rows: tuple[str, ...], areas: list[list[int]]) -> None:
    found = outlines(mask(*rows))
    assert [[area(ring) for ring in polygon] for polygon in found] == areas


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_polygons_cover_the_mask_alone(mask_HW: np.ndarray) -> None:
    found = outlines(mask_HW)
    components, count = ndimage.label(mask_HW)
    assert len(found) == count
    for number, (outer, *holes) in enumerate(found, 1):
        covered = inside(outer, mask_HW.shape)
        for hole in holes:
            covered &= ~inside(hole, mask_HW.shape)
            assert area(hole) < 0
        np.testing.assert_array_equal(covered, components == number)
        assert area(outer) + sum(map(area, holes)) == covered.sum()
        for ring in (outer, *holes):
            assert len(set(ring)) == len(ring)  # it does not touch itself
            steps = np.diff([*ring, ring[0]], axis=0)
            assert ((steps != 0).sum(axis=1) == 1).all()
            along_x = steps[:, 0] != 0
            assert (along_x != np.roll(along_x, 1)).all()  # every corner is one
