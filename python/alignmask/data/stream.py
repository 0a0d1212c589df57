"""The order in which training visits a data set, and the randomness of each visit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import Dataset

from alignmask.data.batch import Sample
from alignmask.data.dataset import CocoDataset


class TrainingStream(Dataset[Sample]):
    """An endless shuffled walk over a data set, cut to `length` positions; a map-style data set
    over positions.

    Position p is image `permutation(seed, epoch)[p % n]` of epoch `p // n`. Python's, NumPy's and
    torch's (CPU) generators are seeded from (seed, position) while the sample is made and restored
    afterwards, so what a position yields depends on nothing else: neither on the number of workers
    nor on where a run was stopped and resumed.
    """

    def __init__(self, dataset: CocoDataset, length: int, seed: int) -> None:
        if len(dataset) == 0 or length < 0 or seed < 0:
            raise ValueError(
                f"TrainingStream: expected a non-empty data set, length >= 0 and seed >= 0, "
                f"got {len(dataset)} images, length {length}, seed {seed}"
            )
        self.dataset, self.length, self.seed = dataset, length, seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.length

    def index(self, position: int) -> int:
        """Index in the data set of the image at `position`. Raises IndexError outside 0 .. length -
        1."""
        if not 0 <= position < self.length:
            raise IndexError(
                f"TrainingStream: position {position} is outside 0 .. {self.length - 1}"
            )
        epoch, offset = divmod(position, len(self.dataset))
        if epoch != self._epoch:
            self._order = np.random.default_rng((self.seed, epoch)).permutation(len(self.dataset))
            self._epoch = epoch
        return int(self._order[offset])

    def __getitem__(self, position: int) -> Sample:
        index = self.index(position)
        with seeded(self.seed, position):
            return self.dataset[index]


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's CPU generators from `key` inside the block; restore them
    after it."""
    words = np.random.SeedSequence(key).generate_state(4)
    # torch.manual_seed would also reseed the GPUs, which the model's own randomness (dropout,
    # points) uses.
    generator = torch.default_generator
    states = random.getstate(), np.random.get_state(), generator.get_state()  # noqa: NPY002
    try:
        random.seed(int(words[0]))
        np.random.seed(words[1:2])  # noqa: NPY002
        generator.manual_seed(int(words[2]) << 31 | int(words[3]) >> 1)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        generator.set_state(states[2])
