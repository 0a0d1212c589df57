"""A model's predictions for a data set, as COCO results.

N predictions of one image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from alignmask.config import SCORE_MODES
from alignmask.data import CocoDataset, collate, leave_signals_to_the_main_process, rle
from alignmask.data.batch import Sample, Size
from alignmask.model.postprocess import combine_scores
from alignmask.model.sparse import SparseInstances
from alignmask.model.tiles import Encodes, Tiles, check_batch_size, predict_in_tiles

if TYPE_CHECKING:
    from alignmask.model import Instances


class Predicts(Encodes, Protocol):
    """What a data set is predicted by: an `AlignMask`, or an exported file."""

    training: bool

    def train(self, mode: bool = True, /) -> Any: ...
    def eval(self) -> Any: ...


@dataclass(frozen=True)
class ImagePredictions:
    """Predictions of one image, small enough to be sent between processes."""

    index: int
    entries: list[dict[str, Any]]
    scores: dict[str, list[float]]
    """By score mode."""


def to_coco_results(
    instances: Instances | SparseInstances,
    image_id: int,
    category_ids: Sequence[int],
    scores: torch.Tensor | None = None,
) -> list[dict[str, Any]]:
    """Turn the predictions of one image into entries of a COCO results file.

    Args:
        instances: Predictions at the original size of the image.
        category_ids: COCO category id of each label.
        scores: Float [N], used instead of `instances.scores_N`.
    Raises:
        ValueError: A score is not finite, or the shapes do not agree; the message names the image
            id.
    """
    values = (
        (instances.scores_N if scores is None else scores)
        .detach()
        .float()
        .cpu()
        .numpy()
        .astype(float)
    )
    labels = instances.labels_N.cpu().tolist()
    if not len(values) == len(labels) == len(instances.masks_NHW):
        raise ValueError(
            f"image {image_id}: {len(values)} scores, {len(labels)} labels and "
            f"{len(instances.masks_NHW)} masks"
        )
    masks = (
        instances.rles
        if isinstance(instances, SparseInstances)
        else rle.encode(instances.masks_NHW)
    )
    if not np.isfinite(values).all():
        raise ValueError(
            f"image {image_id}: {int((~np.isfinite(values)).sum())} of {len(values)} scores are "
            "not finite"
        )
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "segmentation": mask,
            "score": score,
        }
        for label, mask, score in zip(labels, masks, values.tolist(), strict=True)
    ]


def predict_dataset(
    model: Predicts,
    dataset: CocoDataset,
    *,
    device: torch.device | str,
    batch_size: int,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
    tiles: Tiles | None = None,
) -> list[dict[str, Any]]:
    """The predictions for a data set as COCO results, in the default score mode; nothing is
    measured. Arguments as in `evaluate_model`."""
    everything = range(len(dataset))
    found = predict_images(
        model, dataset, everything, torch.device(device), batch_size, workers, progress, tiles
    )
    return entries_of(in_order(found))


def predict_images(
    model: Predicts,
    dataset: CocoDataset,
    shard: range,
    device: torch.device,
    batch_size: int,
    workers: int,
    progress: Callable[[int, int], None] | None,
    tiles: Tiles | None = None,
) -> list[ImagePredictions]:
    check_batch_size(batch_size)
    batches = _batches_of_one_size(dataset, shard, batch_size if tiles is None else 1)
    position = itertools.chain.from_iterable(batches)
    loader: DataLoader[Any] = DataLoader(
        dataset if tiles is None else _Untransformed(dataset),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate if tiles is None else list,
        worker_init_fn=leave_signals_to_the_main_process,
        pin_memory=device.type == "cuda",
    )
    found: list[ImagePredictions] = []

    def run(batch: Any) -> Iterable[tuple[int, SparseInstances]]:
        if tiles is None:
            instances = model.predict_encoded(batch.to(device, non_blocking=True))
            return zip(batch.image_ids, instances, strict=True)
        (sample,) = batch
        assert dataset.transform is not None
        merged = predict_in_tiles(
            model, sample.image_CHW, dataset.transform, tiles=tiles, batch_size=batch_size,
            name=sample.file_name,
        )  # fmt: skip
        return [(sample.image_id, merged)]

    was_training = model.training
    model.eval()
    try:
        for batch in loader:
            for image_id, instances in run(batch):
                entries = to_coco_results(instances, image_id, dataset.category_ids)
                scores: dict[str, list[float]] = {
                    mode: combine_scores(
                        instances.class_scores_N, instances.mask_scores_N, mode
                    ).tolist()
                    for mode in SCORE_MODES
                }
                found.append(ImagePredictions(next(position), entries, scores))
            if progress is not None:
                progress(len(found), len(shard))
    finally:
        model.train(was_training)
    return found


def entries_of(predictions: Iterable[ImagePredictions]) -> list[dict[str, Any]]:
    return [entry for prediction in predictions for entry in prediction.entries]


def in_order(predictions: Iterable[ImagePredictions]) -> list[ImagePredictions]:
    """In the order of the data set, which breaks ties, whatever the number of ranks."""
    return sorted(predictions, key=lambda prediction: prediction.index)


class _Untransformed(Dataset[Sample]):
    """The images as they are."""

    def __init__(self, dataset: CocoDataset) -> None:
        self.load = dataset.load

    def __getitem__(self, index: int) -> Sample:
        return self.load(index)


def _batches_of_one_size(
    dataset: CocoDataset, indices: Iterable[int], batch_size: int
) -> list[list[int]]:
    """Indices in batches of equal size: images are not padded, so that predictions do not depend on
    the rest of the batch."""
    groups: dict[Size, list[int]] = {}
    for index in indices:
        groups.setdefault(dataset.size(index), []).append(index)
    return [
        group[start : start + batch_size]
        for group in groups.values()
        for start in range(0, len(group), batch_size)
    ]
