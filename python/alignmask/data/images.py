"""Image files as RGB tensors. Dimensions: C = 3 colour channels, H x W pixels."""

from __future__ import annotations

import contextlib
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from alignmask.data.batch import Size

Exif = Literal["auto", "apply", "ignore"]
SampleRange = tuple[float, float]
ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any] | Tensor
"""A file, or pixels: a PIL image, a uint8 array [H, W, 3], [H, W] or [H, W, 4], or a uint8 tensor
[3, H, W]; RGB."""

MAX_MEGAPIXELS = "ALIGNMASK_MAX_MEGAPIXELS"
"""The environment variable that allows images larger than Pillow reads (179 million pixels)."""
if MAX_MEGAPIXELS in os.environ:  # Pillow refuses what has twice as many
    Image.MAX_IMAGE_PIXELS = int(float(os.environ[MAX_MEGAPIXELS]) * 1e6 / 2)

NO_PICTURES = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")
"""What Pillow recognises and cannot decode itself: vector graphics, films, containers of data."""

_ORIENTATION = 0x0112  # EXIF's tag
# Per orientation: whether to mirror left and right, then quarter turns to the left.
_TURNS = {2: (1, 0), 3: (0, 2), 4: (1, 2), 5: (1, 1), 6: (0, 3), 7: (1, 3), 8: (0, 1)}
_DARK = 1 << 14  # 16-bit images below this value have a brightness of less than 64 of 255


@lru_cache
def image_suffixes() -> frozenset[str]:
    """The file name suffixes of the pictures that Pillow can open, in lower case."""
    formats = Image.registered_extensions()  # before Image.OPEN: this loads the formats
    # Pillow's reader of JPEG files opens MPO, too.
    readable = {*Image.OPEN, "MPO"} - {*NO_PICTURES}
    return frozenset(suffix for suffix, kind in formats.items() if kind in readable)


class ImageError(ValueError):
    """An image file is missing, damaged or of an unsupported kind; the message names the file."""


class FewBitsWarning(UserWarning):
    """An image of 16 bits a sample uses so few of them that it is nearly black.

    top: The largest value of as many bits.
    """

    def __init__(self, top: int) -> None:
        super().__init__(
            f"16-bit images without a value above {top} are nearly black: if their range is 0 to "
            f"{top}, set data.sample_range ({top} becomes white; --sample-range of `predict` and `data`)"
        )
        self.top = top


class Header(NamedTuple):
    """What is known of an image file without decoding it."""

    size: Size
    """As `read_image` returns it."""
    stored: Size
    turned: bool
    """Whether `read_image` turns it."""
    deep: bool
    """Whether its samples have 16 bits."""
    unranged: bool
    """Whether its samples have 32 bits: `read_image` needs to know their range."""


def read_image(
    path: str | Path,
    size: Size | None = None,
    *,
    exif: Exif = "auto",
    sample_range: SampleRange | None = None,
) -> Tensor:
    """Read an image file as uint8 [3, H, W], RGB.

    Grey, palette, CMYK and alpha images become RGB (alpha is dropped, not blended). Of a file with
    several pictures the first one is read.

    Args:
        size: (height, width) that the image is known to have.
        exif: What becomes of the orientation that cameras write into the file. "auto": the image is
            turned upright, unless only the stored pixels have the known size. "apply": it is turned
            upright. "ignore": it stays as it is stored. (Pillow turns TIFF files upright itself.)
        sample_range: The values of 16-bit and 32-bit samples that become black and white. By
            default 16-bit samples keep their high byte: 0..65535 maps to 0..255 whatever the
            image's own range, with a `FewBitsWarning` if all of them are below 16384. NaN
            becomes black.

    Raises:
        ImageError: The file is missing, truncated, corrupt, not an image, or too large to be read
            unasked; or it has 32-bit samples, and no range is given.
    """
    with _opened(path) as image:
        image.load()
        return _upright(to_rgb(image, sample_range), _orientation(image), size, exif)


def png_software(path: Path) -> str | None:
    """What a PNG file says wrote it. Raises OSError, ValueError or SyntaxError if there is none."""
    with PngImageFile(path) as picture:  # Image.open would judge the picture's size
        software: str | None = picture.info.get("Software")
        return software


def read_header(path: str | Path, size: Size | None = None, *, exif: Exif = "auto") -> Header:
    """What `read_image` would return, without decoding the image. Raises ImageError as it does,
    except for damage that only decoding shows."""
    with _opened(path) as image:
        stored = (image.height, image.width)
        # Pillow decodes a PNG to find EXIF data behind its pixels, which is rare: only if it must.
        orientation = _orientation(image, Image.Image.getexif)
        if size not in (None, stored) and orientation == 1:
            orientation = _orientation(image)
        turned = _turns(stored, orientation, size, exif)
        swaps = turned and orientation >= 5
        return Header(
            stored[::-1] if swaps else stored, stored, turned, _is_deep(image), _is_32_bit(image)
        )


def to_rgb(image: Image.Image, sample_range: SampleRange | None = None) -> np.ndarray:
    """A loaded Pillow image as uint8 [H, W, 3], by the rules of `read_image`, but as it is stored.
    Raises ValueError for 32-bit samples without a range."""
    # Pillow clips 16-bit grey to 255 when it converts it to RGB; 16-bit colour is already cut to
    # the high byte.
    deep = _is_deep(image)
    if not deep and not _is_32_bit(image):
        return np.array(image.convert("RGB"))
    samples_HW = np.asarray(image)
    if sample_range is None:
        if not deep:
            raise ValueError(
                f"expected 8- or 16-bit samples, got 32-bit ones (mode {image.mode}): set "
                "data.sample_range, or --sample-range of `predict` and `data`, to the values of "
                "black and white"
            )
        _warn_few_bits(int(samples_HW.max(initial=0)))
        sample_range = (0, 65535)
    low, high = sample_range
    if not low < high:
        raise ValueError(f"sample_range: expected black below white, got {low} and {high}")
    levels = high - low + (image.mode != "F")  # integers include both ends
    finite_HW = np.nan_to_num(samples_HW.astype(np.float64), nan=low, posinf=high, neginf=low)
    grey_HW = (finite_HW - low) * 256 / levels
    return np.repeat(np.clip(grey_HW, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def _is_deep(image: Image.Image) -> bool:
    # Pillow < 11 reads a 16-bit grey PNG as mode I.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def _is_32_bit(image: Image.Image) -> bool:
    return image.mode in ("I", "F") and not _is_deep(image)


def _warn_few_bits(highest: int) -> None:
    if 0 < highest < _DARK:
        top = (1 << max(8, highest.bit_length())) - 1
        warnings.warn(FewBitsWarning(top), stacklevel=2)


def _orientation(
    image: Image.Image, getexif: Callable[[Any], Image.Exif] = lambda image: image.getexif()
) -> int:
    """EXIF's orientation, 1 (upright) to 8; 1 if there is none, or if Pillow turns the image."""
    if image.format == "TIFF":
        return 1
    try:
        value = getexif(image).get(_ORIENTATION, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return 1  # a damaged EXIF block says nothing about the pixels
    return value if value in range(1, 9) else 1


def _turns(stored: Size, orientation: int, size: Size | None, exif: Exif) -> bool:
    if exif == "ignore" or orientation == 1:
        return False
    upright = stored[::-1] if orientation >= 5 else stored
    return exif == "apply" or size is None or upright == size or stored != size


def _upright(
    image_HWC: np.ndarray[Any, Any], orientation: int, size: Size | None, exif: Exif
) -> Tensor:
    """uint8 [3, H, W], turned by the rules of `read_image`."""
    if _turns(image_HWC.shape[:2], orientation, size, exif):
        mirrored, quarters = _TURNS[orientation]
        image_HWC = np.rot90(image_HWC[:, ::-1] if mirrored else image_HWC, quarters)
    return torch.from_numpy(np.array(image_HWC.transpose(2, 0, 1), order="C"))


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """The image file, with every error as an ImageError that names it."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise ImageError(f"{path}: image file does not exist") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{path}: not an image file, damaged, or of a kind that Pillow cannot read"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{path}: more pixels than are read unasked ({error}). Cut the image into tiles, or set "
            f"the environment variable {MAX_MEGAPIXELS} to the largest number of million pixels "
            "that you trust"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what decoders raise
        raise ImageError(f"{path}: cannot decode the image: {error}") from error


def to_pixels(
    image: ImageLike, *, exif: Exif = "auto", sample_range: SampleRange | None = None
) -> Tensor:
    """Any kind of image as uint8 [3, H, W], RGB, on the host; alpha is dropped. Files and Pillow's
    images are read as by `read_image`.

    Raises:
        ImageError: A file cannot be read.
        ValueError: The pixels have another shape or another type of numbers than `ImageLike` says,
            or there are none.
        TypeError: The argument is not an image.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(Path(image), exif=exif, sample_range=sample_range)
    if isinstance(image, Image.Image):
        return _upright(to_rgb(image, sample_range), _orientation(image), None, exif)
    if isinstance(image, np.ndarray):
        if (
            image.dtype != np.uint8
            or image.ndim not in (2, 3)
            or image.shape[2:] not in ((), (1,), (3,), (4,))
        ):
            raise ValueError(
                f"image: expected a uint8 array of shape H x W, H x W x 3 or H x W x 4, got "
                f"{image.dtype} {image.shape}"
            )
        image = np.broadcast_to(np.atleast_3d(image)[..., :3], (*image.shape[:2], 3))
        image = torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))
    if not isinstance(image, Tensor):
        raise TypeError(
            f"image: expected a path, a PIL image, a NumPy array or a tensor, got "
            f"{type(image).__name__}"
        )
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(
            f"image: expected a uint8 tensor 3 x H x W, got {image.dtype} {tuple(image.shape)}"
        )
    if 0 in image.shape:
        raise ValueError(f"image: it has no pixels: {image.shape[1]} x {image.shape[2]}")
    return image.cpu()
