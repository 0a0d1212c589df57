"""From settings to data sets, up to a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from alignmask.config import DataConfig, ShapesConfig
from alignmask.data import TrainingStream, collate, resolve_paths, train_dataset, val_dataset
from tests.data.coco_files import annotation, image_record, write_coco


def test_shapes_give_batches(tmp_path):
    data = DataConfig(
        shapes=ShapesConfig(tmp_path / "root", 6, 3, 64), crop=64, eval_short_side=96, train_limit=4
    )
    resolved = resolve_paths(data)
    assert resolved.train_images == tmp_path / "root" / "train"
    assert resolved.val_annotations == tmp_path / "root" / "instances_val.json"
    assert resolve_paths(resolved) == resolved
    train, val = train_dataset(data), val_dataset(data)
    assert (len(train), len(val)) == (4, 3)
    batches = list(DataLoader(TrainingStream(train, 8, 0), batch_size=4, collate_fn=collate))
    assert all(batch.image_BCHW.shape == (4, 3, 64, 64) for batch in batches)
    batch = collate([val[i] for i in range(3)])
    assert batch.image_BCHW.shape == (3, 3, 96, 96)
    assert batch.masks_GHW.shape[0] == sum(batch.counts) > 0
    assert val_dataset(data, masks=False)[0].labels_N.shape == (0,)


def test_paths_of_ones_own_data(tmp_path):
    images, path = write_coco(tmp_path, [image_record(1), image_record(2)], [annotation()])
    data = DataConfig(images, path, images, path, crop=32)
    assert resolve_paths(data) is data
    assert len(train_dataset(data)) == len(val_dataset(data)) == 2


def test_incomplete_or_contradictory_settings(tmp_path):
    with pytest.raises(ValueError, match=r"data\.train_annotations, data\.val_images"):
        resolve_paths(DataConfig(train_images=tmp_path, val_annotations=tmp_path))
    both = DataConfig(shapes=ShapesConfig(tmp_path / "root", 1, 1, 32), train_images=Path("mine"))
    with pytest.raises(ValueError, match=r"data\.train_images: set although data\.shapes"):
        resolve_paths(both)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("name", ["coco_subset", "dsb2018_nuclei"])
def test_real_data_trains(data_root, name):
    root = data_root / name
    if not root.is_dir():
        pytest.skip(f"{root} not found")
    json_files = {split: root / f"instances_{split}.json" for split in ("train", "val")}
    data = DataConfig(
        root / "images", json_files["train"], root / "images", json_files["val"], crop=256
    )
    data = replace(data, color_jitter=0.2, eval_short_side=256, eval_max_side=512)
    stream = TrainingStream(train_dataset(data), 24, seed=0)
    for batch in DataLoader(stream, batch_size=8, collate_fn=collate, num_workers=2):
        assert batch.image_BCHW.shape == (8, 3, 256, 256)
        assert batch.masks_GHW.flatten(1).any(1).all()
        assert not (batch.masks_GHW & ~batch.valid_BHW[batch.owner_G]).any()
        assert batch.owner_G.bincount(minlength=8).tolist() == batch.counts
    batch = collate([val_dataset(data)[i] for i in range(4)])
    assert batch.image_BCHW.shape[-2] % 32 == batch.image_BCHW.shape[-1] % 32 == 0
    assert batch.labels_G.dtype == torch.int64


def test_limits_keep_the_first_images_of_each_split(tmp_path):
    data = DataConfig(shapes=ShapesConfig(tmp_path / "root", 5, 4, 32), train_limit=3, val_limit=2)
    assert len(train_dataset(data)) == 3
    assert val_dataset(data).image_ids == val_dataset(replace(data, val_limit=None)).image_ids[:2]
