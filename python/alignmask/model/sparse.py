"""Prediction -> instances with run-length encoded masks, which take little memory whatever the
image's size.

N instances of one image, H x W pixels, U queries.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_utils
from torch import Tensor

from alignmask import ops
from alignmask.config import ModelConfig
from alignmask.data.batch import Batch, Size
from alignmask.data.rle import from_runs
from alignmask.model.heads import Prediction
from alignmask.model.postprocess import Instances, best_pairs

DENSE_LIMIT = 2**32
"""Bytes of masks, one per pixel and instance, that are decoded at once."""


@dataclass(repr=False)
class SparseInstances:
    """The instances found in one image, best first, as `Instances`, but with encoded masks."""

    scores_N: Tensor
    labels_N: Tensor
    rles: list[dict[str, Any]]
    """The masks in COCO's compressed form, JSON-ready."""
    boxes_N4: Tensor
    class_scores_N: Tensor
    mask_scores_N: Tensor
    size: Size
    """Height and width of the image."""
    quality_N: Tensor | None = None
    trusted_N: Tensor | None = None

    def __repr__(self) -> str:
        best = f", scores {self.scores_N[0]:.2f} to {self.scores_N[-1]:.2f}" if len(self) else ""
        return f"SparseInstances({len(self)} in {self.size[0]} x {self.size[1]} pixels{best})"

    def __len__(self) -> int:
        return len(self.rles)

    def __getitem__(self, index: Tensor | slice) -> SparseInstances:
        chosen = torch.arange(len(self))[index].tolist()
        values: dict[str, Any] = {
            f.name: value[index]
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, rles=[self.rles[n] for n in chosen], **values)

    @property
    def masks_NHW(self) -> LazyMasks:
        """The masks, each decoded when it is asked for."""
        return LazyMasks(self.rles, self.size)

    def dense(self) -> Instances:
        """With all masks decoded. Raises ValueError if they have more than 4 GiB."""
        return Instances(
            self.scores_N,
            self.labels_N,
            torch.from_numpy(np.asarray(self.masks_NHW)),
            self.boxes_N4,
            self.class_scores_N,
            self.mask_scores_N,
            self.quality_N,
            self.trusted_N,
        )


class LazyMasks:
    """Encoded masks that are used like a bool tensor [N, H, W]."""

    def __init__(self, rles: list[dict[str, Any]], size: Size) -> None:
        self.rles = rles
        self.shape = (len(rles), *size)

    def __len__(self) -> int:
        return len(self.rles)

    def __getitem__(self, index: Any) -> Any:
        """A mask, bool [H, W]; of a slice or of several indices, masks that are still encoded."""
        chosen = torch.arange(len(self))[index]
        if chosen.ndim == 0:
            return torch.from_numpy(mask_utils.decode(self.rles[int(chosen)])).bool()
        return LazyMasks([self.rles[n] for n in chosen.tolist()], self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        count, height, width = self.shape
        if count * height * width > DENSE_LIMIT:
            raise ValueError(
                f"{count} masks of {height} x {width} pixels have more than "
                f"{DENSE_LIMIT / 2**30:g} GiB: take them one by one, or those with high scores"
            )
        masks_NHW = np.zeros(self.shape, bool)
        for n in range(count):
            masks_NHW[n] = mask_utils.decode(self.rles[n])
        return masks_NHW.astype(dtype or bool)


def postprocess_encoded(
    prediction: Prediction, batch: Batch, config: ModelConfig
) -> list[SparseInstances]:
    """As `postprocess`, on the CPU and with encoded masks, which are never decoded on the way: by
    `alignmask.ops.mask_rle`. The same masks, but for pixels whose logit is within rounding of 0.
    """
    found = []
    for pairs in best_pairs(prediction, batch, config):
        counts_R, offsets, _, box_U4, mask_score_U = ops.mask_rle(
            pairs.logits_UHW, pairs.original, pairs.padded, pairs.valid
        )
        score_N, best = pairs.ranked(mask_score_U, box_U4, config.score)
        rle_U = from_runs(counts_R, offsets, pairs.original)
        of_U = pairs.which_N[best]
        found.append(
            SparseInstances(
                score_N[best].cpu(),
                pairs.labels_N[best].cpu(),
                [rle_U[u] for u in of_U.tolist()],
                box_U4[of_U].float().cpu(),
                pairs.scores_N[best].cpu(),
                mask_score_U[of_U].cpu(),
                pairs.original,
            )
        )
    return found
