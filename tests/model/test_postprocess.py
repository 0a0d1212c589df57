"""From a prediction to instances, by hand: what is kept, how it is scored, how it is sorted, and at
which size.

Q queries, C classes, H x W pixels.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alignmask import _extras
from alignmask.data import Batch
from alignmask.model import Prediction
from alignmask.model.postprocess import Instances, class_scores, combine_scores, postprocess
from tests import tiny
from tests.covers import covers


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def prediction(class_logits_RC: Tensor, mask_logits_RHW: Tensor, queries: int) -> Prediction:
    """One image. Every row has a channel of the pixel embedding for itself, so that its mask logits
    can be given. An earlier output says the opposite: it is not to be looked at."""
    embedding = torch.eye(len(mask_logits_RHW))
    return Prediction(
        class_logits_LBRC=torch.stack((-class_logits_RC, class_logits_RC))[:, None],
        mask_embedding_LBRE=torch.stack((-embedding, embedding))[:, None],
        pixel_embedding_BEHW=mask_logits_RHW[None],
        queries=queries,
    )


def batch(
    size: tuple[int, int],
    valid: tuple[int, int] | None = None,
    original: tuple[int, int] | None = None,
) -> Batch:
    empty = tiny.batch((0,), size)
    return replace(empty, sizes=[valid or size], original_sizes=[original or valid or size])


def constant_masks(probabilities: Sequence[float]) -> Tensor:
    """8 x 16 logits; the mean probability inside is the one given, and below 0.5 the mask is
    empty."""
    return torch.tensor([logit(p) for p in probabilities])[:, None, None].expand(-1, 8, 16)


# Probabilities of queries 0 to 3, and of an aligned query that is surer of everything.
CLASSES = torch.tensor([[0.81, 0.04], [0.25, 0.64], [0.36, 0.09], [0.49, 0.01], [0.98, 0.99]])
MASKS = (0.60, 0.90, 0.95, 0.30, 0.99)
# (query, class, class score) of the pairs, best class score first; query 3 has an empty mask.
PAIRS = [
    (0, 0, 0.81),
    (1, 1, 0.64),
    (3, 0, 0.49),
    (2, 0, 0.36),
    (1, 0, 0.25),
    (2, 1, 0.09),
    (0, 1, 0.04),
    (3, 1, 0.01),
]


@pytest.mark.parametrize("detections", [1, 3, 5, 7, 8, 100])
@pytest.mark.parametrize("score", ["class", "class*mask", "class^0.5*mask"])
@covers("model.score", "model.detections")
def test_kept_pairs_their_scores_and_their_order(score: Any, detections: int) -> None:
    """The best pairs by class score are kept, as Mask2Former does; then scored and sorted."""
    config = tiny.model_config(num_classes=2, score=score, detections=detections)
    given = prediction(CLASSES.logit(), constant_masks(MASKS), queries=4)
    (found,) = postprocess(given, batch((32, 64)), config)
    by_hand = {
        "class": lambda c, m: c,
        "class*mask": lambda c, m: c * m,
        "class^0.5*mask": lambda c, m: math.sqrt(c) * m,
    }[score]
    kept = [
        (by_hand(c, MASKS[q]), label, c, MASKS[q]) for q, label, c in PAIRS[:detections] if q != 3
    ]
    kept.sort(reverse=True)
    assert len(found) == len(kept)
    assert found.scores_N.tolist() == pytest.approx([k[0] for k in kept], rel=1e-5)
    assert found.labels_N.tolist() == [k[1] for k in kept]
    assert found.class_scores_N.tolist() == pytest.approx([k[2] for k in kept], rel=1e-5)
    assert found.mask_scores_N.tolist() == pytest.approx([k[3] for k in kept], rel=1e-5)
    assert found.masks_NHW.all()
    assert found.boxes_N4.tolist() == [[0, 0, 64, 32]] * len(kept)


def test_the_modes_order_differently() -> None:
    """Else the test above could not tell them apart."""
    orders = set()
    for score in ("class", "class*mask", "class^0.5*mask"):
        config = tiny.model_config(num_classes=2, score=score)
        (found,) = postprocess(
            prediction(CLASSES.logit(), constant_masks(MASKS), 4), batch((32, 64)), config
        )
        orders.add(tuple(found.class_scores_N.tolist()))
    assert len(orders) == 3


def test_scores_by_hand() -> None:
    classes, masks = torch.tensor([0.25, 0.0, 1.0]), torch.tensor([0.8, 0.9, 0.6])
    assert combine_scores(classes, masks, "class").tolist() == pytest.approx([0.25, 0, 1])
    assert combine_scores(classes, masks, "class*mask").tolist() == pytest.approx([0.2, 0, 0.6])
    assert combine_scores(classes, masks, "class^0.5*mask").tolist() == pytest.approx([0.4, 0, 0.6])
    logits = torch.tensor([[0.0, math.log(2), math.log(5)]])  # 1 : 2 : 5
    softmax = class_scores(logits, tiny.model_config(classification="softmax"))
    # "no object", the last, is no class.
    assert softmax[0].tolist() == pytest.approx([1 / 8, 2 / 8])
    for classification in ("focal", "quality_focal"):
        sigmoid = class_scores(logits, tiny.model_config(classification=classification))
        assert sigmoid[0].tolist() == pytest.approx([1 / 2, 2 / 3, 5 / 6])


def test_the_mask_score_is_the_mean_inside_the_mask_alone() -> None:
    """Every pixel by hand. Between 3 and -5 the logit is exactly 0 at pixel 31, which is
    outside."""
    masks = torch.full((2, 8, 16), -5.0)
    masks[0, :, :8], masks[0, :4, :8] = 3.0, 1.0
    masks[1], masks[1, 0, 0] = 0.0, 2.0
    given = prediction(torch.tensor([[2.0], [1.0]]), masks, 2)
    (found,) = postprocess(given, batch((32, 64)), tiny.model_config(num_classes=1, score="class"))
    # Bilinear by hand: a pixel's centre lies at (x + 0.5) / 4 - 0.5 of the coarse map; both axes
    # for themselves.
    for n, coarse in enumerate(masks.tolist()):
        values = [
            [sample(coarse, (y + 0.5) / 4 - 0.5, (x + 0.5) / 4 - 0.5) for x in range(64)]
            for y in range(32)
        ]
        inside = [[value > 0 for value in row] for row in values]
        assert found.masks_NHW[n].tolist() == inside
        probabilities = [1 / (1 + math.exp(-v)) for row in values for v in row if v > 0]
        assert found.mask_scores_N[n].item() == pytest.approx(
            sum(probabilities) / len(probabilities), rel=1e-5
        )
    assert found.boxes_N4[0].tolist() == [0, 0, 31, 32]


def sample(coarse: list[list[float]], y: float, x: float) -> float:
    """Bilinear, the border repeated."""
    y, x = min(max(y, 0), len(coarse) - 1), min(max(x, 0), len(coarse[0]) - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, len(coarse) - 1), min(left + 1, len(coarse[0]) - 1)
    v, u = y - top, x - left
    upper = coarse[top][left] * (1 - u) + coarse[top][right] * u
    lower = coarse[bottom][left] * (1 - u) + coarse[bottom][right] * u
    return upper * (1 - v) + lower * v


def test_padding_is_cut_off_before_the_image_is_resized() -> None:
    """A map of 16 x 16 for 64 x 64 pixels, of which 32 x 48 are the image (and 64 x 96 its file): a
    mask of the image's lower right quarter is one of the file's; what lies in the padding is
    gone."""
    masks = torch.full((2, 16, 16), -4.0)
    masks[0, 4:8, 6:12] = masks[1, 10:, :] = masks[1, :, 13:] = 4.0
    given = prediction(torch.tensor([[2.0], [1.0]]), masks, 2)
    config = tiny.model_config(num_classes=1, score="class")
    (found,) = postprocess(given, batch((64, 64), (32, 48), (64, 96)), config)
    assert len(found) == 1  # the second is empty
    expected = torch.zeros(64, 96, dtype=torch.bool)
    expected[32:, 48:] = True
    assert found.masks_NHW.shape == (1, 64, 96)
    assert (found.masks_NHW[0] != expected).sum() <= 64 + 96  # the seam
    assert found.boxes_N4[0].tolist() == pytest.approx([48, 32, 96, 64], abs=1)


@pytest.mark.parametrize("chunk", [1, 64 * 96 * 3])
def test_masks_are_the_same_however_many_are_made_at_a_time(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Scores lie apart, and mask logits are small integers, whose bilinear samples float32 holds
    exactly: neither order nor masks depend on rounding. Mean probabilities do, in their last
    digits."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.linspace(-3, 3, 24)[torch.randperm(24, generator=generator)].view(6, 4)
    masks = torch.randint(-8, 7, (6, 16, 24), generator=generator).float()
    config, given = tiny.model_config(score="class"), prediction(classes, masks, 6)
    (expected,) = postprocess(given, batch((64, 96)), config)
    sizes = []
    original = torch.nn.functional.interpolate

    def interpolate(x: Tensor, *args: Any, **options: Any) -> Tensor:
        sizes.append(x.shape[1])
        return original(x, *args, **options)

    monkeypatch.setattr("alignmask.model.postprocess.CHUNK", chunk)
    monkeypatch.setattr("torch.nn.functional.interpolate", interpolate)
    (found,) = postprocess(given, batch((64, 96)), config)
    assert max(sizes) == (1 if chunk == 1 else 3)
    assert len(expected) == 10
    for field in fields(Instances):
        ours, whole = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "mask_scores_N":
            torch.testing.assert_close(ours, whole, rtol=1e-5, atol=0)
        else:
            same = ours is whole if whole is None else torch.equal(ours, whole)
            assert same, field.name


# ---- what others take

SUPERVISION = """
from dataclasses import dataclass
from typing import Any

@dataclass
class Detections:
    xyxy: Any
    mask: Any = None
    confidence: Any = None
    class_id: Any = None
"""


@pytest.fixture
def look_again() -> Iterator[None]:
    """Which packages are missing is looked up once in a process."""
    _extras._missing.cache_clear()
    yield
    _extras._missing.cache_clear()
    sys.modules.pop("supervision", None)


@pytest.mark.usefixtures("look_again")
def test_instances_as_detections_of_supervision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arrays, as `supervision.Detections` checks them, of a stand-in for that package."""
    (tmp_path / "supervision.py").write_text(SUPERVISION)
    monkeypatch.setitem(sys.modules, "supervision", None)  # so that it is as it was afterwards
    monkeypatch.delitem(sys.modules, "supervision")
    monkeypatch.syspath_prepend(tmp_path)
    made = prediction(torch.logit(CLASSES), constant_masks(MASKS), 4)
    for found in postprocess(made, batch((32, 64)), tiny.model_config(num_classes=2)):
        for some in (found, found[:0]):
            detections = some.to_supervision()
            assert type(detections).__module__ == "supervision"
            for array, expected, kind in (
                (detections.xyxy, some.boxes, np.float32),
                (detections.mask, some.masks, np.bool_),
                (detections.confidence, some.scores, np.float32),
                (detections.class_id, some.labels, np.int64),
            ):
                assert array.dtype == kind
                np.testing.assert_array_equal(array, expected.numpy())
        assert len(found) > 0


@pytest.mark.usefixtures("look_again")
def test_a_missing_supervision_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    number = torch.zeros(0)
    masks = torch.zeros(0, 2, 3, dtype=torch.bool)
    none = Instances(number, number.long(), masks, number.view(0, 4), number, number)
    with pytest.raises(ImportError) as raised:
        none.to_supervision()
    assert str(raised.value) == (
        "to_supervision needs supervision: install them with `pip install '.[supervision]'` in "
        "AlignMask's folder."
    )
