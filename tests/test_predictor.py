"""`alignmask.load(checkpoint).predict(image)`: every kind of image, and what is no image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import alignmask
from alignmask import checkpoint, recipes
from alignmask.data import ImageError
from alignmask.model import Instances
from alignmask.predictor import Predictor
from tests import tiny

SIZE = (50, 70)
RGB_HWC = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
ALPHA_HW1 = np.random.default_rng(1).integers(0, 256, (*SIZE, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("checkpoint")
    config = recipes.shapes_tiny()
    model = tiny.model()
    data = replace(config.data, eval_short_side=64, eval_max_side=96)
    meta = {"step": 0, "class_names": list("abcd"), "category_ids": [1, 5, 7, 9]}
    checkpoint.save(
        folder / "c", replace(config, model=model.config, data=data), model.state_dict(), meta
    )
    return alignmask.load(folder / "c")


@pytest.fixture(scope="module")
def expected(predictor: Predictor) -> Instances:
    return predictor.predict(RGB_HWC)


def assert_same(found: Instances, expected: Instances) -> None:
    for name in ("scores", "labels", "masks", "boxes"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_what_is_found(expected: Instances) -> None:
    n = len(expected)
    assert 0 < n <= 10
    assert expected.scores.shape == expected.labels.shape == (n,)
    assert expected.masks.shape == (n, *SIZE)
    assert (expected.scores.dtype, expected.labels.dtype, expected.masks.dtype) == (
        torch.float32,
        torch.int64,
        torch.bool,
    )
    assert (expected.scores.diff() <= 0).all()
    for mask_HW, box in zip(expected.masks, expected.boxes.tolist(), strict=True):
        y, x = mask_HW.nonzero(as_tuple=True)
        assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    best = expected[expected.scores >= expected.scores[1]]
    assert len(best) >= 2
    assert best.masks.shape[0] == len(best)


def saved(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_images_of_every_kind_are_the_same_image(
    predictor: Predictor, expected: Instances, tmp_path: Path
) -> None:
    rgba_HWC = np.concatenate((RGB_HWC, ALPHA_HW1), axis=2)
    file = saved(tmp_path / "a.png", RGB_HWC)
    kinds = {
        "path": file,
        "text": str(file),
        "file with alpha": saved(tmp_path / "b.png", rgba_HWC),
        "pil": Image.fromarray(RGB_HWC),
        "pil that is not loaded": Image.open(file),
        "pil with alpha": Image.fromarray(rgba_HWC),
        "array with alpha": rgba_HWC,
        "fortran array": np.asfortranarray(RGB_HWC),
        "array with negative strides": RGB_HWC[::-1, ::-1].copy()[::-1, ::-1],
        "read-only array": np.frombuffer(RGB_HWC.tobytes(), np.uint8).reshape(RGB_HWC.shape),
        "tensor": torch.from_numpy(RGB_HWC).permute(2, 0, 1),
    }
    for kind, image in kinds.items():
        try:
            assert_same(predictor.predict(image), expected)
        except AssertionError as error:
            raise AssertionError(kind) from error


def test_grey_images_of_every_kind_are_the_same_image(predictor: Predictor, tmp_path: Path) -> None:
    grey_HW = RGB_HWC[..., 0]
    expected = predictor.predict(grey_HW[..., None].repeat(3, axis=2))
    file = saved(tmp_path / "grey.png", grey_HW)
    sixteen = saved(tmp_path / "sixteen.png", grey_HW.astype(np.uint16) * 256 + 99)
    images = [
        grey_HW,
        grey_HW[..., None],
        file,
        Image.open(file),
        Image.open(file).convert("LA"),
        sixteen,
        Image.open(sixteen),
    ]
    for image in images:
        assert_same(predictor.predict(image), expected)


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "RGBX"])
def test_other_pil_modes_are_converted(predictor: Predictor, mode: str) -> None:
    image = Image.fromarray(RGB_HWC).convert(mode)
    assert_same(predictor.predict(image), predictor.predict(np.array(image.convert("RGB"))))


def test_the_given_image_is_not_changed(predictor: Predictor) -> None:
    array, tensor = RGB_HWC.copy(), torch.from_numpy(RGB_HWC.copy()).permute(2, 0, 1)
    predictor.predict(array)
    predictor.predict(tensor)
    np.testing.assert_array_equal(array, RGB_HWC)
    np.testing.assert_array_equal(tensor.permute(1, 2, 0).numpy(), RGB_HWC)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2), (97, 31)])
def test_images_of_any_size(predictor: Predictor, size: tuple[int, int]) -> None:
    found = predictor.predict(np.full((*size, 3), 77, np.uint8))
    assert found.masks.shape[1:] == size
    assert found.scores.isfinite().all()


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "none": (
        None,
        TypeError,
        "expected a path, a PIL image, a NumPy array or a tensor, got NoneType",
    ),
    "list": ([[1, 2]], TypeError, "got list"),
    "bytes": (b"\x89PNG", TypeError, "got bytes"),
    "float array": (
        RGB_HWC / 255.0,
        ValueError,
        r"expected a uint8 array .*, got float64 \(50, 70, 3\)",
    ),
    "sixteen bits": (RGB_HWC.astype(np.uint16), ValueError, "got uint16"),
    "bool array": (RGB_HWC > 5, ValueError, "got bool"),
    "channels first": (RGB_HWC.transpose(2, 0, 1), ValueError, r"got uint8 \(3, 50, 70\)"),
    "two channels": (RGB_HWC[..., :2], ValueError, r"got uint8 \(50, 70, 2\)"),
    "batch": (RGB_HWC[None], ValueError, r"got uint8 \(1, 50, 70, 3\)"),
    "one dimension": (RGB_HWC[0, :, 0], ValueError, r"got uint8 \(70,\)"),
    "no pixels": (RGB_HWC[:0], ValueError, "no pixels: 0 x 70"),
    "empty tensor": (torch.zeros(3, 5, 0, dtype=torch.uint8), ValueError, "no pixels: 5 x 0"),
    "float tensor": (
        torch.rand(3, 50, 70),
        ValueError,
        r"uint8 tensor 3 x H x W, got torch.float32 \(3, 50, 70\)",
    ),
    "channels-last tensor": (
        torch.from_numpy(RGB_HWC),
        ValueError,
        r"got torch.uint8 \(50, 70, 3\)",
    ),
    "32-bit pil": (Image.new("F", (5, 5)), ValueError, "32-bit"),
    "missing file": ("nowhere.png", ImageError, r"nowhere\.png: image file does not exist"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_image(predictor: Predictor, kind: str) -> None:
    image, error, message = WRONG[kind]
    with pytest.raises(error, match=message):
        predictor.predict(image)


def test_corrupt_files_are_named(predictor: Predictor, tmp_path: Path) -> None:
    Image.fromarray(np.tile(RGB_HWC, (8, 8, 1))).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:20_000])
    (tmp_path / "text.png").write_text("no image")
    for name in ("cut.jpg", "text.png"):
        with pytest.raises(ImageError, match=name):
            predictor.predict(tmp_path / name)
    with pytest.raises(ImageError):
        predictor.predict(tmp_path)


def test_encoded_masks_are_the_same(predictor: Predictor, expected: Instances) -> None:
    """Mean probabilities are added up in another order."""
    middle = float(expected.scores[len(expected) // 2 : len(expected) // 2 + 2].mean())
    for threshold, all_of_them in ((0.0, expected), (middle, expected[expected.scores >= middle])):
        found = predictor.predict_encoded(RGB_HWC, threshold=threshold)
        assert 0 < len(found) == len(all_of_them)
        assert torch.equal(found.dense().masks, all_of_them.masks)
        assert torch.equal(found.labels_N, all_of_them.labels)
        assert torch.equal(found.boxes_N4, all_of_them.boxes)
        torch.testing.assert_close(found.scores_N, all_of_them.scores, rtol=1e-5, atol=0)


def test_second_masks_are_left_out_on_request(predictor: Predictor, expected: Instances) -> None:
    """Against IoUs of all pairs; scores below the threshold suppress nothing above it."""
    found = predictor.predict(RGB_HWC, suppression="hard")
    masks = expected.masks.flatten(1).double()
    both = masks @ masks.T
    iou_NN = both / (masks.sum(1)[:, None] + masks.sum(1) - both)
    kept: list[int] = []
    for n in range(len(expected)):
        rivals = [m for m in kept if expected.labels[m] == expected.labels[n]]
        if all(iou_NN[n, m] <= 0.5 for m in rivals):
            kept.append(n)
    assert 0 < len(kept) < len(expected)
    assert_same(found, expected[torch.tensor(kept)])
    middle = float(found.scores[len(found) // 2])
    fewer = predictor.predict(RGB_HWC, suppression="hard", threshold=middle)
    assert_same(fewer, found[found.scores >= middle])
    tiled = predictor.predict_in_tiles(RGB_HWC, 96, suppression="hard")
    encoded = predictor.predict_encoded(RGB_HWC, suppression="hard")
    assert_same(tiled.dense(), encoded.dense())
    assert torch.equal(encoded.dense().masks, found.masks)
    with pytest.raises(ValueError, match="expected off or hard, got 'soft'"):
        predictor.predict(RGB_HWC, suppression="soft")  # type: ignore[arg-type]


def test_a_list_is_predicted_as_its_images_are(predictor: Predictor) -> None:
    """Of mixed sizes, in the order of the list, whatever the size of a batch."""
    rng = np.random.default_rng(3)
    sizes = [SIZE, SIZE, (64, 40), SIZE, SIZE, SIZE]
    images = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]
    single = [predictor.predict(image, threshold=0.01) for image in images]
    assert max(map(len, single)) > 1
    predict, sizes_seen = predictor.model.predict, []

    def counted(batch: Any) -> Any:
        sizes_seen.append(batch.batch_size)
        return predict(batch)

    predictor.model.predict = counted  # type: ignore[method-assign]
    try:
        together = predictor.predict(images, threshold=0.01, batch_size=2)
    finally:
        del predictor.model.predict
    assert sizes_seen == [2, 1, 2, 1]
    for found, expected in zip(together, single, strict=True):
        assert torch.allclose(found.scores, expected.scores, atol=1e-5)  # other sums are rounded
        assert torch.equal(found.masks, expected.masks)
        assert torch.equal(found.labels, expected.labels)
    assert predictor.predict([]) == []
    with pytest.raises(ValueError, match="batch_size: expected 1 or more, got 0"):
        predictor.predict(images, batch_size=0)


def test_arguments_that_cannot_be(predictor: Predictor, expected: Instances) -> None:
    for threshold in (2.0, -0.1):
        with pytest.raises(ValueError, match="predict: threshold: expected 0 to 1"):
            predictor.predict(RGB_HWC, threshold=threshold)
    with pytest.raises(ValueError, match="draw: colours: expected instance or class, got 'foo'"):
        alignmask.draw(RGB_HWC, expected, colours="foo")
