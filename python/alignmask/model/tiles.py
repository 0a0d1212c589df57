"""Large images in overlapping tiles: where they lie, and how the instances of all tiles become
those of the image.

N instances, H x W pixels of the image, h x w of a tile. Masks are run-length encoded, so that the
memory is that of one batch of tiles and of the encoded masks, whatever the image's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from pycocotools import mask as mask_utils
from torch import Tensor

from alignmask.config import DataConfig, ModelConfig, ScoreMode, TileChoice
from alignmask.data.batch import Batch, Sample, Size, collate, image_alone
from alignmask.model.postprocess import combine_scores
from alignmask.model.sparse import SparseInstances

LEAST_SIDE = 32
"""Smaller tiles show too little, in pixels."""
SAME = 0.5
"""Overlap from which the masks of two tiles are one instance."""


class Encodes(Protocol):
    """What images are predicted by: an `AlignMask`, or an exported file."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def device(self) -> torch.device: ...
    def predict_encoded(self, batch: Batch, /) -> list[SparseInstances]: ...


class Tiles(NamedTuple):
    """Predict tile by tile."""

    side: int
    """In pixels of the image."""
    overlap: float
    """Least share of a side that neighbouring tiles have in common."""


def tiles_for(
    data: DataConfig, tile: TileChoice = "auto", overlap: float | None = None
) -> Tiles | None:
    """The tiles that are asked for, or else those of the settings; None: images as a whole.

    Raises ValueError for tiles that cannot be.
    """
    if tile == "whole" or (tile == "auto" and data.tile is None):
        return None
    side = data.tile if tile == "auto" else tile
    if not isinstance(side, int):
        raise ValueError(f"tiles: expected auto, whole, or a side in pixels, got {side!r}")
    overlap = data.tile_overlap if overlap is None else overlap
    if side < LEAST_SIDE or not 0 <= overlap < 1:
        raise ValueError(
            f"tiles: expected a side of {LEAST_SIDE} pixels or more and an overlap of 0 to less "
            f"than 1, got {side} and {overlap:g}"
        )
    return Tiles(side, overlap)


def in_words(side: int | None) -> str:
    """How images are taken, for sentences."""
    return "of whole images" if side is None else f"in tiles of {side} pixels"


class Window(NamedTuple):
    top: int
    left: int
    height: int
    width: int


def windows(size: Size, tiles: Tiles) -> list[Window]:
    """The tiles of an image: of the side asked for (or the image's, if that is less), spread
    evenly, each two neighbours sharing at least the given share of a side."""
    height, width = min(tiles.side, size[0]), min(tiles.side, size[1])
    return [
        Window(top, left, height, width)
        for top in _starts(size[0], height, tiles.overlap)
        for left in _starts(size[1], width, tiles.overlap)
    ]


def check_batch_size(batch_size: int, name: str = "batch_size") -> None:
    """Raises ValueError, with the argument's name, for a number of images or tiles that cannot
    be."""
    if batch_size < 1:
        raise ValueError(f"{name}: expected 1 or more, got {batch_size}")


def predict_in_tiles(
    model: Encodes,
    image_CHW: Tensor,
    transform: Callable[[Sample], Sample],
    *,
    tiles: Tiles,
    batch_size: int = 1,
    name: str = "image",
) -> SparseInstances:
    """Predict on each tile of an image, resized as the model wants images, and merge what is found.

    Args:
        image_CHW: uint8 [3, H, W].
        transform: Of a tile, as of an image.
        batch_size: Tiles per forward pass.
        name: For error messages.
    """
    check_batch_size(batch_size)
    size = (image_CHW.shape[1], image_CHW.shape[2])
    found: list[Piece] = []
    places = windows(size, tiles)
    for first in range(0, len(places), batch_size):
        part = places[first : first + batch_size]
        samples = [
            transform(
                image_alone(
                    image_CHW[:, top : top + height, left : left + width].contiguous(),
                    f"{name}, tile at {left}, {top}",
                )
            )
            for top, left, height, width in part
        ]
        batch = collate(samples).to(model.device)
        for window, instances in zip(part, model.predict_encoded(batch), strict=True):
            found += pieces(instances, window, size)
    return merge(found, size, model.config.score)


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    free = side - tile
    steps = int(np.ceil(free / max(1, int(tile * (1 - overlap)))))
    return [round(free * step / steps) for step in range(steps + 1)] if steps else [0]


@dataclass
class Piece:
    """An instance as one tile shows it."""

    window: Window
    rle: dict[str, Any]
    """Of the tile."""
    box: tuple[int, int, int, int]
    """x1, y1, x2, y2 in the image; x2 and y2 are past the last pixel."""
    area: int
    label: int
    score: float
    class_score: float
    mask_score: float
    cut: bool
    """Whether the mask reaches a border of the tile that is not one of the image."""

    def within(self, box: tuple[int, int, int, int]) -> np.ndarray[Any, Any]:
        """The mask's pixels in a box of the image that lies inside of the tile."""
        x1, y1, x2, y2 = box
        top, left = self.window.top, self.window.left
        mask_hw: np.ndarray[Any, Any] = mask_utils.decode(self.rle)
        return mask_hw[y1 - top : y2 - top, x1 - left : x2 - left] > 0


def pieces(found: SparseInstances, window: Window, size: Size) -> list[Piece]:
    """The instances of a tile.

    Args:
        found: At the tile's own size.
        size: The image's.
    """
    result = []
    borders = (
        window.left > 0,
        window.top > 0,
        window.left + window.width < size[1],
        window.top + window.height < size[0],
    )
    values = zip(
        found.rles,
        found.boxes_N4.tolist(),
        found.labels_N.tolist(),
        found.scores_N.tolist(),
        found.class_scores_N.tolist(),
        found.mask_scores_N.tolist(),
        strict=True,
    )
    for rle, box, label, score, class_score, mask_score in values:
        x1, y1, x2, y2 = map(int, box)
        touched = (x1 == 0, y1 == 0, x2 == window.width, y2 == window.height)
        result.append(
            Piece(
                window,
                rle,
                (x1 + window.left, y1 + window.top, x2 + window.left, y2 + window.top),
                int(mask_utils.area(rle)),
                label,
                score,
                class_score,
                mask_score,
                any(t and b for t, b in zip(touched, borders, strict=True)),
            )
        )
    return result


def merge(found: Sequence[Piece], size: Size, mode: ScoreMode) -> SparseInstances:
    """The instances of an image from those of its tiles.

    Whole masks come first, the best-scored ones before the others: each takes up the masks of other
    tiles, of its class, that are the same instance, and stays what it is, with its own score. What
    is left are masks that tiles' borders cut, with no whole one beside them: those that continue
    one another become their union, whose class score and mask score are the means, weighted by
    area, of its parts'.

    Two masks are the same instance if in the part of the image that both tiles show their
    intersection is at least half of the smaller one; two whole masks, if their IoU is at least
    half.
    """
    order = sorted(range(len(found)), key=lambda n: (found[n].cut, -found[n].score))
    near = _Near(found)
    taken = [False] * len(found)
    groups: list[list[Piece]] = []
    for first in order:
        if taken[first]:
            continue
        taken[first] = True
        group, waiting = [first], [first]
        while waiting:
            one = waiting.pop()
            for other in near.of(one):
                if not taken[other] and _same(found[one], found[other]):
                    taken[other] = True
                    group.append(other)
                    if found[first].cut:  # its parts are continued in further tiles
                        waiting.append(other)
        groups.append([found[n] for n in group])
    return _instances([g if g[0].cut else g[:1] for g in groups], size, mode)


class _Near:
    """Which pieces of other tiles may be the same instance: those of one class whose boxes meet."""

    def __init__(self, found: Sequence[Piece]) -> None:
        self.box_N4 = np.array([piece.box for piece in found]).reshape(-1, 4)
        self.label_N = np.array([piece.label for piece in found])
        self.window_N2 = np.array([piece.window[:2] for piece in found]).reshape(-1, 2)

    def of(self, n: int) -> Iterator[int]:
        x1, y1, x2, y2 = self.box_N4[n]
        near_N = (
            (self.label_N == self.label_N[n])
            & (self.box_N4[:, 0] < x2)
            & (self.box_N4[:, 2] > x1)
            & (self.box_N4[:, 1] < y2)
            & (self.box_N4[:, 3] > y1)
            & (self.window_N2 != self.window_N2[n]).any(1)
        )
        yield from np.flatnonzero(near_N).tolist()


def _same(one: Piece, other: Piece) -> bool:
    a, b = one.window, other.window
    box = (
        max(a.left, b.left),
        max(a.top, b.top),
        min(a.left + a.width, b.left + b.width),
        min(a.top + a.height, b.top + b.height),
    )
    shown = (
        max(box[0], one.box[0], other.box[0]),
        max(box[1], one.box[1], other.box[1]),
        min(box[2], one.box[2], other.box[2]),
        min(box[3], one.box[3], other.box[3]),
    )
    if shown[0] >= shown[2] or shown[1] >= shown[3]:
        return False  # the masks do not meet where both tiles can see
    one_hw, other_hw = one.within(box), other.within(box)
    both = int((one_hw & other_hw).sum())
    if one.cut or other.cut:
        return both > 0 and both >= SAME * min(int(one_hw.sum()), int(other_hw.sum()))
    return both >= SAME * (one.area + other.area - both)


def _instances(groups: list[list[Piece]], size: Size, mode: ScoreMode) -> SparseInstances:
    rles, boxes, labels, class_scores, mask_scores = [], [], [], [], []
    for group in groups:
        share = np.array([piece.area for piece in group]) / sum(piece.area for piece in group)
        rles.append(_in_the_image(group, size))
        corners = np.array([piece.box for piece in group])
        boxes.append([*corners[:, :2].min(0), *corners[:, 2:].max(0)])
        labels.append(group[0].label)
        class_scores.append(float(share @ [piece.class_score for piece in group]))
        mask_scores.append(float(share @ [piece.mask_score for piece in group]))
    class_N, mask_N = torch.tensor(class_scores).float(), torch.tensor(mask_scores).float()
    score_N = combine_scores(class_N, mask_N, mode)
    best_N = score_N.argsort(descending=True, stable=True)
    unsorted = SparseInstances(
        score_N,
        torch.tensor(labels, dtype=torch.int64),
        rles,
        torch.tensor(np.array(boxes).reshape(-1, 4)).float(),
        class_N,
        mask_N,
        size,
    )
    return unsorted[best_N]


def _in_the_image(group: list[Piece], size: Size) -> dict[str, Any]:
    """The union of pieces as a compressed RLE of the image, of which no pixel is decoded outside of
    the tiles."""
    height = size[0]
    places = []
    for piece in group:
        x, y = np.nonzero(mask_utils.decode(piece.rle).T)  # down the columns, as COCO counts
        places.append((x + piece.window.left).astype(np.int64) * height + y + piece.window.top)
    place_K = places[0] if len(places) == 1 else np.unique(np.concatenate(places))
    breaks = np.flatnonzero(np.diff(place_K) != 1)
    first = place_K[np.concatenate(([0], breaks + 1))]
    past = place_K[np.concatenate((breaks, [len(place_K) - 1]))] + 1
    ends = np.stack((first, past), axis=1).ravel()
    counts = np.diff(np.concatenate(([0], ends, [size[0] * size[1]])))
    rle: dict[str, Any] = mask_utils.frPyObjects(
        {"size": list(size), "counts": counts.tolist()}, *size
    )
    return {"size": list(size), "counts": rle["counts"].decode("ascii")}
