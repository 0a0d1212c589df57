"""Instances with encoded masks are those with dense ones.

N instances, H x W pixels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from alignmask import ops
from alignmask.config import SCORE_MODES
from alignmask.data.rle import encode
from alignmask.model.postprocess import Instances, postprocess
from alignmask.model.sparse import LazyMasks, SparseInstances, postprocess_encoded
from tests import tiny
from tests.model.test_postprocess import batch, prediction


def check_same(sparse: SparseInstances, dense: Instances) -> None:
    assert sparse.rles == encode(dense.masks_NHW)
    assert sparse.size == dense.masks_NHW.shape[1:]
    assert torch.equal(sparse.labels_N, dense.labels_N)
    assert torch.equal(sparse.boxes_N4, dense.boxes_N4)
    assert sparse.boxes_N4.dtype == torch.float32
    assert torch.equal(sparse.class_scores_N, dense.class_scores_N)
    torch.testing.assert_close(sparse.mask_scores_N, dense.mask_scores_N, rtol=1e-5, atol=0)
    torch.testing.assert_close(sparse.scores_N, dense.scores_N, rtol=1e-5, atol=0)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("score", SCORE_MODES)
@pytest.mark.parametrize(
    ("valid", "original"), [((64, 96), (64, 96)), ((50, 70), (50, 70)), ((56, 80), (112, 40))]
)
def test_the_same_instances(
    valid: tuple[int, int], original: tuple[int, int], score: str, reference: bool
) -> None:
    """Of whole numbers and powers of two, so that no mask depends on rounding; one is empty, and
    queries have several classes."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.linspace(-3, 3, 24)[torch.randperm(24, generator=generator)].view(6, 4)
    masks = torch.randint(-8, 7, (6, 16, 24), generator=generator).float()
    masks[2] = -1
    given = prediction(classes, masks, 6)
    config = tiny.model_config(score=score, detections=20)
    where = batch((64, 96), valid, original)
    with ops.use_reference(*(["mask_rle"] if reference else ["ms_deform_attn"])):
        (sparse,) = postprocess_encoded(given, where, config)
    (dense,) = postprocess(given, where, config)
    assert 5 < len(dense) < 20
    check_same(sparse, dense)
    check_same(sparse[:3], dense[:3])


def test_a_models_predictions() -> None:
    """Two images of a batch, padded, at sizes of their own."""
    model, two = tiny.model().eval(), tiny.batch((2, 1))
    two = replace(two, original_sizes=[(37, 90), two.sizes[1]])
    dense, sparse = model.predict(two), model.predict_encoded(two)
    assert len(dense) == len(sparse) == 2
    for one, other in zip(sparse, dense, strict=True):
        assert len(other) > 0
        check_same(one, other)
        assert np.array_equal(np.asarray(one.masks_NHW), other.masks_NHW.numpy())


def test_an_image_without_instances() -> None:
    given = prediction(torch.zeros(3, 4), torch.full((3, 8, 8), -1.0), 3)
    (found,) = postprocess_encoded(given, batch((32, 32)), tiny.model_config())
    assert len(found) == 0
    assert found.dense().masks_NHW.shape == (0, 32, 32)
    assert found.boxes_N4.shape == (0, 4)


def test_predict_encoded_refuses_training_mode_and_what_is_not_finite() -> None:
    model = tiny.model()
    with pytest.raises(RuntimeError, match=r"AlignMask.predict_encoded: .* model.eval\(\)"):
        model.train().predict_encoded(tiny.batch())
    with torch.no_grad():
        model.get_parameter("query_decoder.heads.classify.bias").fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="the model's output is not finite"):
        model.eval().predict_encoded(tiny.batch())


@pytest.mark.parametrize("index", [1, -1, np.int64(1), torch.tensor(1), torch.tensor(-1)])
def test_any_integer_picks_a_mask(index: object) -> None:
    masks_NHW = torch.zeros(3, 5, 4, dtype=torch.bool)
    masks_NHW[1, 2], masks_NHW[2, 3] = True, True
    masks = LazyMasks(encode(masks_NHW), (5, 4))
    assert torch.equal(masks[index], masks_NHW[index])
    assert len(masks[torch.tensor([1])]) == 1
    with pytest.raises(IndexError):
        masks[3]
