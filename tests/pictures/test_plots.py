"""Pictures of runs: written, of the right size, with everything in them that the files say."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from alignmask.data import CocoError
from alignmask.evaluation.alignment import score_iou_pairs, top_predictions
from alignmask.pictures import plots, sheets
from alignmask.pictures.plots import loss_curve, score_iou_scatter
from alignmask.pictures.run import run_pictures
from alignmask.pictures.sheets import Predictions, results_sheet, truth_sheet
from tests.evaluation.test_alignment import pairs_of
from tests.evaluation.worlds import box_mask, dataset_of, small_world, write

LOSSES = ("loss", "classification", "mask", "dice")


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    """A plot's complaint (empty legend, singular axis) is a fault of the plot."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    saved: list[Figure] = []
    original = Figure.savefig

    def savefig(self: Figure, *arguments: Any, **options: Any) -> None:
        saved.append(self)
        original(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def picture(path: Path) -> np.ndarray:
    """Its pixels; it is a PNG that shows something."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels_HWC = np.asarray(image.convert("RGB"))
    assert len(np.unique(pixels_HWC.reshape(-1, 3), axis=0)) > 10
    return pixels_HWC


def step(number: int) -> dict[str, Any]:
    losses = {name: (k + 1) / number for k, name in enumerate(LOSSES)}
    return {"step": number, "time": 1e9, **losses, "lr": 1e-4, "it_per_s": 3.0, "grad_norm": 7.0}


def evaluation(number: int, ap: float) -> dict[str, Any]:
    modes = {
        mode: {"metrics": {"AP": value, "per_category": {}}}
        for mode, value in (("class", ap), ("class*mask", ap * 1.5))
    }
    return {"step": number, "time": 1e9, "eval": {"modes": modes}}


def log(folder: Path, lines: list[Any], end: str = "\n") -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + end)
    return path


BOTH = [step(10), step(20), evaluation(20, 0.1), step(30), evaluation(30, 0.2)]


@pytest.mark.parametrize(
    ("lines", "panels", "size"),
    [
        (BOTH, 2, (960, 1020)),
        (BOTH[:2], 1, (960, 660)),
        ([BOTH[2], BOTH[4]], 1, (960, 480)),
        ([step(1)], 1, (960, 660)),
    ],
)
def test_loss_curve(
    tmp_path: Path, figures: list[Figure], lines: list[Any], panels: int, size: tuple[int, int]
) -> None:
    out = tmp_path / "new" / "loss.png"
    loss_curve(log(tmp_path, lines), out)
    assert picture(out).shape == (*size[::-1], 3)
    axes = figures[0].axes
    assert len(axes) == panels
    if "loss" in lines[0]:
        assert [line.get_label() for line in axes[0].lines] == list(LOSSES)
        steps = [line["step"] for line in lines if "loss" in line]
        assert axes[0].lines[0].get_xydata().tolist() == [[n, 1 / n] for n in steps]
    if any("eval" in line for line in lines):
        assert [line.get_label() for line in axes[-1].lines] == [
            "score class: 20.0 at last",
            "score class*mask: 30.0 at last",
        ]
        assert axes[-1].lines[1].get_xydata().tolist() == [
            [20, pytest.approx(15)],
            [30, pytest.approx(30)],
        ]
        bottom, top = axes[-1].get_ylim()
        assert bottom == 0
        assert top > 33  # room for every curve, not for the first alone


def test_loss_curve_of_a_killed_run(tmp_path: Path, figures: list[Figure]) -> None:
    loss_curve(log(tmp_path, BOTH, '\n{"step": 40, "lo'), tmp_path / "loss.png")
    assert figures[0].axes[0].lines[0].get_xydata()[-1, 0] == 30


def test_loss_curve_without_ground_truth(tmp_path: Path, figures: list[Figure]) -> None:
    """AP is -1 then, which is no percentage."""
    loss_curve(log(tmp_path, [step(10), evaluation(10, -1)]), tmp_path / "loss.png")
    (line, _) = figures[0].axes[1].lines
    assert line.get_label() == "score class: no ground truth"
    assert np.isnan(line.get_ydata()).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "neither a step nor an evaluation is logged"),
        ('{"step": 1, "time": 2}\n', "neither a step nor"),
        ('{"step": 1, "loss": 2}\n{"st\n{"step": 2, "loss": 1}\n', "line 2: not valid JSON"),
        ('{"loss": 2}\n', "line 1: expected an object with a step"),
        ("[1]\n", "line 1: expected an object with a step"),
    ],
)
def test_loss_curve_of_a_broken_log(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    with pytest.raises(CocoError, match=rf"metrics\.jsonl.*{message}"):
        loss_curve(path, tmp_path / "loss.png")
    with pytest.raises(CocoError, match=r"nowhere\.jsonl: cannot be read: No such file"):
        loss_curve(tmp_path / "nowhere.jsonl", tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


# -- score against IoU
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iou", ["same class", "any class"])
def test_scatter_shows_the_top_predictions(tmp_path: Path, figures: list[Figure], iou: Any) -> None:
    pairs = score_iou_pairs(*write(small_world(images=12), tmp_path))
    score_iou_scatter({"my model": pairs}, tmp_path / "a" / "s.png", fraction=0.02, iou=iou)
    assert picture(tmp_path / "a" / "s.png").shape == (648, 720, 3)
    (axes,) = figures[0].axes
    top = top_predictions(pairs, 0.02)
    assert len(top) == 24
    values = pairs.iou_same_class_N if iou == "same class" else pairs.iou_any_class_N
    np.testing.assert_allclose(
        axes.collections[0].get_offsets(), np.stack([pairs.scores_N[top], values[top]], axis=1)
    )
    correlation = np.corrcoef(pairs.scores_N[top], values[top])[0, 1]
    assert axes.get_title() == f"my model\nPCC {correlation:.3f}   (top 2 %: 24 predictions)"
    assert iou in axes.get_ylabel()


def test_scatter_marks_the_mean_of_each_score_interval(
    tmp_path: Path, figures: list[Figure]
) -> None:
    pairs = pairs_of([0.0, 0.05, 0.55, 1.0, 0.95], [0.2, 0.4, 0.5, 1.0, 0.0])
    score_iou_scatter({"": pairs}, tmp_path / "s.png")
    (means,) = (line for line in figures[0].axes[0].lines if line.get_label() == "mean IoU")
    np.testing.assert_allclose(means.get_xydata(), [[0.05, 0.3], [0.55, 0.5], [0.95, 0.5]])


@pytest.mark.parametrize(
    ("scores", "ious"), [([], []), ([0.5] * 4, [0.1, 0.2, 0.3, 0.4]), ([0.7], [1.0])]
)
def test_scatter_without_a_correlation(
    tmp_path: Path, figures: list[Figure], scores: list[float], ious: list[float]
) -> None:
    score_iou_scatter({"": pairs_of(scores, ious)}, tmp_path / "s.png")
    picture(tmp_path / "s.png")
    assert (
        figures[0].axes[0].get_title() == f"PCC not defined   (top 10 %: {len(scores)} predictions)"
    )


def test_scatter_of_many_predictions_shows_their_density(
    tmp_path: Path, figures: list[Figure]
) -> None:
    n = plots.MANY_POINTS + 1
    rng = np.random.default_rng(0)
    pairs = pairs_of(list(rng.random(n)), list(rng.random(n)), n, list(range(n)))
    score_iou_scatter({"": pairs}, tmp_path / "s.png", fraction=1.0)
    assert len(figures[0].axes) == 2  # with a colour bar
    assert picture(tmp_path / "s.png").shape == (648, 720, 3)


@pytest.mark.parametrize(
    ("models", "size"), [(2, (1368, 648)), (3, (2016, 648)), (4, (2016, 1296))]
)
def test_scatter_of_several_models(
    tmp_path: Path, figures: list[Figure], models: int, size: tuple[int, int]
) -> None:
    pairs = {
        f"a $model$ {'with a long name ' * n}{n}": pairs_of([0.2, 0.9], [0.1, n / 10])
        for n in range(models)
    }
    score_iou_scatter(pairs, tmp_path / "s.png")
    assert picture(tmp_path / "s.png").shape == (*size[::-1], 3)
    shown = [axes for axes in figures[0].axes if axes.collections]
    assert [axes.collections[0].get_offsets()[0, 1] for axes in shown] == [
        n / 10 for n in range(models)
    ]
    assert sum(axes.axison for axes in figures[0].axes) == models
    assert all(len(axes.get_title().split("\n")[0].replace("\\", "")) <= 48 for axes in shown)


def test_scores_that_are_no_probabilities_are_shown(tmp_path: Path, figures: list[Figure]) -> None:
    """All panels have the same axis; there is no curve of mean IoU, whose intervals are of 0 to
    1."""
    score_iou_scatter(
        {"a": pairs_of([-3.0, 7.0], [0.1, 0.9]), "b": pairs_of([0.5], [0.5])}, tmp_path / "s.png"
    )
    picture(tmp_path / "s.png")
    assert [axes.get_xlim() for axes in figures[0].axes] == [
        (pytest.approx(-3.2), pytest.approx(7.2))
    ] * 2
    assert not any(axes.lines for axes in figures[0].axes)


def test_densities_share_their_colours(tmp_path: Path, figures: list[Figure]) -> None:
    n = plots.MANY_POINTS + 1
    alike, spread = pairs_of([0.5] * n, [0.5] * n, n, list(range(n))), pairs_of([0.1], [0.1])
    score_iou_scatter(
        {"alike": alike, "spread": spread, "none": pairs_of([], [])},
        tmp_path / "s.png",
        fraction=1.0,
    )
    picture(tmp_path / "s.png")
    limits = {axes.collections[0].get_clim() for axes in figures[0].axes[:3]}
    assert limits == {(1, n)}


# -- predictions beside ground truth
# -------------------------------------------------------------------------------------


def prediction(size: tuple[int, int], scores: list[float]) -> Predictions:
    masks_NHW = np.stack([box_mask(size, 0, 0, 10, 10)] * len(scores))
    return Predictions(np.array(scores), np.zeros(len(scores), np.int64), masks_NHW)


@pytest.mark.parametrize(
    ("images", "pairs_per_row", "size"),
    [(1, 2, (218, 134)), (3, 2, (430, 240)), (3, 1, (218, 346))],
)
def test_truth_sheet(
    tmp_path: Path, images: int, pairs_per_row: int, size: tuple[int, int]
) -> None:
    """Cells of 100 pixels, gaps of 6, a heading of 28."""
    grey_HWC = np.full((40, 40, 3), 128, np.uint8)
    rows = [(grey_HWC, prediction((40, 40), [1.0]), prediction((40, 40), [0.4, 0.2]))] * images
    truth_sheet(
        rows,
        ["a"],
        tmp_path / "x" / "sheet.png",
        threshold=0.5,
        cell=100,
        pairs_per_row=pairs_per_row,
    )
    pixels_HWC = picture(tmp_path / "x" / "sheet.png")
    assert pixels_HWC.shape == (*size[::-1], 3)
    truth, found = pixels_HWC[28:128, 6:106], pixels_HWC[28:128, 109:209]
    assert (truth != 128).any()
    assert (found == 128).all()  # below the threshold


def test_truth_sheet_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least one image"):
        truth_sheet([], ["a"], tmp_path / "sheet.png")


def test_results_sheet_maps_category_ids_to_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = small_world(images=6)
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        sheets,
        "truth_sheet",
        lambda rows, names, out, **options: seen.update(rows=rows, names=names),
    )
    results_sheet(dataset_of(world, tmp_path), world.results, tmp_path / "sheet.png", images=4)
    assert seen["names"] == ["cat", "dog"]
    assert len(seen["rows"]) == 4
    by_size = {(h, w): i for i, (h, w) in world.sizes.items()}
    for image_HWC, truth, found in seen["rows"]:
        image = by_size[image_HWC.shape[:2]]
        mine = [r for r in world.results if r["image_id"] == image]
        assert found.labels_N.tolist() == [{3: 0, 11: 1}[r["category_id"]] for r in mine]
        assert found.scores_N.tolist() == [r["score"] for r in mine]
        assert len(truth.labels_N) == sum(a["image_id"] == image for a in world.annotations)


def test_pictures_of_a_run(tmp_path: Path) -> None:
    world = small_world()
    dataset = dataset_of(world, tmp_path)
    write(world, tmp_path)
    log(tmp_path, BOTH)
    found = run_pictures(tmp_path, dataset, tmp_path / "out", images=2)
    assert sorted(path.name for path in found.values()) == [
        "loss.png",
        "predictions.png",
        "score_iou.png",
    ]
    for path in found.values():
        picture(path)
    (tmp_path / "results.json").unlink()
    with pytest.raises(CocoError, match=r"results\.json: cannot be read"):
        run_pictures(tmp_path, dataset, tmp_path / "out")
