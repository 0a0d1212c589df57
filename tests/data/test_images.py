"""read_image: every kind of file becomes RGB bytes, or a clear error."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from alignmask.data import ImageError, read_image
from alignmask.data.images import read_header, to_pixels

GREY = np.arange(20, dtype=np.uint8).reshape(4, 5) * 12
COLOR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)


def check(path: Path, expected_HWC: np.ndarray, tolerance: int = 0) -> None:
    image = read_image(path)
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    assert image.shape == (3, *expected_HWC.shape[:2])
    difference = image.permute(1, 2, 0).numpy().astype(int) - expected_HWC.astype(int)
    assert np.abs(difference).max() <= tolerance


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_rgb(tmp_path, suffix):
    Image.fromarray(COLOR).save(
        tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {})
    )
    check(tmp_path / f"a.{suffix}", COLOR)
    check(str(tmp_path / f"a.{suffix}"), COLOR)


def test_jpeg(tmp_path):
    smooth = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    check(tmp_path / "a.jpg", smooth, tolerance=4)
    Image.fromarray(smooth).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    check(tmp_path / "cmyk.jpg", smooth, tolerance=6)


def test_alpha_is_dropped_not_blended(tmp_path):
    alpha = np.zeros((4, 5, 1), np.uint8)
    Image.fromarray(np.concatenate([COLOR, alpha], -1)).save(tmp_path / "rgba.png")
    check(tmp_path / "rgba.png", COLOR)
    Image.fromarray(np.stack([GREY, alpha[..., 0]], -1), mode="LA").save(tmp_path / "la.png")
    check(tmp_path / "la.png", np.repeat(GREY[..., None], 3, -1))


def test_grey_and_one_bit(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "l.png")
    check(tmp_path / "l.png", np.repeat(GREY[..., None], 3, -1))
    Image.fromarray(GREY > 100).save(tmp_path / "1.png")
    check(tmp_path / "1.png", np.repeat((GREY > 100)[..., None] * 255, 3, -1))


@pytest.mark.parametrize("transparent", [False, True])
def test_palette(tmp_path, transparent):
    image = Image.fromarray(GREY % 3, mode="P")
    palette = np.array([[255, 0, 0], [0, 200, 0], [1, 2, 3]], np.uint8)
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "p.png", **({"transparency": 0} if transparent else {}))
    check(tmp_path / "p.png", palette[GREY % 3])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_its_high_byte(tmp_path, suffix):
    deep = np.array([[0, 255, 256, 511], [32767, 32768, 65279, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    check(tmp_path / f"a.{suffix}", np.repeat((deep // 256)[..., None], 3, -1))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(tmp_path, suffix, orientation):
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOR).save(path, exif=exif)
    with Image.open(path) as image:
        image.load()
        stored = np.array(image)  # Pillow itself turns TIFF files
        upright = np.array(ImageOps.exif_transpose(image))
    check(path, upright)
    with Image.open(path) as image:
        assert np.array_equal(to_pixels(image).permute(1, 2, 0).numpy(), upright)
    for size in (None, upright.shape[:2], stored.shape[:2], (3, 3)):
        for mode in ("auto", "apply", "ignore"):
            found = read_image(path, size, exif=mode).permute(1, 2, 0).numpy()
            keeps = mode == "ignore" or (
                mode == "auto" and size == stored.shape[:2] != upright.shape[:2]
            )
            assert np.array_equal(found, stored if keeps else upright)
            header = read_header(path, size, exif=mode)
            assert header.size == found.shape[:2]
            assert header.turned == (orientation != 1 and suffix != "tif" and not keeps)
            assert not header.deep


@pytest.mark.parametrize("value", [0, 9])
def test_an_orientation_that_does_not_exist_turns_nothing(tmp_path, value):
    exif = Image.Exif()
    exif[0x0112] = value
    Image.fromarray(COLOR).save(tmp_path / "a.png", exif=exif)
    check(tmp_path / "a.png", COLOR)


@pytest.mark.parametrize(
    ("samples", "sample_range"),
    [
        (np.array([[0, 100, 200, 4095]], np.uint16), (100, 300)),
        (np.array([[-5, 100, 200, 70000]], np.int32), (100, 300)),
        (np.array([[-1.0, 0.0, 0.5, 2.0, np.nan]], np.float32), (0.0, 1.0)),
        (np.array([[-np.inf, -10, 0, np.inf, np.nan]], np.float32), (-10.0, 10.0)),
    ],
)
def test_a_range_of_samples_is_spread_over_all_levels(tmp_path, samples, sample_range):
    Image.fromarray(samples).save(tmp_path / "a.tif")
    expected = {100: [0, 0, 127, 255], 0.0: [0, 0, 128, 255, 0], -10.0: [0, 0, 128, 255, 0]}[
        sample_range[0]
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_image(tmp_path / "a.tif", sample_range=sample_range)
    assert found[1, 0].tolist() == expected
    with pytest.raises(ImageError, match="black below white"):
        read_image(tmp_path / "a.tif", sample_range=(2, 2))


@pytest.mark.parametrize(
    ("highest", "top"), [(0, None), (200, 255), (4000, 4095), (16383, 16383), (16384, None)]
)
def test_16_bit_images_that_are_nearly_black(tmp_path, highest, top):
    Image.fromarray(np.array([[0, highest]], np.uint16)).save(tmp_path / "a.png")
    assert read_header(tmp_path / "a.png").deep
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_image(tmp_path / "a.png")
        read_image(tmp_path / "a.png", sample_range=(0, 65535))  # asked for
    assert len(caught) == (top is not None)
    if top is not None:
        assert f"a value above {top} are nearly black" in str(caught[0].message)


def test_images_that_are_too_large_say_what_to_do(tmp_path, monkeypatch):
    Image.fromarray(COLOR).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)  # of 20
    for read in (read_image, read_header):
        with pytest.raises(ImageError, match=r"into tiles, or set .*ALIGNMASK_MAX_MEGAPIXELS"):
            read(tmp_path / "a.png")


def test_faults_name_the_file(tmp_path):
    good = tmp_path / "good.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(
        good
    )
    truncated = tmp_path / "truncated.jpg"
    truncated.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (tmp_path / "text.png").write_text("this is no image")
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "float.tif")
    for path, reason in (
        (tmp_path / "missing.png", "does not exist"),
        (truncated, "truncated"),
        (tmp_path / "text.png", "not an image file"),
        (tmp_path / "empty.png", "not an image file"),
        (tmp_path / "float.tif", "32-bit"),
        (tmp_path, "cannot decode"),
    ):
        with pytest.raises(ImageError, match=reason) as caught:
            read_image(path)
        assert str(path) in str(caught.value)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["png", "jpg", "gif", "bmp"]),
    cut=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
)
def test_damaged_files_give_an_image_or_an_image_error(tmp_path, kind, cut, changes):
    good = tmp_path / f"good.{kind}"
    if not good.exists():
        Image.fromarray(COLOR).save(good)
    data = bytearray(good.read_bytes())
    for place, value in changes:
        data[int(place * len(data))] = value
    bad = tmp_path / f"bad.{kind}"
    bad.write_bytes(data[: 1 + int(cut * len(data))])
    try:
        image = read_image(bad)
    except ImageError:
        return  # its message is tested above
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3
