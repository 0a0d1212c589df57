"""TrainingStream: a walk that depends on (seed, position) alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from alignmask.config import DataConfig
from alignmask.data import CocoDataset, TrainingStream, collate, training_transform
from tests.data.coco_files import annotation, image_record, write_coco


def noisy(sample):
    """A transform that uses all three generators."""
    values = torch.tensor([random.random(), np.random.random(), torch.rand(()).item()])  # noqa: NPY002
    sample.image_CHW.view(-1)[:3] = (values * 255).to(torch.uint8)
    return training_transform(DataConfig(crop=32, color_jitter=0.3))(sample)


@pytest.fixture
def dataset(tmp_path) -> CocoDataset:
    images = [image_record(i, 20 + i, 30) for i in range(7)]
    return CocoDataset(
        *write_coco(tmp_path, images, [annotation(i, i) for i in range(7)]), transform=noisy
    )


def same(first, second) -> bool:
    return (
        first.image_ids == second.image_ids
        and first.sizes == second.sizes
        and torch.equal(first.image_BCHW, second.image_BCHW)
        and torch.equal(first.masks_GHW, second.masks_GHW)
        and torch.equal(first.labels_G, second.labels_G)
    )


def test_every_epoch_visits_every_image_once_in_a_new_order(dataset):
    stream = TrainingStream(dataset, 28, seed=3)
    orders = [[stream.index(p) for p in range(7 * e, 7 * e + 7)] for e in range(4)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    other = TrainingStream(dataset, 28, seed=4)
    assert [other.index(p) for p in range(28)] != [stream.index(p) for p in range(28)]
    assert [stream.index(p) for p in (20, 3, 11)] == [orders[2][6], orders[0][3], orders[1][4]]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(dataset, workers):
    stream = TrainingStream(dataset, 16, seed=0)
    torch.manual_seed(1)
    alone = list(DataLoader(stream, batch_size=3, collate_fn=collate))
    torch.manual_seed(2)
    together = list(DataLoader(stream, batch_size=3, collate_fn=collate, num_workers=workers))
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))


def test_a_resumed_walk_goes_on_identically(dataset):
    stream = TrainingStream(dataset, 16, seed=0)
    whole = [collate([stream[p]]) for p in range(16)]
    again = TrainingStream(dataset, 100, seed=0)
    assert all(same(whole[p], collate([again[p]])) for p in (15, 9, 10))


def test_visits_of_one_image_differ(dataset):
    stream = TrainingStream(dataset, 70, seed=0)
    visits = [stream[p] for p in range(70) if stream.index(p) == 2]
    assert len(visits) == 10
    assert len({(v.size, int(v.image_CHW.sum())) for v in visits}) == 10
    other = TrainingStream(dataset, 70, seed=1)
    assert not same(collate([stream[0]]), collate([other[0]]))


class Dice(Dataset):
    """Three images that are what Python's, NumPy's and torch's generators say when they are
    loaded."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[int, tuple[float, float, float]]:
        return index, (random.random(), np.random.random(), torch.rand(()).item())  # noqa: NPY002


def test_all_three_generators_depend_on_seed_and_position_alone():
    rolls = {}
    for seed in (0, 1, 2):
        stream = TrainingStream(Dice(), 30, seed)
        orders = [np.random.default_rng((seed, epoch)).permutation(3) for epoch in range(10)]
        assert [stream[p][0] for p in range(30)] == np.concatenate(orders).tolist()
        for position in range(30):
            rolls[seed, position] = stream[position][1]
            random.seed(), np.random.seed(), torch.seed()  # noqa: NPY002
            assert TrainingStream(Dice(), 50, seed)[position][1] == rolls[seed, position]
    for generator in range(3):
        assert len({values[generator] for values in rolls.values()}) == 90


def test_the_surrounding_random_state_is_untouched(dataset):
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.random(), torch.rand(()).item()  # noqa: NPY002

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    expected = draw()
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    stream = TrainingStream(dataset, 5, seed=0)
    stream[2]
    assert draw() == expected


def test_a_fault_restores_the_random_state_too(dataset, tmp_path):
    stream = TrainingStream(dataset, 5, seed=0)
    (tmp_path / "images" / f"{dataset.image_ids[stream.index(0)]}.png").unlink()
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="does not exist"):
        stream[0]
    assert torch.equal(before, torch.get_rng_state())


def test_bounds(dataset):
    stream = TrainingStream(dataset, 5, seed=0)
    assert len(stream) == 5
    for position in (-1, 5):
        with pytest.raises(IndexError, match="position"):
            stream[position]
    with pytest.raises(ValueError, match="seed"):
        TrainingStream(dataset, 5, seed=-1)
