"""Prediction in tiles, from the Python function and from the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import alignmask
from alignmask import recipes
from alignmask.data import Batch, CocoDataset, evaluation_transform
from alignmask.data.rle import encode
from alignmask.evaluation.evaluate import evaluate_model
from alignmask.model import Instances, tiles
from alignmask.model.sparse import SparseInstances
from alignmask.model.tiles import Tiles
from alignmask.predictor import Predictor
from tests import tiny
from tests.data.coco_files import annotation, box_polygon, write_coco

SIZE = (150, 210)
BOXES = ((10, 12, 40, 30), (50, 5, 90, 140), (100, 40, 205, 60), (120, 80, 126, 88))


class BrightThings(torch.nn.Module):
    """Finds the connected bright areas of an image, each scored by its brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.config = replace(tiny.model_config(), score="class")
        self.device = torch.device("cpu")
        self.sizes: list[tuple[int, ...]] = []

    def predict(self, batch: Batch) -> list[Instances]:
        self.sizes.append(tuple(batch.image_BCHW.shape))
        return [self.found(image_CHW[0]) for image_CHW in batch.image_BCHW]

    def predict_encoded(self, batch: Batch) -> list[SparseInstances]:
        return [
            SparseInstances(
                found.scores_N,
                found.labels_N,
                encode(found.masks_NHW),
                found.boxes_N4,
                found.class_scores_N,
                found.mask_scores_N,
                (found.masks_NHW.shape[1], found.masks_NHW.shape[2]),
            )
            for found in self.predict(batch)
        ]

    def found(self, image_HW: torch.Tensor) -> Instances:
        component_HW, count = ndimage.label(image_HW.numpy() > 50)
        masks = torch.from_numpy(component_HW == np.arange(1, count + 1)[:, None, None])
        boxes = torch.tensor(
            [[x.start, y.start, x.stop, y.stop] for y, x in ndimage.find_objects(component_HW)]
        ).reshape(-1, 4)
        score = torch.tensor([float(image_HW[mask].float().mean() / 255) for mask in masks])
        best = score.argsort(descending=True)
        label = torch.zeros(count, dtype=torch.int64)
        return Instances(
            score[best], label, masks[best], boxes[best].float(), score[best], label + 1.0
        )


def picture() -> np.ndarray:
    image_HWC = np.zeros((*SIZE, 3), np.uint8)
    for n, (x1, y1, x2, y2) in enumerate(BOXES):
        image_HWC[y1:y2, x1:x2] = 100 + 40 * n
    return image_HWC


def predictor() -> Predictor:
    config = recipes.shapes_tiny()  # tiles of 64 pixels stay as they are
    data = replace(config.data, eval_short_side=64, eval_max_side=64)
    return Predictor(BrightThings(), replace(config, data=data), ["thing"], [3])  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_every_instance_once_and_whole(batch_size: int) -> None:
    model = predictor()
    found = model.predict_in_tiles(picture(), 64, batch_size=batch_size)
    assert len(found) == 4
    brightest_first = [BOXES[n] for n in (3, 2, 1, 0)]
    assert found.boxes_N4.int().tolist() == [list(box) for box in brightest_first]
    assert found.scores_N.tolist() == pytest.approx([n / 255 for n in (220, 180, 140, 100)])
    for n, (x1, y1, x2, y2) in enumerate(brightest_first):
        expected = np.zeros(SIZE, bool)
        expected[y1:y2, x1:x2] = True
        assert np.array_equal(found.masks_NHW[n].numpy(), expected)
    sizes = model.model.sizes  # type: ignore[union-attr]
    assert {size[2:] for size in sizes} == {(64, 64)}
    count = len(tiles.windows(SIZE, Tiles(64, 0.2)))
    assert [size[0] for size in sizes] == [batch_size] * (count // batch_size) + (
        [count % batch_size] if count % batch_size else []
    )
    kept = model.predict_in_tiles(picture(), 64, threshold=0.6)
    assert kept.boxes_N4.int().tolist() == [list(box) for box in brightest_first[:2]]
    with pytest.raises(ValueError, match="tiles: expected a side of 32 pixels"):
        model.predict_in_tiles(picture(), 16)


def test_one_tile_is_the_image(tmp_path: Path) -> None:
    model = Predictor(tiny.model(), predictor().config, list("abcd"), [1, 2, 3, 4])
    image = np.random.default_rng(0).integers(0, 256, (60, 64, 3)).astype(np.uint8)
    whole, tiled = model.predict_encoded(image).dense(), model.predict_in_tiles(image, 64)
    assert len(tiled) == len(whole) > 0
    dense = tiled.dense()
    for name in ("scores", "labels", "masks", "boxes", "class_scores_N", "mask_scores_N"):
        assert torch.equal(getattr(dense, name), getattr(whole, name)), name
    assert model.draw(image, tiled).tobytes() == model.draw(image, whole).tobytes()


def test_the_settings_say_how_images_are_taken(tmp_path: Path) -> None:
    model = predictor()
    tiled = model.predict_in_tiles(picture(), 64, overlap=0.4)
    config = replace(model.config, data=replace(model.config.data, tile=64, tile_overlap=0.4))
    model = Predictor(model.model, config, model.class_names, model.category_ids)
    seen = model.model.sizes  # type: ignore[union-attr]
    in_tiles = len(seen)
    ways = [
        model.predict(picture()),
        model.predict_encoded(picture()).dense(),
        model.predict_in_tiles(picture()).dense(),
        *model.predict([picture(), picture()]),
        *(one.dense() for one in model.predict_encoded([picture()], threshold=0.1)),
    ]
    assert len(seen) == 7 * in_tiles
    for found in ways:
        assert torch.equal(found.masks, tiled.dense().masks)
        assert torch.equal(found.scores, tiled.scores_N)
    model.predict(picture(), tile=80, overlap=0.1)
    assert len(seen) == 7 * in_tiles + len(tiles.windows(SIZE, Tiles(80, 0.1)))
    model.predict_encoded(picture(), tile="whole")
    assert len(seen) == 7 * in_tiles + len(tiles.windows(SIZE, Tiles(80, 0.1))) + 1
    for batch_size in (0, -1):
        with pytest.raises(ValueError, match="batch_size: expected 1 or more"):
            model.predict(picture(), batch_size=batch_size)


def test_evaluation_in_tiles(tmp_path: Path) -> None:
    model = predictor()
    record = {"id": 1, "file_name": "1.png", "height": SIZE[0], "width": SIZE[1]}
    annotations = [annotation(n, segmentation=box_polygon(*box)) for n, box in enumerate(BOXES)]
    images, path = write_coco(tmp_path, [record], annotations)
    Image.fromarray(picture()).save(images / "1.png")
    dataset = CocoDataset(images, path, evaluation_transform(model.config.data), masks=False)
    for workers in (0, 1):
        measured = evaluate_model(
            model.model, dataset, device="cpu", batch_size=3, workers=workers, out=tmp_path,
            tiles=Tiles(64, 0.3),
        )  # fmt: skip
        assert measured.metrics["class"].AP == 1
        assert measured.predictions == 4
        assert len(json.loads((tmp_path / "results.json").read_text())) == 4


@pytest.mark.parametrize("verb", ["evaluate", "analyze", "calibrate"])
def test_what_measures_takes_the_settings_tiles(verb: str, tmp_path: Path) -> None:
    model = predictor()
    config = replace(model.config, data=replace(model.config.data, tile=64))
    model = Predictor(model.model, config, model.class_names, model.category_ids)
    records = [
        {"id": n, "file_name": f"{n}.png", "height": SIZE[0], "width": SIZE[1]} for n in (1, 2)
    ]
    annotations = [
        annotation(10 * image + n, image_id=image, segmentation=box_polygon(*box))
        for n, box in enumerate(BOXES)
        for image in (1, 2)
    ]
    images, path = write_coco(tmp_path, records, annotations)
    for n in (1, 2):
        Image.fromarray(picture()).save(images / f"{n}.png")
    given = {"annotations": path, "images": images, "workers": 0}
    count, seen = len(tiles.windows(SIZE, Tiles(64, 0.2))), model.model.sizes  # type: ignore[union-attr]
    if verb == "analyze":
        alignmask.analyze({"m": model}, out=tmp_path / "page", resamples=0, **given)
        assert len(seen) == 2 * count
        return
    if verb == "evaluate":
        assert alignmask.evaluate(model, **given).metrics["class"].AP == 1
        assert len(seen) == 2 * count
        with pytest.raises(ValueError, match="another size"):  # this model cannot resize masks
            alignmask.evaluate(model, tile="whole", **given)
        assert len(seen) == 2 * count + 2
        return
    report = alignmask.calibrate(model, resamples=0, **given)
    assert len(seen) == 2 * count
    assert report.calibration.fit.tile == 64
    own = model.config.data
    model.config = replace(model.config, data=replace(own, tile=None, tile_overlap=0.4))
    report = alignmask.calibrate(model, resamples=0, tile=64, overlap=0, **given)
    assert len(seen) == 2 * count + 2 * len(tiles.windows(SIZE, Tiles(64, 0)))
    assert report.calibration.fit.tile == 64
    with pytest.raises(ValueError, match="another size"):
        alignmask.calibrate(model, resamples=0, **given)


def test_results_have_no_tiles(tmp_path: Path) -> None:
    path = write_coco(tmp_path)[1]
    with pytest.raises(ValueError, match="tiles are for a model"):
        alignmask.evaluate([], annotations=path, tile=64)
    with pytest.raises(ValueError, match="tiles are for a model"):
        alignmask.calibrate([], annotations=path, tile=64)


def test_results_take_no_overlap_either(tmp_path: Path) -> None:
    path = write_coco(tmp_path)[1]
    for verb in (alignmask.evaluate, alignmask.calibrate):
        with pytest.raises(ValueError, match="tiles are for a model"):
            verb([], annotations=path, overlap=0.5)
