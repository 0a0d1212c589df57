"""Prediction -> instances at the images' original sizes.

B images, Q queries, C classes, N instances of one image, E channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from alignmask._extras import require_supervision
from alignmask.config import ModelConfig, ScoreMode
from alignmask.data.batch import Batch, Size
from alignmask.model.heads import Prediction

if TYPE_CHECKING:
    from supervision import Detections

# Number of pixels to upsample at once: the logits of a hundred masks of 1024 x 1024 take 400 MB,
# and several copies exist.
CHUNK = 16 * 2**20


@dataclass(repr=False)
class Instances:
    """The instances found in one image, best first."""

    scores_N: Tensor
    """float32 in [0, 1]: what predictions are ranked by."""
    labels_N: Tensor
    """int64, contiguous class indices."""
    masks_NHW: Tensor
    """bool, at the image's original size."""
    boxes_N4: Tensor
    """float32: x1, y1, x2, y2 in pixels, around the mask."""
    class_scores_N: Tensor
    mask_scores_N: Tensor
    """The class score, and the mean probability of the mask's pixels: every score mode can be
    computed from these."""
    quality_N: Tensor | None = None
    """float32 in [0, 1]: the expected IoU, if the model is calibrated (`alignmask calibrate`). A
    forecast, with equal values for different scores; the order is that of the scores."""
    trusted_N: Tensor | None = None
    """bool: which ones the guarantee of the calibration covers; None if there is no guarantee, or
    if it is of predictions with another suppression of second masks or in other tiles."""

    def __repr__(self) -> str:
        height, width = self.masks_NHW.shape[1:]
        best = f", scores {self.scores_N[0]:.2f} to {self.scores_N[-1]:.2f}" if len(self) else ""
        return f"Instances({len(self)} in {height} x {width} pixels{best})"

    def __len__(self) -> int:
        return self.scores_N.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Instances:
        return self._each(lambda value: value[index])

    def cpu(self) -> Instances:
        return self._each(Tensor.cpu)

    def to_supervision(self) -> Detections:
        """The instances as `supervision.Detections`, for that package's drawing, tracking and
        counting.

        Raises:
            ImportError: The package supervision is not installed.
        """
        require_supervision("to_supervision")
        from supervision import Detections

        return Detections(
            xyxy=self.boxes_N4.cpu().numpy(),
            mask=self.masks_NHW.cpu().numpy(),
            confidence=self.scores_N.cpu().numpy(),
            class_id=self.labels_N.cpu().numpy(),
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> Instances:
        values = (getattr(self, f.name) for f in fields(self))
        return Instances(*(None if value is None else change(value) for value in values))  # type: ignore[arg-type]

    @property
    def scores(self) -> Tensor:
        return self.scores_N

    @property
    def labels(self) -> Tensor:
        return self.labels_N

    @property
    def masks(self) -> Tensor:
        return self.masks_NHW

    @property
    def boxes(self) -> Tensor:
        return self.boxes_N4

    @property
    def quality(self) -> Tensor | None:
        return self.quality_N

    @property
    def trusted(self) -> Tensor | None:
        return self.trusted_N


def class_scores(logits: Tensor, config: ModelConfig) -> Tensor:
    """Class logits -> scores of the C classes (without "no object")."""
    return logits.softmax(-1)[..., :-1] if config.classification == "softmax" else logits.sigmoid()


def combine_scores(class_scores: Tensor, mask_scores: Tensor, mode: ScoreMode) -> Tensor:
    """Class scores and mean mask probabilities of the same shape -> what predictions are ranked
    by."""
    match mode:
        case "class":
            return class_scores
        case "class*mask":
            return class_scores * mask_scores
        case "class^0.5*mask":
            return class_scores.sqrt() * mask_scores


class BestPairs(NamedTuple):
    """The best (query, class) pairs of one image: N pairs of U queries."""

    scores_N: Tensor
    """Class scores, the best first."""
    labels_N: Tensor
    which_N: Tensor
    """The query of a pair, as an index of U."""
    logits_UHW: Tensor
    """Mask logits of stride 4."""
    padded: Size
    """What they are resized to: the size of the batch's images."""
    valid: Size
    """The part of it that is this image."""
    original: Size
    """What that is resized to then."""
    iou_U: Tensor | None
    """The predicted IoUs of the masks, if there is a head for them."""

    def ranked(
        self, mask_score_U: Tensor, boxes_U4: Tensor, mode: ScoreMode
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The masks' scores, the scores of the pairs, and the pairs whose masks are not empty, the best first."""
        if self.iou_U is not None:
            mask_score_U = self.iou_U
        score_N = combine_scores(self.scores_N, mask_score_U[self.which_N], mode)
        best = score_N.argsort(descending=True, stable=True)
        return mask_score_U, score_N, best[(boxes_U4[self.which_N, 2] > 0)[best]]  # an empty mask's box is empty


def best_pairs(prediction: Prediction, batch: Batch, config: ModelConfig) -> Iterator[BestPairs]:
    """Of every image. Raises FloatingPointError that names the image if scores or mask logits are
    not finite, because such a model would otherwise return no instances without an error."""
    scores_BQC = class_scores(prediction.object_rows.class_logits_LBRC[-1].float(), config)
    pairs = scores_BQC.shape[1] * scores_BQC.shape[2]
    scores_BN, pair_BN = scores_BQC.flatten(1).topk(min(config.detections, pairs), dim=1)
    height, width = batch.image_BCHW.shape[-2:]
    for b in range(scores_BQC.shape[0]):
        query_N, label_N = pair_BN[b] // scores_BQC.shape[2], pair_BN[b] % scores_BQC.shape[2]
        query_U, which_N = query_N.unique(return_inverse=True)
        embedding_UE = prediction.mask_embedding_LBRE[-1, b, query_U].float()
        logits_UHW = torch.einsum(
            "ue,ehw->uhw", embedding_UE, prediction.pixel_embedding_BEHW[b].float()
        )
        if not (scores_BN[b].isfinite().all() and logits_UHW.isfinite().all()):
            raise FloatingPointError(
                f"image {batch.image_ids[b]} ({batch.file_names[b]}): the model's output is not "
                "finite"
            )
        yield BestPairs(
            scores_BN[b],
            label_N,
            which_N,
            logits_UHW,
            (height, width),
            batch.sizes[b],
            batch.original_sizes[b],
            None
            if prediction.iou_logits_BQ is None
            else prediction.iou_logits_BQ[b, query_U].float().sigmoid(),
        )


def postprocess(prediction: Prediction, batch: Batch, config: ModelConfig) -> list[Instances]:
    """The best (query, class) pairs of every image. Only their masks are computed; a pair with an
    empty mask is dropped. Raises as `best_pairs`.

    `alignmask.model.sparse.postprocess_encoded` does the same for masks that are to be encoded.
    """
    found = []
    for pairs in best_pairs(prediction, batch, config):
        logits_UHW, original, padded = pairs.logits_UHW, pairs.original, pairs.padded
        masks_UHW = torch.empty(
            len(logits_UHW), *original, dtype=torch.bool, device=logits_UHW.device
        )
        mask_score_U = logits_UHW.new_empty(len(logits_UHW))
        step = max(1, CHUNK // max(padded[0] * padded[1], original[0] * original[1]))
        for part in (slice(start, start + step) for start in range(0, len(logits_UHW), step)):
            masks_UHW[part], mask_score_U[part] = _full_size(
                logits_UHW[part], padded, pairs.valid, original
            )
        boxes_U4 = boxes_of(masks_UHW)
        mask_score_U, score_N, best = pairs.ranked(mask_score_U, boxes_U4, config.score)
        of_U = pairs.which_N[best]
        found.append(
            Instances(
                score_N[best],
                pairs.labels_N[best],
                masks_UHW[of_U],
                boxes_U4[of_U],
                pairs.scores_N[best],
                mask_score_U[of_U],
            )
        )
    return found


def _full_size(
    logits_NHW: Tensor, padded: Size, valid: Size, original: Size
) -> tuple[Tensor, Tensor]:
    """Stride-4 logits -> masks at the original size, mean probability inside them."""
    logits = F.interpolate(logits_NHW[None], size=padded, mode="bilinear", align_corners=False)
    logits = logits[..., : valid[0], : valid[1]]
    if valid != original:
        logits = F.interpolate(logits, size=original, mode="bilinear", align_corners=False)
    masks_NHW = logits[0] > 0
    inside = masks_NHW.flatten(1)
    probability = (logits[0].flatten(1).sigmoid() * inside).sum(1)
    return masks_NHW, probability / inside.sum(1).clamp(min=1)


def boxes_of(masks_NHW: Tensor) -> Tensor:
    """-> [N, 4]: the tight box (x1, y1, x2, y2) with x2, y2 past the last pixel; zeros for an empty
    mask."""
    columns, rows = masks_NHW.any(dim=1).int(), masks_NHW.any(dim=2).int()
    first = torch.stack((columns.argmax(1), rows.argmax(1)), dim=1)
    past = torch.tensor(masks_NHW.shape[:0:-1], device=masks_NHW.device) - torch.stack(
        (columns.flip(1).argmax(1), rows.flip(1).argmax(1)), dim=1
    )
    return torch.cat((first, past), dim=1).float() * columns.any(dim=1, keepdim=True)
