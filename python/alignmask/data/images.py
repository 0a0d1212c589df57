"""Image files as RGB tensors. Dimensions: C = 3 colour channels, H x W pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor


class ImageError(ValueError):
    """An image file is missing, damaged or of an unsupported kind; the message names the file."""


def read_image(path: str | Path) -> Tensor:
    """Read an image file as uint8 [3, H, W], RGB.

    Grey, palette, CMYK and alpha images become RGB (alpha is dropped, not blended). 16-bit samples keep their high
    byte: 0..65535 maps to 0..255 whatever the image's own range. EXIF orientation is not applied, because COCO masks
    refer to the stored pixels.

    Raises ImageError if the file is missing, truncated, corrupt, no image, or has 32-bit or floating-point samples.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return torch.from_numpy(to_rgb(image)).permute(2, 0, 1).contiguous()
    except FileNotFoundError as error:
        raise ImageError(f"{path}: image file does not exist") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: no image file, or damaged, or of a kind that Pillow cannot read") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:  # what decoders raise
        raise ImageError(f"{path}: cannot decode the image: {error}") from error


def to_rgb(image: Image.Image) -> np.ndarray:
    """A loaded Pillow image as uint8 [H, W, 3], by the rules of `read_image`. Raises ValueError for 32-bit samples."""
    # Pillow clips 16-bit grey to 255 when it converts it to RGB; 16-bit colour is already cut to the high byte.
    # (Pillow < 11 reads a 16-bit grey PNG as mode I.)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey_HW = (np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)
        return np.repeat(grey_HW[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"expected 8- or 16-bit samples, got 32-bit ones (mode {image.mode})")
    return np.array(image.convert("RGB"))
