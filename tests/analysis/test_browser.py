"""The page in a real browser: it loads without errors and without a network, shows the prediction
that is clicked on, filters and sorts, runs nothing that stands in a name, and stays usable with
50,000 points."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alignmask.analysis.html_page import write_page
from alignmask.evaluation.alignment import ScoreIoU
from alignmask.evaluation.results_file import Results
from alignmask.pictures.drawing import OVERLAP, PREDICTION, TRUTH
from tests.analysis import chromium as chromium_module
from tests.analysis.chromium import Browser
from tests.analysis.pages import NASTY, analyses, page, square_world
from tests.evaluation.worlds import World, box_mask

WIDTH = 80
"""Of square_world's images."""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser, end = chromium_module.start(tmp_path_factory.mktemp("chromium"))
    yield browser
    end()


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page(square_world(), tmp_path_factory.mktemp("page"), ("first", "second"))


@pytest.fixture
def browser(chromium: Browser, two_models: Path) -> Iterator[Browser]:
    """The page of two models is open; the console has to stay clean."""
    chromium.open(two_models)
    yield chromium
    assert chromium.complaints() == []


def test_it_loads_without_errors_or_a_network(browser: Browser) -> None:
    assert browser.complaints() == []
    assert browser.value("models.length") == 2
    assert browser.value(
        "[...document.images].every((image) => image.complete && image.naturalWidth > 0)"
    )
    loaded = browser.value("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert not [name for name in loaded if not name.startswith("data:")]
    scores = np.concatenate([1 - np.arange(10) / 20, [0.3] * 10, [0.1] * 10])
    ious = np.concatenate([(10 - np.arange(10)) / (10 + np.arange(10)), np.zeros(20)])
    numbers = [
        f"{value:.3f}" for value in (scores.mean(), ious.mean(), np.corrcoef(scores, ious)[0, 1])
    ]
    halved = [f"{scores.mean() / 2:.3f}", *numbers[1:]]
    assert browser.rows("#summary") == [["first", "30", *numbers], ["second", "30", *halved]]


def test_a_click_shows_the_prediction_on_its_image(browser: Browser) -> None:
    """Point 5 of the first model: the object at rows 5 to 15, the prediction at rows 10 to 20,
    columns 5 to 25."""
    assert browser.value("document.getElementById('picture').hidden")
    browser.click_point(0, 5)
    browser.shows(0, 5)
    facts = browser.value(
        "[...document.querySelectorAll('#facts dd')].map((fact) => fact.textContent)"
    )
    assert facts == [
        "first",
        "dog",
        "0.750",
        "0.333",
        "0.333",
        "dog",
        "200 pixels",
        "105.png (id 105)",
    ]
    assert browser.value(f"pixel(40, 30, {WIDTH})") == pytest.approx([100] * 3, abs=2)
    for y, colour in ((7, TRUTH), (12, OVERLAP), (17, PREDICTION)):
        expected = [0.45 * 100 + 0.55 * value for value in colour]
        assert browser.value(f"pixel(15, {y}, {WIDTH})") == pytest.approx(expected, abs=3)
    browser.choose("opacity", "1")
    browser.until(f"pixel(15, 12, {WIDTH})[2] === 0")
    assert tuple(browser.value(f"pixel(15, 12, {WIDTH})")) == OVERLAP
    browser.click_point(1, 2)
    browser.shows(1, 2)
    assert browser.value("models[0].source.selected.indices") == []


def test_a_click_beside_the_points_shows_nothing(browser: Browser) -> None:
    x, y = browser.value("place(0, 0)")
    browser.click(x - 30, y + 30)
    assert browser.value("models[0].source.selected.indices") == []


def test_a_line_of_the_table_shows_its_prediction(browser: Browser) -> None:
    browser.run("deep('.slick-row')[3].querySelector('.slick-cell').click()")
    browser.shows(0, 3)


def test_a_prediction_without_ground_truth_is_seen_beside_all(browser: Browser) -> None:
    nothing = browser.value("models[0].source.data.any.findIndex((iou) => iou === 0)")
    browser.run(f"models[0].source.selected.indices = [{nothing}]")
    browser.shows(0, nothing)
    assert "none overlaps" in browser.value("document.getElementById('facts').textContent")
    assert browser.value(f"pixel(15, 7, {WIDTH})") == pytest.approx([100] * 3, abs=2)
    browser.run("document.getElementById('all-truths').click()")
    browser.until(f"pixel(15, 7, {WIDTH})[0] > 150")
    assert browser.value(f"pixel(45, 45, {WIDTH})[1]") > 130  # and the prediction is still there


def test_filters(browser: Browser) -> None:
    browser.choose("class", "2")  # bird: the mask is right, the class is not
    assert browser.rows("#summary")[0] == ["first", "10", "0.300", "0.000", "–"]
    browser.choose("kind", "any")
    assert browser.rows("#summary")[0] == ["first", "10", "0.300", "1.000", "–"]
    browser.choose("kind", "same")
    browser.choose("class", "-1")
    browser.choose("iou-from", "0.5")  # moved by 0, 1, 2, and 3 of 10 rows
    assert browser.summary(1) == ["4", "4"]
    browser.choose("score-to", "0.91")
    assert browser.summary(1) == ["2", "4"]
    browser.choose("score-to", "")
    browser.choose("iou-to", "0.9")
    assert browser.summary(1) == ["3", "3"]
    browser.run("document.querySelector('#filters [type=reset]').click()")
    browser.until("document.querySelector('#summary td:nth-child(2)').textContent === '30'")
    browser.choose("size", "0,1024")
    assert browser.summary(1) == ["30", "30"]
    browser.choose("size", "1024,9216")
    assert browser.summary(1) == ["0", "0"]
    browser.choose("size", "0,inf")
    browser.choose("top", "20")  # 2 % of 100 on ten images
    assert browser.summary(1) == ["20", "20"]


def test_filters_reach_plot_and_table(browser: Browser) -> None:
    browser.choose("class", "2")
    assert browser.value("models.map((model) => model.view.indices.count)") == [10, 10]
    browser.until("deep('.slick-row').every((row) => row.textContent.startsWith('bird'))")
    assert {row[3] for row in browser.slick_rows(0)} == {"0.300"}  # score - IoU
    browser.choose("kind", "any")
    browser.until("deep('.slick-row')[0].textContent.includes('1.000')")
    assert {row[3] for row in browser.slick_rows(0)} == {"-0.700"}


def test_a_hidden_point_cannot_be_clicked(browser: Browser) -> None:
    x, y = browser.value("place(0, 5)")
    browser.choose("class", "2")
    browser.click(x, y)
    assert browser.value("models[0].source.selected.indices") == []


def test_a_class_of_the_table_becomes_the_filter(browser: Browser) -> None:
    browser.run("document.querySelectorAll('#classes tbody tr')[1].click()")
    assert browser.value("document.getElementById('class').value") == "1"
    assert browser.summary(1) == ["5", "5"]


def test_tables_sort(browser: Browser) -> None:
    names = lambda table: [row[0] for row in browser.rows(table)]  # noqa: E731
    assert names("#summary") == ["first", "second"]
    heads = "document.querySelectorAll('#summary thead th')"
    browser.run(f"{heads}[2].click()")  # mean score, largest first
    assert names("#summary") == ["first", "second"]
    browser.run(f"{heads}[2].click()")
    assert names("#summary") == ["second", "first"]
    browser.choose("iou-from", "0.5")  # filters find their lines after sorting
    assert float(browser.rows("#summary")[0][2]) == pytest.approx(
        float(browser.rows("#summary")[1][2]) / 2, abs=1e-3
    )
    browser.run(f"{heads}[0].click()")
    assert names("#summary") == ["first", "second"]
    assert browser.value(f"[...{heads}].map((head) => head.getAttribute('aria-sort'))") == [
        "ascending",
        *[None] * 4,
    ]
    browser.run("document.querySelectorAll('#classes thead th')[2].click()")
    # Bird has no instances: last in either order.
    assert [row[2] for row in browser.rows("#classes")][2] == "–"
    browser.run("document.querySelectorAll('#classes thead th')[2].click()")
    assert [row[2] for row in browser.rows("#classes")][2] == "–"


def test_the_table_of_predictions_sorts(browser: Browser) -> None:
    head = "deep('.slick-header-column').find((head) => head.textContent.trim() === 'score')"
    browser.run(f"{head}.click()")
    browser.until("deep('.slick-row')[0].textContent.includes('0.100')")
    scores = [float(row[1]) for row in browser.slick_rows(0)]
    assert scores == sorted(scores)


def test_plots_zoom_together(browser: Browser) -> None:
    browser.run("models[0].figure.x_range.setv({ start: 0.25, end: 0.5 })")
    assert browser.value("[models[1].figure.x_range.start, models[1].figure.x_range.end]") == [
        0.25,
        0.5,
    ]
    assert browser.value("models[1].figure.y_range.end") == 1.02


@pytest.mark.parametrize("width", [1280, 800])
def test_it_fits(browser: Browser, width: int) -> None:
    """Nothing is wider than the window: tables scroll in their boxes. Two plots stand side by side,
    and the picture of the clicked prediction is seen."""
    usual = browser.driver.get_window_size()
    browser.driver.set_window_size(width, 900)
    try:
        browser.until(f"innerWidth === {width}")
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        boxes = "[...document.querySelectorAll('.box')]"
        assert browser.value(f"{boxes}.some((box) => box.scrollWidth > box.clientWidth)")
        tops = "['target-0', 'target-1'].map((id) => document.getElementById(id).getBoundingClientRect().top)"
        first, second = browser.value(tops)
        assert first == second
        browser.run("scrollTo(0, 0); models[0].source.selected.indices = [3]")
        browser.shows(0, 3)
        edges = (
            "const { top, bottom } = document.getElementById('picture').getBoundingClientRect();"
        )
        assert browser.run(f"{edges} return top >= -1 && bottom <= innerHeight + 1")
    finally:
        browser.driver.set_window_size(usual["width"], usual["height"])


def test_nothing_in_a_name_runs(chromium: Browser, tmp_path: Path) -> None:
    world = square_world()
    world.categories = dict(zip(world.categories, NASTY, strict=True))
    chromium.open(page(world, tmp_path, NASTY, images=False))
    for point in range(3):
        chromium.run(f"models[0].source.selected.indices = [{point}]")
        chromium.shows(0, point)
    for field in ("class", "kind"):
        chromium.choose(field, {"class": "0", "kind": "any"}[field])
    chromium.until("deep('.slick-row').length > 0")
    assert chromium.slick_rows(0)[0][0] == NASTY[0]
    # Model, class, truth.
    assert chromium.value("document.getElementById('facts').textContent").count(NASTY[0]) == 3
    assert chromium.value("window.hacked === undefined && deep('img[src=x]').length === 0")
    assert chromium.complaints() == []


def test_the_policy_stops_foreign_scripts(browser: Browser) -> None:
    """The second line of defence works, should a name get into the page after all."""
    browser.run(
        "document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\" "
        'onerror="window.hacked = 1">\')'
    )
    browser.until("document.images[document.images.length - 1].complete")
    time.sleep(0.1)
    assert browser.value("window.hacked === undefined")
    assert any("Content Security Policy" in complaint for complaint in browser.complaints())


def test_50_000_points_stay_usable(chromium: Browser, tmp_path: Path) -> None:
    """Times of a quiet machine are in docs/log.md; these bounds leave room for a busy one."""
    world = World(dict.fromkeys(range(1, 501), (32, 32)), {1: "a", 2: "b"})
    for image in world.sizes:
        world.annotate(image, 1, box_mask((32, 32), 4, 4, 20, 20))
        world.predict(image, 1, box_mask((32, 32), 4, 4, 20, 24), 0.5)
    (model,), ground_truth = analyses(world, tmp_path)
    rng = np.random.default_rng(0)
    iou_N, n = rng.random(50_000), 50_000
    pairs = ScoreIoU(
        scores_N=np.clip(iou_N + rng.normal(0, 0.2, n), 0, 1),
        iou_same_class_N=iou_N,
        iou_any_class_N=iou_N,
        truth_same_class_N=np.repeat(np.arange(1, 501), 100),
        truth_any_class_N=np.repeat(np.arange(1, 501), 100),
        image_ids_N=np.repeat(np.arange(1, 501), 100),
        category_ids_N=rng.integers(1, 3, n),
        images=500,
    )
    entries = [entry for entry in model.results.entries for _ in range(100)]
    model = replace(model, pairs=pairs, results=Results("made up", entries))
    out = tmp_path / "report.html"
    write_page([model], ground_truth, None, [Image.new("RGB", (4, 4))], out, fraction=1.0)
    assert out.stat().st_size < 8e6
    assert chromium.open(out) < 20
    start = time.monotonic()
    chromium.choose("class", "1")
    assert chromium.summary(1) == [str((pairs.category_ids_N == 2).sum())]
    assert time.monotonic() - start < 5
    visible = "document.getElementById('picture')"
    start = time.monotonic()
    point = chromium.value("models[0].kept.lastIndexOf(true)")
    chromium.click_point(0, point)
    chromium.until(f"!{visible}.hidden && {visible}.dataset.shown !== undefined")
    assert time.monotonic() - start < 5
    assert chromium.complaints() == []
