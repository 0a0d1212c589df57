"""A short run of the fuzzer of COCO files; `python -m tests.data.fuzz_coco` is the long one."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from alignmask.data import CocoError
from alignmask.data.coco_json import read_coco
from tests.data import fuzz_coco
from tests.data.coco_files import annotation, image_record, write_coco


def test_check_training_and_evaluation_agree_on_damaged_files() -> None:
    command = [sys.executable, "-m", "tests.data.fuzz_coco", "--files", "400", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "400 files, none with a crash or a disagreement" in done.stdout


def test_the_undamaged_file_is_accepted_by_all(tmp_path: Path) -> None:
    content = fuzz_coco.valid()
    images, path = write_coco(
        tmp_path, content["images"], content["annotations"], content["categories"]
    )
    said = fuzz_coco.verdicts(path, images)
    assert said == {"check": None, "training": None, "evaluation": None}
    path.write_text(json.dumps(fuzz_coco.damaged(random.Random("0 350"))))
    assert all(fuzz_coco.verdicts(path, images).values())


def test_disagreements_are_seen() -> None:
    fine = {"check": None, "training": None, "evaluation": None}
    assert fuzz_coco.disagreement(fine) is None
    assert fuzz_coco.disagreement({**fine, "check": "no"})
    assert fuzz_coco.disagreement({**fine, "training": "no"})
    assert fuzz_coco.disagreement({**fine, "evaluation": "no"})
    assert not fuzz_coco.disagreement({"check": "no", "training": "no", "evaluation": None})


def test_images_have_as_many_pixels_as_masks_can_count(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    for height, refused in ((2**31 - 1, False), (2**31, True), (10**400, True)):
        image = {**image_record(1), "height": height, "width": 1}
        content = {
            "images": [image], "annotations": [], "categories": [{"id": 1, "name": "a"}],
        }  # fmt: skip
        path.write_text(json.dumps(content))
        if refused:
            with pytest.raises(CocoError, match=r"1 of more than 2,147,483,647 pixels"):
                read_coco(path)
        else:
            assert read_coco(path).images[1].height == height


@pytest.mark.parametrize("counts", ["\ud800", "é", "0\u2028", "\x00", "0 0"])
def test_counts_of_no_ascii_are_damaged(tmp_path: Path, counts: str) -> None:
    segmentation = {"size": [20, 30], "counts": counts}
    _, path = write_coco(tmp_path, None, [annotation(segmentation=segmentation)], None)
    with pytest.raises(CocoError, match=r"annotation id 1, .*RLE counts are damaged"):
        read_coco(path)
