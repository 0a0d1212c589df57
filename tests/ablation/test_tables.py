"""Tables of ablations: means, standard errors, and the paper's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alignmask.ablation.grids import COMPARISON, GRIDS, TABLE_3, TABLE_4, Grid
from alignmask.ablation.runs import Cell, State, cells
from alignmask.ablation.tables import _folded, figures, matrix, mean_and_error, rows, write_tables
from alignmask.recipes import nuclei_small


def result(ap: float, pcc: float | None = 0.25) -> dict[str, Any]:
    """What result.json holds, with AP `ap` (a fraction) and other numbers that differ from it."""
    metrics = {
        "AP": ap,
        "AP50": ap + 0.2,
        "AP75": ap + 0.1,
        "APs": 0.011,
        "APm": 0.5,
        "APl": -1.0,
        "AR100": 0.6,
    }
    top = [
        {"fraction": fraction, "mean_score": 0.7, "mean_iou_same_class": 0.8, "pcc_same_class": pcc}
        for fraction in (0.02, 0.1)
    ]
    mode = {"metrics": {**metrics, "per_category": {"a": 0.5}}, "alignment": {"top": top}}
    other_top = [{**of_one, "pcc_same_class": 0.125} for of_one in top]
    other = {"metrics": {"AP": 0.99, "per_category": {}}, "alignment": {"top": other_top}}
    return {
        "iterations": 9,
        "evaluation": {"default": "class*mask", "modes": {"class*mask": mode, "class": other}},
    }


def states(grid: Grid, aps: dict[str, list[float | None]]) -> list[tuple[Cell, State]]:
    """Runs of three seeds; None and variants without AP are not done yet."""
    found = []
    for cell in cells(grid, nuclei_small(), range(3)):
        ap = aps.get(cell.variant.name, [None] * 3)[cell.seed]
        found.append((cell, State("missing") if ap is None else State("done", result=result(ap))))
    return found


def test_figures_are_percent_and_none_where_there_is_nothing_to_measure() -> None:
    found = figures(result(0.3, None))
    assert found["AP"] == pytest.approx(30)
    assert found["APl"] is None
    assert found["PCC top 2 %"] is None
    assert found["mean IoU top 10 %"] == 0.8
    assert found["class: PCC top 2 %"] == 0.125
    assert found["class: AP"] == pytest.approx(99)


@pytest.mark.parametrize("values", [[1.0, 2.0, 4.0], [3.0, 3.0], [-1.0, 5.0, 0.5, 2.0]])
def test_the_standard_error_is_that_of_the_mean(values: list[float]) -> None:
    mean, error = mean_and_error(values)
    assert mean == pytest.approx(np.mean(values))
    assert error == pytest.approx(np.std(values, ddof=1) / np.sqrt(len(values)))


def test_one_seed_has_no_error() -> None:
    assert mean_and_error([2.0]) == (2.0, None)


def test_table_3_is_laid_out_as_in_the_paper() -> None:
    header, lines = rows(
        TABLE_3, states(TABLE_3, {"full": [0.10, 0.20, 0.30], "no_aql": [0.1, None, None]})
    )
    assert header == [
        "self-attention", "masked attention", "AP", "AP50", "AP75", "paper: AP", "paper: AP50", "paper: AP75", "seeds"
    ]  # fmt: skip
    assert lines == [
        ["no aligned query", "", "10.0", "30.0", "20.0", "39.7", "58.7", "43.3", "1/3"],
        ["", "", "-", "-", "-", "40.6", "59.7", "44.5", "0/3"],
        ["✓", "", "-", "-", "-", "40.8", "60.2", "44.7", "0/3"],
        ["", "✓", "-", "-", "-", "40.8", "60.1", "44.6", "0/3"],
        ["✓", "✓", "20.0 ± 5.8", "40.0 ± 5.8", "30.0 ± 5.8", "41.4", "61.0", "45.2", "3/3"],
    ]


def test_table_4_is_a_matrix() -> None:
    header, lines = matrix(
        TABLE_4, states(TABLE_4, {"t5_n50": [0.1, 0.1, 0.1], "t1_n100": [0.2, 0.4, None]})
    )
    assert header == ["AP", "No AQ", "N_AQ = 50", "N_AQ = 100"]
    assert lines == [
        ["No AQL", "- (paper 39.7, 0/3 seeds)", "-", "-"],
        ["T = 1", "-", "- (paper 40.8, 0/3 seeds)", "30.0 ± 10.0 (paper 41.0, 2/3 seeds)"],
        ["T = 5", "-", "10.0 ± 0.0 (paper 41.4)", "- (paper 41.4, 0/3 seeds)"],
    ]


def test_figures_that_are_not_defined_are_left_out_of_the_mean() -> None:
    _, lines = rows(COMPARISON, states(COMPARISON, {"full": [0.1, 0.1, 0.1]}))
    full = lines[2]
    assert full[1:11] == [
        "10.0 ± 0.0",
        "30.0 ± 0.0",
        "20.0 ± 0.0",
        "1.1 ± 0.0",
        "50.0 ± 0.0",
        "-",
        "0.250 ± 0.000",
        "0.250 ± 0.000",
        "0.125 ± 0.000",
        "0.125 ± 0.000",
    ]
    assert "0.291" in full
    constant_scores = states(COMPARISON, {"full": [0.1, 0.1, 0.1]})
    constant_scores[2] = (constant_scores[2][0], State("done", result=result(0.1, pcc=None)))
    assert rows(COMPARISON, constant_scores)[1][2][7] == "0.250 ± 0.000 (of 2)"
    assert lines[1][11:] == ["-"] * 8 + ["0/3"]  # the paper has no such row


def test_pictures_of_wide_tables_have_the_papers_figures_below_ours() -> None:
    header = ["method", "AP", "PCC top 2 %", "paper: AP", "paper: PCC top 2 %", "seeds"]
    lines = [["a", "1.0 ± 0.5", "-", "43.7", "0.221", "3/3"], ["b", "2.0", "0.3", "-", "-", "1/3"]]
    assert _folded(header, lines) == (
        ["method", "AP", "PCC top 2 %", "seeds"],
        [
            ["a", "1.0 ± 0.5\n(paper 43.7)", "-\n(paper 0.221)", "3/3"],
            ["b", "2.0", "0.3", "1/3"],
        ],
    )


@pytest.mark.parametrize("name", GRIDS)
def test_files(name: str, tmp_path: Path) -> None:
    grid = GRIDS[name]
    text = write_tables(grid, states(grid, {"full": [0.1, 0.2, None]}), tmp_path / "new", name)
    assert (tmp_path / "new" / f"{name}.md").read_text() == text
    lines = text.splitlines()[2:]
    assert len({line.count("|") for line in lines}) == 1
    assert text.startswith(
        f"**{grid.title}. Score: class*mask**" if "| 2/3 |" in text else f"**{grid.title}"
    )
    with Image.open(tmp_path / "new" / f"{name}.png") as picture:
        assert 300 < picture.width < 2700  # a screen can show it
        assert picture.width < 12 * picture.height
        assert np.asarray(picture.convert("L")).min() < 64  # something is written
    content = json.loads((tmp_path / "new" / f"{name}.json").read_text())
    assert len(content["runs"]) == 3 * len(grid.variants)
    assert len(list((tmp_path / "new").iterdir())) == 3  # no temporary file is left
