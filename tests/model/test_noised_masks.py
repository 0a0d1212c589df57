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

from alignmask.model import AlignMask, aligned_queries
from alignmask.model.aligned_queries import AlignedQueryGenerator
from alignmask.model.noised_masks import NoisedMaskGenerator, cells_of, with_noise
from alignmask.model.pixel_decoder import PixelFeatures
from tests import tiny
from tests.covers import covers

NOISED = replace(tiny.ALIGNED, mask_noise=0.2)
SIZES = [(2, 3), (4, 6), (8, 12)]
"""Of the levels of a batch of 64 x 96 pixels."""


def generator(**changes: Any) -> NoisedMaskGenerator:
    torch.manual_seed(0)
    return NoisedMaskGenerator(replace(NOISED, **changes), 32, classes=4, layers=5)


def features(images: int) -> PixelFeatures:
    return PixelFeatures([torch.zeros(images, 32, *size) for size in SIZES], torch.zeros(0))


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
def test_queries_are_the_labels_in_the_slots_of_pooled_ones() -> None:
    """Two images; one instance has no pixel. Slots are those of Fig. 3, whatever fills them."""
    batch = tiny.batch((3, 2))
    batch.masks_GHW[1] = False
    noised = generator()
    made = noised(features(2), batch)
    pooled = AlignedQueryGenerator(replace(tiny.ALIGNED, points=4000), 32)(
        PixelFeatures([], torch.zeros(2, 32, 16, 24)), batch
    )
    assert torch.equal(made.instance_BA, pooled.instance_BA)
    assert torch.equal(made.set_BA, pooled.set_BA)
    assert (made.instance_BA >= 0).sum() == 2 * 3 - 1 + 2 * 3  # 7 slots: the last set loses two
    for b, slot in (made.instance_BA >= 0).nonzero().tolist():
        label = batch.labels_G[made.instance_BA[b, slot]]
        assert torch.equal(made.features_BAE[b, slot], noised.label[label])
    assert not made.features_BAE[~made.live_BA].any()
    assert made.features_BAE.requires_grad


def test_attention_is_the_instances_mask_at_the_level_of_each_layer() -> None:
    batch = tiny.batch((3, 2))
    made = generator(mask_noise=0.0)(features(2), batch)
    assert len(made.attention) == 5
    for layer, attention_BAS in enumerate(made.attention):
        h, w = SIZES[layer % 3]
        expected_GS = cells_of(batch.masks_GHW, h, w).flatten(1)
        assert attention_BAS.shape == (2, 7, h * w)
        for b, slots in enumerate(made.instance_BA.tolist()):
            for slot, instance in enumerate(slots):
                seen = attention_BAS[b, slot]
                assert seen.all() if instance < 0 else torch.equal(seen, expected_GS[instance])


def test_every_layer_and_every_set_has_noise_of_its_own() -> None:
    """Layers 0 and 3 are of one level; slots 0 and 2 of one instance."""
    batch = tiny.batch((2,), (256, 384))
    batch.masks_GHW[:, :200, :200] = True
    sizes = [(8, 12), (16, 24), (32, 48)]
    given = PixelFeatures([torch.zeros(1, 32, *size) for size in sizes], torch.zeros(0))
    made = generator(mask_noise=0.5)(given, batch)
    assert made.instance_BA[0].tolist() == [0, 1] * 3
    assert not torch.equal(made.attention[0], made.attention[3])
    assert not torch.equal(made.attention[0][0, 0], made.attention[0][0, 2])


def test_padding_attends_to_everything_with_and_without_instances(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU there are slots even where there are no instances at all."""
    monkeypatch.setattr(aligned_queries, "_slots", lambda counts, config, device: 4)
    for counts in ((0, 0), (1, 0)):
        made = generator()(features(2), tiny.batch(counts))
        for attention_BAS in made.attention:
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


def test_every_parameter_learns_and_a_batch_without_instances_trains() -> None:
    """A parameter without a gradient would stop a training in several processes."""
    for counts in ((3, 0, 2), (0, 0, 0)):
        model = tiny.model(aligned_queries=NOISED).train()
        prediction = model(tiny.batch(counts))
        (
            prediction.class_logits_LBRC.square().mean()
            + prediction.mask_embedding_LBRE.square().mean()
        ).backward()
        label = model.aligned_queries.label
        assert label.grad is not None
        assert label.grad.any() == (sum(counts) > 0)
        assert prediction.class_logits_LBRC.isfinite().all()
        assert not [n for n, _ in model.aligned_queries.named_parameters() if n != "label"]


def test_live_queries_are_counted_in_advance() -> None:
    batch = tiny.batch((3, 0, 2))
    batch.masks_GHW[4] = False
    points, live = generator().count_live(batch)
    assert points is None
    assert int(live) == int(generator()(features(3), batch).live_BA.sum()) == 7 + 3


@pytest.mark.parametrize("noise", [-0.1, 1.5, float("nan")])
def test_noise_that_is_no_share_is_refused(noise: float) -> None:
    with pytest.raises(ValueError, match=r"mask_noise: expected a share from 0 to 1, got"):
        tiny.model(aligned_queries=replace(NOISED, mask_noise=noise))
