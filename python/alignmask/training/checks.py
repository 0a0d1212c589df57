"""Before the first iteration: whether configuration and data fit each other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch

from alignmask._printing import counted
from alignmask.config import Config, DataConfig, TrainConfig
from alignmask.data import CocoDataset
from alignmask.evaluation.results_file import load_ground_truth
from alignmask.model.stages import STAGES
from alignmask.model.tiles import tiles_for
from alignmask.training.best import check_metric
from alignmask.training.precision import capability_at_hand
from alignmask.training.trackers import check_trackers

SMALL_SIDE = 20
"""Objects of fewer pixels a side, where the model sees them, have coarse masks: these have a
quarter of the resolution."""
GOOD_SIDE = 32


LEAST = {
    "iterations": 0, "batch_size": 1, "accumulate": 1, "learning_rate": 0, "scale_learning_rate_from": 1,
    "backbone_multiplier": 0, "weight_decay": 0, "warmup": 0, "clip": 0, "evaluate_every": 1, "patience": 1,
    "checkpoint_every": 1, "log_every": 1, "keep_checkpoints": 1, "max_minutes": 0,
}  # fmt: skip
"""The smallest values of the training's settings."""


def check_settings(t: TrainConfig) -> None:
    """Raises ValueError for settings of the training that can be seen to be wrong without data, and
    ImportError for a tracker whose package is missing."""
    check_metric(t.best_by)
    for name, least in LEAST.items():
        value = getattr(t, name)
        if isinstance(value, (int, float)) and not value >= least:
            raise ValueError(f"train.{name}: expected {least} or more, got {value}")
    if t.ema is not None and not 0 <= t.ema < 1:
        raise ValueError(f"train.ema: expected at least 0 and less than 1, got {t.ema:g}")
    if any(not 0 <= share <= 1 for share in t.milestones):
        raise ValueError(
            f"train.milestones: expected shares of the run, from 0 to 1, got {t.milestones}"
        )
    if not 0 <= t.freeze_backbone <= STAGES:
        raise ValueError(
            f"train.freeze_backbone: expected 0 to {STAGES} stages, got {t.freeze_backbone}"
        )
    if not 0 < t.layer_decay <= 1:
        raise ValueError(
            f"train.layer_decay: expected more than 0 and at most 1, got {t.layer_decay:g}"
        )
    if t.precision == "fp16" and capability_at_hand() is None:
        raise ValueError(
            "train.precision fp16: there is no GPU, and its loss scaling needs one; use bf16, fp32 or auto"
        )
    check_trackers(t.trackers)


def check_data(config: Config, data: CocoDataset, val_data: CocoDataset) -> None:
    """Raises ValueError for everything that training or its evaluation would stumble over later:
    nothing to train on, categories that differ, as many of them as the model has no classes for,
    tiles that cannot be, faults of the validation annotations beyond `val_limit`."""
    if config.model.detections < 1:
        raise ValueError(f"model.detections: expected 1 or more, got {config.model.detections}")
    data.require_instances()
    tiles_for(config.data)
    if not val_data.instances_per_image.any():
        warnings.warn(
            f"{val_data.annotations}: none of the {len(val_data)} validation images has an "
            "instance: there will be no AP, and no best checkpoint",
            stacklevel=2,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the data set has said the same
        load_ground_truth(val_data.annotations, val_data.images)
    if data.class_names != val_data.class_names:
        raise ValueError(
            f"{config.data.val_annotations} must have the categories of "
            f"{config.data.train_annotations}, in the same order "
            f"of their ids: {val_data.class_names} are not {data.class_names}"
        )
    found, expected = len(data.class_names), config.model.num_classes
    if found != expected:
        raise ValueError(
            f"{config.data.train_annotations} has {counted(found, 'category', 'categories')}, but model.num_classes is "
            f"{expected}: "
            f"pass --model.num-classes {found}"
        )


def describe_data(config: Config, data: CocoDataset, val_data: CocoDataset) -> Iterator[str]:
    """Sentences for the log."""
    yield f"training data: {data.describe()}"
    yield f"validation data: {val_data.describe()}"
    yield from _small_objects(config.data, data)
    queries, instances = config.model.query_decoder.queries, data.instances_per_image
    if config.data.tile is not None:
        return  # which show a part of an image
    if crowded := int((instances > queries).sum()):
        yield (
            f"{crowded} of {len(instances)} training images have more instances (up to "
            f"{int(instances.max())}) than the model has queries ({queries}): it cannot find "
            "all of them. Raise --model.query-decoder.queries, or train on tiles (--data.tile)"
        )


def _small_objects(settings: DataConfig, data: CocoDataset) -> Iterator[str]:
    """A sentence if most objects are small where the model sees them, with the tile that would show
    them at a good size (docs/log.md, 2026-11-27)."""
    side_N, short_N, long_N = data.instance_sizes_N3.unbind(1)
    if not len(side_N):
        return
    if settings.tile is not None:
        short_N, long_N = short_N.clamp(max=settings.tile), long_N.clamp(max=settings.tile)
    ratio_N = torch.minimum(settings.eval_short_side / short_N, settings.eval_max_side / long_N)
    seen = float((side_N * ratio_N).median())
    tile = max(64, 32 * round(settings.eval_short_side * float(side_N.median()) / GOOD_SIDE / 32))
    if seen < SMALL_SIDE and (settings.tile is None or tile < settings.tile):
        yield (
            f"half of the training instances have {seen**2:.0f} pixels or fewer when images are "
            f"resized for evaluation: such masks are coarse. --data.tile {tile} would enlarge them"
        )
