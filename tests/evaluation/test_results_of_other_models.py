"""Results files as other models' tools write them: the same masks give the same numbers, in
whatever form.

H x W pixels.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from alignmask.data import CocoError
from alignmask.evaluation.metrics import evaluate_results
from alignmask.evaluation.results_file import GroundTruth, load_ground_truth, load_results
from tests.evaluation.oracle import official_numbers
from tests.evaluation.worlds import World, rle, small_world

Entry = dict[str, Any]


def decoded(entry: Entry) -> np.ndarray:
    return mask_utils.decode(entry["segmentation"]).astype(bool)


def box(mask_HW: np.ndarray) -> list[float]:
    """x, y, width, height."""
    return mask_utils.toBbox(
        mask_utils.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    ).tolist()


def mask_rcnn(entry: Entry) -> Entry:
    """Also HTC and QueryInst: a box stands beside the mask. It must not be measured: this one is
    far too large."""
    return {
        "image_id": entry["image_id"],
        "bbox": [0.0, 0.0, 1e4, 1e4],
        "score": entry["score"],
        "category_id": entry["category_id"],
        "segmentation": entry["segmentation"],
    }


def solov2(entry: Entry) -> Entry:
    """Masks alone; ids that went through floats."""
    return {
        **entry,
        "image_id": float(entry["image_id"]),
        "category_id": float(entry["category_id"]),
    }


def uncompressed(entry: Entry) -> Entry:
    columns = decoded(entry).T.ravel().astype(np.int8)
    edges = np.flatnonzero(np.diff(columns, prepend=0, append=2))
    counts = np.diff(edges, prepend=0).tolist()
    return {
        **entry,
        "segmentation": {"counts": counts, "size": entry["segmentation"]["size"]},
        "id": 5,
        "area": 1,
    }


def polygons(entry: Entry) -> Entry:
    """Two halves of what `small_world` predicts: rectangles."""
    x, y, w, h = box(decoded(entry))
    middle = x + w // 2
    halves = [(x, middle), (middle, x + w)]
    parts = [[a, y, b, y, b, y + h, a, y + h] for a, b in halves if a < b]
    return {**entry, "segmentation": parts, "iscrowd": 0}


STYLES: dict[str, Callable[[Entry], Entry]] = {
    "mask_rcnn": mask_rcnn, "solov2": solov2, "uncompressed": uncompressed, "polygons": polygons,
}  # fmt: skip


@pytest.fixture
def world() -> World:
    return small_world(seed=3, images=12)


def files(folder: Path, world: World, entries: list[Entry]) -> tuple[Path, Path]:
    results = folder / "model.segm.json"
    results.write_text(json.dumps(entries))
    return world.write(folder), results


@pytest.mark.parametrize("style", [*STYLES, "all"])
@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_every_style_gives_the_same_numbers(
    tmp_path: Path, world: World, style: str, engine: Any
) -> None:
    chosen = list(STYLES.values()) if style == "all" else [STYLES[style]]
    entries = [chosen[n % len(chosen)](entry) for n, entry in enumerate(world.results)]
    annotations, results = files(tmp_path, world, entries)
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps(world.results))
    expected = official_numbers(annotations, plain)
    assert 0.1 < expected[0] < 0.9
    numbers = list(evaluate_results(annotations, results, engine).numbers().values())
    np.testing.assert_allclose(numbers, expected, rtol=0, atol=1e-12)


def test_a_file_of_boxes_is_named_as_one(tmp_path: Path, world: World) -> None:
    """Tools write it beside the file of masks."""
    entries = [{**mask_rcnn(entry)} for entry in world.results]
    for entry in entries:
        del entry["segmentation"]
    annotations, results = files(tmp_path, world, entries)
    with pytest.raises(
        CocoError,
        match=rf"of {len(entries)} entries: {len(entries)} of a box without a segmentation\n",
    ):
        load_results(results, load_ground_truth(annotations), ignore_unknown=True)


# -- whatever is in a file
# -----------------------------------------------------------------------------------------------

SIZE = (6, 8)
TRUTH = GroundTruth("truth", {7: SIZE, 8: SIZE}, {3: "cat"}, [])
MASK = rle(np.tri(*SIZE, dtype=bool))
odd = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.just(10**400), st.just([]), st.just({}),
    st.lists(st.integers(-2, 9), max_size=7), st.just([["a"] * 6]), st.just([[float("nan")] * 6]),
)  # fmt: skip
segmentations = st.one_of(
    odd,
    st.just(MASK),
    st.just([[0, 0, 5, 0, 5, 5]]),
    st.fixed_dictionaries(
        {
            "size": st.one_of(odd, st.just(list(SIZE))),
            "counts": st.one_of(odd, st.just(MASK["counts"])),
        }
    ),
)
FIELDS = {
    "image_id": odd,
    "category_id": odd,
    "score": odd,
    "segmentation": segmentations,
    "bbox": odd,
}
fine = st.builds(
    lambda image, score: {"image_id": image, "category_id": 3, "score": score, "segmentation": MASK},
    st.sampled_from([7, 8]), st.floats(0, 1),
)  # fmt: skip
lacking = st.builds(
    lambda entry, key: {k: v for k, v in entry.items() if k != key},
    fine,
    st.sampled_from([*FIELDS]),
)
one_field = st.one_of(*(st.tuples(st.just(key), values) for key, values in FIELDS.items()))
changed = st.builds(lambda entry, field: {**entry, field[0]: field[1]}, fine, one_field)


@settings(max_examples=200)
@given(st.lists(st.one_of(fine, changed, changed, lacking, odd), max_size=4), st.booleans())
def test_every_entry_is_kept_or_counted(entries: list[Any], ignore_unknown: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            results = load_results(entries, TRUTH, ignore_unknown)
        except CocoError as error:
            first = str(error).splitlines()[0]
            counted = [
                int(part.split()[0])
                for part in first.split(" entries: ")[1].split(", ")
                if part[0].isdigit()
            ]
            assert 1 <= sum(counted) <= len(entries)
            return
    assert len(results.entries) + sum(results.ignored.values()) == len(entries)
    for entry in results.entries:
        assert entry["image_id"] in TRUTH.sizes
        assert entry["category_id"] == 3
        assert np.isfinite(entry["score"])
        assert mask_utils.decode(entry["segmentation"]).shape == SIZE


def test_large_files_are_read_quickly() -> None:
    """20,000 predictions in far less CPU time than this; and as many faults make a short
    message."""
    shape = (480, 640)
    truth = GroundTruth("truth", dict.fromkeys(range(200), shape), {1: "a"}, [])
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    masks = [
        rle((rows - 240) ** 2 + (columns - 320) ** 2 < radius**2) for radius in range(10, 200, 19)
    ]
    entries = [
        {"image_id": n % 200, "category_id": 1, "score": 0.5, "segmentation": masks[n % len(masks)]}
        for n in range(20_000)
    ]
    began = time.process_time()
    assert len(load_results(entries, truth).entries) == len(entries)
    for entry in entries:
        entry["category_id"] = 2
    with pytest.raises(CocoError, match=r"20000 of an unknown category") as error:
        load_results(entries, truth)
    assert time.process_time() - began < 20
    assert len(str(error.value)) < 1000
