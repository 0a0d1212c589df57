"""The heads, and the precision that scores are computed in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from alignmask.model.heads import Heads
from alignmask.model.layers import mlp
from tests import tiny
from tests.covers import covers
from tests.model import peers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_class_logits_are_of_full_precision_under_autocast(dtype: torch.dtype) -> None:
    """Scores are ranked: half precision would make ties of one in a hundred."""
    heads = Heads(64, 5, "quality_focal")
    peers.scatter(heads)
    queries = torch.randn(2, 30, 64)
    expected, expected_masks = heads(queries)
    with torch.autocast("cpu", dtype):
        found, masks = heads(queries)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    double = heads.double()
    exact = double.norm(queries.double()) @ double.classify.weight.T + double.classify.bias
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)
    assert masks.dtype == dtype  # autocast was at work
    torch.testing.assert_close(masks.float(), expected_masks, rtol=0.1, atol=0.1)
    assert len(expected.unique()) > len(expected.to(dtype).unique())  # ties there would be


@torch.no_grad()
def test_a_model_under_autocast_has_class_logits_of_full_precision() -> None:
    model = tiny.model().train()
    with torch.autocast("cpu", torch.bfloat16):
        prediction = model(tiny.batch())
    assert prediction.class_logits_LBRC.dtype == torch.float32
    assert not torch.equal(
        prediction.class_logits_LBRC, prediction.class_logits_LBRC.bfloat16().float()
    )


@pytest.mark.parametrize("classification", ["softmax", "focal", "quality_focal"])
@covers("model.num_classes", "model.classification")
def test_there_is_one_logit_per_class_and_one_for_no_object(classification: Any) -> None:
    config = replace(tiny.model_config(), num_classes=7, classification=classification)
    model = tiny.model(num_classes=7, classification=classification)
    logits = 8 if classification == "softmax" else 7
    assert config.class_logits == logits
    assert model.query_decoder.heads.classify.weight.shape == (logits, 32)
    assert model(tiny.batch()).class_logits_LBRC.shape[-1] == logits


def test_the_mlps_have_two_hidden_layers() -> None:
    """Eq. 1, and Mask2Former's mask head."""
    layers = mlp(3, 5, 2)
    assert [
        tuple(layer.weight.shape) for layer in layers if isinstance(layer, torch.nn.Linear)
    ] == [
        (5, 3),
        (5, 5),
        (2, 5),
    ]
    for part in (tiny.model().query_decoder.heads.mask, tiny.model().aligned_queries.mlp):
        assert [type(layer).__name__ for layer in part] == [
            "Linear",
            "ReLU",
            "Linear",
            "ReLU",
            "Linear",
        ]


@torch.no_grad()
def test_mask_logits_are_those_of_the_output_that_is_asked_for() -> None:
    prediction = tiny.model().train()(tiny.batch())
    for output in (0, 2, -1):
        for b in range(3):
            for r in (0, 5, 8):
                expected = (
                    prediction.mask_embedding_LBRE[output, b, r, :, None, None]
                    * prediction.pixel_embedding_BEHW[b]
                ).sum(0)
                torch.testing.assert_close(
                    prediction.mask_logits(output)[b, r], expected, rtol=1e-4, atol=1e-4
                )
    torch.testing.assert_close(prediction.mask_logits(), prediction.mask_logits(3))
    assert (prediction.mask_logits() - prediction.mask_logits(2)).abs().max() > 1e-3


def test_views_of_a_prediction_are_its_object_and_aligned_rows() -> None:
    prediction = tiny.model().train()(tiny.batch())
    objects, aligned = prediction.object_rows, prediction.aligned_rows
    assert prediction.kind_2R.tolist() == [[True] * 6 + [False] * 7, [False] * 6 + [True] * 7]
    for name in ("class_logits_LBRC", "mask_embedding_LBRE"):
        whole = getattr(prediction, name)
        assert torch.equal(
            torch.cat((getattr(objects, name), getattr(aligned, name)), dim=2), whole
        )
        assert getattr(objects, name).shape[2] == prediction.queries == 6
        assert (
            getattr(objects, name).untyped_storage().data_ptr()
            == whole.untyped_storage().data_ptr()
        )
