"""The lines of single classes: counted with plain loops, printed, and written as CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from pycocotools import mask as mask_utils

import alignmask
from alignmask.evaluation.evaluate import evaluate_file
from alignmask.evaluation.per_class import COLUMNS, check_csv
from tests.evaluation.oracle import official_numbers
from tests.evaluation.test_tables import printed
from tests.evaluation.worlds import World, box_mask, small_world, write

SIZE = (20, 30)


def crowded_world() -> World:
    """Random boxes with second masks of some, a crowd, and a class that is never predicted, and
    one that is not there."""
    world = small_world(2, images=8)
    world.categories |= {12: "emu", 13: "fox"}
    world.results += [{**r, "score": r["score"] / 2 + 0.5} for r in world.results[::3]]
    image, size = next(iter(world.sizes.items()))
    world.annotate(image, 3, box_mask(size, 0, 0, 10, 30), crowd=True)
    world.annotate(image, 12, box_mask(size, 0, 0, 10, 30))
    return world


def iou(a: dict, b: dict) -> float:
    one, other = (mask_utils.decode(entry["segmentation"]).astype(bool) for entry in (a, b))
    return (one & other).sum() / (one | other).sum()


def test_counts_equal_plain_loops(tmp_path: Path) -> None:
    world = crowded_world()
    annotations, results = write(world, tmp_path)
    rows = {row.category_id: row for row in evaluate_file(annotations, results).classes}
    assert list(rows) == [3, 11, 12, 13]
    seen = 0
    for category_id, row in rows.items():
        truths = [a for a in world.annotations if a["category_id"] == category_id]
        official = official_numbers(annotations, results, category_id)
        assert (row.AP, row.AP50, row.AR) == pytest.approx(official[[0, 1, 8]])
        assert row.instances == sum(not a["iscrowd"] for a in truths)
        mine = [r for r in world.results if r["category_id"] == category_id]
        shown, second = 0, 0
        for n, one in enumerate(mine):
            if one["score"] < 0.5:
                continue
            shown += 1
            second += any(
                other["image_id"] == one["image_id"]
                and (other["score"], -m) > (one["score"], -n)
                and iou(one, other) > 0.5
                for m, other in enumerate(mine)
            )
        assert row.shown == shown
        assert row.duplicates == (second / shown if shown else None)
        seen += second
    assert seen > 1
    assert rows[12].duplicates is None


@pytest.mark.parametrize(("classes", "lines"), [(20, 20), (21, 0)])
def test_lines_are_printed_for_few_classes(tmp_path: Path, classes: int, lines: int) -> None:
    names = {n: f"kind{n}" for n in range(1, classes + 1)}
    world = World({1: SIZE}, names)
    world.annotate(1, 1, box_mask(SIZE, 0, 0, 5, 5))
    found = evaluate_file(*write(world, tmp_path))
    for per_class, expected in ((None, lines), (True, classes), (False, 0)):
        text = printed(found.table(per_class))
        assert sum(line.strip().startswith("kind") for line in text) == expected
        assert max(map(len, text)) <= 80
    assert len(found.as_dict()["classes"]) == classes


def test_the_csv_has_what_the_json_has(tmp_path: Path) -> None:
    annotations, results = write(crowded_world(), tmp_path)
    for _ in range(2):  # what it made itself is replaced
        alignmask.evaluate(results, annotations=annotations, out=tmp_path)
    with open(tmp_path / "per_class.csv", newline="") as file:
        table = list(csv.DictReader(file))
    stored = json.loads((tmp_path / "evaluation.json").read_text())["classes"]
    assert [list(row) for row in table] == [COLUMNS] * 4
    assert table[3]["AP"] == ""
    for row, expected in zip(table, stored, strict=True):
        for name, value in expected.items():
            assert row[name] == ("" if value in (None, -1) else str(value))


def test_a_file_of_the_user_stays(tmp_path: Path) -> None:
    annotations, results = write(small_world(), tmp_path)
    mine = tmp_path / "per_class.csv"
    for content in (b"name,AP\ncat,1\n", b"", b"\xff\xfe"):
        mine.write_bytes(content)
        with pytest.raises(
            FileExistsError, match=r"per_class\.csv: this is not a table of classes"
        ):
            alignmask.evaluate(results, annotations=annotations, out=tmp_path)
        assert mine.read_bytes() == content
    assert not (tmp_path / "evaluation.json").exists()
    mine.unlink()
    mine.mkdir()
    with pytest.raises(FileExistsError, match="is not overwritten"):
        check_csv(mine)
