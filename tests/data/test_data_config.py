"""Every setting of the data, away from its default, and what it changes in the samples."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader

from alignmask._arguments import evaluation_data
from alignmask.config import Config, DataConfig, LossConfig, ShapesConfig, TrainConfig
from alignmask.data import (
    CocoDataset,
    Sample,
    evaluation_transform,
    shapes,
    train_dataset,
    training_transform,
    val_dataset,
)
from alignmask.evaluation import predictions
from alignmask.predictor import Predictor
from alignmask.training import batches, trainer
from tests import tiny
from tests.covers import covers
from tests.data.coco_files import annotation, box_polygon, image_record, write_coco

PLAIN = DataConfig(crop=64, scale=(1.0, 1.0), flip=0.0)


def sample(image_CHW: torch.Tensor, masks_NHW: torch.Tensor | None = None) -> Sample:
    size = (image_CHW.shape[1], image_CHW.shape[2])
    masks_NHW = torch.zeros(0, *size, dtype=torch.bool) if masks_NHW is None else masks_NHW
    return Sample(image_CHW, masks_NHW, 7 + torch.arange(len(masks_NHW)), 41, "41.png", size)


# ---- which files


@covers("data.train_images", "data.train_annotations", "data.val_images", "data.val_annotations")
@covers("data.train_limit", "data.val_limit")
def test_each_split_reads_its_own_files(tmp_path: Path) -> None:
    """Four places of their own; the files of the two splits share a name, but not what they
    show."""
    places = {}
    for split, ids, box in (
        ("train", (1, 2, 3, 4), (2, 2, 8, 8)),
        ("val", (1, 9, 7), (3, 4, 20, 15)),
    ):
        (tmp_path / split).mkdir()
        annotations = [annotation(i, i, segmentation=box_polygon(*box)) for i in ids]
        images, places[f"{split}_annotations"] = write_coco(
            tmp_path / split, [image_record(i) for i in ids], annotations
        )
        places[f"{split}_images"] = images
        grey = {"train": 60, "val": 200}[split]
        Image.new("RGB", (30, 20), (grey, grey, grey)).save(images / "1.png")
    data = replace(
        PLAIN, crop=32, eval_short_side=20, eval_max_side=30, train_limit=3, val_limit=2, **places
    )
    train, val = train_dataset(data), val_dataset(data)
    assert (train.image_ids, val.image_ids) == ([1, 2, 3], [1, 9])
    assert (train.images, val.images) == (
        tmp_path / "train" / "images",
        tmp_path / "val" / "images",
    )
    assert train[0].image_CHW.unique().tolist() == [60]
    assert val[0].image_CHW.unique().tolist() == [200]
    assert val[0].masks_NHW.sum() == 17 * 11
    assert train[0].size == (21, 32)  # by the training transform: 30 pixels become 32
    assert val[0].size == (20, 30)


@covers("data.exif", "data.sample_range")
def test_every_reader_takes_pixels_by_the_settings(tmp_path: Path) -> None:
    """A square photo of 16 bits that lies on its side, in training, validation and evaluation of
    other data, and when a model predicts."""
    images, path = write_coco(tmp_path, [image_record(1, 32, 32)])
    deep_HW = np.zeros((32, 32), np.uint16)
    deep_HW[:16] = 1023
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(deep_HW).save(images / "1.png", exif=exif)
    data = replace(
        PLAIN, crop=32, eval_short_side=32, eval_max_side=32, train_images=images,
        train_annotations=path, val_images=images, val_annotations=path, sample_range=(0, 1023),
    )  # fmt: skip
    for setting, quarters in (("apply", 3), ("ignore", 0)):
        data = replace(data, exif=setting)
        expected = np.rot90(np.where(deep_HW, 255, 0), quarters)
        config = Config("x", data=data)
        predictor = Predictor(tiny.model(), config, ["thing"], [1])
        for dataset in (
            train_dataset(data),
            val_dataset(data),
            evaluation_data(predictor, images, path),
        ):
            assert np.array_equal(dataset[0].image_CHW[0].numpy(), expected)
        assert np.array_equal(predictor._pixels(images / "1.png")[0].numpy(), expected)


# ---- training


@covers("data.crop", "data.scale")
def test_crop_and_scale_by_hand() -> None:
    """An image of 50 x 100 pixels, fitted to 96 pixels times 0.5 to 0.75: 48 to 72 wide, half as
    high, never cut."""
    transform = training_transform(DataConfig(crop=96, scale=(0.5, 0.75), flip=0.0))
    image = torch.zeros(3, 50, 100, dtype=torch.uint8)
    results = [transform(sample(image)) for _ in range(400)]
    widths = np.array([r.size[1] for r in results])
    assert (widths.min(), widths.max()) == (48, 72)
    assert widths.mean() == pytest.approx(60, abs=4 * 24 / 12**0.5 / 20)
    assert all(abs(r.size[0] - r.size[1] / 2) <= 1 for r in results)
    assert {r.canvas for r in results} == {(96, 96)}
    assert {r.original_size for r in results} == {(50, 100)}


@covers("data.crop", "data.scale")
def test_windows_lie_anywhere_in_both_directions() -> None:
    """An image of 160 x 160 pixels that shows where a pixel was, cropped to 64: 97 places for each
    corner."""
    places = torch.arange(160, dtype=torch.uint8)
    image = torch.stack(
        (
            places[:, None].expand(160, 160),
            places[None].expand(160, 160),
            torch.zeros(160, 160).byte(),
        )
    )
    transform = training_transform(DataConfig(crop=64, scale=(2.5, 2.5), flip=0.0))
    corners = []
    for _ in range(400):
        result = transform(sample(image))
        assert result.size == (64, 64)
        top, left = result.image_CHW[:2, 0, 0].tolist()
        assert torch.equal(result.image_CHW, image[:, top : top + 64, left : left + 64])
        corners.append((top, left))
    top_left = np.array(corners)
    assert top_left.min(0).tolist() == pytest.approx([0, 0], abs=2)
    assert top_left.max(0).tolist() == pytest.approx([96, 96], abs=2)
    assert top_left.mean(0).tolist() == pytest.approx([48, 48], abs=6)
    assert abs(np.corrcoef(top_left.T)[0, 1]) < 0.2


@covers("data.flip", "data.vertical_flip")
def test_flips_are_as_frequent_as_they_should_be_and_flip_nothing_else() -> None:
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    masks = torch.rand(2, 64, 64) > 0.7
    transform = training_transform(replace(PLAIN, flip=0.2, vertical_flip=0.7))
    seen = []
    for _ in range(500):
        result = transform(sample(image, masks))
        axes = [
            axes
            for axes in ((), (2,), (1,), (1, 2))
            if torch.equal(result.image_CHW, image.flip(axes) if axes else image)
        ]
        assert len(axes) == 1
        seen.append(axes[0])
        assert torch.equal(result.masks_NHW, masks.flip(axes[0]) if axes[0] else masks)
        assert result.labels_N.tolist() == [7, 8]
        assert (result.image_id, result.file_name, result.original_size) == (41, "41.png", (64, 64))
    for axes, probability in (
        ((), 0.8 * 0.3),
        ((2,), 0.2 * 0.3),
        ((1,), 0.8 * 0.7),
        ((1, 2), 0.2 * 0.7),
    ):
        error = (probability * (1 - probability) / 500) ** 0.5
        assert seen.count(axes) / 500 == pytest.approx(probability, abs=4 * error)


@covers("data.invert")
def test_a_share_of_the_images_becomes_negatives() -> None:
    image = torch.arange(3 * 32 * 32).view(3, 32, 32).to(torch.uint8)
    masks = torch.rand(2, 32, 32) < 0.5
    seen = []
    for seed in range(400):
        torch.manual_seed(seed)
        result = training_transform(replace(PLAIN, crop=32, invert=0.3))(sample(image, masks))
        negative = torch.equal(result.image_CHW, 255 - image)
        assert negative or torch.equal(result.image_CHW, image)
        assert torch.equal(result.masks_NHW, masks)
        seen.append(negative)
    assert sum(seen) / 400 == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 400) ** 0.5)


@pytest.mark.parametrize("strength", [0.2, 0.4])
@covers("data.color_jitter")
def test_colour_jitter_is_as_strong_as_it_should_be(strength: float) -> None:
    """Brightness b, contrast c and saturation s are factors from 1 - strength to 1 + strength,
    applied in any order. A picture of one grey shows b; two greys differ by b·c times as much; the
    channels of one colour by b·c·s times."""
    greys, masks = (
        torch.full((3, 32, 32), 50, dtype=torch.uint8),
        torch.ones(1, 32, 32, dtype=torch.bool),
    )
    greys[:, :, 16:] = 140
    colour = torch.tensor([60, 140, 100], dtype=torch.uint8)[:, None, None].expand(3, 32, 32)
    transform = training_transform(replace(PLAIN, crop=32, color_jitter=strength))

    def jittered(image_CHW: torch.Tensor, seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        return transform(sample(image_CHW, masks)).image_CHW.numpy().astype(float)

    factors = np.zeros((150, 3))
    for seed in range(150):
        one, two, coloured = (
            jittered(image, seed) for image in (torch.full_like(greys, 150), greys, colour)
        )
        b = one.mean() / 150
        bc = (two[0, 0, 31] - two[0, 0, 0]) / 90
        bcs = (coloured[1, 0, 0] - coloured[0, 0, 0]) / 80
        factors[seed] = b, bc / b, bcs / bc
        assert one.std() == 0
    rounding = np.array([0.01, 0.03, 0.06])  # of bytes, after each of the three
    assert (np.abs(factors.max(0) - 1 - strength) <= 0.02 + rounding).all()
    assert (np.abs(factors.min(0) - 1 + strength) <= 0.02 + rounding).all()
    assert (np.abs(factors.mean(0) - 1) <= 0.04).all()
    # As of a uniform distribution.
    assert factors.std(0) == pytest.approx(strength / 3**0.5, rel=0.15)


def test_without_colour_jitter_colours_stay() -> None:
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    assert torch.equal(training_transform(PLAIN)(sample(image)).image_CHW, image)


# ---- evaluation


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((200, 200), (100, 100)),
        ((200, 240), (100, 120)),
        ((200, 400), (65, 130)),
        ((400, 200), (130, 65)),
        ((10, 12), (100, 120)),
    ],
)
@covers("data.eval_short_side", "data.eval_max_side")
def test_evaluation_sizes_follow_the_settings(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    data = DataConfig(eval_short_side=100, eval_max_side=130)
    result = evaluation_transform(data)(sample(torch.zeros(3, *size, dtype=torch.uint8)))
    assert result.size == expected


def test_masks_follow_the_image_at_evaluation() -> None:
    """A picture of its two masks, enlarged and reduced: all three show the same, but for a seam."""
    masks = torch.zeros(2, 60, 90, dtype=torch.bool)
    masks[0, 5:25, 10:70], masks[1, 35:50, 60:80] = True, True
    image = torch.stack((masks[0] * 250, masks[1] * 250, torch.zeros(60, 90))).to(torch.uint8)
    for short, long in ((90, 135), (40, 60), (60, 72)):
        data = DataConfig(eval_short_side=short, eval_max_side=long)
        result = evaluation_transform(data)(sample(image, masks))
        assert result.size == (long * 60 // 90, long)
        for channel, mask in zip(result.image_CHW, result.masks_NHW, strict=False):
            assert ((channel > 125) != mask).float().mean() < 0.03
            assert mask.float().mean() == pytest.approx((channel / 250).mean().item(), rel=0.05)
        assert result.labels_N.tolist() == [7, 8]


# ---- loading


@pytest.mark.parametrize("workers", [0, 3])
@covers("data.workers")
def test_training_and_evaluation_load_in_so_many_processes(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"trainer": [], "evaluation": []}

    def loader(place: str) -> Any:
        def make(
            *args: Any, num_workers: int, persistent_workers: bool = False, **options: Any
        ) -> DataLoader:
            asked[place].append(num_workers)
            return DataLoader(*args, **options)  # in this process, which is quicker

        return make

    monkeypatch.setattr(batches, "DataLoader", loader("trainer"))
    monkeypatch.setattr(predictions, "DataLoader", loader("evaluation"))
    small = ShapesConfig(tmp_path / "shapes", 2, 2, 64, max_instances=2)
    data = DataConfig(shapes=small, crop=64, eval_short_side=64, eval_max_side=64, workers=workers)
    train = TrainConfig(iterations=1, batch_size=1, evaluate_every=1, checkpoint_every=1)
    trainer.train(
        Config(
            "run", tmp_path, tiny.model_config(num_classes=6), data, LossConfig(points=16), train
        )
    )
    assert asked == {"trainer": [workers], "evaluation": [workers]}


# ---- the synthetic data set

SHAPES = ShapesConfig(
    train_images=9,
    val_images=4,
    size=80,
    max_instances=9,
    seed=3,
    classes=11,
    crowding=0.6,
    visible_share=0.45,
)


@covers(
    "data.shapes",
    "data.shapes.root",
    "data.shapes.train_images",
    "data.shapes.val_images",
    "data.shapes.size",
)
@covers(
    "data.shapes.max_instances", "data.shapes.seed", "data.shapes.classes", "data.shapes.crowding"
)
@covers("data.shapes.visible_share")
def test_the_written_images_are_those_that_the_settings_draw(tmp_path: Path) -> None:
    config = replace(SHAPES, root=tmp_path / "here")
    data = DataConfig(shapes=config, crop=96, eval_short_side=80, eval_max_side=80)
    train, val = train_dataset(data), val_dataset(data)
    assert (train.images, val.images) == (tmp_path / "here" / "train", tmp_path / "here" / "val")
    for number, (dataset, count) in enumerate(((train, 9), (val, 4))):
        assert len(dataset) == count
        assert dataset.class_names == list(shapes.CLASSES[:11])
        for index in range(count):
            rng = np.random.default_rng((3, number, index))
            image, masks, labels = shapes.draw(
                rng, 80, 9, classes=11, crowding=0.6, visible_share=0.45
            )
            stored = dataset.load(index)
            assert np.array_equal(stored.image_CHW.permute(1, 2, 0).numpy(), image)
            assert np.array_equal(stored.masks_NHW.numpy(), masks)
            assert stored.labels_N.tolist() == labels
    settings = asdict(config)
    del settings["root"]
    assert json.loads((tmp_path / "here" / shapes.MARKER).read_text()).items() >= settings.items()


@pytest.mark.parametrize("most", [1, 9])
def test_the_number_of_instances_is_uniform_up_to_the_most(most: int) -> None:
    """In images large enough that hardly one finds no place; one image in fifty is empty."""
    counts = [
        len(shapes.draw(np.random.default_rng((8, n)), 48, most, visible_share=0.01)[2])
        for n in range(200)
    ]
    assert (min(counts), max(counts)) == (0, most)
    assert counts.count(0) / 200 == pytest.approx(0.02, abs=0.03)
    assert np.mean(counts) == pytest.approx(0.98 * (most + 1) / 2, abs=0.15 * most)


@pytest.mark.parametrize("share", [0.15, 0.8])
def test_as_much_of_an_instance_is_visible_as_was_asked_for(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole shapes are noted as they are drawn; the smallest one that holds a visible mask is that
    mask's."""
    whole: list[np.ndarray] = []
    original = shapes._depth

    def note(*args: object, **options: object) -> np.ndarray:
        depth = original(*args, **options)
        whole.append(depth > 0)
        return depth

    monkeypatch.setattr(shapes, "_depth", note)
    least = 1.0
    for number in range(40):
        whole.clear()
        _, masks, _ = shapes.draw(
            np.random.default_rng((9, number)), 64, 6, crowding=1.0, visible_share=share
        )
        for mask in masks:
            least = min(least, mask.sum() / min(w.sum() for w in whole if not (mask & ~w).any()))
    assert share <= least < share + 0.15


@pytest.mark.parametrize("classes", [1, 4, 12])
def test_the_first_classes_are_drawn_alike(classes: int) -> None:
    labels = [
        label
        for n in range(200)
        for label in shapes.draw(np.random.default_rng((4, n)), 48, 4, classes)[2]
    ]
    counts = np.bincount(labels, minlength=12)
    assert not counts[classes:].any()
    assert np.abs(counts[:classes] / len(labels) - 1 / classes).max() < 0.05


def test_ids_areas_and_boxes_of_both_splits(tmp_path: Path) -> None:
    """Ids start at 1: the official tool takes an annotation of id 0 for none. Boxes are x, y,
    width, height."""
    shapes.generate(replace(SHAPES, root=tmp_path / "here"))
    for split in ("train", "val"):
        content = json.loads((tmp_path / "here" / f"instances_{split}.json").read_text())
        for part in ("images", "annotations", "categories"):
            assert [entry["id"] for entry in content[part]] == list(
                range(1, len(content[part]) + 1)
            )
        for entry in content["annotations"]:
            rows, columns = np.nonzero(coco_mask.decode(entry["segmentation"]))
            assert entry["area"] == len(rows)
            box = [
                columns.min(),
                rows.min(),
                columns.max() - columns.min() + 1,
                rows.max() - rows.min() + 1,
            ]
            assert entry["bbox"] == box
        assert [image["height"] for image in content["images"]] == [80] * len(content["images"])
    assert isinstance(
        CocoDataset(tmp_path / "here" / "val", tmp_path / "here" / "instances_val.json")[0], Sample
    )
