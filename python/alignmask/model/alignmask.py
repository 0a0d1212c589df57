"""The model: backbone -> pixel decoder -> (aligned queries) -> query decoder -> prediction (Fig.
2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from alignmask.config import ModelConfig
from alignmask.data.batch import Batch
from alignmask.model.aligned_queries import AlignedQueryGenerator
from alignmask.model.backbone import Backbone
from alignmask.model.heads import Heads, Prediction
from alignmask.model.pixel_decoder import PixelDecoder
from alignmask.model.postprocess import Instances, postprocess
from alignmask.model.query_decoder import QueryDecoder
from alignmask.model.sparse import SparseInstances, postprocess_encoded


class AlignMask(nn.Module):
    """AlignMask; with `classification="softmax"` and `aligned_queries=None` it is Mask2Former."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.pixel_decoder.width
        self.backbone = Backbone(config.backbone)
        self.pixel_decoder = PixelDecoder(config.pixel_decoder, self.backbone.channels)
        heads = Heads(width, config.class_logits, config.classification)
        self.query_decoder = QueryDecoder(
            config.query_decoder, width, heads, config.aligned_queries
        )
        self.aligned_queries = None
        if config.aligned_queries is not None:
            self.aligned_queries = AlignedQueryGenerator(
                config.aligned_queries, width, config.query_decoder.layers
            )

    def forward(self, batch: Batch, points_BTK2: Tensor | None = None) -> Prediction:
        """In training mode, aligned queries are made from the batch's masks. In eval mode there are
        none.

        points_BTK2: Where they are pooled, if that was drawn before
        (`AlignedQueryGenerator.count_live`).
        """
        maps = self.backbone(batch.image_BCHW, batch.valid_BHW)
        features = self.pixel_decoder(maps)
        aligned = None
        if self.training and self.aligned_queries is not None:
            aligned = self.aligned_queries(features, batch, points_BTK2)
        return self.query_decoder(features, aligned)

    @torch.inference_mode()
    def predict(self, batch: Batch) -> list[Instances]:
        """Instances of every image at its original size, best first. Call in eval mode."""
        self._refuse_training("predict")
        return postprocess(self(batch), batch, self.config)

    @torch.inference_mode()
    def predict_encoded(self, batch: Batch) -> list[SparseInstances]:
        """The same on the CPU, with run-length encoded masks: faster, where these are what is
        wanted."""
        self._refuse_training("predict_encoded")
        return postprocess_encoded(self(batch), batch, self.config)

    def _refuse_training(self, method: str) -> None:
        if self.training:
            raise RuntimeError(
                f"AlignMask.{method}: the model is in training mode; call model.eval() first"
            )

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def build_model(config: ModelConfig) -> AlignMask:
    return AlignMask(config)
