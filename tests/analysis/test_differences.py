"""Whether one model is better than another: paired intervals, and the sentence that says so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alignmask.analysis.compare import analysis_table
from alignmask.analysis.differences import verdict, with_differences
from alignmask.analysis.measure import ModelAnalysis
from alignmask.evaluation.bootstrap import Estimate
from tests.analysis.pages import analyses, square_world
from tests.evaluation.test_tables import printed


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[ModelAnalysis]:
    return analyses(square_world(), tmp_path_factory.mktemp("models"), ("first", "half"))[0]


def test_differences_are_of_the_measures(models: list[ModelAnalysis]) -> None:
    first, half = models
    assert first.difference == {}
    found = half.difference
    assert list(found) == ["AP", "second masks", "PCC", "LaECE0"]
    # Halved scores rank as before; as forecasts they are others.
    for name in ("AP", "PCC"):
        assert found[name].value == pytest.approx(0)
    error = half.calibration["LaECE0"] - first.calibration["LaECE0"]
    assert found["LaECE0"].value == pytest.approx(error)
    assert found["LaECE0"].low < error < found["LaECE0"].high < 0
    assert half.as_dict()["difference_to_the_first"]["LaECE0"] == found["LaECE0"].as_dict()
    (_, plain) = with_differences(models, 10, 0)
    assert plain.difference["LaECE0"] == Estimate(pytest.approx(error))
    lines = printed(analysis_table(models))
    assert max(map(len, lines)) <= 80
    row = next(n for n, line in enumerate(lines) if "differences to first" in line)
    assert any(found["LaECE0"].signed() in line for line in lines[row : row + 9])


def test_the_measures_are_those_of_the_tables(models: list[ModelAnalysis]) -> None:
    for model in models:
        found = model.compared(None)
        assert found["AP"] == pytest.approx(model.metrics.AP)
        assert found["second masks"] == model.duplicates["score >= 0.5"].share
        assert found["PCC"] == pytest.approx(model.alignment.top[1].pcc_same_class)
        assert found["LaECE0"] == model.calibration["LaECE0"]


def test_the_sentence(models: list[ModelAnalysis]) -> None:
    first, half = models
    differences = {
        "AP": Estimate(0.021, 0.005, 0.037),
        "second masks": Estimate(0.12, 0.1, 0.14),
        "PCC": Estimate(-0.01, -0.1, 0.1),
        "LaECE0": Estimate(-0.05, -0.06, -0.04),
    }
    other = replace(half, difference=differences)
    assert verdict([first, other]) == (
        "Compared with first, half is better in AP (+2.1 [+0.5, +3.7]) and LaECE0 (-0.050 [-0.060, -0.040]), "
        "worse in second masks (+12.0 [+10.0, +14.0]), does not differ for certain in PCC."
    ).replace(", worse", ", is worse")
    nothing = replace(half, name="third", difference=dict.fromkeys(differences, Estimate(None)))
    text = "; third does not differ for certain in AP, second masks, PCC and LaECE0."
    assert verdict([first, other, nothing]).endswith(text)
    alone = verdict([first])
    assert alone.startswith(
        "first has an AP of 22.6, its score follows the mask IoU with a correlation of 0.88,"
    )
    assert alone.endswith("and what it shows has 0 % second masks in it.")


def test_a_difference_is_certain_if_its_interval_leaves_0_out() -> None:
    certain = [Estimate(1, 0.1, 2), Estimate(-1, -2, -0.1)]
    assert all(difference.excludes_zero for difference in certain)
    for difference in (Estimate(1, -0.1, 2), Estimate(1, 0.0, 2), Estimate(1), Estimate(None)):
        assert not difference.excludes_zero
    assert [str(Estimate(None).signed()), Estimate(0.5).signed()] == ["-", "+0.500"]
