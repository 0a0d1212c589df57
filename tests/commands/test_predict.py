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
from alignmask.commands import _predicting
from tests.commands.terminal import Terminal, photo


def test_predict_in_tiles_writes_everything(
    workshop: Path, alignmask_: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = photo(tmp_path / "in" / "a.png", (150, 170))
    options = ("--tile", 64, "--overlap", 0.3, "--batch-size", 2, "--threshold", 0)
    formats = ("--format", "overlay", "coco", "labels", "geojson")
    out = tmp_path / "out"
    assert alignmask_("predict", workshop / "run", file, "--out", out, *options, *formats) == 0
    found = alignmask.load(workshop / "run").predict_in_tiles(
        file, 64, overlap=0.3, batch_size=2, suppression="hard"
    )
    entries = json.loads((out / "predictions.json").read_text())
    assert [entry["segmentation"] for entry in entries] == found.rles
    assert len(json.loads((out / "a.geojson").read_text())["features"]) == len(found) > 0
    with Image.open(out / "a_labels.png") as labels, Image.open(out / "a.png") as overlay:
        assert np.array_equal(np.asarray(labels) == 1, found.masks_NHW[0].numpy())
        assert overlay.size[0] >= 170
    monkeypatch.setattr(_predicting, "DENSE_LIMIT", 150 * 170)
    assert alignmask_("predict", workshop / "run", file, "--out", tmp_path / "b", *options) == 0
    assert f"no overlay of {file}: {len(found)} masks" in alignmask_.err
    assert [entry.name for entry in (tmp_path / "b").iterdir()] == ["predictions.json"]


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
        expected = predictor.predict(file, suppression="hard")  # the command's default
        assert len(mine) == len(expected) > 0
        for k, entry in enumerate(mine):
            np.testing.assert_array_equal(
                mask_utils.decode(entry["segmentation"]).astype(bool), expected.masks[k].numpy()
            )
            assert entry["score"] == pytest.approx(float(expected.scores[k]))
            assert entry["category_id"] == predictor.category_ids[expected.labels[k]]
        with (
            Image.open(file) as image,
            Image.open(out / f"{image_id}_{file.stem}.png") as picture,
        ):
            assert picture.width % image.width == 0
            assert picture.width * image.height == picture.height * image.width
            assert max(picture.size) >= 512


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


EVERYTHING = ("--format", "overlay", "coco", "labels", "geojson")


def test_predict_never_overwrites_an_input(
    workshop: Path, alignmask_: Terminal, tmp_path: Path
) -> None:
    """Under whatever name the file is an output: itself, a link to it or to its folder."""
    for k in range(5):
        photo(tmp_path / "in" / f"photo{k}.png", (20 + k, 30))
    before = contents(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photo3.png").symlink_to(tmp_path / "in" / "photo3.png")
    (tmp_path / "hard").mkdir()
    (tmp_path / "hard" / "photo3.png").hardlink_to(tmp_path / "in" / "photo0.png")
    for out in ("in", "in/../in", "link"):
        text = alignmask_.complaint(
            "predict", workshop / "run", tmp_path / "in", "--out", tmp_path / out
        )
        first = ", ".join(f"{tmp_path / out}/photo{k}.png" for k in range(3))
        assert text == (
            f"predict: this would overwrite 5 files of the images to predict on ({first}, ...): "
            "nothing was predicted; choose another folder with --out"
        )
    for out in ("out", "hard"):
        text = alignmask_.complaint(
            "predict", workshop / "run", tmp_path / "link", "--out", tmp_path / out
        )
        assert f"1 file of the images to predict on ({tmp_path}/{out}/photo3.png)" in text
        (tmp_path / out / "photo3.png").unlink()
        (tmp_path / out).rmdir()
    (tmp_path / "link").unlink()
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["a.png", "a_labels.png", "a.geojson", "predictions.json", "nowhere"]
)
def test_predict_never_overwrites_a_file_of_others(
    workshop: Path, alignmask_: Terminal, tmp_path: Path, name: str
) -> None:
    file, out = photo(tmp_path / "in" / "a.jpg"), tmp_path / "out"
    out.mkdir()
    if name == "nowhere":  # a link to nothing is a file of others, too
        name = "a.png"
        (out / name).symlink_to(tmp_path / "nothing")
    elif name.endswith(".png"):
        photo(out / name)
    else:
        (out / name).write_text('[{"image_id": 1, "segmentation": {}, "score": 1}]')
    before = contents(out)
    text = alignmask_.complaint("predict", workshop / "run", file, "--out", out, *EVERYTHING)
    assert text == (
        f"predict: this would overwrite 1 file that predict did not make ({out}/{name}): nothing "
        "was predicted; choose another folder with --out, or remove them"
    )
    assert contents(out) == before
    assert [file.name for file in out.iterdir()] == [name]


def test_predict_replaces_what_it_made(
    workshop: Path, alignmask_: Terminal, tmp_path: Path
) -> None:
    """Also where the images are: its own pictures are no images to predict on."""
    file, out = photo(tmp_path / "in" / "a.jpg"), tmp_path / "in"
    command = ("predict", workshop / "run", tmp_path / "in", "--out", out, *EVERYTHING)
    assert alignmask_(*command, "--threshold", 0) == 0
    assert alignmask_.err.count("alignmask: ") == 0
    first = contents(out)
    assert sorted(first) == ["a.geojson", "a.jpg", "a.png", "a_labels.png", "predictions.json"]
    assert alignmask_(*command, "--threshold", 1) == 0
    assert "left out 2 files that are not images: 1 .geojson, 1 .json\n" in alignmask_.err
    assert "left out 2 pictures that predict made\n" in alignmask_.err
    second = contents(out)
    assert second["a.jpg"] == first["a.jpg"] == file.read_bytes()
    assert [name for name in first if first[name] != second[name]] == sorted({*first} - {"a.jpg"})
    assert alignmask_(*command, "--threshold", 0) == 0  # an empty predictions.json is replaced
    assert contents(out) == first


def test_predict_reads_what_pillow_reads(
    workshop: Path, alignmask_: Terminal, tmp_path: Path
) -> None:
    """Suffixes that few programs write, several pictures in a file, and what is no image."""
    folder = tmp_path / "in"
    photo(folder / "a.jfif")
    photo(folder / "b.JP2")
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "green", "blue")]
    for name in ("c.gif", "d.tif", "e.webp", "f.mpo", "g.apng"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    frames[0].save(folder / "h.gif")
    for name in (
        "notes.txt",
        "more.TXT",
        "data.h5",
        "figure.eps",
        "README",
        ".DS_Store",
        "._a.jpg",
    ):
        (folder / name).write_text("no image")
    out = tmp_path / "out"
    assert alignmask_("predict", workshop / "run", folder, "--out", out, "--threshold", 1) == 0
    assert sorted(contents(out)) == [*(f"{k}.png" for k in "abcdefgh"), "predictions.json"]
    kinds = "2 .txt, 1 without suffix, 1 .h5, 1 .eps"
    assert [line for line in alignmask_.err.splitlines() if line.startswith("alignmask: ")] == [
        f"alignmask: left out 5 files that are not images: {kinds}",
        "alignmask: 5 files have several pictures, of which the first was used: "
        f"{folder}/c.gif, ...",
    ]
    for name in "cdefg":
        with Image.open(out / f"{name}.png") as picture:
            assert np.ptp(picture, axis=(0, 1)).max() <= 2, name  # nothing is drawn
            assert picture.getpixel((0, 0)) == pytest.approx((255, 0, 0), abs=4), name


def test_predict_searches_subfolders(workshop: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    """Not the folder that it writes to, nor one folder twice."""
    folder, out = tmp_path / "in", tmp_path / "in" / "out"
    for name in ("a.jpg", "x/a.jpg", "x/y/b.jpg", ".hidden/c.jpg", "out/d.jpg"):
        photo(folder / name)
    (folder / "x" / "back").symlink_to(folder)
    command = ("predict", workshop / "run", folder, "--out", out, "--threshold", 0)
    for _ in range(2):
        assert alignmask_(*command, "--recursive", "--format", "overlay", "labels") == 0
        assert sorted(contents(out)) == [
            "a.png", "a_labels.png", "d.jpg", "x/a.png", "x/a_labels.png", "x/y/b.png", "x/y/b_labels.png",
        ]  # fmt: skip
    assert alignmask_.out.endswith(f" in 3 images: pictures and label maps in {out}\n")
    assert alignmask_(*command, "--format", "coco") == 0
    assert "left out 1 subfolder, which --recursive searches, too" in alignmask_.err
    entries = json.loads((out / "predictions.json").read_text())
    assert {entry["file_name"] for entry in entries} == {str(folder / "a.jpg")}


def test_formats_agree(workshop: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    file, out = photo(tmp_path / "a.jpg", (40, 60)), tmp_path / "out"
    command = ("predict", workshop / "run", file, "--out", out, "--threshold", 0)
    assert alignmask_(*command, "--format", "labels", "geojson") == 0
    assert sorted(contents(out)) == ["a.geojson", "a_labels.png"]
    predictor = alignmask.load(workshop / "run")
    found = predictor.predict_encoded(file, suppression="hard").dense()
    with Image.open(out / "a_labels.png") as picture:
        assert picture.mode == "I;16"
        label_HW = np.array(picture)
    best_HW = np.where(found.masks.any(0), found.masks.int().argmax(0) + 1, 0)
    np.testing.assert_array_equal(label_HW, best_HW)
    collection = json.loads((out / "a.geojson").read_text())
    assert collection["type"] == "FeatureCollection"
    assert collection["file_name"] == str(file)
    features = collection["features"]
    assert len(features) == len(found) > 0
    for k, feature in enumerate(features):
        label = int(found.labels[k])
        properties = feature["properties"]
        assert properties["class"] == predictor.class_names[label]
        assert properties["classification"] == {"name": predictor.class_names[label]}
        assert properties["category_id"] == predictor.category_ids[label]
        assert properties["score"] == properties["measurements"]["score"] == float(found.scores[k])
    assert alignmask_.complaint(*command, "--format").startswith("predict: --format: expected")


def test_predict_keeps_confident_instances_alone(
    workshop: Path, alignmask_: Terminal, tmp_path: Path
) -> None:
    file = photo(tmp_path / "a.jpg")
    found = alignmask.load(workshop / "run").predict_encoded(file, suppression="hard")
    scores = found.scores_N
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
    assert (
        complaint("predict", run, tmp_path / "empty")
        == f"predict: no image files in {tmp_path}/empty"
    )
    (tmp_path / "empty" / "a.txt").write_text("")
    photo(tmp_path / "empty" / "sub" / "a.png")
    assert complaint("predict", run, tmp_path / "empty") == (
        f"predict: no image files in {tmp_path}/empty; left out 1 file that is not an image: "
        "1 .txt; left out 1 subfolder, which --recursive searches, too"
    )
    assert "no image files given" in complaint("predict", run)
    assert "checkpoint nowhere: no such file or folder" in complaint("predict", "nowhere", file)
    assert "--threshold: expected 0 to 1, got 50.0" in complaint(
        "predict", run, file, "--threshold", 50
    )
    (tmp_path / "file").write_text("")
    assert f"--out: expected a folder, and {tmp_path}/file is a file" in complaint(
        "predict", run, file, "--out", tmp_path / "file"
    )


@pytest.mark.parametrize("damage", ["weights", "config", "meta", "other weights"])
def test_a_corrupt_checkpoint_is_named(
    workshop: Path, alignmask_: Terminal, tmp_path: Path, damage: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(workshop / "run" / "best", broken)
    if damage == "weights":
        weights = broken / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        expected = f"checkpoint file {weights} is damaged: "
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


def test_image_ids() -> None:
    files = [Path("x/a.jpg"), Path("y/a.png"), Path("y/b.png")]
    assert _predicting.image_ids(files) == [1, 2, 3]
    assert _predicting.image_ids([Path("000139.jpg"), Path("285.png")]) == [139, 285]
    assert _predicting.image_ids([Path("000139.jpg"), Path("139.png")]) == [1, 2]
    assert _predicting.image_ids([Path("139.jpg"), Path("b.png")]) == [1, 2]


def test_the_range_of_samples(workshop: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    """As if the image had 8 bits from the start."""
    levels = np.random.default_rng(0).integers(0, 256, (50, 70)).astype(np.float32)
    Image.fromarray(levels / 256).save(tmp_path / "deep.tif")
    Image.fromarray(levels.astype(np.uint8)).save(tmp_path / "plain.png")
    run, options = workshop / "run", ("--threshold", 0, "--format", "coco", "--out")
    assert alignmask_("predict", run, tmp_path / "deep.tif", *options, tmp_path / "none") == 2
    assert "or --sample-range of `predict`" in alignmask_.err
    found = []
    for name, more in (("deep.tif", ("--sample-range", 0, 1)), ("plain.png", ())):
        out = tmp_path / name[:4]
        assert alignmask_("predict", run, tmp_path / name, *options, out, *more) == 0
        entries = json.loads((out / "predictions.json").read_text())
        found.append([{**entry, "file_name": ""} for entry in entries])
    assert found[0]
    assert found[0] == found[1]
