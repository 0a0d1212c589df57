"""`alignmask convert`, and training from converted weights."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Mask2FormerForUniversalSegmentation

import alignmask
from alignmask import checkpoint
from alignmask.commands.convert import classes
from alignmask.config import Config, ModelConfig
from alignmask.data.coco_classes import COCO_CLASSES
from alignmask.loading import from_mask2former
from alignmask.pretrained.read import Source
from tests.commands.terminal import Terminal, photo, train_arguments
from tests.model import peers

SHAPE = """--model.backbone.name resnet18.tv_in1k --model.backbone.freeze-norm --model.pixel-decoder.points 4
--model.query-decoder.queries 9""".split()  # noqa: SIM905
BASELINE = [*SHAPE, "--model.classification", "softmax", "--without", "model.aligned-queries"]


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: a small Swin, five classes."""
    folder = tmp_path_factory.mktemp("face")
    peer = peers.mask2former(peers.BACKBONES["swin"])
    peer.config.id2label = dict(enumerate(["cat", "dog", "cow", "hen", "owl"]))
    peer.save_pretrained(folder)
    return folder


def test_there_and_back(face: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    """Hugging Face -> ours -> Mask2Former -> ours -> Hugging Face: the same weights."""
    assert alignmask_("convert", face, tmp_path / "run") == 0
    assert alignmask_.out == (
        f"huggingface -> alignmask: {tmp_path / 'run'}\n"
        "swin_tiny_patch4_window7_224, 9 queries, 5 classes (cat, dog, cow, ...)\neverything was "
        "loaded and used\n"
    )
    predictor = alignmask.load(tmp_path / "run")
    assert predictor.class_names == ["cat", "dog", "cow", "hen", "owl"]
    assert predictor.category_ids == [1, 2, 3, 4, 5]
    assert (
        alignmask_("convert", tmp_path / "run", tmp_path / "file.pkl", "--to", "mask2former") == 0
    )
    assert alignmask_("convert", tmp_path / "file.pkl", tmp_path / "run2") == 0
    assert "5 classes (class 1, class 2, class 3, ...)" in alignmask_.out
    assert alignmask_("convert", tmp_path / "run2", tmp_path / "face", "--to", "huggingface") == 0
    before, after = (
        load_file(folder / "model.safetensors") for folder in (face, tmp_path / "face")
    )
    before = {name: tensor for name, tensor in before.items() if ".swin.layernorm." not in name}
    assert set(after) == set(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert (
        Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "face").config.id2label[0]
        == "class 1"
    )


def test_converted_runs_predict_and_evaluate(
    face: Path, workshop: Path, alignmask_: Terminal, tmp_path: Path
) -> None:
    assert alignmask_("convert", face, tmp_path / "run") == 0
    file = photo(tmp_path / "a.jpg")
    assert (
        alignmask_("predict", tmp_path / "run", file, "--out", tmp_path / "out", "--threshold", 0)
        == 0
    )
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert found
    assert {entry["category_id"] for entry in found} <= {1, 2, 3, 4, 5}

    # A baseline for the six shapes, with their names: it evaluates on them.
    annotations = next((workshop / "shapes").rglob("*val*.json"))
    peers.mask2former(peers.BACKBONES["swin"], num_labels=6).save_pretrained(tmp_path / "six")
    assert (
        alignmask_("convert", tmp_path / "six", tmp_path / "shapes", "--annotations", annotations)
        == 0
    )
    images = next(
        folder for folder in sorted((workshop / "shapes").rglob("*val*")) if folder.is_dir()
    )
    evaluate = (
        "eval",
        tmp_path / "shapes",
        "--data-images",
        images,
        "--annotations",
        annotations,
        "--workers",
        0,
    )
    assert alignmask_(*evaluate) == 0, alignmask_.err
    assert "AP" in alignmask_.out
    text = alignmask_.complaint("convert", face, tmp_path / "other", "--annotations", annotations)
    assert "has 6 categories, the model 5 classes" in text


def test_training_starts_from_converted_weights(alignmask_: Terminal, tmp_path: Path) -> None:
    """From a Mask2Former file into AlignMask: all but the class head and the aligned queries."""
    assert alignmask_(*train_arguments(tmp_path, *BASELINE, name="baseline", iterations=1)) == 0
    file = tmp_path / "baseline.pth"
    assert alignmask_("convert", tmp_path / "baseline", file, "--to", "mask2former") == 0
    start = [
        *SHAPE,
        "--train.init-from",
        str(file),
        "--train.learning-rate",
        "0",
        "--train.weight-decay",
        "0",
    ]
    assert alignmask_(*train_arguments(tmp_path, *start, name="run", iterations=1)) == 0
    assert "everything" not in alignmask_.err
    assert "not loaded, keep their initial values: aligned_queries.mlp.0.bias" in alignmask_.err
    assert "query_decoder.heads.classify.weight" in alignmask_.err
    trained = checkpoint.load_weights(checkpoint.latest(tmp_path / "run"), ema=False)
    for name, tensor in from_mask2former(file).model.state_dict().items():
        if "classify" not in name and tensor.is_floating_point():
            assert torch.equal(trained[name], tensor), name

    # A run that goes on has its own weights, and does not read the file again.
    file.unlink()
    assert alignmask_(*train_arguments(tmp_path, *start, name="run", iterations=2)) == 0
    assert "continues at iteration 1" in alignmask_.err
    assert "not loaded" not in alignmask_.err
    assert f"{file}" in alignmask_.complaint(
        *train_arguments(tmp_path, *start, name="other", iterations=2)
    )


def test_mistakes_are_one_line(
    face: Path, workshop: Path, alignmask_: Terminal, tmp_path: Path
) -> None:
    assert "neither a checkpoint nor a run" in alignmask_.complaint(
        "convert", tmp_path, tmp_path / "x"
    )
    assert "nowhere" in alignmask_.complaint("convert", tmp_path / "nowhere", tmp_path / "x")
    assert "nothing is overwritten" in alignmask_.complaint("convert", face, tmp_path)
    assert "has the format huggingface already" in alignmask_.complaint(
        "convert", face, tmp_path / "x", "--to", "huggingface"
    )
    assert "classification is quality_focal, not softmax" in alignmask_.complaint(
        "convert", workshop / "run", tmp_path / "x", "--to", "huggingface"
    )
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": print}))
    assert "asks for builtins.print" in alignmask_.complaint(
        "convert", tmp_path / "evil.pkl", tmp_path / "x"
    )
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04")
    assert "broken.pth: damaged" in alignmask_.complaint(
        "convert", tmp_path / "broken.pth", tmp_path / "x"
    )
    assert not (tmp_path / "x").exists()


def test_eighty_classes_are_cocos(tmp_path: Path) -> None:
    def source(count: int, names: list[str] | None = None, ids: list[int] | None = None) -> Source:
        return Source({}, Config(model=ModelConfig(num_classes=count)), names, ids)

    coco = (list(COCO_CLASSES.values()), list(COCO_CLASSES))
    assert classes(source(80), None) == coco
    assert classes(source(80, ["person", *"x" * 79]), None) == coco
    assert classes(source(80, list("y" * 80)), None) == (list("y" * 80), list(range(1, 81)))
    assert classes(source(2, ["a", "b"], [7, 9]), None) == (["a", "b"], [7, 9])


def test_coco_classes(data_root: Path) -> None:
    annotations = json.loads((data_root / "coco_subset" / "instances_val.json").read_text())
    assert {
        category["id"]: category["name"] for category in annotations["categories"]
    } == COCO_CLASSES
