"""Augmentation: geometry against the definitions, images and masks moving together, emptied
instances."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn.functional import interpolate
from torchvision import tv_tensors

from alignmask.config import DataConfig
from alignmask.data import Sample, collate, evaluation_transform, training_transform
from alignmask.data.transforms import LargeScaleJitter, TileJitter, _resize_masks
from tests.covers import covers

PLAIN = DataConfig(crop=64, scale=(1.0, 1.0), flip=0.0)


def make_sample(masks_NHW: torch.Tensor, image_CHW: torch.Tensor | None = None) -> Sample:
    count, height, width = masks_NHW.shape
    if image_CHW is None:
        image_CHW = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return Sample(image_CHW, masks_NHW, torch.arange(count), 1, "1.png", (height, width))


def blobs(height: int, width: int, count: int = 3) -> torch.Tensor:
    """Discs of at least 8 pixels diameter."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng((height, width))
    masks = [
        np.hypot(x - rng.uniform(8, width - 8), y - rng.uniform(8, height - 8)) < rng.uniform(4, 12)
        for _ in range(count)
    ]
    return torch.from_numpy(np.stack(masks))


# --- geometry ---


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.1, 2.0), st.integers(0, 99))
def test_large_scale_jitter_fits_the_image_to_crop_times_factor(height, width, factor, seed):
    torch.manual_seed(seed)
    result = training_transform(replace(PLAIN, scale=(factor, factor)))(
        make_sample(torch.zeros(0, height, width) > 0)
    )
    ratio = min(64 * factor / height, 64 * factor / width)
    # Rounding may go either way at .5; the ratio itself is computed in float32 here and there.
    assert abs(result.size[0] - min(64, max(1, height * ratio))) <= 0.51
    assert abs(result.size[1] - min(64, max(1, width * ratio))) <= 0.51
    assert result.canvas == (64, 64)
    assert collate([result]).image_BCHW.shape == (1, 3, 64, 64)
    assert result.original_size == (height, width)


def test_the_factor_is_uniform_in_the_range():
    jitter = LargeScaleJitter(100, (0.1, 2.0))
    image = tv_tensors.Image(torch.zeros(3, 50, 100, dtype=torch.uint8))
    params = [jitter.make_params([image]) for _ in range(2000)]
    factors = np.array([p["size"][1] / 100 for p in params])
    assert 0.09 <= factors.min() < 0.12
    assert 1.98 < factors.max() <= 2.0
    assert np.abs(np.quantile(factors, [0.25, 0.5, 0.75]) - [0.575, 1.05, 1.525]).max() < 0.05
    for (height, width), (top, left, h, w) in ((p["size"], p["window"]) for p in params):
        assert (h, w) == (min(100, height), min(100, width))
        assert 0 <= top <= height - h
        assert 0 <= left <= width - w
    spare = [(p["window"][1], p["size"][1] - 100) for p in params if p["size"][1] > 150]
    places = np.array([left / room for left, room in spare])
    assert places.min() < 0.02
    assert places.max() > 0.98
    assert abs(places.mean() - 0.5) < 0.05


@given(
    st.integers(1, 300), st.integers(1, 300), st.integers(32, 128), st.floats(0.3, 2.0),
    st.integers(0, 99),
)  # fmt: skip
@covers("data.tile")
def test_with_tiles_images_of_all_sizes_are_resized_alike(height, width, tile, factor, seed):
    """A pixel of the image becomes crop x factor / tile, in the image and in its masks."""
    torch.manual_seed(seed)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    bright = ((y // 16 + x // 16) % 2 == 0).expand(height, width)
    image = (bright * 250).to(torch.uint8).expand(3, -1, -1).contiguous()
    sample = make_sample(bright[None], image)
    result = training_transform(replace(PLAIN, tile=tile, scale=(factor, factor)))(sample)
    side = round(tile / factor)
    for found, length in zip(result.size, (height, width), strict=True):
        # The factor is a float32, so the side may be rounded the other way.
        assert min(
            abs(found - min(s, length) * 64 / s) for s in (side - 1, side, side + 1)
        ) <= 0.51 + (found == 1)
        assert found <= 64
    assert result.canvas == (64, 64)
    assert collate([result]).image_BCHW.shape == (1, 3, 64, 64)
    if len(result.masks_NHW) and min(result.size) > 8 and 64 / side > 0.5:
        same = (result.image_CHW[0] > 125) == result.masks_NHW[0]
        assert same.float().mean() > 0.75  # all but the seams of the chequers


def test_a_part_for_a_tile_may_lie_anywhere():
    jitter = TileJitter(50, 64, (0.5, 2.0))
    image = tv_tensors.Image(torch.zeros(3, 90, 200, dtype=torch.uint8))
    params = [jitter.make_params([image]) for _ in range(2000)]
    factors = np.array([50 / p["window"][3] for p in params])
    assert 0.49 <= factors.min() < 0.52
    assert 1.9 < factors.max() <= 2.01
    assert np.abs(np.quantile(factors, [0.25, 0.5, 0.75]) - [0.875, 1.25, 1.625]).max() < 0.06
    for axis, length in ((0, 90), (1, 200)):
        free = np.array([length - p["window"][2 + axis] for p in params])
        start = np.array([p["window"][axis] for p in params])
        assert ((0 <= start) & (start <= free)).all()
        places = (start / np.maximum(free, 1))[free > 30]
        assert places.min() < 0.03
        assert places.max() > 0.97
        assert abs(places.mean() - 0.5) < 0.05


def test_the_best_part_for_a_tile_cuts_no_object():
    masks = torch.zeros(2, 60, 300, dtype=torch.bool)
    masks[0, 20:40, 100:130], masks[1, 10:30, 210:225] = True, True
    data = replace(PLAIN, tile=64, scale=(1.0, 1.0), crop_places=60)
    for seed in range(5):
        torch.manual_seed(seed)
        result = training_transform(data)(make_sample(masks))
        assert len(result.masks_NHW) >= 1
        for mask in result.masks_NHW:
            assert int(mask.sum()) in (600, 300)


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.data(),
)
def test_mask_resizing_is_nearest_exact_and_a_window_of_it(source, target, data):
    masks = torch.rand(2, *source) > 0.5
    top, left = data.draw(st.integers(0, target[0] - 1)), data.draw(st.integers(0, target[1] - 1))
    height, width = (
        data.draw(st.integers(1, target[0] - top)),
        data.draw(st.integers(1, target[1] - left)),
    )
    result = _resize_masks(masks, target, (top, left, height, width))
    # Exact integer arithmetic.
    rows = [(2 * i + 1) * source[0] // (2 * target[0]) for i in range(target[0])]
    columns = [(2 * j + 1) * source[1] // (2 * target[1]) for j in range(target[1])]
    whole = torch.stack(
        [torch.stack([masks[:, i, j] for j in columns], dim=-1) for i in rows], dim=-2
    )
    assert result.dtype == torch.bool
    assert torch.equal(result, whole[:, top : top + height, left : left + width])


@pytest.mark.parametrize(
    ("source", "target"),
    [((480, 640), (1536, 2048)), ((480, 640), (96, 128)), ((128, 128), (99, 99))],
)
def test_mask_resizing_equals_torch(source, target):
    masks = torch.rand(2, *source) > 0.5
    expected = interpolate(masks[None].to(torch.uint8), size=target, mode="nearest-exact")[0].bool()
    assert torch.equal(_resize_masks(masks, target, (0, 0, *target)), expected)


# --- image and masks move together ---


@given(st.integers(40, 120), st.integers(40, 120), st.floats(0.5, 2.0), st.integers(0, 999))
def test_image_and_masks_move_together(height, width, factor, seed):
    """The image shows the union of the masks, so after the transform it still must, up to a seam of
    2 pixels."""
    torch.manual_seed(seed)
    masks = blobs(height, width)
    image = (masks.any(0) * 255).to(torch.uint8).expand(3, -1, -1)
    data = replace(PLAIN, scale=(factor, factor), flip=0.5, vertical_flip=0.5)
    result = training_transform(data)(make_sample(masks, image))
    shown = result.image_CHW[0].numpy() > 127
    union = result.masks_NHW.any(0).numpy()
    box = np.ones((5, 5), dtype=bool)
    assert not (shown & ~ndimage.binary_dilation(union, box)).any()
    assert not (ndimage.binary_erosion(union, box, border_value=1) & ~shown).any()


def test_no_half_pixel_shift_between_image_and_masks():
    """Averaged over many discs the centre of a reduced mask is the centre of the reduced image."""
    y, x = np.mgrid[:256, :256]
    shifts = []
    for number in range(40):
        center_y, center_x = np.random.default_rng(number).uniform(100, 156, 2)
        masks = torch.from_numpy(np.hypot(x - center_x, y - center_y) < 60)[None]
        image = (masks * 255).to(torch.uint8).expand(3, -1, -1)
        # 256 -> 58.
        result = training_transform(replace(PLAIN, scale=(0.9, 0.9)))(make_sample(masks, image))
        from_image = ndimage.center_of_mass(result.image_CHW[0].numpy())
        from_mask = ndimage.center_of_mass(result.masks_NHW[0].numpy())
        shifts.append(np.subtract(from_mask, from_image))
    # Taking the top left source pixel gives 0.38.
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.03


@pytest.mark.parametrize("name", ["flip", "vertical_flip"])
def test_flips_are_exact(name):
    sample = make_sample(blobs(64, 64))
    result = training_transform(replace(PLAIN, **{name: 1.0}))(sample)
    axis = {"flip": -1, "vertical_flip": -2}[name]
    assert torch.equal(result.image_CHW, sample.image_CHW.flip(axis))
    assert torch.equal(result.masks_NHW, sample.masks_NHW.flip(axis))


def test_color_jitter_changes_the_image_alone():
    sample = make_sample(blobs(64, 64))
    result = training_transform(replace(PLAIN, color_jitter=0.4))(sample)
    assert result.image_CHW.dtype == torch.uint8
    assert not torch.equal(result.image_CHW, sample.image_CHW)
    assert torch.equal(result.masks_NHW, sample.masks_NHW)


def test_results_are_plain_tensors():
    for transform in (training_transform(DataConfig(crop=64)), evaluation_transform(DataConfig())):
        result = transform(make_sample(blobs(50, 70)))
        assert type(result.image_CHW) is type(result.masks_NHW) is torch.Tensor


# --- instances ---


@given(st.integers(0, 999))
def test_emptied_instances_are_dropped_with_their_labels(seed):
    torch.manual_seed(seed)
    masks = torch.zeros(16, 128, 128, dtype=torch.bool)
    image = torch.zeros(3, 128, 128, dtype=torch.uint8)
    for number in range(16):
        row, column = divmod(number, 4)
        cell = (slice(32 * row + 8, 32 * row + 24), slice(32 * column + 8, 32 * column + 24))
        masks[number][cell] = True
        image[(slice(None), *cell)] = 10 * number + 50
    data = replace(PLAIN, scale=(2.0, 2.0), flip=0.5)  # at 128 pixels, a crop of 64 sees a quarter
    result = training_transform(data)(make_sample(masks, image))
    assert result.masks_NHW.flatten(1).any(1).all()
    shown = {(int(value) - 50) // 10 for value in result.image_CHW[0].unique() if value >= 50}
    assert set(result.labels_N.tolist()) == shown
    assert len(shown) < 16
    for mask, label in zip(result.masks_NHW, result.labels_N, strict=True):
        assert torch.equal(mask, result.image_CHW[0] == 10 * label + 50)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2)])
@pytest.mark.parametrize("count", [0, 2])
def test_extreme_sizes(size, count):
    sample = make_sample(torch.ones(count, *size, dtype=torch.bool))
    for _ in range(5):
        data = DataConfig(crop=32, flip=0.5, color_jitter=0.2, crop_places=3)
        result = training_transform(data)(sample)
        assert len(result.labels_N) == len(result.masks_NHW) == count
        assert collate([result]).image_BCHW.shape == (1, 3, 32, 32)
    assert evaluation_transform(DataConfig())(sample).masks_NHW.shape[0] == count


# --- evaluation ---


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((427, 640), (800, 1199)),
        ((200, 1000), (267, 1333)),
        ((800, 1333), (800, 1333)),
        ((1600, 1600), (800, 800)),
        ((5, 5000), (1, 1333)),
    ],
)
def test_evaluation_size(size, expected):
    sample = make_sample(torch.ones(1, *size, dtype=torch.bool))
    result = evaluation_transform(DataConfig())(sample)
    assert result.size == tuple(result.masks_NHW.shape[1:]) == expected
    assert result.original_size == size
    assert result.canvas is None
    assert result.masks_NHW.all()


# --- settings ---


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"crop": 100}, "data.crop"),
        ({"crop": 0}, "data.crop"),
        ({"scale": (0.0, 1.0)}, "data.scale"),
        ({"scale": (2.0, 1.0)}, "data.scale"),
        ({"crop_places": 0}, "data.crop_places"),
        ({"flip": 1.5}, "data.flip"),
        ({"vertical_flip": -0.1}, "data.vertical_flip"),
        ({"color_jitter": -0.1}, "data.color_jitter"),
        ({"invert": 1.1}, "data.invert"),
    ],
)
def test_impossible_training_settings(changes, name):
    with pytest.raises(ValueError, match=name):
        training_transform(replace(PLAIN, **changes))


def test_impossible_evaluation_settings():
    with pytest.raises(ValueError, match=r"data\.eval_short_side"):
        evaluation_transform(replace(PLAIN, eval_short_side=1000, eval_max_side=900))
