"""bench/mask_rcnn.py: the Mask R-CNN that AlignMask is compared with gets the same data, and what
it finds lies where it was."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from alignmask.config import Config, DataConfig, TrainConfig
from alignmask.data.build import val_dataset
from alignmask.evaluation.evaluate import evaluate_file
from alignmask.evaluation.predictions import predict_dataset
from tests import tiny
from tests.conftest import bench_module

ANCHORS = (8, 16, 32, 64, 128)


@pytest.fixture(scope="module")
def mask_rcnn() -> ModuleType:
    return bench_module("mask_rcnn")


def config(data: DataConfig, iterations: int = 2) -> Config:
    train = TrainConfig(
        iterations=iterations,
        batch_size=2,
        warmup=4,
        learning_rate=1e-3,
        schedule="cosine",
        ema=0.5,
    )
    return Config("test", model=tiny.model_config(num_classes=6), data=data, train=train)


def test_targets_are_the_batchs_instances(mask_rcnn: ModuleType) -> None:
    batch = tiny.batch(counts=(3, 0, 2))
    found = mask_rcnn.targets(batch)
    assert [len(each["labels"]) for each in found] == [3, 0, 2]
    masks = batch.masks_GHW.numpy()
    boxes = torch.cat([each["boxes"] for each in found]).tolist()
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):  # rectangles
        expected = np.zeros_like(mask)
        expected[int(y1) : int(y2), int(x1) : int(x2)] = True
        assert (mask == expected).all()
    assert torch.equal(torch.cat([each["labels"] for each in found]), batch.labels_G + 1)


def test_an_empty_mask_is_no_instance(mask_rcnn: ModuleType) -> None:
    probability = torch.zeros(3, 1, 8, 10)
    probability[0, 0, 2:5, 3:9] = 0.5
    probability[2, 0, 0, 0] = 0.49
    found = mask_rcnn.instances(
        {
            "masks": probability,
            "scores": torch.tensor([0.9, 0.8, 0.7]),
            "labels": torch.tensor([1, 2, 2]),
        }
    )
    assert len(found) == 1
    assert found.boxes_N4.tolist() == [[3, 2, 9, 5]]
    assert found.labels_N.tolist() == [0]
    assert found.scores_N.tolist() == pytest.approx([0.9])


def test_masks_have_the_size_of_the_image_before_it_was_resized(
    mask_rcnn: ModuleType, shapes: DataConfig
) -> None:
    torch.manual_seed(0)
    detector = mask_rcnn.Detector(config(shapes), ANCHORS).eval()
    batch = replace(tiny.batch(), original_sizes=[(48, 40), (64, 96), (100, 30)])
    for found, size in zip(detector.predict_encoded(batch), batch.original_sizes, strict=True):
        assert found.size == size
        assert len(found)
        for rle, box in zip(found.rles, found.boxes_N4.tolist(), strict=True):
            y, x = np.nonzero(mask_utils.decode(rle))
            assert [x.min(), y.min(), x.max() + 1, y.max() + 1] == box


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_it_learns_and_its_results_can_be_measured(
    mask_rcnn: ModuleType, shapes: DataConfig, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(shapes, iterations=20)
    batch = next(mask_rcnn.batches(settings))

    def loss(detector: torch.nn.Module) -> float:
        torch.manual_seed(0)
        return float(sum(term.item() for term in detector.losses(batch).values()))  # type: ignore[operator]

    torch.manual_seed(settings.train.seed)
    before = loss(mask_rcnn.Detector(settings, ANCHORS).train())
    detector = mask_rcnn.train(settings, kind, ANCHORS)
    assert not detector.training
    assert "step 20/20" in capsys.readouterr().out
    dataset = val_dataset(settings.data, masks=False)
    found = predict_dataset(detector, dataset, device="cpu", batch_size=2, workers=0)
    assert {entry["image_id"] for entry in found} <= set(dataset.image_ids)
    evaluate_file(dataset.annotations, found)
    assert loss(detector.train()) < 0.95 * before


def test_learning_rates(mask_rcnn: ModuleType, shapes: DataConfig) -> None:
    settings = config(shapes, iterations=26)
    detector = mask_rcnn.Detector(settings, ANCHORS)
    sgd, factor = mask_rcnn.optimizer_for(settings, "sgd", detector)
    assert [group["lr"] for group in sgd.param_groups] == [2 * 0.02 / 16]
    assert [round(factor(step), 4) for step in (0, 3, 15, 16, 21, 22)] == [
        0.25,
        1,
        1,
        0.1,
        0.1,
        0.01,
    ]
    adamw, factor = mask_rcnn.optimizer_for(settings, "adamw", detector)
    assert [group["lr"] for group in adamw.param_groups] == [1e-4, 1e-3]
    assert factor(13) == pytest.approx(0.5)
    counts = [len(list(group["params"])) for group in adamw.param_groups]
    assert sum(counts) == sum(p.requires_grad for p in detector.parameters())
