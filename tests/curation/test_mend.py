"""What is mended is read as the file that was meant, and nothing else is changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignmask.curation.mend import mend
from alignmask.data import CocoError
from alignmask.data.coco_json import read_coco
from tests.data.coco_files import annotation, box_polygon, image_record, write_coco


def as_pairs(polygon: list[float]) -> list[list[float]]:
    return [polygon[n : n + 2] for n in range(0, len(polygon), 2)]


def each(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    def apply(content: dict[str, Any]) -> None:
        for record in content["annotations"]:
            change(record)

    return apply


def normalise(content: dict[str, Any]) -> None:
    for record in content["annotations"]:
        record["segmentation"] = [
            [value / (30, 20)[place % 2] for place, value in enumerate(polygon)]
            for polygon in record["segmentation"]
        ]


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], dict[str, int]]] = {
    "nothing": (lambda c: None, {}),
    "pairs": (
        each(lambda r: r.update(segmentation=[as_pairs(p) for p in r["segmentation"]])),
        {"polygons of pairs made flat": 3},
    ),
    "pairs without polygons": (
        lambda c: c["annotations"][1].update(
            segmentation=as_pairs(c["annotations"][1]["segmentation"][0])
        ),
        {"polygons of pairs made flat": 1},
    ),
    "a polygon alone": (
        lambda c: c["annotations"][1].update(segmentation=c["annotations"][1]["segmentation"][0]),
        {"polygons put into a list": 1},
    ),
    "shares": (normalise, {"polygons multiplied by the image's size": 3}),
    "no areas": (each(lambda r: r.update(area=None)), {"areas left out": 3}),
    "areas of NaN": (each(lambda r: r.update(area="x")), {"areas left out": 3}),
    "all crowds": (each(lambda r: r.update(iscrowd=1)), {"crowds made instances": 3}),
    "crowds in words": (each(lambda r: r.update(iscrowd="0")), {"iscrowd made a number": 3}),
    "boxes": (
        lambda c: c["annotations"].append({**c["annotations"][0], "id": 9, "segmentation": []}),
        {"annotations without a polygon removed": 1},
    ),
    "a copy": (
        lambda c: c["annotations"].append({**c["annotations"][0], "id": 9}),
        {"copies of annotations removed": 1},
    ),
    "an id twice": (
        lambda c: c["annotations"][1].update(id=1), {"annotation ids given anew": 3}
    ),
    "backslashes": (
        lambda c: c["images"][0].update(file_name="images\\1.png"), {"file names respelt": 1}
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_mended_file_reads_as_the_one_that_was_meant(tmp_path: Path, damage: str) -> None:
    parts = [box_polygon(2, 2, 8, 8)[0], box_polygon(12, 3, 20, 11)[0]]
    images, path = write_coco(
        tmp_path,
        [{**image_record(1), "licence": 3}],
        [
            annotation(1, segmentation=parts, note="kept"),
            annotation(2, segmentation=box_polygon(5, 9, 14, 18)),
            annotation(3, category_id=4, segmentation=box_polygon(0, 0, 30, 20)),
        ],
        [{"id": 1, "name": "a"}, {"id": 4, "name": "b", "supercategory": "x"}],
    )
    good, content = read_coco(path), json.loads(path.read_text())
    damaged = copy.deepcopy(content)
    change, changes = DAMAGE[damage]
    change(damaged)
    path.write_text(json.dumps(damaged))
    assert mend(path, tmp_path / "out" / "mended.json", images) == changes
    assert json.loads(path.read_text()) == damaged  # never in place
    mended = read_coco(tmp_path / "out" / "mended.json")
    assert mended.annotations == good.annotations
    assert mended.images == good.images
    raw = json.loads((tmp_path / "out" / "mended.json").read_text())
    assert raw["categories"] == content["categories"]
    assert raw["images"][0]["licence"] == 3
    assert raw["annotations"][0]["note"] == "kept"


def test_faults_without_one_way_to_mend_them_stay(tmp_path: Path) -> None:
    _, path = write_coco(tmp_path, annotations=[annotation(1, category_id=9), annotation(2)])
    assert not mend(path, tmp_path / "mended.json")
    with pytest.raises(CocoError, match="category id 9"):
        read_coco(tmp_path / "mended.json")
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        mend(path, path)


def test_some_crowds_stay_crowds(tmp_path: Path) -> None:
    _, path = write_coco(tmp_path, annotations=[annotation(1, iscrowd=1), annotation(2)])
    mend(path, tmp_path / "mended.json")
    assert [a.crowd for a in read_coco(tmp_path / "mended.json").annotations] == [True, False]


def test_what_has_no_mask_is_no_copy(tmp_path: Path) -> None:
    boxes = [{"id": n, "image_id": 1, "category_id": 1, "bbox": [n, 1, 5, 5]} for n in (1, 2)]
    _, path = write_coco(
        tmp_path, annotations=[*boxes, annotation(3, bbox=[float("nan"), 1, 2, 3])]
    )
    assert mend(path, tmp_path / "mended.json") == {"boxes left out": 1}
    kept = json.loads((tmp_path / "mended.json").read_text())["annotations"]
    assert kept[:2] == boxes
    assert "bbox" not in kept[2]


@pytest.mark.parametrize(
    "broken", [{"segmentation": [[0.1, 0.1, 0.2, 0.1, 0.2, 0.2], None]}, {"image_id": [1]}]
)
def test_other_faults_do_not_stop_the_mending(tmp_path: Path, broken: dict[str, Any]) -> None:
    share = box_polygon(0.1, 0.1, 0.5, 0.5)
    annotations = [annotation(n, segmentation=share) for n in (1, 2)]
    annotations[1]["segmentation"] = box_polygon(0.1, 0.1, 0.5, 0.6)
    annotations.append({**annotation(3, segmentation=share), **broken})
    _, path = write_coco(tmp_path, annotations=annotations)
    assert mend(path, tmp_path / "mended.json") == {"polygons multiplied by the image's size": 2}


def test_pairs_that_are_shares_are_mended_at_once(tmp_path: Path) -> None:
    pairs = as_pairs(box_polygon(0.1, 0.1, 0.5, 0.5)[0])
    _, path = write_coco(tmp_path, annotations=[annotation(1, segmentation=[pairs])])
    assert mend(path, tmp_path / "mended.json").total() == 2
    assert read_coco(tmp_path / "mended.json").annotations[0].pixels == 96


def test_area_and_box_in_shares_are_left_out(tmp_path: Path) -> None:
    """Or else a large object would count as a small one."""
    half = {"area": 0.25, "bbox": [0.1, 0.1, 0.5, 0.5]}
    share = annotation(1, segmentation=[box_polygon(0.1, 0.1, 0.6, 0.6)[0]], **half)
    _, path = write_coco(tmp_path, annotations=[share])
    mend(path, tmp_path / "mended.json")
    (record,) = read_coco(tmp_path / "mended.json").annotations
    assert record.area == record.pixels == 150


def test_numbers_that_are_none_cannot_be_mended(tmp_path: Path) -> None:
    none = [[float("nan")] * 8]
    _, path = write_coco(tmp_path, annotations=[annotation(1, segmentation=none)])
    with pytest.raises(
        CocoError, match=r"instances\.json: it has numbers that are NaN or infinite"
    ):
        mend(path, tmp_path / "mended.json")
    assert not (tmp_path / "mended.json").exists()
