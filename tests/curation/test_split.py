"""Splits: every image once, like shares of every class, groups whole, by the seed alone."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignmask.curation.split import _deal, split
from tests.data.coco_files import annotation, image_record, write_coco


def world(folder: Path, images: int = 40, seed: int = 0) -> Path:
    """Images of patients p0 .. p9; class 1 is common, class 2 is in every fifth image."""
    rng = np.random.default_rng(seed)
    records = [{**image_record(n), "file_name": f"p{n % 10}_{n}.png"} for n in range(1, images + 1)]
    annotations: list[dict[str, Any]] = []
    for record in records:
        for category in [1] * int(rng.integers(1, 6)) + [2] * (record["id"] % 5 == 0):
            annotations.append(
                annotation(len(annotations) + 1, record["id"], category, info="kept")
            )
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 3, "name": "none"}]
    return write_coco(folder, records, annotations, categories)[1]


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_classes_are_shared_alike_and_records_stay_as_they_are(tmp_path: Path) -> None:
    path = world(tmp_path)
    assert split(path, tmp_path / "out", share=0.25) == (30, 10)
    whole, parts = (
        read(path),
        [read(tmp_path / "out" / f"instances_{n}.json") for n in ("train", "val")],
    )
    for key in ("images", "annotations"):
        together = sorted((r for part in parts for r in part[key]), key=lambda r: r["id"])
        assert together == whole[key]
    assert all(part["categories"] == whole["categories"] for part in parts)
    counts = [Counter(a["category_id"] for a in part["annotations"]) for part in parts]
    assert counts[1][2] == 2  # a quarter of 8
    assert counts[1][1] == pytest.approx((counts[0][1] + counts[1][1]) / 4, abs=4)
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        split(path, tmp_path / "out")


def test_groups_stay_together_and_seeds_differ(tmp_path: Path) -> None:
    path, parts = world(tmp_path), []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        split(path, tmp_path / name, seed=seed, group="^p[0-9]+")
        parts.append(
            [r["file_name"] for r in read(tmp_path / name / "instances_val.json")["images"]]
        )
        training = read(tmp_path / name / "instances_train.json")["images"]
        patients = {file.split("_")[0] for file in parts[-1]}
        assert patients.isdisjoint({r["file_name"].split("_")[0] for r in training})
        assert len(parts[-1]) == 8
    assert parts[0] == parts[1] != parts[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "a share between 0 and 1, got 0"),
        ({"share": 1.0}, "a share between 0 and 1, got 1"),
        ({"group": "("}, "is no regular expression"),
        ({"group": "^p"}, "all 40 images are one group"),
    ],
)
def test_what_cannot_be_split(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(world(tmp_path), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=12),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_no_part_is_empty_and_no_group_is_torn(
    sizes: list[int], share: float, seed: int, data: st.DataObject
) -> None:
    first = np.cumsum([0, *sizes])
    groups = [list(range(a, b)) for a, b in itertools.pairwise(first)]
    contents = {
        n: Counter(data.draw(st.lists(st.integers(1, 3), max_size=4))) for n in range(first[-1])
    }
    chosen = _deal([list(group) for group in groups], contents, share, seed)
    assert 0 < len(chosen) < first[-1]
    assert all(set(group) <= chosen or chosen.isdisjoint(group) for group in groups)
