"""What sums of losses are divided by, in one process and in two."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from alignmask.config import LossConfig
from alignmask.data import Batch
from alignmask.loss import Criterion
from alignmask.loss.normalisers import Normalisers
from alignmask.model.heads import Prediction
from tests import tiny
from tests.conftest import run_apart
from tests.loss import two_processes
from tests.loss.oracle import NAMES
from tests.loss.scenes import scene
from tests.loss.two_processes import CASES, KINDS, losses, of_case

Found = dict[str, dict[str, dict[str, list[float]]]]


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found]:
    """The losses of two processes, each with one of the images."""
    folder = tmp_path_factory.mktemp("ranks")
    run_apart([sys.executable, two_processes.__file__, str(folder)], timeout=120)
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    return first, second


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_on_average_the_losses_of_one(
    of_ranks: tuple[Found, Found], case: str, kind: str
) -> None:
    """Gradients are averaged over processes, so each process divides its sums by half of what both
    have: the cross-entropy, too, which Mask2Former's processes average each for itself."""
    prediction, batch = of_case(case, kind)
    together = losses(prediction, batch, kind)
    for name in NAMES:
        mean = sum(torch.tensor(rank[case][kind][name]) for rank in of_ranks) / 2
        torch.testing.assert_close(mean, torch.tensor(together[name]))
        if kind == "quality_focal" and not name.startswith("aligned"):
            assert mean.any() or not sum(batch.counts)


def test_the_normalisers_count_instances_and_live_aligned_queries() -> None:
    prediction, batch = scene((3, 0, 2), slots=6)
    assert prediction.aligned is not None
    # A set that missed its instance: padding amid the live ones.
    prediction.aligned.instance_BA[0, 1] = -1
    assert counts("quality_focal", prediction, batch) == [5.0, 5.0, 4.0 + 5.0]
    prediction, batch = scene((0,), slots=6)
    assert counts("quality_focal", prediction, batch) == [0.0, 0.0, 0.0]


def test_cross_entropy_is_divided_by_the_weights_of_all_rows() -> None:
    """5 of 3 images' 6 queries each have an object; of 8 instances, 6 queries can have six."""
    prediction, batch = scene((3, 0, 2), slots=6, softmax=True)
    assert counts("softmax", prediction, batch)[0] == pytest.approx(5 + 0.25 * (3 * 6 - 5))
    prediction, batch = scene((8,), slots=6, softmax=True)
    assert counts("softmax", prediction, batch)[:2] == [6.0, 8.0]


def test_a_part_divides_by_the_mean_of_the_parts() -> None:
    """Nothing is counted as 1, in all parts together; a fraction is left as it is."""
    few, many = torch.tensor([0.25, 0.0, 4.0]), torch.tensor([0.25, 0.0, 2.0])
    found = Normalisers.of_step([few, many])
    assert found.classification_2.tolist() == [0.25, 3.0]
    assert found.masks_2.tolist() == [0.5, 3.0]


def counts(classification: str, prediction: Prediction, batch: Batch) -> list[float]:
    model_config = tiny.model_config(classification=classification)
    criterion = Criterion(model_config, LossConfig(no_object_weight=0.25))
    live = 0 if prediction.aligned is None else prediction.aligned.live_BA.sum()
    found: list[float] = criterion.count(batch, live).tolist()
    return found
