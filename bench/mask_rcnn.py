"""Mask R-CNN of torchvision, trained on what a recipe trains on: the same backbone and weights, the
same crops, batches and number of iterations, and the same tiles when it predicts.

    python bench/mask_rcnn.py nuclei_small DATA OUT.json --iterations 2580 --seed 1
    alignmask eval --results OUT.json --annotations DATA/instances_val.json

DATA has `images`, `instances_train.json` and `instances_val.json`. Feature pyramid, heads, losses
and suppression are torchvision's own. Its widths are not: a step with torchvision's 256 channels,
1,024 hidden units and 512 regions takes eight times as long on a CPU as one of a small recipe's
AlignMask, so all have the width of the recipe's model (128 channels, 512 units, 128 regions for
`nuclei_small`). The pyramid has GroupNorm, as the maps of some backbones are large. It is trained
by AdamW with the recipe's learning rates and averaged weights, or with `--optimizer sgd` as in
torchvision's recipe.

B images, N instances of one image, H x W pixels.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from alignmask import recipes
from alignmask.config import Config, ModelConfig
from alignmask.data import collate
from alignmask.data.batch import Batch
from alignmask.data.build import train_dataset, val_dataset
from alignmask.data.rle import encode
from alignmask.evaluation.predictions import predict_dataset
from alignmask.model.backbone import Backbone
from alignmask.model.postprocess import boxes_of
from alignmask.model.sparse import SparseInstances
from alignmask.model.tiles import tiles_for
from alignmask.training.optimizer import learning_rate_factor

RATE = 0.02 / 16
"""torchvision's learning rate for one image of the batch."""


class Pyramid(nn.Module):
    """The backbone's four maps and one of stride 64, of the width of the recipe's pixel decoder."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = Backbone(config.backbone)
        self.out_channels = config.pixel_decoder.width
        self.pyramid = FeaturePyramidNetwork(
            self.backbone.channels,
            self.out_channels,
            LastLevelMaxPool(),
            norm_layer=partial(nn.GroupNorm, 32),
        )

    def forward(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        maps = self.backbone(image_BCHW)
        return self.pyramid(OrderedDict((str(level), x) for level, x in enumerate(maps)))


class Detector(nn.Module):
    """Mask R-CNN that predicts as an AlignMask does."""

    def __init__(self, config: Config, anchors: tuple[int, ...]) -> None:
        super().__init__()
        self.config = replace(config.model, score="class")
        width, hidden = config.model.pixel_decoder.width, config.model.query_decoder.ffn_width
        classes = config.model.num_classes + 1  # class 0 is the background
        self.network = MaskRCNN(
            Pyramid(config.model),
            min_size=config.data.eval_short_side,
            max_size=config.data.eval_max_side,
            image_mean=(0.0,) * 3,  # the backbone knows its own
            image_std=(1.0,) * 3,
            rpn_anchor_generator=AnchorGenerator(
                tuple((side,) for side in anchors), ((0.5, 1.0, 2.0),) * len(anchors)
            ),
            rpn_pre_nms_top_n_train=500,
            rpn_post_nms_top_n_train=500,
            box_head=TwoMLPHead(width * 7**2, hidden),
            box_predictor=FastRCNNPredictor(hidden, classes),
            box_batch_size_per_image=width,
            box_detections_per_img=config.model.detections,
            mask_head=MaskRCNNHeads(width, (width,) * 4, 1),
            mask_predictor=MaskRCNNPredictor(width, width, classes),
        )

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        images = list(batch.image_BCHW.float())
        found: dict[str, Tensor] = self.network(images, targets(batch))
        return found

    @torch.no_grad()
    def predict_encoded(self, batch: Batch, /) -> list[SparseInstances]:
        shown = [
            image_CHW[:, : size[0], : size[1]].float()
            for image_CHW, size in zip(batch.image_BCHW, batch.sizes, strict=True)
        ]
        # As `MaskRCNN.forward`, which would return masks of the resized images.
        network = self.network
        images, _ = network.transform(shown)
        maps = network.backbone(images.tensors)
        proposals, _ = network.rpn(images, maps)
        found, _ = network.roi_heads(maps, proposals, images.image_sizes)
        full = network.transform.postprocess(found, images.image_sizes, batch.original_sizes)
        return [instances({name: x.cpu() for name, x in one.items()}) for one in full]


def targets(batch: Batch) -> list[dict[str, Tensor]]:
    """What torchvision wants to know of each image; its class 0 is the background."""
    given = zip(
        batch.masks_GHW.split(batch.counts), batch.labels_G.split(batch.counts), strict=True
    )
    result = []
    for masks_NHW, labels_N in given:
        boxes_N4 = boxes_of(masks_NHW)
        result.append({"boxes": boxes_N4, "labels": labels_N + 1, "masks": masks_NHW.byte()})
    return result


def instances(found: dict[str, Tensor]) -> SparseInstances:
    masks_NHW = found["masks"][:, 0] >= 0.5
    kept_N = masks_NHW.any(2).any(1)
    masks_NHW, scores_N = masks_NHW[kept_N], found["scores"][kept_N]
    return SparseInstances(
        scores_N,
        found["labels"][kept_N] - 1,
        encode(masks_NHW),
        boxes_of(masks_NHW),
        scores_N,
        torch.ones_like(scores_N),
        (masks_NHW.shape[1], masks_NHW.shape[2]),
    )


def batches(config: Config) -> Iterator[Batch]:
    """Without end, in a new order each time round."""
    dataset = train_dataset(config.data)
    print(dataset.describe(), flush=True)
    size = config.train.batch_size
    loader = DataLoader(dataset, size, shuffle=True, collate_fn=collate, drop_last=True)
    return itertools.chain.from_iterable(itertools.repeat(loader))


def optimizer_for(
    config: Config, kind: str, detector: Detector
) -> tuple[torch.optim.Optimizer, Callable[[int], float]]:
    """An optimizer, and the factor of its learning rate at each iteration."""
    train = config.train
    body = [p for p in detector.network.backbone.backbone.parameters() if p.requires_grad]
    known = set(map(id, body))
    rest = [p for p in detector.parameters() if p.requires_grad and id(p) not in known]
    optimizer: torch.optim.Optimizer
    if kind == "sgd":
        train = replace(train, schedule="step", milestones=(16 / 26, 22 / 26))
        optimizer = torch.optim.SGD(
            body + rest, RATE * train.batch_size, momentum=0.9, weight_decay=1e-4
        )
    else:
        groups = [
            {"params": body, "lr": train.learning_rate * train.backbone_multiplier},
            {"params": rest},
        ]
        optimizer = torch.optim.AdamW(groups, train.learning_rate, weight_decay=train.weight_decay)
    return optimizer, lambda step: learning_rate_factor(train, step, step / train.iterations)


def train(config: Config, kind: str, anchors: tuple[int, ...], device: str = "cpu") -> Detector:
    torch.manual_seed(config.train.seed)
    detector = Detector(config, anchors).to(device).train()
    optimizer, factor = optimizer_for(config, kind, detector)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    decay = config.train.ema if kind == "adamw" else None
    averaged = decay and AveragedModel(detector, multi_avg_fn=get_ema_multi_avg_fn(decay))
    total, start = config.train.iterations, time.monotonic()
    for step, batch in zip(range(1, total + 1), batches(config), strict=False):
        terms = detector.losses(batch.to(device))
        loss = torch.stack(list(terms.values())).sum()
        if not loss.isfinite():
            raise FloatingPointError(
                f"iteration {step}, images {batch.image_ids}: the loss is {loss}"
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if kind == "adamw":
            nn.utils.clip_grad_norm_(detector.parameters(), config.train.clip)
        optimizer.step()
        schedule.step()
        if averaged:
            averaged.update_parameters(detector)
        if step % 20 == 0:
            said = " ".join(
                f"{name.removeprefix('loss_')} {x.item():.3f}" for name, x in terms.items()
            )
            speed = step / (time.monotonic() - start)
            print(f"step {step}/{total}  {speed:.2f} it/s  {said}", flush=True)
    best = averaged.module if averaged else detector
    assert isinstance(best, Detector)
    return best.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", choices=sorted(recipes.RECIPES))
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--iterations", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw")
    parser.add_argument(
        "--anchors", type=int, nargs=5, default=(32, 64, 128, 256, 512), help="sides, pixels"
    )
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if given.out.exists():
        parser.error(f"{given.out} exists; name another file")
    config = recipes.RECIPES[given.recipe]()
    data = replace(
        config.data,
        train_images=given.data / "images",
        train_annotations=given.data / "instances_train.json",
        val_images=given.data / "images",
        val_annotations=given.data / "instances_val.json",
        shapes=None,
    )
    config = replace(
        config,
        data=data,
        train=replace(
            config.train, seed=given.seed, iterations=given.iterations or config.train.iterations
        ),
    )
    detector = train(config, given.optimizer, tuple(given.anchors), given.device)
    found = predict_dataset(
        detector,
        val_dataset(data, masks=False),
        device=given.device,
        batch_size=4,
        workers=0,
        tiles=tiles_for(data),
    )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found))
    print(f"{given.out}: {len(found)} predictions")


if __name__ == "__main__":
    main()
