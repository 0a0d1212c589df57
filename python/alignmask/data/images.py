"""Image files as RGB tensors. Dimensions: C = 3 colour channels, H x W pixels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any] | Tensor
"""A file, or pixels: a PIL image, a uint8 array [H, W, 3], [H, W] or [H, W, 4], or a uint8 tensor
[3, H, W]; RGB."""


class ImageError(ValueError):
    """An image file is missing, damaged or of an unsupported kind; the message names the file."""


def read_image(path: str | Path) -> Tensor:
    """Read an image file as uint8 [3, H, W], RGB.

    Grey, palette, CMYK and alpha images become RGB (alpha is dropped, not blended). 16-bit samples
    keep their high byte: 0..65535 maps to 0..255 whatever the image's own range. EXIF orientation
    is not applied, because COCO masks refer to the stored pixels.

    Raises:
        ImageError: The file is missing, truncated, corrupt, not an image, or has 32-bit or
            floating-point samples.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return torch.from_numpy(to_rgb(image)).permute(2, 0, 1).contiguous()
    except FileNotFoundError as error:
        raise ImageError(f"{path}: image file does not exist") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{path}: not an image file, damaged, or of a kind that Pillow cannot read"
        ) from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        Image.DecompressionBombError,
    ) as error:  # what decoders raise
        raise ImageError(f"{path}: cannot decode the image: {error}") from error


def to_rgb(image: Image.Image) -> np.ndarray:
    """A loaded Pillow image as uint8 [H, W, 3], by the rules of `read_image`. Raises ValueError for
    32-bit samples."""
    # Pillow clips 16-bit grey to 255 when it converts it to RGB; 16-bit colour is already cut to
    # the high byte. (Pillow < 11 reads a 16-bit grey PNG as mode I.)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey_HW = (np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)
        return np.repeat(grey_HW[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"expected 8- or 16-bit samples, got 32-bit ones (mode {image.mode})")
    return np.array(image.convert("RGB"))


def to_pixels(image: ImageLike) -> Tensor:
    """Any kind of image as uint8 [3, H, W], RGB, on the host; alpha is dropped.

    Raises:
        ImageError: A file cannot be read.
        ValueError: The pixels have another shape or another type of numbers than `ImageLike` says,
            or there are none.
        TypeError: The argument is not an image.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        image = to_rgb(image)
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
