"""Augmentation and resizing of samples, through torchvision.transforms.v2.

Dimensions: N instances of one image, C = 3 colour channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from alignmask.data.batch import Sample, Size

if TYPE_CHECKING:
    from alignmask.config import DataConfig

Transform = Callable[[Sample], Sample]
Window = tuple[int, int, int, int]
"""Top, left, height, width."""


def training_transform(data: DataConfig) -> Transform:
    """Large-scale jittering to `data.crop`, of the image or of parts of the size of `data.tile`;
    flips, colour jitter, negatives; instances that the crop empties are dropped.

    The result is at most crop x crop; its `canvas` makes `collate` pad it to exactly that. Raises
    ValueError, naming the setting, for a crop that is not divisible by 32 or an impossible range.
    """
    low, high = data.scale
    if data.crop <= 0 or data.crop % 32:
        raise ValueError(f"data.crop: expected a positive multiple of 32, got {data.crop}")
    if not 0 < low <= high:
        raise ValueError(f"data.scale: expected 0 < low <= high, got {data.scale}")
    if data.crop_places < 1:
        raise ValueError(f"data.crop_places: expected at least 1, got {data.crop_places}")
    for name in ("flip", "vertical_flip", "invert"):
        if not 0 <= getattr(data, name) <= 1:
            raise ValueError(f"data.{name}: expected a probability, got {getattr(data, name)}")
    if data.color_jitter < 0:
        raise ValueError(
            f"data.color_jitter: expected a strength of at least 0, got {data.color_jitter}"
        )
    shared = data.crop, data.scale, data.crop_places
    steps: list[v2.Transform] = [
        LargeScaleJitter(*shared) if data.tile is None else TileJitter(data.tile, *shared)
    ]
    if data.flip:
        steps.append(v2.RandomHorizontalFlip(data.flip))
    if data.vertical_flip:
        steps.append(v2.RandomVerticalFlip(data.vertical_flip))
    if data.color_jitter:
        strength = data.color_jitter
        steps.append(v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength))
    if data.invert:
        steps.append(v2.RandomInvert(data.invert))
    return _TrainingTransform(v2.Compose(steps), (data.crop, data.crop))


def evaluation_transform(data: DataConfig) -> Transform:
    """Resize the short side to `data.eval_short_side`, or less where the long side would exceed
    `data.eval_max_side`.

    Raises ValueError, naming the setting, unless 0 < eval_short_side <= eval_max_side.
    """
    if not 0 < data.eval_short_side <= data.eval_max_side:
        raise ValueError(
            "data.eval_short_side: expected 0 < eval_short_side <= eval_max_side, "
            f"got {data.eval_short_side} and {data.eval_max_side}"
        )
    return _EvaluationTransform(data.eval_short_side, data.eval_max_side)


class LargeScaleJitter(v2.Transform):
    """Resize so that the image fits a square of crop x factor, factor uniform in `scale`; then a
    crop, at the best of `places` random places (`_best_window`).

    The crop is at most `crop` x `crop`; where the resized image is smaller, it stays whole and is
    not padded. (Ghiasi et al. 2021, as Mask2Former uses it: factor 0.1 to 2.0, crop 1024, 1 place.)
    """

    def __init__(self, crop: int, scale: tuple[float, float], places: int = 1) -> None:
        super().__init__()
        self.crop, self.scale, self.places = crop, scale, places

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        factor = torch.empty(()).uniform_(*self.scale).item()
        ratio = self.crop * factor / max(height, width)
        size = max(1, round(height * ratio)), max(1, round(width * ratio))
        return {"size": size, "window": _place(flat_inputs, size, self.crop, self.places)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask):
            return tv_tensors.wrap(_resize_masks(inpt, params["size"], params["window"]), like=inpt)
        return F.crop(F.resize(inpt, list(params["size"]), antialias=True), *params["window"])


class TileJitter(v2.Transform):
    """A part of the image at about the size at which tiles show it: a square of side tile / factor,
    factor uniform in `scale`, resized to crop x crop; at the best of `places` random places.

    As `LargeScaleJitter`, with two differences. The factor refers to a tile instead of the image,
    so images of all sizes are resized alike. And the part is cut out first, so large images are not
    resized as a whole.
    """

    def __init__(self, tile: int, crop: int, scale: tuple[float, float], places: int = 1) -> None:
        super().__init__()
        self.tile, self.crop, self.scale, self.places = tile, crop, scale, places

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        image: Size = v2.query_size(flat_inputs)
        side = max(1, round(self.tile / torch.empty(()).uniform_(*self.scale).item()))
        window = _place(flat_inputs, image, side, self.places)
        height, width = (max(1, round(shown * self.crop / side)) for shown in window[2:])
        return {"window": window, "size": (height, width)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        part, size = F.crop(inpt, *params["window"]), params["size"]
        if isinstance(inpt, tv_tensors.Mask):
            return tv_tensors.wrap(_resize_masks(part, size, (0, 0, *size)), like=inpt)
        return F.resize(part, list(size), antialias=True)


class _TrainingTransform:
    def __init__(self, pipeline: v2.Transform, canvas: Size) -> None:
        self.pipeline, self.canvas = pipeline, canvas

    def __call__(self, sample: Sample) -> Sample:
        image, masks = self.pipeline(
            tv_tensors.Image(sample.image_CHW), tv_tensors.Mask(sample.masks_NHW)
        )
        masks_NHW = masks.as_subclass(Tensor)
        # NumPy's any stops at the first True of a row, a hundred times sooner than torch's.
        alive_N = torch.from_numpy(masks_NHW.flatten(1).numpy().any(axis=1))
        return replace(
            sample,
            image_CHW=image.as_subclass(Tensor),
            masks_NHW=masks_NHW[alive_N],
            labels_N=sample.labels_N[alive_N],
            canvas=self.canvas,
        )


class _EvaluationTransform:
    def __init__(self, short_side: int, max_side: int) -> None:
        self.short_side, self.max_side = short_side, max_side

    def __call__(self, sample: Sample) -> Sample:
        height, width = sample.size
        ratio = min(self.short_side / min(height, width), self.max_side / max(height, width))
        size = max(1, round(height * ratio)), max(1, round(width * ratio))
        if size == sample.size:
            return sample
        return replace(
            sample,
            image_CHW=F.resize_image(sample.image_CHW, list(size), antialias=True),
            masks_NHW=_resize_masks(sample.masks_NHW, size, (0, 0, *size)),
        )


def _place(flat_inputs: list[Any], size: Size, side: int, places: int) -> Window:
    """Where a square of that side is cut out of an image that has `size`: at the best of `places`
    random places. A shorter image is taken whole."""
    windows = [_random_window(size, side) for _ in range(places)]
    if places == 1:
        return windows[0]
    (masks,) = (each for each in flat_inputs if isinstance(each, tv_tensors.Mask))
    return _best_window(masks, size, windows)


def _random_window(size: Size, side: int) -> Window:
    top, left = (int(torch.randint(max(0, length - side) + 1, ())) for length in size)
    return top, left, min(side, size[0]), min(side, size[1])


def _best_window(masks_NHW: Tensor, size: Size, windows: list[Window]) -> Window:
    """The first one that cuts the smallest share of the objects in it, once these have `size`;
    windows without an object come last.

    A share, as the least number of cut objects would favour the places with few of them.
    """
    masks = masks_NHW.numpy()
    taken = np.any(masks, axis=2), np.any(masks, axis=1)  # rows and columns
    some_N = np.any(taken[0], axis=1)
    extents = [_extent(each[some_N], side) for each, side in zip(taken, size, strict=True)]
    first_N2, end_N2 = (np.stack(corner, axis=1) for corner in zip(*extents, strict=True))

    def cut_share(window: Window) -> float:
        corner_2, sides_2 = np.array(window[:2]), np.array(window[2:])
        seen_N2 = np.minimum(end_N2, corner_2 + sides_2) - np.maximum(first_N2, corner_2)
        seen_N = (seen_N2 > 0).all(axis=1)
        whole_N = seen_N & (seen_N2 == end_N2 - first_N2).all(axis=1)
        return 1 - float(whole_N.sum() / seen_N.sum()) if seen_N.any() else math.inf

    shares = {window: cut_share(window) for window in windows}
    for window in sorted(shares, key=lambda window: shares[window]):
        # A box may reach into a window that its object does not.
        if shares[window] < 1 or _resize_masks(masks_NHW, size, window).any():
            return window
    return windows[0]


def _extent(taken_NS: np.ndarray, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each row's True pixels begin, and where they end (exclusive), after resizing from S
    to `target` pixels."""
    source = taken_NS.shape[1]
    last_N = source - 1 - taken_NS[:, ::-1].argmax(axis=1)
    pixels = _nearest(source, target)
    begin_N = np.searchsorted(pixels, taken_NS.argmax(axis=1))
    return begin_N, np.searchsorted(pixels, last_N, side="right")


def _resize_masks(masks_NHW: Tensor, size: Size, window: Window) -> Tensor:
    """Nearest-neighbour resizing to `size`, of which only `window` is computed.

    Pixel centres are aligned ("nearest-exact"), as they are in the image's bilinear resizing;
    torchvision's own mask resizing takes the top left pixel, which shifts a reduced mask by up to
    half a target pixel.
    """
    top, left, height, width = window
    rows = _nearest(masks_NHW.shape[-2], size[0])[top : top + height]
    columns = _nearest(masks_NHW.shape[-1], size[1])[left : left + width]
    # numpy.take is several times faster than torch's indexing and interpolation here.
    masks = masks_NHW.numpy()
    if height < masks.shape[1]:
        return torch.from_numpy(masks.take(rows, axis=1).take(columns, axis=2))
    return torch.from_numpy(masks.take(columns, axis=2).take(rows, axis=1))


def _nearest(source: int, target: int) -> np.ndarray:
    """For each of `target` pixels the source pixel under its centre."""
    return np.minimum(((np.arange(target) + 0.5) * (source / target)).astype(np.int64), source - 1)
