"""A training step whose model is replayed from CUDA graphs: the host asks for two graphs instead of
thousands of kernels.

The aligned queries lie between the two and are made as always: their number is that of the batch's
instances. Shape suffixes as in `alignmask.model`.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from alignmask.config import TrainConfig
from alignmask.data import Batch
from alignmask.model import AlignMask
from alignmask.model.aligned_queries import AlignedQueries
from alignmask.model.heads import Prediction
from alignmask.model.pixel_decoder import PixelFeatures


class Pixels(nn.Module):
    """Images -> the three maps and the pixel embedding."""

    def __init__(self, model: AlignMask) -> None:
        super().__init__()
        self.backbone, self.pixel_decoder = model.backbone, model.pixel_decoder

    def forward(self, image_BCHW: Tensor, valid_BHW: Tensor) -> tuple[Tensor, ...]:
        features = self.pixel_decoder(self.backbone(image_BCHW, valid_BHW))
        return *features.levels, features.embedding_BEHW


class Queries(nn.Module):
    """These and the aligned queries -> class logits and mask embeddings of all outputs."""

    def __init__(self, model: AlignMask) -> None:
        super().__init__()
        self.query_decoder = model.query_decoder

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """tensors: the maps, the pixel embedding, and the fields of the aligned queries if there
        are any, their attention masks last."""
        features = PixelFeatures(list(tensors[:3]), tensors[3])
        aligned = None
        if len(tensors) > 4:
            features_BAE, instance_BA, set_BA, *attention = tensors[4:]
            aligned = AlignedQueries(features_BAE, instance_BA, set_BA, tuple(attention))
        prediction: Prediction = self.query_decoder(features, aligned)
        return prediction.class_logits_LBRC, prediction.mask_embedding_LBRE


class GraphedForward:
    """The model's forward pass in training. Its results, and what the backward pass makes of them,
    are those of `model(batch)`.

    A graph is captured when a batch of a new form comes: of images once, of queries once for each
    number of slots. Predictions and gradients are overwritten by the next call.
    """

    def __init__(self, model: AlignMask) -> None:
        self.model = model
        self.size: torch.Size | None = None
        self.pixels: Any = None
        self.queries: dict[int, Any] = {}
        """By the number of aligned slots."""
        self.pool: Any = None
        """The memory that the graphs of queries share: one of them is replayed in a step."""

    def __call__(self, batch: Batch, points_BTK2: Tensor | None = None) -> Prediction:
        """As AlignMask's. Raises ValueError if the images have another size than those before."""
        self._check_size(batch)
        given = (batch.image_BCHW, batch.valid_BHW)
        if self.pixels is None:
            self.pixels = _captured(Pixels(self.model), given)
        *levels, embedding_BEHW = self.pixels(*given)
        aligned, slots = None, 0
        inputs = [*levels, embedding_BEHW.detach()]  # masks of attention have no gradient
        if self.model.aligned_queries is not None:
            features = PixelFeatures(levels, embedding_BEHW)
            aligned = self.model.aligned_queries(features, batch, points_BTK2)
            slots = aligned.set_BA.shape[1]
            inputs += [aligned.features_BAE, aligned.instance_BA, aligned.set_BA]
            inputs += aligned.attention
        if slots not in self.queries:
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            self.queries[slots] = _captured(Queries(self.model), tuple(inputs), self.pool)
        class_logits_LBRC, mask_embedding_LBRE = self.queries[slots](*inputs)
        return Prediction(
            class_logits_LBRC,
            mask_embedding_LBRE,
            embedding_BEHW,
            self.model.query_decoder.query.shape[0],
            aligned,
        )

    def _check_size(self, batch: Batch) -> None:
        size = batch.image_BCHW.shape
        self.size = self.size or size
        if size != self.size:
            raise ValueError(
                f"train.cuda_graphs: images {batch.image_ids} make a batch of {list(size)}, those "
                f"before had {list(self.size)}; a fixed crop (data.crop) makes all batches equal"
            )


def _captured(region: nn.Module, given: tuple[Tensor, ...], pool: Any = None) -> Any:
    """The region as two graphs, forward and backward, in the memory of `pool` or in their own.
    Neither random numbers nor statistics that are gathered in training notice."""
    examples = tuple(_like(tensor) for tensor in given)
    before = [buffer.clone() for buffer in region.buffers()]
    # With autocast's cache, weights in half precision would not belong to the graph.
    device = given[0].device.type
    autocast = torch.autocast(
        device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), False
    )
    # Meanwhile the data loader's thread pins memory, which the default mode forbids.
    own_thread = patch.object(torch.cuda, "graph", _OfThisThread)
    devices = [given[0].device] if device == "cuda" else []
    with torch.random.fork_rng(devices), autocast, own_thread:
        graphed = torch.cuda.make_graphed_callables(
            region,
            examples,
            allow_unused_input=True,
            pool=pool,
        )
    with torch.no_grad():
        for buffer, value in zip(region.buffers(), before, strict=True):
            buffer.copy_(value)
    return graphed


class _OfThisThread(torch.cuda.graph):
    """A capture that only calls of its own thread can spoil."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **(options | {"capture_error_mode": "thread_local"}))


def check(t: TrainConfig, device: torch.device, processes: int) -> None:
    """Raises ValueError where `train.cuda_graphs` cannot be had."""
    if not t.cuda_graphs:
        return
    reason = ""
    if device.type != "cuda":
        reason = "there is no GPU"
    elif processes > 1:
        reason = (
            f"there are {processes} processes, whose gradients are exchanged while they are made"
        )
    elif t.accumulate > 1:
        reason = "a graph's gradients are overwritten, so train.accumulate must be 1"
    if reason:
        raise ValueError(f"train.cuda_graphs: {reason}")


def _like(tensor: Tensor) -> Tensor:
    """An example of a region's input; maps with all channels of a pixel together, as the model
    makes them."""
    layout = (
        torch.channels_last if tensor.ndim == 4 and tensor.requires_grad else torch.preserve_format
    )
    made = tensor.detach().clone(memory_format=layout)
    return made.requires_grad_(tensor.requires_grad)
