"""What is exported: images in; scores, labels and masks out.

B images, Q queries, C classes, N detections of an image (a fixed number), E channels, H x W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignmask.data.batch import Batch
from alignmask.model import AlignMask
from alignmask.model.postprocess import class_scores, combine_scores

Detections = tuple[Tensor, Tensor, Tensor]
"""scores [B, N], labels [B, N], masks [B, N, H, W]."""

DIVISOR = 32
SMALLEST = 64
"""Height and width of images are multiples of DIVISOR, at least SMALLEST."""


def inputs_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """image and size, as `Segmenter.forward` takes them, of a batch, which may be smaller."""
    height, width = batch.image_BCHW.shape[2:]
    padding = (0, max(0, SMALLEST - width), 0, max(0, SMALLEST - height))
    size = torch.tensor(batch.sizes, device=batch.image_BCHW.device)
    return F.pad(batch.image_BCHW, padding), size


class Segmenter(nn.Module):
    """A model and its post-processing in one graph. The caller resizes and pads the images.

    The numbers are those of `AlignMask.predict`, with two differences: a graph's outputs have a
    fixed number of detections, so that a detection with an empty mask is kept, with score 0; and
    masks have the size of the given image, which may have been resized from a file.
    """

    def __init__(self, model: AlignMask) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, size: Tensor) -> Detections:
        """
        Args:
            image: uint8 [B, 3, H, W], RGB. Each image lies in the top left corner; what lies right
                of it and below does not matter. H and W are multiples of 32, at least 64.
            size: int64 [B, 2], height and width of each image without that padding.

        Returns:
            scores: float32 [B, N], from 0 to 1, best first; N = `config.detections`.
            labels: int64 [B, N], contiguous class indices.
            masks: bool [B, N, H, W], False on padding.
        """
        model, config = self.model, self.model.config
        height, width = image.shape[2:]
        row_BH = torch.arange(height, device=image.device) < size[:, :1]
        column_BW = torch.arange(width, device=image.device) < size[:, 1:]
        valid_BHW = row_BH[:, :, None] & column_BW[:, None]
        prediction = model.query_decoder(model.pixel_decoder(model.backbone(image, valid_BHW)))

        scores_BQC = class_scores(prediction.class_logits_LBRC[-1].float(), config)
        classes = scores_BQC.shape[2]
        scores_BN, pair_BN = scores_BQC.flatten(1).topk(
            min(config.detections, scores_BQC.shape[1] * classes), dim=1
        )
        query_BN, labels_BN = pair_BN // classes, pair_BN % classes

        embedding_BQE = prediction.mask_embedding_LBRE[-1].float()
        embedding_BNE = embedding_BQE.gather(
            1, query_BN[:, :, None].expand(-1, -1, embedding_BQE.shape[2])
        )
        logits = torch.einsum(
            "bne,behw->bnhw", embedding_BNE, prediction.pixel_embedding_BEHW.float()
        )
        logits = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
        masks_BNHW = (logits > 0) & valid_BHW[:, None]
        area_BN = masks_BNHW.sum((2, 3))
        if config.score != "class":
            mask_scores_BN = (logits.sigmoid() * masks_BNHW).sum((2, 3)) / area_BN.clamp(min=1)
            scores_BN = combine_scores(scores_BN, mask_scores_BN, config.score)
        scores_BN, order_BN = (scores_BN * (area_BN > 0)).topk(scores_BN.shape[1], dim=1)
        order_BNHW = order_BN[:, :, None, None].expand_as(masks_BNHW)
        return scores_BN, labels_BN.gather(1, order_BN), masks_BNHW.gather(1, order_BNHW)
