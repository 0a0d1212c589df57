"""Data sets of images with 16 bits a sample."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from PIL import Image

from alignmask.data import CocoDataset
from tests.data.coco_files import image_record, write_coco


def test_a_microscopes_range(tmp_path):
    images, path = write_coco(tmp_path)
    deep = np.linspace(0, 4095, 600).reshape(20, 30).astype(np.uint16)
    Image.fromarray(deep).save(images / "1.png")
    with pytest.warns(
        UserWarning, match="1 image with 16 bits a sample; 1 of the 1 looked at: .* above 4095"
    ):
        dataset = CocoDataset(images, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert dataset[0].image_CHW.max() == 4095 >> 8  # said once
        ranged = CocoDataset(images, path, sample_range=(0, 4095))[0].image_CHW
    assert np.array_equal(ranged[1].numpy(), deep // 16)
    with pytest.raises(ValueError, match="black below white"):
        CocoDataset(images, path, sample_range=(5, 5))


def test_the_range_advised_is_that_of_the_brightest_image(tmp_path):
    """1000 has as many digits as 4000, and 1023 as 4095."""
    images, path = write_coco(tmp_path, [image_record(1), image_record(2)])
    for number, highest in ((1, 4000), (2, 1000)):
        samples = np.full((20, 30), highest, np.uint16)
        Image.fromarray(samples).save(images / f"{number}.png")
    for order in ((1, 2), (2, 1)):
        content = json.loads(path.read_text())
        content["images"] = [image_record(n) for n in order]
        path.write_text(json.dumps(content))
        with pytest.warns(UserWarning, match="above 4095"):
            CocoDataset(images, path)
