"""The baseline is Mask2Former: with the same weights, the numbers of Hugging Face's implementation,
forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

from alignmask.config import LossConfig
from alignmask.data import Batch
from alignmask.loading import from_huggingface
from alignmask.loss import Criterion, criterion, matcher
from alignmask.model import AlignMask, Prediction
from alignmask.model.backbone import SwinBlock
from alignmask.model.postprocess import postprocess
from tests.loss.pointrend import samples_at
from tests.model import peers

TOLERANCE = 1e-4


def relative_error(value: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest value."""
    assert value.shape == expected.shape
    return ((value - expected).abs().max() / expected.abs().max()).item()


def run(
    peer: Mask2FormerForUniversalSegmentation, image_BCHW: Tensor
) -> tuple[AlignMask, Prediction, Any]:
    """Both models on the same pixels. Attention masks are the same up to tokens whose logit is
    within 1e-4 of 0."""
    model = from_huggingface(peer).model
    normalised = (image_BCHW - model.backbone.mean) / model.backbone.std
    with torch.no_grad(), peers.SameAttention(peer) as attention:
        theirs = peer(pixel_values=normalised, output_auxiliary_logits=True)
        ours = model(peers.batch(image_BCHW))
    assert attention.furthest <= TOLERANCE
    return model, ours, theirs


def outputs(theirs: Any) -> list[tuple[Tensor, Tensor]]:
    """(class logits, mask logits) of all outputs, the last one last."""
    auxiliary = [
        (a["class_queries_logits"], a["masks_queries_logits"]) for a in theirs.auxiliary_logits
    ]
    return [*auxiliary, (theirs.class_queries_logits, theirs.masks_queries_logits)]


def assert_same_outputs(ours: Prediction, theirs: Any) -> None:
    expected = outputs(theirs)
    assert len(expected) == len(ours.class_logits_LBRC)
    for index, (class_logits, mask_logits) in enumerate(expected):
        assert relative_error(ours.class_logits_LBRC[index], class_logits) <= TOLERANCE
        assert relative_error(ours.mask_logits(index), mask_logits) <= TOLERANCE
    # The comparison means something: masks are neither empty nor full, queries differ.
    assert 0.02 < (expected[-1][1] > 0).float().mean() < 0.98
    assert expected[-1][0].std(dim=1).min() > 1e-3


@pytest.mark.parametrize("size", [(64, 96), (96, 160), (128, 128)])
@pytest.mark.parametrize("backbone", peers.BACKBONES)
def test_all_outputs_are_the_same(backbone: str, size: tuple[int, int]) -> None:
    """Sizes that windows divide, and sizes that they do not."""
    _, ours, theirs = run(peers.mask2former(peers.BACKBONES[backbone]), peers.images(2, *size))
    assert_same_outputs(ours, theirs)


@pytest.mark.parametrize("backbone", ["Swin-T", "R50"])
def test_published_sizes_have_the_same_outputs(backbone: str) -> None:
    """10 outputs of 100 queries."""
    peer = peers.mask2former(
        peers.SWIN_T if backbone == "Swin-T" else peers.RESNET50, **peers.PUBLISHED
    )
    _, ours, theirs = run(peer, peers.images(1, 96, 128))
    assert tuple(ours.class_logits_LBRC.shape) == (10, 1, 100, 81)
    assert_same_outputs(ours, theirs)


def test_swin_pads_before_it_shifts(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm shifts first: with that, the outputs are others (and the tests above can fail)."""
    monkeypatch.delattr(SwinBlock, "_attn")
    peer, image_BCHW = peers.mask2former(peers.BACKBONES["swin"]), peers.images(1, 96, 160)
    model = from_huggingface(peer).model
    with torch.no_grad():
        ours = model(peers.batch(image_BCHW))
        theirs = peer(pixel_values=(image_BCHW - model.backbone.mean) / model.backbone.std)
    assert relative_error(ours.class_logits_LBRC[-1], theirs.class_queries_logits) > 0.01


def test_padding_is_what_peers_see_as_zeros() -> None:
    """Images in a batch are padded after normalisation, and padding takes part in attention, as in
    Mask2Former."""
    peer = peers.mask2former(peers.BACKBONES["swin"])
    model = from_huggingface(peer).model
    image_BCHW = peers.images(2, 96, 128)
    batch = peers.batch(image_BCHW)
    batch.valid_BHW[0, 70:], batch.valid_BHW[0, :, 100:] = False, False
    normalised = (image_BCHW - model.backbone.mean) / model.backbone.std * batch.valid_BHW[:, None]
    with torch.no_grad(), peers.SameAttention(peer):
        theirs = peer(pixel_values=normalised, output_auxiliary_logits=True)
        assert_same_outputs(model(batch), theirs)


@pytest.mark.parametrize("backbone", peers.BACKBONES)
def test_instances_are_those_of_the_image_processor(backbone: str) -> None:
    """Hugging Face resizes mask logits to 384 x 384, whatever the image's size, and the masks from
    there by nearest neighbour; Mask2Former, and we, resize the logits to the image. The two are the
    same for an image of 384 x 384. It also keeps the (query, class) pairs in no order, and as many
    as there are queries."""
    peer = peers.mask2former(peers.BACKBONES[backbone])
    image_BCHW = peers.images(2, 384, 384)
    model, ours, theirs = run(peer, image_BCHW)
    expected = Mask2FormerImageProcessor().post_process_instance_segmentation(
        theirs, threshold=0.0, target_sizes=[(384, 384)] * 2, return_binary_maps=True
    )
    config = replace(model.config, detections=peer.config.num_queries)
    full_BQHW = F.interpolate(
        theirs.masks_queries_logits, size=(384, 384), mode="bilinear", align_corners=False
    )
    all_found = postprocess(ours, peers.batch(image_BCHW), config)
    for found, peers_found, logits_QHW in zip(all_found, expected, full_BQHW, strict=True):
        info, masks = peers_found["segments_info"], peers_found["segmentation"] > 0
        assert len(found) == len(info) > 3
        order = sorted(range(len(info)), key=lambda i: -info[i]["score"])
        scores = torch.tensor([info[i]["score"] for i in order])
        assert (scores.diff().abs() > 1e-5).all()  # else the order says nothing
        # Theirs have 6 digits.
        torch.testing.assert_close(found.scores_N, scores, rtol=TOLERANCE, atol=1e-6)
        assert found.labels_N.tolist() == [info[i]["label_id"] for i in order]
        for ours_HW, theirs_HW in zip(found.masks_NHW, masks[order], strict=True):
            (query,) = (
                ((logits_QHW > 0) == theirs_HW)
                .flatten(1)
                .all(dim=1)
                .nonzero()
                .flatten()
                .unique()
                .tolist()
            )
            assert (logits_QHW[query, ours_HW != theirs_HW].abs() <= 1e-4).all()


# ---- losses


def training_batch(image_BCHW: Tensor, classes: int) -> Batch:
    """Three, no and two instances: rectangles."""
    counts = [3, 0, 2]
    masks_GHW = torch.zeros(5, *image_BCHW.shape[2:], dtype=torch.bool)
    for index, (top, left) in enumerate([(0, 0), (10, 30), (40, 8), (5, 60), (33, 47)]):
        masks_GHW[index, top : top + 23 + 3 * index, left : left + 29] = True
    return replace(
        peers.batch(image_BCHW),
        masks_GHW=masks_GHW,
        labels_G=torch.arange(5) % classes,
        owner_G=torch.tensor([0, 0, 0, 2, 2]),
        counts=counts,
    )


class Points:
    """The same points for both: of the matcher by image, of the losses by (output, image,
    query)."""

    def __init__(self, count: int, images: int) -> None:
        self.count = count
        generator = torch.Generator().manual_seed(0)
        self.matching_BK2 = torch.rand(images, count, 2, generator=generator)

    def of(self, output: int, image: int, query: int) -> Tensor:
        generator = torch.Generator().manual_seed(10_000 * output + 100 * image + query)
        return torch.empty(self.count, 2).uniform_(generator=generator)


def their_losses(
    peer: Mask2FormerForUniversalSegmentation,
    theirs: Any,
    batch: Batch,
    points: Points,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
    """-> the losses of every output, and its matching: the query of each instance [G]."""
    loss = peer.criterion
    masks = [m.float() for m in batch.masks_GHW.split(batch.counts)]
    labels = list(batch.labels_G.split(batch.counts))
    order = [*range(len(outputs(theirs)))]
    order = [order[-1], *order[:-1]]  # it computes the last output first
    matched: dict[int, Tensor] = {}
    images_left: Iterator[int] = iter(list(range(batch.batch_size)) * len(order))

    def rand(*shape: Any, **_: Any) -> Tensor:
        assert shape == (1, points.count, 2)
        return points.matching_BK2[next(images_left)][None]

    calls = iter(order)
    loss_masks = loss.loss_masks

    def remember(mask_logits: Tensor, mask_labels: Any, indices: Any, num_masks: Any) -> Any:
        output = next(calls)
        rows = [
            points.of(output, b, int(q)) for b, (queries, _) in enumerate(indices) for q in queries
        ]
        query_of = [queries[instances.argsort()] for queries, instances in indices]
        matched[output] = torch.cat(query_of)
        monkeypatch.setattr(loss, "sample_points_using_uncertainty", lambda *_: torch.stack(rows))
        return loss_masks(mask_logits, mask_labels, indices, num_masks)

    monkeypatch.setattr(loss, "loss_masks", remember)
    monkeypatch.setattr(torch, "rand", rand)
    values = loss(
        theirs.masks_queries_logits,
        theirs.class_queries_logits,
        masks,
        labels,
        theirs.auxiliary_logits,
    )
    monkeypatch.undo()
    names = ("loss_cross_entropy", "loss_mask", "loss_dice")
    last = len(order) - 1
    per_output = [
        {n: values[n if o == last else f"{n}_{o}"] for n in names} for o in range(len(order))
    ]
    return per_output, [matched[o] for o in range(len(order))]


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_losses_and_gradients_are_the_same(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the same points. The assignments are compared too, not injected: their costs are the
    same."""
    peer = peers.mask2former(peers.BACKBONES[backbone])
    model = from_huggingface(peer).model
    image_BCHW = peers.images(3, 64, 96)
    batch, points = training_batch(image_BCHW, 5), Points(64, 3)
    normalised = (image_BCHW - model.backbone.mean) / model.backbone.std
    with peers.SameAttention(peer):
        theirs, prediction = (
            peer(pixel_values=normalised, output_auxiliary_logits=True),
            model(batch),
        )
    expected, their_matching = their_losses(peer, theirs, batch, points, monkeypatch)

    config = LossConfig(points=64)
    ours_matching_LG = matcher.match(prediction, batch, config, "softmax", points.matching_BK2)
    assert torch.equal(ours_matching_LG, torch.stack(their_matching))

    rows = sorted(
        (int(batch.owner_G[g]), output, int(query))
        for output, matched in enumerate(ours_matching_LG)
        for g, query in enumerate(matched)
    )
    monkeypatch.setattr(criterion, "match", lambda *_, **__: ours_matching_LG)
    given = torch.stack([points.of(output, image, query) for image, output, query in rows])
    monkeypatch.setattr(criterion, "uncertain_samples", lambda *rows: samples_at(given, *rows[:3]))
    losses = Criterion(model.config, config)(prediction, batch)
    for name, ours_L in (
        ("loss_cross_entropy", losses.objects.classification_L),
        ("loss_mask", losses.objects.mask_L),
        ("loss_dice", losses.objects.dice_L),
    ):  # fmt: skip
        assert relative_error(ours_L, torch.stack([e[name] for e in expected])) <= TOLERANCE
    assert losses.aligned.mask_L.sum() == 0

    weights = peer.weight_dict
    sum(weights[name] * value for values in expected for name, value in values.items()).backward()
    losses.total(config).backward()
    assert_same_gradients(model, peer)


def assert_same_gradients(model: AlignMask, peer: Mask2FormerForUniversalSegmentation) -> None:
    """Gradients are carried over under our names like the weights they belong to."""
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.copy_(
                torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            )
    theirs = dict(from_huggingface(peer).model.named_parameters())
    compared = 0
    scale = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            difference = (parameter.grad - theirs[name]).abs().max()
            # Key biases change no softmax: their gradients are rounding errors of the size of the
            # largest ones' last digits.
            assert difference <= 1e-3 * theirs[name].abs().max() + 1e-6 * scale, name
            compared += 1
    assert compared > 100
