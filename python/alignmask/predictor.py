"""A trained model with what it needs to predict on images: `alignmask.load(checkpoint).predict(image)`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alignmask import checkpoint as checkpoints
from alignmask.config import Config, without_pretrained
from alignmask.data import Sample, collate, evaluation_transform, read_image
from alignmask.data.images import to_rgb
from alignmask.model import AlignMask, Instances, build_model

ImageLike = str | os.PathLike | Image.Image | np.ndarray | Tensor


class Predictor:
    """model (eval mode), config, class_names and category_ids (both by contiguous label)."""

    def __init__(self, model: AlignMask, config: Config, class_names: list[str], category_ids: list[int]) -> None:
        self.model, self.config = model.eval(), config
        self.class_names, self.category_ids = class_names, category_ids
        self._transform = evaluation_transform(config.data)

    def predict(self, image: ImageLike) -> Instances:
        """Instances of one image, best first, on the CPU, at the image's size.

        image: a path, a PIL image, a uint8 array H x W x 3 (or H x W, or H x W x 4), or a uint8 tensor 3 x H x W; RGB.
        Alpha is dropped.
        Raises ImageError (a ValueError) for a file that cannot be read, ValueError for an image of another shape or type of
        numbers, TypeError for anything else.
        """
        pixels_CHW = _to_tensor(image)
        size = (pixels_CHW.shape[1], pixels_CHW.shape[2])
        name = str(image) if isinstance(image, (str, os.PathLike)) else "image"
        sample = Sample(
            image_CHW=pixels_CHW,
            masks_NHW=torch.zeros(0, *size, dtype=torch.bool),
            labels_N=torch.zeros(0, dtype=torch.long),
            image_id=0,
            file_name=name,
            original_size=size,
        )
        batch = collate([self._transform(sample)]).to(self.model.device)
        return self.model.predict(batch)[0].cpu()


def load(checkpoint: str | os.PathLike, device: str | torch.device = "cpu") -> Predictor:
    """checkpoint: a checkpoint folder, a file of it, or a run's folder (its best checkpoint, else its newest).

    Raises FileNotFoundError or ValueError that names the file for anything missing or unreadable.
    """
    folder = checkpoints.resolve(Path(checkpoint))
    config, meta = checkpoints.load_config(folder), checkpoints.load_meta(folder)
    classes = config.model.num_classes
    for name in ("class_names", "category_ids"):
        if not isinstance(meta, dict) or not isinstance(meta.get(name), list) or len(meta[name]) != classes:
            raise ValueError(
                f"checkpoint file {folder / checkpoints.META}: expected a list {name} of {classes} entries"
            )
    model = build_model(without_pretrained(config).model)
    try:
        model.load_state_dict(checkpoints.load_weights(folder))
    except RuntimeError as error:
        _, *faults = (line.strip() for line in str(error).splitlines())
        more = f" (and {len(faults) - 2} more)" if len(faults) > 2 else ""
        raise ValueError(
            f"checkpoint {folder} does not fit its own config.json: {' '.join(faults[:2])}{more}"
        ) from error
    return Predictor(model.to(device), config, meta["class_names"], meta["category_ids"])


def _to_tensor(image: ImageLike) -> Tensor:
    if isinstance(image, (str, os.PathLike)):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        image = to_rgb(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,), (4,)):
            raise ValueError(
                f"image: expected a uint8 array of shape H x W, H x W x 3 or H x W x 4, got {image.dtype} {image.shape}"
            )
        image = np.broadcast_to(np.atleast_3d(image)[..., :3], (*image.shape[:2], 3))
        image = torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))
    if not isinstance(image, Tensor):
        raise TypeError(f"image: expected a path, a PIL image, a NumPy array or a tensor, got {type(image).__name__}")
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image: expected a uint8 tensor 3 x H x W, got {image.dtype} {tuple(image.shape)}")
    if 0 in image.shape:
        raise ValueError(f"image: it has no pixels: {image.shape[1]} x {image.shape[2]}")
    return image
