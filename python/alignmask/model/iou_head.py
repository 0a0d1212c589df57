"""The IoU of a query's mask with the object that it stands for, predicted: the head that Mask Scoring
R-CNN adds to Mask R-CNN, on queries.

B images, Q object queries, E channels, H x W the pixel embedding's size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from alignmask.model.heads import Prediction
from alignmask.model.layers import mlp


class IouHead(nn.Module):
    """A multi-layer perceptron of the mask embedding, and of the pixel embedding's mean in the
    mask."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.predict = mlp(2 * width, width, 1)

    def forward(self, prediction: Prediction) -> Tensor:
        """-> [B, Q]: logits, of the last output's masks."""
        # Detached: what the head learns does not change the masks.
        mask_BQE = prediction.object_rows.mask_embedding_LBRE[-1].detach()
        pixels_BEHW = prediction.pixel_embedding_BEHW.detach()
        with torch.no_grad():
            logits_BQHW = torch.einsum("bqe,behw->bqhw", mask_BQE, pixels_BEHW)
            inside_BQS = (logits_BQHW > 0).flatten(2).to(pixels_BEHW.dtype)
            area_BQ1 = inside_BQS.sum(2, keepdim=True).clamp(min=1)
        pooled_BQE = inside_BQS @ pixels_BEHW.flatten(2).transpose(1, 2) / area_BQ1
        found_BQ1: Tensor = self.predict(self.norm(torch.cat((mask_BQE, pooled_BQE), dim=2)))
        return found_BQ1[..., 0]
