"""Where the training crop is taken: the best of several random places."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from alignmask.config import DataConfig
from alignmask.data import training_transform
from tests.covers import covers
from tests.data.test_data_config import sample


def squares(seed: int, count: int, side: int, image: int) -> torch.Tensor:
    """bool [N, H, W]: squares anywhere in a square image."""
    rng = np.random.default_rng(seed)
    masks_NHW = torch.zeros(count, image, image, dtype=torch.bool)
    for mask in masks_NHW:
        top, left = rng.integers(0, image - side + 1, 2)
        mask[top : top + side, left : left + side] = True
    return masks_NHW


def cut_and_seen(cropped_NHW: torch.Tensor, area: int) -> tuple[int, int]:
    """The number of squares of which only a part is there, and of those of which anything is."""
    areas = cropped_NHW.flatten(1).sum(1).tolist()
    return sum(0 < each < area for each in areas), sum(0 < each for each in areas)


@covers("data.crop_places")
def test_the_crop_is_the_one_place_of_several_that_cuts_the_smallest_share() -> None:
    """Squares of 12 pixels in 160, cropped to 64: the places that the seed draws are cut out one by
    one, and their squares counted by their pixels."""
    image = torch.zeros(3, 160, 160, dtype=torch.uint8)
    data = DataConfig(crop=64, scale=(2.5, 2.5), flip=0.0)
    totals = {1: [0, 0], 6: [0, 0]}
    for seed in range(60):
        masks = squares(seed, count=seed % 7, side=12, image=160)
        torch.manual_seed(seed)
        torch.empty(()).uniform_(2.5, 2.5)  # the factor comes first
        places = [(int(torch.randint(97, ())), int(torch.randint(97, ()))) for _ in range(6)]
        crops = [masks[:, top : top + 64, left : left + 64] for top, left in places]
        counts = [cut_and_seen(crop, 144) for crop in crops]
        shares = [cut / seen if seen else 2 for cut, seen in counts]
        expected = crops[shares.index(min(shares))]
        for candidates, total in totals.items():
            torch.manual_seed(seed)
            result = training_transform(replace(data, crop_places=candidates))(sample(image, masks))
            crop = crops[0] if candidates == 1 else expected
            assert torch.equal(result.masks_NHW, crop[crop.flatten(1).any(1)])
            cut, seen = cut_and_seen(result.masks_NHW, 144)
            total[0], total[1] = total[0] + cut, total[1] + seen
            if candidates == 6 and any(seen for _, seen in counts):
                assert len(result.labels_N) > 0
    assert totals[6][0] / totals[6][1] < 0.5 * totals[1][0] / totals[1][1]


@covers("data.crop_places")
@pytest.mark.parametrize("factor", [0.7, 1.6, 3.1])
def test_places_are_compared_at_the_size_after_resizing(factor: float) -> None:
    """Of all that the seed could draw, none has a smaller share: the resized image is cropped
    everywhere by an image that shows where a pixel was."""
    masks = squares(5, count=6, side=9, image=50)
    data = DataConfig(crop=32, scale=(factor, factor), flip=0.0, crop_places=4000)
    result = training_transform(data)(sample(torch.zeros(3, 50, 50).byte(), masks))
    side = round(32 * factor)
    resized = torch.nn.functional.interpolate(
        masks[None].to(torch.uint8), (side, side), mode="nearest-exact"
    )[0].bool()
    whole = resized.flatten(1).sum(1)
    shares = []
    for top in range(max(1, side - 31)):
        for left in range(max(1, side - 31)):
            areas = resized[:, top : top + 32, left : left + 32].flatten(1).sum(1)
            seen = int((areas > 0).sum())
            shares.append(int(((areas > 0) & (areas < whole)).sum()) / seen if seen else 2)
    areas = result.masks_NHW.flatten(1).sum(1)
    cut = int((areas < whole[result.labels_N - 7]).sum())
    assert cut / len(areas) == min(shares)


@covers("data.crop_places")
def test_an_object_counts_as_seen_where_its_pixels_are() -> None:
    """The box of an L covers all of the image, but only two of its sides have a pixel."""
    mask = torch.zeros(1, 160, 160, dtype=torch.bool)
    mask[0, :, 0] = mask[0, -1, :] = True
    data = DataConfig(crop=64, scale=(2.5, 2.5), flip=0.0)
    image, seen = torch.zeros(3, 160, 160, dtype=torch.uint8), {1: 0, 500: 0}
    for candidates in seen:
        transform = training_transform(replace(data, crop_places=candidates))
        seen[candidates] = sum(len(transform(sample(image, mask)).labels_N) for _ in range(20))
    assert (seen[1] < 10, seen[500]) == (True, 20)
