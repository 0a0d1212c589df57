"""Aligned queries that attend to their instance's mask with noise (MP-Former)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from alignmask.data import Batch
from alignmask.model import AlignMask
from alignmask.model.aligned_queries import AlignedQueries, AlignedQueryGenerator
from alignmask.model.noised_masks import cells_of, with_noise
from alignmask.model.pixel_decoder import PixelFeatures
from tests import tiny
from tests.covers import covers

NOISED = replace(tiny.ALIGNED, mask_noise=0.2)
SIZES = [(2, 3), (4, 6), (8, 12)]
"""Of the levels of a batch of 64 x 96 pixels."""


def made(batch: Batch, sizes: list[tuple[int, int]] = SIZES, **changes: Any) -> AlignedQueries:
    """For a decoder of five layers."""
    torch.manual_seed(0)
    generator = AlignedQueryGenerator(replace(NOISED, points=4000, **changes), 32, layers=5)
    maps = [torch.zeros(batch.batch_size, 32, h, w) for h, w in [*sizes, (16, 24)]]
    return generator(PixelFeatures(maps[:3], maps[3]), batch)


def seen_by_layers(model: AlignMask, **given: Any) -> list[Tensor]:
    """The attention mask that each masked-attention block is called with, a bool for each row and
    token."""
    found: list[Tensor] = []

    def note(block: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[4][:, 0])

    hooks = [
        layer.masked_attention.register_forward_pre_hook(note)
        for layer in model.query_decoder.layers
    ]
    model(**given)
    for hook in hooks:
        hook.remove()
    return found


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    stride=st.integers(1, 9),
    seed=st.integers(0, 999),
)
def test_a_cell_is_seen_if_the_mask_has_a_pixel_in_it(
    size: tuple[int, int], stride: int, seed: int
) -> None:
    """Also where the last cells are cut by the image's border, as in a map of a size rounded up."""
    masks = np.random.default_rng(seed).random((3, *size)) < 0.1
    h, w = (-(-side // stride) for side in size)
    rows, columns = (-(-side // cells) for side, cells in zip(size, (h, w), strict=True))
    expected = np.zeros((3, h, w), bool)
    for g, y, x in zip(*masks.nonzero(), strict=True):
        expected[g, y // rows, x // columns] = True
    assert np.array_equal(cells_of(torch.from_numpy(masks), h, w).numpy(), expected)


@pytest.mark.parametrize("noise", [0.05, 0.2, 1.0])
def test_noise_is_a_share_of_the_mask_and_lies_anywhere(noise: float) -> None:
    torch.manual_seed(0)
    tokens = 400_000
    masks = torch.zeros(1, 3, tokens, dtype=torch.bool)
    for slot, share in enumerate((0.5, 0.1, 0.9)):
        masks[0, slot, : int(share * tokens)] = True
    turned = with_noise(masks, noise) ^ masks
    for slot, share in enumerate((0.5, 0.1, 0.9)):
        rate = noise * share  # of the mask's tokens, and of the others
        for part in (turned[0, slot, masks[0, slot]], turned[0, slot, ~masks[0, slot]]):
            error = (rate * (1 - rate) / len(part)) ** 0.5
            assert part.float().mean() == pytest.approx(rate, abs=5 * error + 1e-9)
    assert not torch.equal(with_noise(masks, noise) ^ masks, turned)


def test_without_noise_a_mask_stays_and_an_empty_one_is_everything() -> None:
    masks = torch.rand(2, 3, 50) < 0.3
    masks[1, 1] = False
    for noise in (0.0, 0.5):  # nothing of an empty mask is turned over
        assert with_noise(masks, noise)[1, 1].all()
    masks[1, 1] = True
    assert torch.equal(with_noise(masks, 0.0), masks)


@covers("model.aligned_queries.mask_noise")
def test_attention_is_the_instances_mask_at_the_level_of_each_layer() -> None:
    """Features and slots are those of queries without it."""
    batch = tiny.batch((3, 2))
    aligned, plain = made(batch, mask_noise=0.0), made(batch, mask_noise=None)
    assert torch.equal(aligned.features_BAE, plain.features_BAE)
    assert torch.equal(aligned.instance_BA, plain.instance_BA)
    assert torch.equal(aligned.set_BA, plain.set_BA)
    assert plain.attention == ()
    assert len(aligned.attention) == 5
    for layer, attention_BAS in enumerate(aligned.attention):
        h, w = SIZES[layer % 3]
        expected_GS = cells_of(batch.masks_GHW, h, w).flatten(1)
        assert attention_BAS.shape == (2, 7, h * w)
        for b, slots in enumerate(aligned.instance_BA.tolist()):
            for slot, instance in enumerate(slots):
                seen = attention_BAS[b, slot]
                assert seen.all() if instance < 0 else torch.equal(seen, expected_GS[instance])


def test_every_layer_and_every_set_has_noise_of_its_own() -> None:
    """Layers 0 and 3 are of one level; slots 0 and 2 of one instance."""
    batch = tiny.batch((2,), (256, 384))
    batch.masks_GHW[:, :200, :200] = True
    sizes = [(8, 12), (16, 24), (32, 48)]
    aligned = made(batch, sizes, mask_noise=0.5)
    assert aligned.instance_BA[0].tolist() == [0, 1] * 3
    assert not torch.equal(aligned.attention[0], aligned.attention[3])
    assert not torch.equal(aligned.attention[0][0, 0], aligned.attention[0][0, 2])


def test_padding_attends_to_everything_with_and_without_instances(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU there are slots even where there are no instances at all."""
    monkeypatch.setattr(AlignedQueryGenerator, "_slots", lambda self, counts, device: 4)
    for counts in ((0, 0), (1, 0)):
        for attention_BAS in made(tiny.batch(counts)).attention:
            assert attention_BAS.shape[:2] == (2, 4)
            assert attention_BAS[1].all()


def test_decoder_layers_see_it_and_object_queries_see_what_they_always_do() -> None:
    model, batch = tiny.model(aligned_queries=NOISED).train(), tiny.batch()
    kept: list[Any] = []
    model.aligned_queries.register_forward_hook(lambda *call: kept.append(call[2]))
    found = seen_by_layers(model, batch=batch)
    (aligned,) = kept
    assert len(found) == len(aligned.attention) == 3
    model.aligned_queries = None
    alone = seen_by_layers(model, batch=batch)
    for seen, objects, attention in zip(found, alone, aligned.attention, strict=True):
        assert torch.equal(seen[:, :6], objects)
        assert torch.equal(seen[:, 6:], attention)
    assert not torch.equal(found[0][:, 6:], torch.ones_like(found[0][:, 6:]))


def test_pooled_queries_attend_to_the_masks_that_they_predict() -> None:
    model, batch = tiny.model().train(), tiny.batch()
    torch.manual_seed(0)  # of the points
    found = seen_by_layers(model, batch=batch)
    torch.manual_seed(0)
    with torch.no_grad():
        prediction = model(batch)
    logits = prediction.mask_embedding_LBRE[0] @ nn.functional.interpolate(
        prediction.pixel_embedding_BEHW, size=(2, 3), mode="bilinear", align_corners=False
    ).flatten(2)
    seen = logits >= 0
    assert found[0].shape[1] == 6 + 7
    assert torch.equal(found[0], seen | ~seen.any(2, keepdim=True))


def test_a_batch_without_instances_trains() -> None:
    prediction = tiny.model(aligned_queries=NOISED).train()(tiny.batch((0, 0)))
    assert prediction.class_logits_LBRC.isfinite().all()


@pytest.mark.parametrize("noise", [-0.1, 1.5, float("nan")])
def test_noise_that_is_no_share_is_refused(noise: float) -> None:
    with pytest.raises(ValueError, match=r"mask_noise: expected a share from 0 to 1, or None, got"):
        tiny.model(aligned_queries=replace(NOISED, mask_noise=noise))
