"""The confusion matrix against loops over pixels, a case counted by hand, and its picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image

import alignmask
from alignmask.evaluation.confusion import Confusion, confusion
from alignmask.evaluation.evaluate import evaluate_file
from alignmask.evaluation.matches import match
from alignmask.evaluation.results_file import load_ground_truth, load_results
from alignmask.pictures.confusion import confusion_picture
from tests.evaluation.test_matches import oracle as matched
from tests.evaluation.test_matches import overlap, pixels
from tests.evaluation.worlds import World, box_mask, worlds, write

SIZE = (20, 30)


def measured(world: World, folder: Path, score: float = 0.5) -> Confusion:
    annotations, results = write(world, folder)
    ground_truth = load_ground_truth(annotations)
    checked = load_results(results, ground_truth)
    return confusion(ground_truth, checked, match(ground_truth, checked, [0.5])[0.5], score)


def oracle(world: World, score: float) -> np.ndarray:
    """By loops. COCO's own matching of one class, then the rest."""
    classes = sorted(world.categories)
    row = {category_id: c for c, category_id in enumerate(classes)}
    counts = np.zeros((len(classes) + 1, len(classes) + 1), int)
    shown = [n for n, r in enumerate(world.results) if r["score"] >= score]
    found = matched(world, 0.5)
    right = [n for n in shown if found.get(n)]
    free = [a for a in world.annotations if not a["iscrowd"]]
    for n in sorted(right, key=lambda n: (-world.results[n]["score"], n)):
        # Of equal overlaps the official tool takes the last; so does this.
        r = world.results[n]
        same = [
            a
            for a in free
            if (a["image_id"], a["category_id"]) == (r["image_id"], r["category_id"])
        ]
        best = max(same, key=lambda a: (overlap(pixels(r), pixels(a), False), a["id"]))
        free.remove(best)
        counts[row[r["category_id"]], row[r["category_id"]]] += 1
    rest = [n for n in shown if found.get(n) == 0.0]
    for n in sorted(rest, key=lambda n: (-world.results[n]["score"], n)):
        r, column = world.results[n], row[world.results[n]["category_id"]]
        others = [
            a
            for a in free
            if a["image_id"] == r["image_id"] and a["category_id"] != r["category_id"]
        ]
        others = [a for a in others if overlap(pixels(r), pixels(a), False) >= 0.5]
        crowds = [a for a in world.annotations if a["iscrowd"] and a["image_id"] == r["image_id"]]
        if others:
            best = max(others, key=lambda a: (overlap(pixels(r), pixels(a), False), -a["id"]))
            free.remove(best)
            counts[row[best["category_id"]], column] += 1
        elif not any(overlap(pixels(r), pixels(a), True) >= 0.5 for a in crowds):
            counts[-1, column] += 1
    for a in free:
        counts[row[a["category_id"]], -1] += 1
    return counts


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=30,
)
@given(worlds())
def test_equals_loops(tmp_path: Path, world: World) -> None:
    for score in (0.0, 0.5):
        assert measured(world, tmp_path, score).counts_CC.tolist() == oracle(world, score).tolist()


@pytest.fixture
def world() -> World:
    """One of each: found, found twice, taken for another class, missed, on nothing, in a crowd of
    the own class and in one of another, below the threshold."""
    world = World({1: SIZE}, {3: "cat", 11: "$dog$"})
    boxes = {"a": (0, 0, 6, 6), "b": (0, 10, 6, 16), "c": (0, 20, 6, 26), "crowd": (10, 0, 20, 15)}
    masks = {name: box_mask(SIZE, *box) for name, box in boxes.items()}
    for name, category in (("a", 3), ("b", 3), ("c", 11)):
        world.annotate(1, category, masks[name])
    world.annotate(1, 3, masks["crowd"], crowd=True)
    world.predict(1, 3, masks["a"], 0.9)
    world.predict(1, 3, masks["a"], 0.8)  # a second mask: on nothing
    world.predict(1, 11, masks["a"], 0.95)  # found by its own class, though with a lower score
    world.predict(1, 11, masks["b"], 0.5)
    world.predict(1, 11, masks["c"], 0.49)
    world.predict(1, 3, box_mask(SIZE, 10, 20, 15, 25), 0.7)
    world.predict(1, 3, box_mask(SIZE, 12, 2, 18, 9), 0.7)
    world.predict(1, 11, box_mask(SIZE, 12, 2, 18, 9), 0.7)
    return world


def test_one_of_each(world: World, tmp_path: Path) -> None:
    assert measured(world, tmp_path).counts_CC.tolist() == [[1, 1, 0], [0, 0, 1], [2, 1, 0]]


def test_the_best_scored_chooses_first(tmp_path: Path) -> None:
    world = World({1: SIZE}, {3: "cat", 11: "dog", 12: "emu"})
    mask_HW = box_mask(SIZE, 0, 0, 6, 6)
    world.annotate(1, 3, mask_HW)
    world.predict(1, 11, mask_HW, 0.6)
    world.predict(1, 12, mask_HW, 0.9)
    assert measured(world, tmp_path).counts_CC[[0, 3]].tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]]


def test_it_is_printed_stored_and_drawn(world: World, tmp_path: Path) -> None:
    annotations, results = write(world, tmp_path)
    for _ in range(2):  # what it made itself is replaced
        found = alignmask.evaluate(results, annotations=annotations, out=tmp_path)
    stored = json.loads((tmp_path / "evaluation.json").read_text())["confusion"]
    assert stored["names"] == ["cat", "$dog$", "nothing"]
    assert stored["counts"] == found.confusion.counts_CC.tolist()
    with Image.open(tmp_path / "confusion.png") as picture:
        drawn = np.asarray(picture.convert("RGB"))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 20


def test_shares_are_colours(tmp_path: Path) -> None:
    """The cell of a class that is always found is as dark as can be, an empty one is white."""
    Path(tmp_path / "a").mkdir()
    colours = []
    for counts in (((5, 0), (0, 0)), ((0, 5), (0, 0))):
        path = tmp_path / "a" / "c.png"
        confusion_picture(Confusion(("cat",), counts, 0.5, 0.5), path)
        pixels_HWC = np.asarray(Image.open(path).convert("RGB")).astype(int)
        dark = np.argwhere((pixels_HWC == (8, 48, 107)).all(axis=-1))
        colours.append(dark.mean(axis=0))
    assert colours[0][1] < colours[1][1] - 50  # further right
    assert abs(colours[0][0] - colours[1][0]) < 5  # in the same line


def test_a_picture_of_the_user_stays(world: World, tmp_path: Path) -> None:
    annotations, results = write(world, tmp_path)
    mine = tmp_path / "confusion.png"
    Image.new("RGB", (3, 3)).save(mine)
    content = mine.read_bytes()
    with pytest.raises(
        FileExistsError, match=r"confusion\.png: `alignmask eval` has not drawn this"
    ):
        alignmask.evaluate(results, annotations=annotations, out=tmp_path)
    assert mine.read_bytes() == content
    assert not (tmp_path / "evaluation.json").exists()


def test_many_classes_are_not_printed(tmp_path: Path) -> None:
    from tests.evaluation.test_tables import printed

    for classes, shown in ((6, True), (7, False)):
        world = World({1: SIZE}, {n: f"kind {n}" for n in range(1, classes + 1)})
        world.annotate(1, 1, box_mask(SIZE, 0, 0, 5, 5))
        lines = printed(evaluate_file(*write(world, tmp_path)).table())
        assert any("found as" in line for line in lines) == shown
        assert max(map(len, lines)) <= 80
