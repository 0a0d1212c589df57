"""The parts that a COCO file is checked in: nothing is lost at their borders."""

from __future__ import annotations

import numpy as np
import pytest

from alignmask.data import CocoDataset, CocoError, coco_json
from tests.data.coco_files import annotation, rle, write_coco

MASK = np.zeros((20, 30), dtype=bool)
MASK[3:9, 4:12] = True


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 4096])
def test_every_rle_is_checked_however_many_at_a_time(tmp_path, monkeypatch, chunk):
    """Of five, one after the other is damaged, too short, or empty."""
    monkeypatch.setattr(coco_json, "_CHUNK", chunk)
    for bad in range(5):
        for segmentation, reason in (
            ({"size": [20, 30], "counts": "0o"}, "damaged or cut off"),
            ({"size": [20, 30], "counts": "04"}, "covers 4 pixels"),
        ):
            annotations = [
                annotation(n, segmentation=segmentation if n == bad else rle(MASK))
                for n in range(5)
            ]
            with pytest.raises(CocoError, match=f"annotation id {bad}: .*{reason}"):
                CocoDataset(*write_coco(tmp_path, annotations=annotations))
        empty = [
            annotation(n, segmentation=rle(MASK & (n != bad)), category_id=n % 2 + 1)
            for n in range(5)
        ]
        categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
        with pytest.warns(UserWarning, match=f"annotation id {bad}"):
            dataset = CocoDataset(*write_coco(tmp_path, annotations=empty, categories=categories))
        sample = dataset[0]
        assert sample.labels_N.tolist() == [n % 2 for n in range(5) if n != bad]
        assert (sample.masks_NHW.numpy() == MASK).all()
