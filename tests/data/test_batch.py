"""Sample and Batch: padding, flattening, host lists."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignmask.data import Batch, Sample, collate


def make_sample(height=5, width=7, instances=2, image_id=3, canvas=None) -> Sample:
    return Sample(
        # No zero: padding is tellable.
        image_CHW=torch.randint(1, 256, (3, height, width), dtype=torch.uint8),
        masks_NHW=torch.rand(instances, height, width) > 0.5,
        labels_N=torch.randint(0, 9, (instances,)),
        image_id=image_id,
        file_name=f"{image_id}.png",
        original_size=(2 * height, 2 * width),
        canvas=canvas,
    )


sides = st.integers(1, 40)
canvases = st.none() | st.tuples(sides, sides)
samples = st.builds(make_sample, sides, sides, st.integers(0, 4), st.integers(0, 10**6), canvases)


@given(st.lists(samples, min_size=1, max_size=4), st.sampled_from([1, 8, 32]))
def test_collate_pads_and_flattens(samples: list[Sample], divisor: int):
    batch = collate(samples, divisor)
    assert batch.batch_size == len(samples)
    height, width = batch.image_BCHW.shape[-2:]
    for side, axis in ((height, 0), (width, 1)):
        needed = max(max(s.size[axis], s.canvas[axis] if s.canvas else 0) for s in samples)
        assert side == math.ceil(needed / divisor) * divisor
    assert batch.counts == [len(s.labels_N) for s in samples]
    assert batch.owner_G.tolist() == [
        b for b, s in enumerate(samples) for _ in range(len(s.labels_N))
    ]
    assert batch.image_ids == [s.image_id for s in samples]
    assert batch.file_names == [s.file_name for s in samples]
    assert batch.sizes == [s.size for s in samples]
    assert batch.original_sizes == [s.original_size for s in samples]
    for b, sample in enumerate(samples):
        h, w = sample.size
        own = batch.owner_G == b
        assert torch.equal(batch.labels_G[own], sample.labels_N)
        for padded, content in (
            (batch.image_BCHW[b], sample.image_CHW),
            (batch.valid_BHW[b], torch.ones(h, w, dtype=torch.bool)),
            (batch.masks_GHW[own], sample.masks_NHW),
        ):
            assert padded.dtype == content.dtype
            assert torch.equal(padded[..., :h, :w], content)
            assert not padded[..., h:, :].any()
            assert not padded[..., :, w:].any()


def test_images_without_instances_make_a_batch():
    batch = collate([make_sample(instances=0), make_sample(instances=0)])
    assert batch.masks_GHW.shape == (0, 32, 32)
    assert batch.labels_G.dtype == batch.owner_G.dtype == torch.int64
    assert batch.counts == [0, 0]


def test_collate_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="at least one sample"):
        collate([])
    sample = make_sample(image_id=77)
    for fault in (
        replace(sample, masks_NHW=sample.masks_NHW[:, :-1]),
        replace(sample, masks_NHW=sample.masks_NHW[:1]),
        replace(sample, masks_NHW=sample.masks_NHW.to(torch.uint8)),
        replace(sample, labels_N=sample.labels_N.float()),
        replace(sample, image_CHW=sample.image_CHW.float()),
        replace(sample, image_CHW=sample.image_CHW[:1]),
    ):
        with pytest.raises(ValueError, match=r"image id 77 \(77.png\)"):
            collate([make_sample(), fault])


def test_to_moves_every_tensor_and_keeps_host_lists():
    batch = collate([make_sample(), make_sample()])
    moved = batch.to("meta", non_blocking=True)
    tensors = {
        name: value for name, value in vars(moved).items() if isinstance(value, torch.Tensor)
    }
    assert len(tensors) == 5
    assert all(value.is_meta for value in tensors.values())
    assert moved.counts == batch.counts
    assert isinstance(batch.to("cpu"), Batch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a CUDA device")
def test_pin_memory():
    batch = collate([make_sample()]).pin_memory()
    assert batch.masks_GHW.is_pinned()
    assert batch.image_BCHW.is_pinned()
