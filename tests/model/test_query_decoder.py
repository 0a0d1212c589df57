"""The decoder with both kinds of query against its plain form: all outputs and rows, whatever is
shared and visible."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from alignmask.config import AlignedQueryConfig, QueryDecoderConfig, Visible
from alignmask.model.aligned_queries import AlignedQueries
from alignmask.model.heads import Heads
from alignmask.model.pixel_decoder import PixelFeatures
from alignmask.model.query_decoder import QueryDecoder
from tests import tiny
from tests.covers import covers
from tests.model import peers
from tests.model.plain_decoder import decode

# No two numbers are alike, and none is a default.
CONFIG = QueryDecoderConfig(queries=5, layers=4, heads=2, ffn_width=24)
SHARING = {
    "both shared": {},
    "own self-attention": {"share_self_attention": False},
    "own masked attention": {"share_masked_attention": False},
    "own both": {"share_self_attention": False, "share_masked_attention": False},
}


def inputs(width: int = 16) -> tuple[PixelFeatures, AlignedQueries]:
    """Two images; the first has two instances in two sets, the second one, and padding after it."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    levels = [normal(2, width, height, 2 * height) for height in (1, 2, 4)]
    set_BA = torch.tensor([[0, 0, 1, 1], [0, 1, -1, -1]])
    aligned = AlignedQueries(
        normal(2, 4, width), torch.tensor([[0, 1, 0, 1], [2, 2, -1, -1]]), set_BA
    )
    return PixelFeatures(levels, normal(2, width, 8, 16)), aligned


def decoder(aligned: AlignedQueryConfig | None) -> QueryDecoder:
    built = QueryDecoder(CONFIG, 16, Heads(16, 3, "quality_focal"), aligned).double()
    peers.scatter(built)
    return built


@pytest.mark.parametrize("learned", [False, True], ids=["no position", "learned position"])
@pytest.mark.parametrize("visible", ["objects+set", "set", "all"])
@pytest.mark.parametrize("sharing", SHARING)
@covers("model.query_decoder.queries", "model.query_decoder.layers", "model.query_decoder.heads")
@covers(
    "model.query_decoder.ffn_width",
    "model.aligned_queries.visible",
    "model.aligned_queries.learned_position",
)
@covers(
    "model.aligned_queries.share_self_attention", "model.aligned_queries.share_masked_attention"
)
@torch.no_grad()
def test_all_outputs_of_all_rows_equal_the_plain_form(
    sharing: str, visible: Visible, learned: bool
) -> None:
    config = AlignedQueryConfig(visible=visible, learned_position=learned, **SHARING[sharing])
    model = decoder(config)
    features, aligned = inputs()
    prediction = model(features, aligned)
    classes, masks = decode(
        model,
        features,
        aligned,
        2,
        visible,
        not config.share_masked_attention,
        not config.share_self_attention,
    )
    assert tuple(prediction.class_logits_LBRC.shape) == (5, 2, 5 + 4, 3)
    assert model.layers[0].ffn[0].weight.shape == (24, 16)
    torch.testing.assert_close(prediction.class_logits_LBRC, classes, rtol=1e-9, atol=1e-9)
    for output in range(5):
        torch.testing.assert_close(
            prediction.mask_logits(output), masks[output], rtol=1e-9, atol=1e-9
        )
    # Outputs, images and rows differ (before the first layer, images do not), so that one cannot
    # stand for another.
    for dim in (0, 1, 2):
        assert classes[1:].diff(dim=dim).abs().amax(-1).min() > 1e-4


@torch.no_grad()
def test_the_switches_change_what_aligned_queries_become_and_nothing_else() -> None:
    """Else the comparison with the plain form would not tell the variants apart."""
    features, aligned = inputs()
    seen = []
    changes: list[dict[str, Any]] = [
        *SHARING.values(),
        {"visible": "set"},
        {"visible": "all"},
        {"learned_position": True},
    ]
    plain = decoder(AlignedQueryConfig()).state_dict()
    for change in changes:
        model = decoder(AlignedQueryConfig(**change))
        model.load_state_dict({**model.state_dict(), **plain})
        seen.append(model(features, aligned).class_logits_LBRC)
    for i, first in enumerate(seen):
        for second in seen[:i]:
            torch.testing.assert_close(first[:, :, :5], second[:, :, :5], rtol=1e-9, atol=1e-9)
            assert (first[-1, 0, 5:] - second[-1, 0, 5:]).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("sharing", SHARING)
@covers(
    "model.aligned_queries.share_self_attention", "model.aligned_queries.share_masked_attention"
)
def test_every_parameter_gets_a_gradient(sharing: str) -> None:
    """Nothing is built and then forgotten: neither Table 3's copies, nor anything else."""
    aligned = replace(tiny.ALIGNED, learned_position=True, **SHARING[sharing])
    model = tiny.model(aligned_queries=aligned).train()
    peers.scatter(model)
    names = dict(model.named_parameters())
    for block in ("self", "masked"):
        copies = [name for name in names if f"aligned_{block}_attention" in name]
        assert len(copies) == (
            0 if getattr(aligned, f"share_{block}_attention") else 3 * 10
        )  # layers, tensors of a block
    prediction = model(tiny.batch())
    (
        prediction.class_logits_LBRC.square().sum() + prediction.mask_logits().square().sum()
    ).backward()
    without = [
        n for n, p in names.items() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert without == []


@pytest.mark.parametrize("sharing", SHARING)
def test_own_copies_learn_from_aligned_queries_alone(sharing: str) -> None:
    features, aligned = inputs()
    model = decoder(AlignedQueryConfig(**SHARING[sharing]))
    for rows, reached in ((slice(0, 5), False), (slice(5, None), True)):
        model.zero_grad()
        model(features, aligned).class_logits_LBRC[:, :, rows].square().sum().backward()
        copies = [p for n, p in model.named_parameters() if ".aligned_" in n]
        assert len(copies) == 4 * 10 * len(SHARING[sharing])
        assert all((p.grad is not None and bool(p.grad.any())) == reached for p in copies)
