"""Images are resized with antialiasing, in training and at evaluation, as Pillow does it (and the
peers through it)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from alignmask.config import DataConfig
from alignmask.data import Sample, evaluation_transform, training_transform


def sample(image_CHW: Tensor) -> Sample:
    size = (image_CHW.shape[1], image_CHW.shape[2])
    return Sample(
        image_CHW, torch.ones(1, *size, dtype=torch.bool), torch.tensor([3]), 1, "1.png", size
    )


def in_training(image_CHW: Tensor, longest: int) -> Tensor:
    """Fitted to `longest` pixels, which no crop cuts."""
    data = DataConfig(crop=256, scale=(longest / 256, longest / 256), flip=0.0)
    return training_transform(data)(sample(image_CHW)).image_CHW


def at_evaluation(image_CHW: Tensor, longest: int) -> Tensor:
    data = DataConfig(eval_short_side=longest, eval_max_side=longest)
    return evaluation_transform(data)(sample(image_CHW)).image_CHW


WAYS = pytest.mark.parametrize("resize", [in_training, at_evaluation])


def pillow(image_CHW: Tensor, height: int, width: int) -> np.ndarray:
    image = Image.fromarray(image_CHW.permute(1, 2, 0).numpy())
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


@WAYS
@pytest.mark.parametrize("times", [4, 3])
def test_a_checkerboard_of_single_pixels_becomes_grey(
    resize: Callable[[Tensor, int], Tensor], times: int
) -> None:
    y, x = np.mgrid[:192, :192]
    board = torch.from_numpy(((x + y) % 2 * 255).astype(np.uint8)).expand(3, -1, -1)
    small = resize(board, 192 // times).float()
    assert small.shape == (3, 192 // times, 192 // times)
    # At the border a filter sees more of one colour; in the middle of a picture all are alike.
    middle = small[:, 2:-2, 2:-2]
    assert middle.std() < 2 if times == 4 else middle.std() < 16
    assert middle.mean() == pytest.approx(127.5, abs=2)


@WAYS
@pytest.mark.parametrize(
    ("size", "longest"), [((120, 90), 30), ((64, 200), 77), ((50, 60), 150), ((97, 61), 96)]
)
def test_pixels_are_those_of_pillow(
    resize: Callable[[Tensor, int], Tensor], size: tuple[int, int], longest: int
) -> None:
    """Smaller and larger, any ratio; they round to neighbouring bytes at most."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *size)).astype(np.uint8))
    ours = resize(image, longest)
    height, width = (max(1, round(side * longest / max(size))) for side in size)
    assert ours.shape == (3, height, width)
    assert ours.dtype == torch.uint8
    assert np.abs(ours.numpy().astype(int) - pillow(image, height, width)).max() <= 1
    theirs = F.resize_image(image.float(), [height, width], antialias=True)
    assert (ours - theirs).abs().max() < 1.1  # bytes are rounded twice, after rows and columns
    if longest < 60:  # the comparison can fail
        aliased = F.resize_image(image, [height, width], antialias=False)
        assert (aliased.float() - theirs).abs().max() > 30


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    data = DataConfig(crop=128, scale=(1.0, 1.0), flip=0.0, eval_short_side=96, eval_max_side=200)
    for transform in (training_transform(data), evaluation_transform(data)):
        assert torch.equal(transform(sample(image)).image_CHW, image)
    assert not torch.equal(
        training_transform(replace(data, flip=1.0))(sample(image)).image_CHW, image
    )
