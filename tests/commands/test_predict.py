"""`alignmask predict`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

import alignmask
from alignmask.commands import predict as predict_command
from tests.commands.terminal import Terminal, photo


def test_predict_writes_pictures_and_coco_json(
    workshop: Path, alignmask_: Terminal, tmp_path: Path
) -> None:
    photo(tmp_path / "in" / "a.jpg", (50, 70))
    photo(tmp_path / "in" / "b.PNG", (64, 40))
    (tmp_path / "in" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "folder.png").mkdir()
    other = photo(tmp_path / "other" / "a.bmp", (33, 35))
    out = tmp_path / "new" / "out"
    assert (
        alignmask_(
            "predict", workshop / "run", tmp_path / "in", other, "--out", out, "--threshold", 0
        )
        == 0
    )
    assert sorted(file.name for file in out.iterdir()) == [
        "1_a.png",
        "2_b.png",
        "3_a.png",
        "predictions.json",
    ]
    entries = json.loads((out / "predictions.json").read_text())
    count = f"{len(entries)} instances with a score of 0 or more (--threshold)"
    assert alignmask_.out == f"{count} in 3 images: pictures and predictions.json in {out}\n"
    assert {entry["image_id"] for entry in entries} == {1, 2, 3}
    files = {1: tmp_path / "in" / "a.jpg", 2: tmp_path / "in" / "b.PNG", 3: other}
    predictor = alignmask.load(workshop / "run")
    for image_id, file in files.items():
        mine = [entry for entry in entries if entry["image_id"] == image_id]
        assert {entry["file_name"] for entry in mine} == {str(file)}
        expected = predictor.predict(file)
        assert len(mine) == len(expected) > 0
        for k, entry in enumerate(mine):
            np.testing.assert_array_equal(
                mask_utils.decode(entry["segmentation"]).astype(bool), expected.masks[k].numpy()
            )
            assert entry["score"] == pytest.approx(float(expected.scores[k]))
            assert entry["category_id"] == predictor.category_ids[expected.labels[k]]
        with (
            Image.open(file) as image,
            Image.open(
                out / predict_command.picture_names(list(files.values()))[image_id - 1]
            ) as picture,
        ):
            assert picture.width % image.width == 0
            assert picture.width * image.height == picture.height * image.width
            assert max(picture.size) >= 512


def test_predict_keeps_confident_instances_alone(
    workshop: Path, alignmask_: Terminal, tmp_path: Path
) -> None:
    file = photo(tmp_path / "a.jpg")
    scores = alignmask.load(workshop / "run").predict(file).scores
    threshold = float(scores[len(scores) // 2])
    assert (
        alignmask_(
            "predict", workshop / "run", file, "--out", tmp_path / "out", "--threshold", threshold
        )
        == 0
    )
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(entries) == int((scores >= threshold).sum()) < len(scores)
    assert (
        alignmask_("predict", workshop / "run", file, "--out", tmp_path / "out", "--threshold", 1)
        == 0
    )
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == []
    assert alignmask_.out.startswith(
        "0 instances with a score of 1 or more (--threshold) in 1 image: "
    )


def test_predict_goes_on_after_a_corrupt_image_and_names_it(
    workshop: Path, alignmask_: Terminal, tmp_path: Path
) -> None:
    good = photo(tmp_path / "in" / "good.jpg", (300, 300))
    (tmp_path / "in" / "cut.jpg").write_bytes(good.read_bytes()[:5000])
    (tmp_path / "in" / "empty.png").write_bytes(b"")
    assert alignmask_("predict", workshop / "run", tmp_path / "in", "--out", tmp_path / "out") == 2
    assert re.search(r"^\d+ instances with .* in 1 image: ", alignmask_.out)
    assert "alignmask: 2 images could not be read:\n" in alignmask_.err
    assert f"{tmp_path}/in/cut.jpg: cannot decode the image: " in alignmask_.err
    assert f"{tmp_path}/in/empty.png: not an image file" in alignmask_.err
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "good.png",
        "predictions.json",
    ]
    text = alignmask_.complaint(
        "predict", workshop / "run", tmp_path / "in" / "empty.png", "--out", tmp_path / "out"
    )
    assert text.startswith(f"{tmp_path}/in/empty.png: not an image file")


def test_predict_mistakes(workshop: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    run, file = workshop / "run", photo(tmp_path / "a.jpg")
    complaint = alignmask_.complaint
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path}/b.jpg: no such file or folder" in complaint(
        "predict", run, file, tmp_path / "b.jpg"
    )
    assert f"no image files in {tmp_path}/empty: none that ends in .bmp, " in complaint(
        "predict", run, tmp_path / "empty"
    )
    assert "no image files given" in complaint("predict", run)
    assert "checkpoint nowhere: no such file or folder" in complaint("predict", "nowhere", file)
    assert "--threshold: expected 0 to 1, got 50.0" in complaint(
        "predict", run, file, "--threshold", 50
    )
    (tmp_path / "file").write_text("")
    assert f"{tmp_path}/file" in complaint("predict", run, file, "--out", tmp_path / "file")


@pytest.mark.parametrize("damage", ["weights", "config", "meta", "other weights"])
def test_a_corrupt_checkpoint_is_named(
    workshop: Path, alignmask_: Terminal, tmp_path: Path, damage: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(workshop / "run" / "best", broken)
    if damage == "weights":
        weights = broken / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        expected = f"checkpoint file {weights} cannot be read: "
    elif damage == "config":
        (broken / "config.json").write_text('{"name": 5}')
        expected = f"{broken}/config.json: "
    elif damage == "meta":
        (broken / "meta.json").write_text("{}")
        expected = f"checkpoint file {broken}/meta.json: expected a list class_names of 6 entries"
    else:
        config = json.loads((broken / "config.json").read_text())
        config["model"]["query_decoder"]["queries"] = 7
        (broken / "config.json").write_text(json.dumps(config))
        expected = f"checkpoint {broken} does not fit its own config.json: "
    assert alignmask_.complaint(
        "predict", broken, photo(tmp_path / "a.jpg"), "--out", tmp_path / "o"
    ).startswith(expected)


def test_picture_names_and_image_ids() -> None:
    files = [Path("x/a.jpg"), Path("y/a.png"), Path("y/b.png")]
    assert predict_command.picture_names(files) == ["1_a.png", "2_a.png", "3_b.png"]
    assert predict_command.image_ids(files) == [1, 2, 3]
    assert predict_command.image_ids([Path("000139.jpg"), Path("285.png")]) == [139, 285]
    assert predict_command.image_ids([Path("000139.jpg"), Path("139.png")]) == [1, 2]
    assert predict_command.image_ids([Path("139.jpg"), Path("b.png")]) == [1, 2]
    assert (
        len(set(predict_command.picture_names([Path("x/a.jpg"), Path("y/a.png"), Path("1_a.png")])))
        == 3
    )
