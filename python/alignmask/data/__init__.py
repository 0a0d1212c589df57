"""Data: COCO-format data sets, the synthetic shapes, augmentation, batches."""

from __future__ import annotations

from alignmask._extras import require_train

require_train("alignmask.data")

from alignmask.data.batch import Batch, Sample, collate  # noqa: E402
from alignmask.data.build import resolve_paths, train_dataset, val_dataset  # noqa: E402
from alignmask.data.dataset import CocoDataset, CocoError, read_coco_json  # noqa: E402
from alignmask.data.images import ImageError, read_image  # noqa: E402
from alignmask.data.stream import TrainingStream  # noqa: E402
from alignmask.data.transforms import evaluation_transform, training_transform  # noqa: E402
from alignmask.data.workers import leave_signals_to_the_main_process  # noqa: E402

__all__ = [
    "Batch",
    "CocoDataset",
    "CocoError",
    "ImageError",
    "Sample",
    "TrainingStream",
    "collate",
    "evaluation_transform",
    "leave_signals_to_the_main_process",
    "read_coco_json",
    "read_image",
    "resolve_paths",
    "train_dataset",
    "training_transform",
    "val_dataset",
]
