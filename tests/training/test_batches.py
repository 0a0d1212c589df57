"""The loading processes of a training and of an evaluation."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import torch

from alignmask.config import DataConfig, TrainConfig
from alignmask.data import resolve_paths, train_dataset, val_dataset
from alignmask.evaluation import predictions
from alignmask.training.batches import MicroBatches, training_batches
from tests import tiny


def signal_the_workers() -> None:
    """As a scheduler does that ends a job; more than one, since a worker is asked for batches
    beforehand."""
    workers = multiprocessing.active_children()
    assert workers
    for worker in workers:
        assert worker.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid, number)
    time.sleep(0.3)
    assert all(worker.is_alive() for worker in workers)


def test_workers_of_a_training_go_on_after_signals(shapes: DataConfig) -> None:
    data = train_dataset(resolve_paths(shapes))
    t = TrainConfig(iterations=8, batch_size=1)
    batches = training_batches(data, t, MicroBatches(0, 8, 1), workers=1, pinned=False)
    next(batches)
    signal_the_workers()
    assert len(list(batches)) == 7


def test_workers_of_an_evaluation_go_on_after_signals(shapes: DataConfig) -> None:
    data = val_dataset(resolve_paths(shapes))
    told: list[int] = []

    def progress(done: int, total: int) -> None:
        if not told:
            signal_the_workers()
        told.append(done)

    found = predictions.predict_images(
        tiny.model(num_classes=6).eval(),
        data,
        range(len(data)),
        torch.device("cpu"),
        1,
        1,
        progress,
    )
    assert len(found) == len(data)
