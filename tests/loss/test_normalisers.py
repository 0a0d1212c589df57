"""What sums of losses are divided by, in one process and in two."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from alignmask.loss import Criterion
from tests.conftest import REPOSITORY
from tests.loss import two_processes
from tests.loss.oracle import NAMES
from tests.loss.scenes import scene
from tests.loss.two_processes import CASES, KINDS, losses, of_case

Found = dict[str, dict[str, dict[str, list[float]]]]


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found]:
    """The losses of two processes, each with one of the images."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(REPOSITORY),
    }
    launch = [sys.executable, two_processes.__file__, str(folder)]
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    return first, second


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_on_average_the_losses_of_one(
    of_ranks: tuple[Found, Found], case: str, kind: str
) -> None:
    """Gradients are averaged over processes. So the sum over both images is divided by twice the
    normaliser, which is the mean of the processes' counts, and at least 1; the cross-entropy is
    every process's own mean (Mask2Former)."""
    prediction, batch = of_case(case, kind)
    instances = sum(batch.counts)
    live = 0 if prediction.aligned is None else int((prediction.aligned.instance_BA >= 0).sum())
    together = losses(prediction, batch, kind)  # the sums are divided by the counts of both images
    for name in NAMES:
        if kind == "softmax" and "classification" in name:
            continue
        count = live if name.startswith("aligned") else instances
        right = torch.tensor(together[name]) * max(count, 1) / (2 * max(count / 2, 1))
        mean = sum(torch.tensor(rank[case][kind][name]) for rank in of_ranks) / 2
        torch.testing.assert_close(mean, right)
        assert mean.any() or not count or kind != "quality_focal"


def test_the_normalisers_count_instances_and_live_aligned_queries() -> None:
    prediction, batch = scene((3, 0, 2), slots=6)
    assert prediction.aligned is not None
    # A set that missed its instance: padding amid the live ones.
    prediction.aligned.instance_BA[0, 1] = -1
    assert Criterion._normalisers(prediction, batch).tolist() == [5.0, 4.0 + 5.0]
    prediction, batch = scene((0,), slots=6)
    assert Criterion._normalisers(prediction, batch).tolist() == [1.0, 1.0]
