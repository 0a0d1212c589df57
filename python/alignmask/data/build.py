"""From settings to data sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from alignmask.data import shapes
from alignmask.data.dataset import CocoDataset
from alignmask.data.transforms import evaluation_transform, training_transform

if TYPE_CHECKING:
    from alignmask.config import DataConfig


def resolve_paths(data: DataConfig) -> DataConfig:
    """The settings with all four paths; generates the synthetic data set if it is asked for and
    does not exist yet.

    Raises ValueError if both `data.shapes` and a path are given, or neither.
    """
    paths = ("train_images", "train_annotations", "val_images", "val_annotations")
    given = [name for name in paths if getattr(data, name) is not None]
    if data.shapes is None:
        if missing := [f"data.{name}" for name in paths if name not in given]:
            options = " ".join(
                f"--data.{name.replace('_', '-')} {'DIR' if 'images' in name else 'FILE'}"
                for name in paths
            )
            raise ValueError(f"{', '.join(missing)}: not set; name the data set's files: {options}")
        return data
    root = Path(data.shapes.root)
    resolved = replace(
        data,
        train_images=root / "train",
        train_annotations=root / "instances_train.json",
        val_images=root / "val",
        val_annotations=root / "instances_val.json",
    )
    # A resolved configuration, read back from a run's folder, has both; they must agree.
    if clash := [
        f"data.{name}" for name in given if Path(getattr(data, name)) != getattr(resolved, name)
    ]:
        raise ValueError(
            f"{', '.join(clash)}: set although data.shapes asks for the synthetic data set; use "
            "--without data.shapes for your "
            "own data"
        )
    shapes.generate(data.shapes)
    return resolved


def train_dataset(data: DataConfig) -> CocoDataset:
    """The training images with augmentation. Raises ValueError or CocoError for faulty settings or
    data."""
    data = resolve_paths(data)
    assert data.train_images is not None
    assert data.train_annotations is not None
    return CocoDataset(
        data.train_images,
        data.train_annotations,
        training_transform(data),
        limit=data.train_limit,
        exif=data.exif,
        sample_range=data.sample_range,
    )


def val_dataset(data: DataConfig, masks: bool = True) -> CocoDataset:
    """The validation images, resized for evaluation; masks=False leaves the instances out, which
    saves time."""
    data = resolve_paths(data)
    assert data.val_images is not None
    assert data.val_annotations is not None
    return CocoDataset(
        data.val_images,
        data.val_annotations,
        evaluation_transform(data),
        limit=data.val_limit,
        masks=masks,
        exif=data.exif,
        sample_range=data.sample_range,
    )
