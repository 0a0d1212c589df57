"""The models that come with the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import alignmask
from alignmask import checkpoint
from alignmask.config import Config
from alignmask.pretrained.read import initialise
from bench.release import release
from tests import tiny

NAMES = checkpoint.released()


def test_there_is_one() -> None:
    assert NAMES == ["nuclei"]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_told_about_and_names_no_path(name: str) -> None:
    folder = checkpoint.RELEASED / name
    assert (folder / checkpoint.MODEL).stat().st_size < 12e6
    assert "## " in (folder / "README.md").read_text()
    predictor = alignmask.load(name)
    data = predictor.config.data
    assert {data.train_images, data.train_annotations, data.val_images, data.val_annotations} == {
        None
    }
    for parameter in predictor.model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.isfinite().all()
    assert predictor.calibration is not None


def discs() -> tuple[np.ndarray, np.ndarray]:
    """Sixteen bright discs on a dark ground, as nuclei under a fluorescence microscope."""
    y, x = np.mgrid[:256, :256]
    rng = np.random.default_rng(0)
    truths, image = [], rng.normal(12, 2, (256, 256))
    for row in range(4):
        for column in range(4):
            cy, cx = 32 + 64 * row + rng.integers(-9, 9), 32 + 64 * column + rng.integers(-9, 9)
            disc = (y - cy) ** 2 + (x - cx) ** 2 <= rng.integers(8, 13) ** 2
            image[disc] += 60
            truths.append(disc)
    return np.repeat(image.clip(0, 255).astype(np.uint8)[:, :, None], 3, 2), np.stack(truths)


@pytest.mark.parametrize("tiled", [False, True])
def test_nuclei_finds_discs(tiled: bool) -> None:
    image, truths_MHW = discs()
    predictor = alignmask.load("nuclei")
    if tiled:
        image = np.concatenate((image, image), axis=1)
        found = predictor.predict_in_tiles(image, 256, threshold=0.5, suppression="hard")
        truths_MHW = np.concatenate((truths_MHW, np.zeros_like(truths_MHW)), axis=2)
    else:
        found = predictor.predict(image, threshold=0.5, suppression="hard")
    masks_NHW = np.asarray(found.masks_NHW) if tiled else found.masks.numpy()
    both = np.einsum("mhw,nhw->mn", truths_MHW.astype(int), masks_NHW.astype(int))
    either = truths_MHW.sum((1, 2))[:, None] + masks_NHW.sum((1, 2)) - both
    assert ((both / either).max(1) > 0.7).sum() >= 14  # of 16
    assert len(masks_NHW) <= 18 * (1 + tiled)


def test_it_starts_a_training() -> None:
    predictor = alignmask.load("nuclei")
    model = alignmask.model.build_model(predictor.config.model)
    report = initialise(model, Path("nuclei"), ["background", "nucleus"][1:])
    assert str(report) == "everything was loaded and used"
    with pytest.raises(ValueError, match="nuclei comes without its validation data"):
        alignmask.evaluate("nuclei")
    with pytest.raises(ValueError, match="nuclei comes without its validation data"):
        alignmask.analyze(["nuclei"])


def test_ones_own_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert checkpoint.resolve(Path("nuclei")) == checkpoint.RELEASED / "nuclei"
    (tmp_path / "nuclei").mkdir()
    with pytest.raises(FileNotFoundError, match="neither a checkpoint nor a run"):
        checkpoint.resolve(Path("nuclei"))
    with pytest.raises(FileNotFoundError, match=r"nucleus: .*no model of the package \(nuclei\)"):
        checkpoint.resolve(Path("nucleus"))


def test_release(tmp_path: Path) -> None:
    model = tiny.model()
    data = alignmask.config.DataConfig(val_images=tmp_path, crop=96)
    meta = {"step": 3, "class_names": ["a"], "category_ids": [1], "metrics": {}, "secret": 1}
    checkpoint.save(
        tmp_path / "run", Config(model=model.config, data=data), model.state_dict(), meta
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README.md").write_text("card")
    size = release(tmp_path / "run", tmp_path / "out")
    weights = checkpoint.load_weights(tmp_path / "out")
    assert size == (tmp_path / "out" / checkpoint.MODEL).stat().st_size
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {
        torch.float16
    }
    config = checkpoint.load_config(tmp_path / "out")
    assert (config.name, config.data.val_images, config.data.crop) == ("out", None, 96)
    assert "secret" not in checkpoint.load_meta(tmp_path / "out")
    assert (tmp_path / "out/README.md").read_text() == "card"
    model.query_decoder.query.data[0, 0] = 1e6
    checkpoint.save(
        tmp_path / "run", Config(model=model.config, data=data), model.state_dict(), meta
    )
    with pytest.raises(ValueError, match=r"query_decoder\.query is beyond the range"):
        release(tmp_path / "run", tmp_path / "other")
