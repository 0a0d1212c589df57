"""AP against the official tool: random worlds, real photos, models, and what is written and
printed."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from pycocotools import mask as mask_utils

from alignmask.data import Batch, CocoError
from alignmask.evaluation import evaluate
from alignmask.evaluation.evaluate import evaluate_file, evaluate_model
from alignmask.evaluation.metrics import CocoMetrics, evaluate_results
from alignmask.evaluation.predictions import predict_images, to_coco_results
from alignmask.evaluation.results_file import load_ground_truth
from alignmask.model import Instances
from alignmask.model.tiles import Tiles
from tests import tiny
from tests.evaluation.oracle import official_numbers
from tests.evaluation.worlds import (
    POWERS,
    TableModel,
    World,
    box_mask,
    dataset_of,
    small_world,
    worlds,
    write,
)

# Both tools average the same values, in another order.
ROUNDING = 1e-12


def assert_official(
    metrics: CocoMetrics, annotations: Path, results: Path, categories: dict[int, str]
) -> None:
    numbers = np.array(list(metrics.numbers().values()))
    np.testing.assert_allclose(
        numbers, official_numbers(annotations, results), rtol=0, atol=ROUNDING
    )
    expected = {
        name: official_numbers(annotations, results, i)[0] for i, name in categories.items()
    }
    assert metrics.per_category == pytest.approx(expected, rel=0, abs=ROUNDING)
    for found, number in ((metrics.per_category_AP50, 1), (metrics.per_category_AR, 8)):
        of_class = {
            name: official_numbers(annotations, results, i)[number]
            for i, name in categories.items()
        }
        assert found == pytest.approx(of_class, rel=0, abs=ROUNDING)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=150,
)
@given(worlds())
def test_equals_the_official_tool(tmp_path: Path, world: World) -> None:
    annotations, results = write(world, tmp_path)
    assert_official(evaluate_results(annotations, results), annotations, results, world.categories)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=15,
)
@given(worlds())
def test_the_slow_engine_is_the_official_tool(tmp_path: Path, world: World) -> None:
    annotations, results = write(world, tmp_path)
    metrics = evaluate_results(annotations, results, "pycocotools")
    assert_official(metrics, annotations, results, world.categories)


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_more_than_100_detections_of_a_category(tmp_path: Path, engine: Any) -> None:
    """150 predictions with tied scores, the right one among them at the end: only the first 100
    count."""
    world = World({1: (40, 40)}, {1: "a"})
    target = box_mask((40, 40), 5, 5, 25, 25)
    world.annotate(1, 1, target)
    for n in range(149):
        world.predict(1, 1, box_mask((40, 40), 30, n % 40, 40, n % 40 + 1), 0.5)
    world.predict(1, 1, target, 0.5)
    files = write(world, tmp_path)
    assert evaluate_results(*files, engine).AP == 0
    world.results[-1]["score"] = 0.6
    files = write(world, tmp_path)
    metrics = evaluate_results(*files, engine)
    assert (metrics.AP, metrics.AR1, metrics.ARs, metrics.ARl) == pytest.approx((1, 1, 1, -1))
    assert_official(metrics, *files, world.categories)


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_perfect_nothing_and_no_ground_truth(tmp_path: Path, engine: Any) -> None:
    world = World({1: (120, 120), 2: (120, 120)}, {5: "a", 9: "never seen"})
    for side in (10, 50, 110):
        world.annotate(1, 5, box_mask((120, 120), 0, 0, side, side))
    files = write(world, tmp_path)
    nothing = evaluate_results(*files, engine)
    assert set(nothing.numbers().values()) == {0.0}
    assert nothing.per_category == {"a": 0.0, "never seen": -1.0}
    for side in (10, 50, 110):
        world.predict(1, 5, box_mask((120, 120), 0, 0, side, side), 0.5)
    perfect = evaluate_results(*write(world, tmp_path), engine)
    whole = [value for name, value in perfect.numbers().items() if name != "AR1"]
    assert whole == pytest.approx([1] * 11)
    assert perfect.AR1 == pytest.approx(1 / 3)
    world.annotations.clear()
    undefined = evaluate_results(*write(world, tmp_path), engine)
    assert set(undefined.numbers().values()) == {-1.0}


def fabricated(annotations: Path, seed: int = 0) -> list[dict[str, Any]]:
    """Predictions for real annotations: masks shifted, cut, of another category, spurious, with
    rounded scores."""
    truth = load_ground_truth(annotations)
    rng = np.random.default_rng(seed)
    entries = []
    for annotation in truth.annotations:
        mask_HW = mask_utils.decode(annotation["segmentation"]).astype(bool)
        if not mask_HW.any():
            continue
        for _ in range(rng.integers(0, 3)):
            shift = rng.integers(-8, 9, 2) if rng.random() < 0.7 else (0, 0)
            found = np.roll(mask_HW, shift, axis=(0, 1))
            category = (
                annotation["category_id"]
                if rng.random() < 0.8
                else int(rng.choice(list(truth.categories)))
            )
            rle = mask_utils.encode(np.asfortranarray(found, np.uint8))
            entries.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": category,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    "score": round(float(rng.random()), 2),
                }
            )
    rng.shuffle(entries)
    return entries


@pytest.mark.parametrize("split", ["val", pytest.param("train", marks=pytest.mark.slow)])
def test_equals_the_official_tool_on_real_photos(
    data_root: Path, tmp_path: Path, split: str
) -> None:
    annotations = data_root / "coco_subset" / f"instances_{split}.json"
    results = tmp_path / "results.json"
    results.write_text(json.dumps(fabricated(annotations)))
    metrics = evaluate_results(annotations, results)
    numbers = np.array(list(metrics.numbers().values()))
    np.testing.assert_allclose(
        numbers, official_numbers(annotations, results), rtol=0, atol=ROUNDING
    )
    assert 0.1 < metrics.AP < 0.9
    assert len(metrics.per_category) == 80
    person = official_numbers(annotations, results, 1)[0]
    assert metrics.per_category["person"] == pytest.approx(person, abs=ROUNDING)


# -- what the official tool trips over
# -----------------------------------------------------------------------------------


def test_a_bbox_in_the_results_is_ignored(tmp_path: Path) -> None:
    """With it, the official tool would take the box's area for the mask's (and find no large
    prediction here)."""
    world = World({1: (200, 200)}, {1: "a"})
    world.annotate(1, 1, box_mask((200, 200), 0, 0, 30, 30))
    world.predict(1, 1, box_mask((200, 200), 0, 0, 30, 30), 0.9)
    world.predict(1, 1, box_mask((200, 200), 60, 60, 190, 190), 0.95)
    plain = evaluate_results(*write(world, tmp_path))
    for entry in world.results:
        entry["bbox"] = [0, 0, 3, 3]
    assert evaluate_results(*write(world, tmp_path)) == plain
    assert plain.APs == pytest.approx(1)


def test_an_annotation_with_id_0_can_be_found(tmp_path: Path) -> None:
    world = World({1: (20, 20)}, {1: "a"})
    world.annotate(1, 1, box_mask((20, 20), 0, 0, 9, 9), id=0)
    world.predict(1, 1, box_mask((20, 20), 0, 0, 9, 9), 0.9)
    files = write(world, tmp_path)
    assert official_numbers(*files)[0] == 0
    assert evaluate_results(*files).AP == pytest.approx(1)


def test_image_ids_restrict_the_evaluation(tmp_path: Path) -> None:
    world = small_world(images=6)
    wanted = list(world.sizes)[1:4]
    part = replace(
        world,
        sizes={i: world.sizes[i] for i in wanted},
        annotations=[a for a in world.annotations if a["image_id"] in wanted],
        results=[r for r in world.results if r["image_id"] in wanted],
    )
    restricted = evaluate_results(*write(world, tmp_path), image_ids=wanted[::-1])
    (tmp_path / "part").mkdir()
    assert restricted == evaluate_results(*write(part, tmp_path / "part"))
    with pytest.raises(CocoError, match=r"annotations\.json: no image has id 5"):
        evaluate_results(*write(world, tmp_path), image_ids=[5])
    with pytest.raises(ValueError, match="no images"):
        evaluate_results(*write(world, tmp_path), image_ids=[])


def test_categories_that_share_a_name_are_told_apart(tmp_path: Path) -> None:
    world = replace(small_world(), categories={3: "pet", 11: "pet"})
    files = write(world, tmp_path)
    assert set(evaluate_results(*files).per_category) == {"pet (3)", "pet (11)"}


# -- models
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", POWERS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_model_is_measured_in_all_score_modes(
    tmp_path: Path, score: str, batch_size: int
) -> None:
    world = small_world()
    dataset = dataset_of(world, tmp_path)
    model = TableModel(world, score).train()
    seen: list[tuple[int, int]] = []
    out = tmp_path / "out"
    result = evaluate_model(
        model, dataset, device="cpu", batch_size=batch_size, workers=0, out=out,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert model.training
    assert seen[-1] == (len(dataset), len(dataset))
    # Images of one size alone share a batch: else one would be padded to another's, which changes
    # what is found.
    sizes = [{world.sizes[image] for image in images} for images in model.batches]
    assert all(len(of_batch) == 1 for of_batch in sizes)
    assert (
        len(seen)
        == len(sizes)
        == sum(-(-n // batch_size) for n in Counter(world.sizes.values()).values())
    )
    assert (result.images, result.predictions, result.default) == (5, len(world.results), score)

    for mode in POWERS:
        expected = []
        for image in world.sizes:
            instances = TableModel(world, mode).instances(image)
            expected += to_coco_results(instances, image, sorted(world.categories))
        path = tmp_path / "expected.json"
        path.write_text(json.dumps(expected))
        assert_official(result.metrics[mode], tmp_path / "annotations.json", path, world.categories)
        assert (
            result.alignment[mode]
            == evaluate_file(tmp_path / "annotations.json", path).alignment["score"]
        )
        if mode == score:
            assert json.loads((out / "results.json").read_text()) == expected
            assert result.metrics[mode].AP == result.AP
    assert len({metrics.AP for metrics in result.metrics.values()}) == len(POWERS)
    assert json.loads((out / "evaluation.json").read_text()) == json.loads(
        json.dumps(result.as_dict())
    )
    assert sorted(file.name for file in out.iterdir()) == ["evaluation.json", "results.json"]


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_left_in_its_mode_and_gets_batches_on_its_device(
    tmp_path: Path, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = small_world(images=3)
    dataset, model, asked = dataset_of(world, tmp_path), TableModel(world).train(training), []
    monkeypatch.setattr(Batch, "to", lambda batch, device, **_: asked.append(device) or batch)
    evaluate_model(model, dataset, device="meta", batch_size=1, workers=0, out=None)
    assert model.training == training
    assert asked == [torch.device("meta")] * 3


def test_ranks_together_equal_one(tmp_path: Path) -> None:
    """Three ranks with every third image each; what they found arrives in any order."""
    world = small_world(images=7)
    dataset = dataset_of(world, tmp_path)
    model = TableModel(world)
    whole = evaluate_model(model, dataset, device="cpu", batch_size=2, workers=0, out=None)
    shards = [
        predict_images(model, dataset, range(rank, 7, 3), torch.device("cpu"), 2, 0, None)
        for rank in (2, 0, 1)
    ]
    assert [len(shard) for shard in shards] == [2, 3, 2]
    predictions = [prediction for shard in shards for prediction in shard]
    together = evaluate._assess(model, dataset, predictions, tmp_path / "out", "hotcoco")
    assert together == whole
    order = [
        entry["image_id"] for entry in json.loads((tmp_path / "out" / "results.json").read_text())
    ]
    assert order == [
        r["image_id"]
        for r in sorted(world.results, key=lambda r: list(world.sizes).index(r["image_id"]))
    ]


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_share_all_images(
    tmp_path: Path, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank as if it ran alone, up to where predictions are gathered; then rank 0 with all of
    them."""
    world = small_world(images=7)
    dataset, model = dataset_of(world, tmp_path), TableModel(world)
    whole = evaluate_model(model, dataset, device="cpu", batch_size=2, workers=0, out=None)
    shards: list[list[Any]] = []
    for rank in reversed(range(world_size)):
        monkeypatch.setattr(evaluate, "_rank_and_world", lambda rank=rank: (rank, world_size))
        monkeypatch.setattr(
            "accelerate.utils.gather_object",
            lambda own: shards.append(own) or [p for shard in shards for p in shard],
        )
        monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda holder: holder)
        found = evaluate_model(model, dataset, device="cpu", batch_size=2, workers=0, out=None)
        assert (found is None) == (rank > 0)
    assert found == whole
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    assert sorted(prediction.index for shard in shards for prediction in shard) == list(range(7))


@pytest.mark.parametrize("engine", [None, "hotcoco", "pycocotools"])
def test_the_engine_that_is_asked_for_is_used(
    tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their numbers are equal, so that numbers cannot tell. The fast one is the default."""
    files, used = write(small_world(), tmp_path), []
    for name in ("hotcoco", "pycocotools.cocoeval"):
        tool = importlib.import_module(name)
        original = tool.COCOeval
        monkeypatch.setattr(
            tool, "COCOeval", lambda *a, name=name, make=original: used.append(name) or make(*a)
        )
    expected = "pycocotools.cocoeval" if engine == "pycocotools" else "hotcoco"
    options = {} if engine is None else {"engine": engine}
    evaluate_results(*files, **options)
    evaluate_file(*files, **options)
    # The last one matches, for the calibration.
    assert used == [expected, expected, "pycocotools.cocoeval"]


def test_entries_that_are_left_out_are_counted(tmp_path: Path) -> None:
    world = small_world()
    annotations, _ = write(world, tmp_path)
    entries = [
        *world.results,
        {**world.results[0], "image_id": 10**6},
        {**world.results[0], "score": None},
    ]
    with pytest.warns(UserWarning, match="left out"):
        found = evaluate_file(annotations, entries, ignore_unknown=True)
    assert found.left_out == {
        "of an unknown image": 1,
        "with a score that is not a finite number": 1,
    }
    assert found.as_dict()["left_out"] == found.left_out
    assert found.predictions == len(world.results)


def test_a_part_of_a_data_set_is_measured_on_that_part(tmp_path: Path) -> None:
    world = small_world()
    model = TableModel(world)
    limited = evaluate_model(
        model, dataset_of(world, tmp_path, limit=2), device="cpu", batch_size=1, workers=0, out=None
    )
    files = write(world, tmp_path)
    assert limited.images == 2
    assert limited.metrics["class"] == evaluate_results(*files, image_ids=list(world.sizes)[:2])


def test_a_model_that_finds_nothing_or_fails(tmp_path: Path) -> None:
    world = small_world()
    world.results.clear()
    dataset = dataset_of(world, tmp_path)
    model = TableModel(world)
    result = evaluate_model(model, dataset, device="cpu", batch_size=2, workers=0, out=tmp_path)
    assert result.AP == 0
    assert json.loads((tmp_path / "results.json").read_text()) == []
    assert result.alignment["class"].top[0].mean_score is None

    def fail(batch: Any) -> Any:
        raise RuntimeError("out of memory")

    model.predict_encoded = fail
    model.train()
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate_model(model, dataset, device="cpu", batch_size=2, workers=0, out=None)
    assert model.training


def instances(
    scores: list[float], labels: list[int] | None = None, size: tuple[int, int] = (6, 5)
) -> Instances:
    n = len(scores)
    masks_NHW = torch.zeros(n, *size, dtype=torch.bool)
    for k in range(n):
        masks_NHW[k, : k + 1, 1:3] = True
    score_N = torch.tensor(scores)
    labels_N = torch.tensor(labels or [0] * n, dtype=torch.int64)
    return Instances(score_N, labels_N, masks_NHW, torch.zeros(n, 4), score_N, score_N)


def test_results_of_an_image() -> None:
    entries = to_coco_results(instances([0.75, 0.5], [1, 0]), 42, [3, 11])
    assert [(e["image_id"], e["category_id"], e["score"]) for e in entries] == [
        (42, 11, 0.75),
        (42, 3, 0.5),
    ]
    for k, entry in enumerate(entries):
        assert mask_utils.decode(json.loads(json.dumps(entry))["segmentation"]).sum() == 2 * (k + 1)
    rescored = to_coco_results(
        instances([0.75, 0.5]), 42, [3], torch.tensor([0.1, 0.25], dtype=torch.bfloat16)
    )
    assert [e["score"] for e in rescored] == pytest.approx([0.1, 0.25], rel=1e-2)
    assert to_coco_results(instances([]), 1, [3]) == []


def test_faulty_predictions_name_their_image() -> None:
    with pytest.raises(ValueError, match="image 42: 2 of 3 scores are not finite"):
        to_coco_results(instances([0.1, float("nan"), float("inf")]), 42, [3])
    with pytest.raises(ValueError, match="image 42: 1 scores, 2 labels and 2 masks"):
        to_coco_results(instances([0.1, 0.2]), 42, [3], torch.ones(1))


# -- what is printed


@pytest.mark.parametrize("tiles", [None, Tiles(64, 0.2)])
def test_batches_of_nothing_are_refused(tmp_path: Path, tiles: Tiles | None) -> None:
    dataset = dataset_of(small_world(), tmp_path)
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size: expected 1 or more, got {size}"):
            evaluate_model(
                tiny.model().eval(), dataset, device="cpu", batch_size=size, workers=0, out=None, tiles=tiles
            )  # fmt: skip
