"""Large annotation files, kept in the checked form."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest

from alignmask.data import coco_json, index
from alignmask.data.coco_json import read_coco
from alignmask.data.faults import CocoError
from alignmask.data.records import CocoFile

SQUARE = [[1, 1, 9, 1, 9, 9, 1, 9]]


def content(**changes: Any) -> dict[str, Any]:
    """Two images, one without a file name; a crowd, a mask of no area, one without a polygon and
    one short polygon beside a good one."""
    annotations = [
        {"image_id": 7, "category_id": 3, "segmentation": SQUARE, "area": 11.5},
        {"image_id": 5, "category_id": 90, "segmentation": [*SQUARE, [1, 1]]},
        {"image_id": 7, "category_id": 3, "segmentation": {"size": [10, 12], "counts": [4, 6, 110]}, "iscrowd": 1},
        {"image_id": 7, "category_id": 3, "segmentation": [[1, 1]]},
        {"image_id": 5, "category_id": 3, "segmentation": {"size": [10, 12], "counts": [120]}},
    ]  # fmt: skip
    return {
        "images": [
            {"id": 7, "height": 10, "width": 12, "file_name": "ü \ud800.png"},
            {"id": 5, "height": 10, "width": 12},
        ],
        "categories": [{"id": 90, "name": "[red]"}, {"id": 3, "name": ""}],
        "annotations": [{"id": 10**6 + n, **a} for n, a in enumerate(annotations)],
        **changes,
    }


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An annotation file, in a world where it is large."""
    monkeypatch.setenv("ALIGNMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "LARGE", 100)
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content()))
    return path


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are parsed."""
    paths: list[Path] = []
    parse = coco_json.read_records

    def noted(path: Path, keys: tuple[str, ...]) -> Any:
        paths.append(path)
        return parse(path, keys)

    monkeypatch.setattr(coco_json, "read_records", noted)
    return paths


def fresh(path: Path) -> CocoFile:
    return coco_json._read(coco_json._Reader(path, *coco_json._records(path, None)), None)


def test_the_second_time_it_is_not_parsed(file: Path, parsed: list[Path]) -> None:
    expected = fresh(file)
    assert len(expected.annotations) == 4
    assert len(expected.without_polygon) == expected.short_polygons == 1
    assert [read_coco(file), read_coco(file)] == [expected] * 2
    assert len(parsed) == 2
    assert read_coco(file, limit=1).listed == 3  # masks of the others are not looked at
    assert len(parsed) == 3
    moved = file.rename(file.with_name("moved.json"))
    assert read_coco(moved).path == moved
    assert len(parsed) == 3


@pytest.mark.parametrize(
    "changed",
    [{"annotations": []}, {"images": [{"id": 1, "height": 2, "width": 3}], "annotations": []}],
)
def test_another_content_is_read(file: Path, changed: dict[str, Any]) -> None:
    read_coco(file)
    file.write_text(json.dumps(content(**changed)))
    assert read_coco(file) == read_coco(file) == fresh(file)


def test_other_rules_read_it_again(
    file: Path, parsed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_coco(file)
    monkeypatch.setattr(index, "_rules", lambda: "0" * 64)
    read_coco(file)
    assert len(parsed) == 2


def test_small_files_and_faults_are_not_kept(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "LARGE", file.stat().st_size + 1)
    read_coco(file)
    assert not index.folder().exists()
    monkeypatch.setattr(index, "LARGE", 100)
    file.write_text(json.dumps(content(categories=[{"id": 3}])))
    for _ in range(2):
        with pytest.raises(CocoError, match="category"):
            read_coco(file)
    assert not list(index.folder().glob("*.npz"))


def test_an_id_beyond_64_bits_is_read_every_time(file: Path, parsed: list[Path]) -> None:
    file.write_text(
        json.dumps(content(images=[{"id": 2**70, "height": 2, "width": 3}], annotations=[]))
    )
    for _ in range(2):
        assert list(read_coco(file).images) == [2**70]
    assert len(parsed) == 2


def test_a_damaged_index_is_made_anew(file: Path, parsed: list[Path]) -> None:
    expected = read_coco(file)
    (kept,) = index.folder().glob("*.npz")
    whole = kept.read_bytes()
    for number in range(0, len(whole), 97):
        kept.write_bytes(whole[:number] + bytes([whole[number] ^ 16]) + whole[number + 1 :])
        assert read_coco(file) == expected
    kept.write_bytes(whole[: len(whole) // 2])
    assert read_coco(file) == expected
    before = len(parsed)
    assert read_coco(file) == expected
    assert len(parsed) == before


def test_where_nothing_can_be_kept_it_is_said(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file.parent / "no folder").touch()
    monkeypatch.setenv("ALIGNMASK_CACHE", str(file.parent / "no folder"))
    with pytest.warns(UserWarning, match=r"annotations.json: .*no folder.*ALIGNMASK_CACHE"):
        assert read_coco(file) == fresh(file)


def test_a_full_disk_does_not_end_the_program(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index.np, "savez", full)
    with pytest.warns(UserWarning, match="cannot be kept in .*No space left"):
        assert read_coco(file) == fresh(file)


def test_an_index_can_be_in_a_folder_that_is_read_only(
    file: Path, parsed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_coco(file)

    def no_lock(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(index.fcntl, "flock", no_lock)
    read_coco(file)
    assert len(parsed) == 1


def slow_reading(path: Path, log: Path) -> None:
    def read() -> CocoFile:
        with log.open("a") as lines:
            lines.write(f"{os.getpid()}\n")
        time.sleep(0.5)
        return fresh(path)

    assert len(index.kept(path, read).annotations) == 4


def test_one_of_several_processes_reads_it(file: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=slow_reading, args=(file, log)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 3
    assert len(log.read_text().splitlines()) == 1
