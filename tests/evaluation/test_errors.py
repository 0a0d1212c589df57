"""The split of errors: one of each kind by hand, and TIDE's definition written out as loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alignmask.evaluation.errors import ErrorSplit, error_split
from alignmask.evaluation.evaluate import evaluate_file
from alignmask.evaluation.matches import match
from alignmask.evaluation.results_file import load_ground_truth, load_results
from tests.evaluation.oracle import official_numbers
from tests.evaluation.test_matches import oracle as matched
from tests.evaluation.test_matches import overlap, pixels
from tests.evaluation.test_tables import printed
from tests.evaluation.worlds import World, box_mask, random_mask, write

SIZE = (40, 60)


def measured(world: World, folder: Path) -> ErrorSplit:
    annotations, results = write(world, folder)
    ground_truth = load_ground_truth(annotations)
    checked = load_results(results, ground_truth)
    return error_split(ground_truth, checked, match(ground_truth, checked, [0.5])[0.5])


def box(top: int, left: int, side: int = 10) -> np.ndarray:
    return box_mask(SIZE, top, left, top + side, left + side)


@pytest.fixture
def world() -> World:
    """One error of each kind, a right prediction of each class, and what crowds take away."""
    world = World({1: SIZE, 2: SIZE}, {3: "cat", 11: "dog"})
    world.annotate(1, 3, box(0, 0))
    world.predict(1, 3, box(0, 0), 0.90)
    world.predict(1, 3, box(0, 0), 0.85)  # duplicate
    world.annotate(1, 3, box(0, 20))
    world.predict(1, 3, box(6, 20), 0.80)  # localisation: IoU 4 / 16
    world.annotate(1, 11, box(0, 40))
    world.predict(1, 3, box(0, 40), 0.75)  # classification
    world.annotate(1, 11, box(20, 0))
    world.predict(1, 11, box(20, 0), 0.70)
    world.annotate(1, 11, box(20, 20))  # missed
    world.predict(1, 3, box(26, 20), 0.65)  # both: IoU 4 / 16 with the wrong class
    world.predict(1, 11, box(28, 48), 0.60)  # background
    world.annotate(2, 3, box(0, 0, 30), crowd=True)
    world.predict(2, 3, box(5, 5), 0.99)  # in a crowd: no error
    return world


def test_one_of_each(world: World, tmp_path: Path) -> None:
    """cat: 2 objects, right, wrong (4 times): recall 1/2 at precision 1. dog: 3 objects, right,
    wrong: recall 1/3 at precision 1."""
    half, third = 51 / 101, 34 / 101  # recall thresholds 0 .. 0.5, and 0 .. 0.33
    found = measured(world, tmp_path)
    assert set(found.counts.values()) == {1}
    assert found.AP50 == pytest.approx((half + third) / 2)
    # The mended mask is the third prediction of cats, after a duplicate.
    mended = half + (1 - half) * 2 / 3
    assert found.lost["localisation"] == pytest.approx((mended - half) / 2)
    # The prediction goes to the dogs: two of three are found, at precision 1.
    assert found.lost["classification"] == pytest.approx((67 / 101 - third) / 2)
    # One of two dogs that are left is found.
    assert found.lost["missed"] == pytest.approx((half - third) / 2)
    for kind in ("both", "duplicate", "background"):  # they stand behind what is right
        assert found.lost[kind] == pytest.approx(0)


def average_precision(points: list[tuple[float, bool]], objects: int) -> float:
    """Of scores with right or wrong, at 101 recalls."""
    right, curve = 0, []
    for n, (_, ok) in enumerate(sorted(points, key=lambda point: -point[0]), 1):
        right += ok
        curve.append((right / objects, right / n))
    return float(
        np.mean([max((p for r, p in curve if r >= k), default=0) for k in np.linspace(0, 1, 101)])
    )


def oracle(world: World) -> tuple[float, dict[str, float], dict[str, int]]:
    """TIDE by its definition, of a world whose predictions have different scores."""
    found = matched(world, 0.5)
    objects = [a for a in world.annotations if not a["iscrowd"]]
    used: dict[int, int] = {}
    for n in sorted((n for n in found if found[n]), key=lambda n: -world.results[n]["score"]):
        r = world.results[n]
        same = [
            a
            for a in objects
            if (a["image_id"], a["category_id"]) == (r["image_id"], r["category_id"])
        ]
        same = [a for a in same if a["id"] not in used]
        used[max(same, key=lambda a: overlap(pixels(r), pixels(a), False))["id"]] = n
    points = {
        n: (r["category_id"], bool(found[n])) for n, r in enumerate(world.results) if n in found
    }
    kinds: dict[int, tuple[str, int | None]] = {}
    for n, (category, right) in points.items():
        if right:
            continue
        r = world.results[n]
        here = [a for a in objects if a["image_id"] == r["image_id"]]
        ious = {a["id"]: overlap(pixels(r), pixels(a), False) for a in here}
        mine = {a["id"]: ious[a["id"]] for a in here if a["category_id"] == category}
        others = {a["id"]: ious[a["id"]] for a in here if a["category_id"] != category}
        if mine and 0.1 <= max(mine.values()) <= 0.5:
            kinds[n] = "localisation", max(mine, key=lambda i: mine[i])
        elif others and max(others.values()) >= 0.5:
            kinds[n] = "classification", max(others, key=lambda i: others[i])
        elif any(iou >= 0.5 and i in used for i, iou in mine.items()):
            kinds[n] = "duplicate", None
        elif not ious or max(ious.values()) <= 0.1:
            kinds[n] = "background", None
        else:
            kinds[n] = "both", None
    usable = {target for _, target in kinds.values() if target is not None} - set(used)
    missed = [a for a in objects if a["id"] not in used and a["id"] not in usable]
    class_of = {a["id"]: a["category_id"] for a in objects}

    def AP50(mended: str = "") -> float:
        values = []
        best = {}
        for n in sorted(kinds, key=lambda n: world.results[n]["score"]):
            best[kinds[n][1]] = n  # of several for an object, the best-scored one is mended
        for category in {*class_of.values(), *(c for c, _ in points.values())}:
            number = sum(c == category for c in class_of.values())
            number -= sum(a["category_id"] == category for a in missed) if mended == "missed" else 0
            line = []
            for n, (predicted, right) in points.items():
                score, kind = world.results[n]["score"], kinds.get(n, ("", None))
                if kind[0] != mended or not mended:
                    if predicted == category:
                        line.append((score, right))
                elif kind[1] in usable and best[kind[1]] == n and class_of[kind[1]] == category:
                    line.append((score, True))
            if any(c == category for c in class_of.values()):
                values.append(average_precision(line, number) if number else 0.0)
        return float(np.mean(values))

    names = ("classification", "localisation", "both", "duplicate", "background")
    counts = {name: sum(kind == name for kind, _ in kinds.values()) for name in names}
    lost = {name: AP50(name) - AP50() for name in (*names, "missed")}
    return AP50(), lost, {**counts, "missed": len(missed)}


def random_world(seed: int) -> World:
    rng = np.random.default_rng(seed)
    world = World({10 * i + 7: SIZE for i in range(4)}, {3: "cat", 11: "dog", 12: "emu"})
    for image in world.sizes:
        for _ in range(rng.integers(1, 5)):
            mask_HW, category = random_mask(rng, SIZE), int(rng.choice([3, 11, 12]))
            world.annotate(image, category, mask_HW, crowd=bool(rng.random() < 0.15))
            for _ in range(rng.integers(0, 4)):
                shown = category if rng.random() < 0.7 else int(rng.choice([3, 11, 12]))
                moved = np.roll(mask_HW, rng.integers(-5, 6, 2), axis=(0, 1))
                world.predict(image, shown, moved, float(rng.random()))
        world.predict(image, 3, random_mask(rng, SIZE), float(rng.random()))
    return world


def test_equals_the_definition(tmp_path: Path) -> None:
    total = dict.fromkeys(
        ("classification", "localisation", "both", "duplicate", "background", "missed"), 0
    )
    for seed in range(8):
        world = random_world(seed)
        AP50, lost, counts = oracle(world)
        found = measured(world, tmp_path)
        assert found.counts == counts, seed
        assert found.AP50 == pytest.approx(AP50)
        assert found.AP50 == pytest.approx(official_numbers(*write(world, tmp_path))[1])
        assert found.lost == pytest.approx(lost, abs=1e-9), seed
        total = {kind: total[kind] + number for kind, number in counts.items()}
    assert min(total.values()) > 2


@pytest.mark.filterwarnings("ignore:.*no annotation is an instance")
def test_without_objects_or_predictions(world: World, tmp_path: Path) -> None:
    world.results.clear()
    assert measured(world, tmp_path).counts["missed"] == 5
    assert measured(world, tmp_path).lost["missed"] == 1
    world.annotations.clear()
    world.predict(1, 3, box(0, 0), 0.5)
    found = measured(world, tmp_path)
    assert (found.AP50, found.counts["background"], set(found.lost.values())) == (-1, 1, {0})


def test_on_request(world: World, tmp_path: Path) -> None:
    files = write(world, tmp_path)
    assert evaluate_file(*files).as_dict()["errors"] is None
    found = evaluate_file(*files, errors=True)
    assert found.as_dict()["errors"] == measured(world, tmp_path).as_dict()
    lines = printed(found.table())
    assert max(map(len, lines)) <= 80
    row = next(n for n, line in enumerate(lines) if "localisation" in line or " missed" in line)
    assert lines[row + 3].split() == ["1"] * 6
