"""The synthetic data set: geometry, annotations, determinism, and when it is (re)generated."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from alignmask.config import ShapesConfig
from alignmask.data import CocoDataset, shapes


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> ShapesConfig:
    config = ShapesConfig(tmp_path_factory.mktemp("shapes") / "deep" / "root", 60, 5, 96, 6, seed=1)
    shapes.generate(config)
    return config


def fingerprint(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def test_files_and_annotations(config):
    root = Path(config.root)
    for split, count in (("train", 60), ("val", 5)):
        assert [path.name for path in sorted((root / split).iterdir())] == [
            f"{i:06d}.png" for i in range(count)
        ]
        dataset = CocoDataset(root / split, root / f"instances_{split}.json")
        assert len(dataset) == count
        assert dataset.class_names == list(shapes.CLASSES[:6])
        for index in range(count):
            sample = dataset[index]
            assert sample.size == (96, 96)
            assert len(sample.labels_N) <= 6
            assert sample.masks_NHW.sum(0).max() <= 1  # visible masks: nothing is in two instances
            assert (sample.masks_NHW.flatten(1).sum(1) >= 12).all()
    content = json.loads((root / "instances_train.json").read_text())
    assert {a["category_id"] for a in content["annotations"]} == set(range(1, 7))
    assert {a["image_id"] for a in content["annotations"]} <= {i["id"] for i in content["images"]}
    for annotation in content["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"])
        rows, columns = np.nonzero(mask)
        assert annotation["area"] == mask.sum()
        left, top, width, height = annotation["bbox"]
        assert (left, top) == (columns.min(), rows.min())
        assert (left + width - 1, top + height - 1) == (columns.max(), rows.max())
        assert annotation["iscrowd"] == 0


def test_sizes_spread_and_shapes_are_occluded():
    """Large to small, and a good share of the instances is covered in part."""
    areas, covered, counts = [], 0, []
    for number in range(150):
        _, masks, labels = shapes.draw(np.random.default_rng((5, number)), 128, 6)
        counts.append(len(labels))
        areas += [mask.sum() for mask in masks]
        union = masks.any(0) if len(masks) else np.zeros((128, 128), dtype=bool)
        for mask in masks:
            grown = np.pad(mask, 1)
            ring = grown[:-2, 1:-1] | grown[2:, 1:-1] | grown[1:-1, :-2] | grown[1:-1, 2:]
            covered += (ring & ~mask & union).sum() > 5  # another instance touches this one
    assert np.quantile(areas, 0.1) < 200
    assert np.quantile(areas, 0.9) > 1200
    assert covered / sum(counts) > 0.2
    assert 0 in counts
    assert max(counts) == 6
    assert np.mean(counts) > 2.5


@pytest.mark.parametrize("name", shapes.CLASSES)
def test_outlines_are_the_shapes(name):
    """Against shapes drawn by Pillow."""
    side, radius = 401, 180
    y, x = (np.mgrid[:side, :side] - side // 2) / radius
    depth = -shapes._outline(name, x, y)
    drawn = Image.new("1", (side, side))
    pen = ImageDraw.Draw(drawn)

    def corner(angle: float, length: float) -> tuple[float, float]:
        return side // 2 + radius * length * math.cos(
            angle
        ), side // 2 + radius * length * math.sin(angle)

    def at(*xy: float) -> list[float]:
        return [side // 2 + radius * value for value in xy]

    def disc(length: float, fill: int, x: float = 0, y: float = 0) -> None:
        pen.ellipse(at(x - length, y - length, x + length, y + length), fill=fill)

    def box(*corners: float, fill: int = 1) -> None:
        pen.rectangle(at(*corners), fill=fill)

    if name == "circle":
        disc(1, 1)
    elif name == "ring":
        disc(1, 1)
        disc(0.5, 0)
    elif name == "square":
        pen.polygon([corner(math.pi / 4 + k * math.pi / 2, 1) for k in range(4)], fill=1)
    elif name == "triangle":
        pen.polygon([corner(2 * math.pi * k / 3, 1) for k in range(3)], fill=1)
    elif name == "star":
        pen.polygon([corner(math.pi * k / 5, 0.42 if k % 2 else 1) for k in range(10)], fill=1)
    elif name == "pentagon":
        pen.polygon([corner(2 * math.pi * k / 5, 1) for k in range(5)], fill=1)
    elif name == "spark":
        pen.polygon([corner(math.pi * k / 4, 0.35 if k % 2 else 1) for k in range(8)], fill=1)
    elif name == "frame":
        box(-0.7, -0.7, 0.7, 0.7)
        box(-0.38, -0.38, 0.38, 0.38, fill=0)
    elif name == "semicircle":
        disc(0.9, 1, y=-0.42)
        box(-1, -2, 1, -0.42, fill=0)
    elif name == "crescent":
        disc(1, 1)
        disc(0.75, 0, x=0.5)
    elif name == "tee":
        box(-0.75, -0.65, 0.75, -0.15)
        box(-0.25, -0.6, 0.25, 0.9)
    else:
        center = side // 2
        for a, b in ((0.95 * radius, 0.28 * radius), (0.28 * radius, 0.95 * radius)):
            pen.rectangle([center - a, center - b, center + a, center + b], fill=1)
    differs = (depth > 0) != np.array(drawn)
    assert np.abs(depth[differs] * radius).max(initial=0) < 2  # only along the outline
    assert differs.mean() < 0.02


def test_classes_are_not_told_apart_by_colour():
    colors: list[list[np.ndarray]] = [[] for _ in shapes.CLASSES]
    for number in range(500):
        image, masks, labels = shapes.draw(np.random.default_rng((6, number)), 64, 6, len(colors))
        for mask, label in zip(masks, labels, strict=True):
            colors[label].append(image[mask].mean(0))
    for values in colors:
        array = np.stack(values)
        assert np.abs(array.mean(0) - 127.5).max() < 25
        assert (array.std(0) > 45).all()


def test_the_default_images_are_the_same_for_ever():
    """Results in the log refer to them."""
    digest = hashlib.sha256()
    for number in range(20):
        image, masks, labels = shapes.draw(np.random.default_rng((0, 0, number)), 96, 6)
        digest.update(image.tobytes() + np.packbits(masks).tobytes() + bytes(labels))
    assert digest.hexdigest() == "59aca36842fbc279c11ae29412769c4d3ea476e2ebde7699b7425d8652161b27"


def test_small_crowded_instances_are_the_same_for_ever_too():
    """Where the least diameter and the least visible area come into play, which the default size
    never meets."""
    digest = hashlib.sha256()
    for number in range(60):
        _, masks, labels = shapes.draw(np.random.default_rng((0, 0, number)), 32, 9, 12, 0.7, 0.1)
        digest.update(np.packbits(masks).tobytes() + bytes(labels))
    assert digest.hexdigest() == "edeb63d3e333ec0b370ab6a6615682080202c9e57fac03ad1a18daa5423d8632"


def test_crowding_hides_more_and_all_classes_come():
    def hidden_share(**options: float) -> float:
        seen = []
        for number in range(100):
            _, masks, labels = shapes.draw(np.random.default_rng((7, number)), 96, 8, 12, **options)
            seen += labels
            assert (masks.sum((1, 2)) >= 12).all()
            touching.append(masks.any(0).sum() / max(1, len(masks)))
        assert set(seen) == set(range(12))
        return float(np.mean(touching))

    touching: list[float] = []
    apart = hidden_share()
    touching.clear()
    # Visible pixels per instance.
    assert hidden_share(crowding=1.0, visible_share=0.2) < 0.8 * apart


def test_an_older_data_set_with_the_default_settings_is_kept(tmp_path, capsys):
    small = ShapesConfig(tmp_path / "root", 2, 1, 32)
    shapes.generate(small)
    marker = tmp_path / "root" / shapes.MARKER
    old = json.loads(marker.read_text())
    for name in ("classes", "crowding", "visible_share"):
        del old[name]
    marker.write_text(json.dumps(old))
    capsys.readouterr()
    shapes.generate(small)
    assert capsys.readouterr().err == ""
    with pytest.raises(FileExistsError, match=r"crowding 0\.0 -> 0\.5\)"):
        shapes.generate(replace(small, crowding=0.5))


def test_same_settings_same_bytes_in_any_process(config, tmp_path):
    other = replace(config, root=tmp_path / "again")
    process = multiprocessing.get_context("spawn").Process(target=shapes.generate, args=(other,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert fingerprint(tmp_path / "again") == fingerprint(Path(config.root))


def test_images_do_not_depend_on_the_counts_and_differ_by_seed_and_split(config, tmp_path):
    shapes.generate(replace(config, root=tmp_path / "few", train_images=3, val_images=1))
    shapes.generate(replace(config, root=tmp_path / "seed", train_images=3, val_images=1, seed=2))
    few, other, whole = (
        fingerprint(root) for root in (tmp_path / "few", tmp_path / "seed", Path(config.root))
    )
    assert all(few[name] == whole[name] for name in few if name.endswith(".png"))
    assert few["train/000000.png"] != few["val/000000.png"]
    assert few["train/000000.png"] != other["train/000000.png"]


def test_second_call_does_nothing(config, monkeypatch, capsys):
    monkeypatch.setattr(shapes, "draw", lambda *_: pytest.fail("generated again"))
    shapes.generate(config)
    assert capsys.readouterr() == ("", "")


def test_other_settings_do_not_replace_what_a_training_may_be_reading(tmp_path, capsys):
    small = ShapesConfig(tmp_path / "root", 2, 1, 32)
    (tmp_path / "root").mkdir()  # empty: as good as none
    shapes.generate(small)
    assert "first use" in capsys.readouterr().err
    before = fingerprint(tmp_path / "root")
    with pytest.raises(
        FileExistsError,
        match=r"other settings \(train_images 2 -> 3, seed 0 -> 9\).*--data.shapes.root",
    ):
        shapes.generate(replace(small, train_images=3, seed=9))
    assert fingerprint(tmp_path / "root") == before
    assert {path.name for path in tmp_path.iterdir()} <= {"root", ".root.lock"}


def test_an_interrupted_generation_leaves_nothing_half_done(tmp_path, monkeypatch):
    small = ShapesConfig(tmp_path / "root", 3, 1, 32)

    def interrupt(rng, size, *_, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return np.zeros((size, size, 3), np.uint8), np.zeros((0, size, size), bool), []

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "draw", interrupt)
        with pytest.raises(KeyboardInterrupt):
            shapes.generate(small)
        assert not (tmp_path / "root").exists()
    shapes.generate(small)
    assert {path.name for path in tmp_path.iterdir()} <= {"root", ".root.lock"}


def test_processes_that_start_together_make_one_data_set(tmp_path, capfd):
    small = ShapesConfig(tmp_path / "root", 20, 2, 32)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=shapes.generate, args=(small,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert capfd.readouterr().err.count("generating") == 1
    assert len(list((tmp_path / "root" / "train").iterdir())) == 20


def test_other_peoples_files_are_left_alone(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="choose another root"):
        shapes.generate(ShapesConfig(tmp_path / "root", 1, 1, 32))
    assert (tmp_path / "root" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 16}, {"train_images": 0}, {"max_instances": 0}, {"seed": -1}, {"classes": 13}, {"classes": 0},
        {"crowding": 1.5}, {"visible_share": 0.0},
    ],
)  # fmt: skip
def test_impossible_settings(tmp_path, changes):
    with pytest.raises(ValueError, match="shapes: expected"):
        shapes.generate(replace(ShapesConfig(tmp_path / "root", 1, 1, 32), **changes))
