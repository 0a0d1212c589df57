"""Names are not markup: whatever comes from files is printed as it is."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Column

from alignmask import _printing, analyze
from alignmask._printing import (
    PlainTable,
    ProgressBar,
    console,
    counted,
    plain_column,
    without_formulas,
)
from alignmask.ablation import tables as ablation_tables
from alignmask.ablation.claims import Claims
from alignmask.ablation.grids import GRIDS
from alignmask.ablation.runs import cells
from alignmask.analysis.compare import analysis_table
from alignmask.analysis.html_page import write_page
from alignmask.analysis.measure import analyze_model
from alignmask.commands.ablate import plan
from alignmask.evaluation.alignment import alignment_table
from alignmask.evaluation.calibration import calibration_table
from alignmask.evaluation.duplicates import duplicates_table
from alignmask.evaluation.evaluate import Evaluation, evaluate_file
from alignmask.evaluation.metrics import numbers_table
from alignmask.evaluation.results_file import load_ground_truth, load_results
from alignmask.evaluation.tables import number_table
from alignmask.recipes import shapes_tiny
from alignmask.training.log import Log
from tests.conftest import REPOSITORY
from tests.evaluation.worlds import World, box_mask, write

HOSTILE = "[red]x[/] [/y] :smile:"
PACKAGE = REPOSITORY / "python" / "alignmask"


def shown(renderable: Any) -> str:
    """As a console of the user's shows it, which interprets markup and emojis."""
    stream = io.StringIO()
    Console(file=stream, width=400).print(renderable)
    return stream.getvalue()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    world = World({1: (20, 20), 2: (20, 20)}, {3: HOSTILE, 7: HOSTILE, 9: f"<b>&'\"{HOSTILE}"})
    for category in (3, 9):
        world.annotate(1, category, box_mask((20, 20), 0, 0, 10, 10))
        world.predict(1, category, box_mask((20, 20), 0, 0, 10, 9), 0.9)
    return write(world, tmp_path)


@pytest.fixture
def evaluation(files: tuple[Path, Path]) -> Evaluation:
    """Whose score mode and classes have that name."""
    found = evaluate_file(*files)
    return replace(
        found,
        metrics={HOSTILE: found.metrics["score"]},
        alignment={HOSTILE: found.alignment["score"]},
        duplicates={HOSTILE: found.duplicates["score"]},
        default=HOSTILE,
    )


TABLES: dict[str, tuple[Callable[[Evaluation], Any], int]] = {
    "evaluation": (lambda e: e.table(), 4 + 4 + 6),  # with classes and confusion
    "classes": (lambda e: e.class_table(), 4),
    "confusion": (lambda e: e.confusion.table(), 6),
    "numbers": (lambda e: numbers_table(e.metrics, HOSTILE), 2),
    "metrics": (lambda e: e.metrics[HOSTILE].table(HOSTILE), 1),
    "alignment": (lambda e: alignment_table(e.alignment), 2),
    "duplicates": (lambda e: duplicates_table(e.duplicates, HOSTILE), 2),
    "calibration": (lambda e: calibration_table({HOSTILE: e.calibration}, HOSTILE), 2),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_an_evaluation(evaluation: Evaluation, name: str) -> None:
    table, times = TABLES[name]
    assert shown(table(evaluation)).count(HOSTILE) == times


def test_tables_of_an_analysis(files: tuple[Path, Path]) -> None:
    truth = load_ground_truth(files[0])
    model = analyze_model(HOSTILE, truth, load_results(files[1], truth))
    # AP, twice two fractions, duplicates, calibration.
    assert shown(analysis_table([model])).count(HOSTILE) == 7


def test_the_plan_of_an_ablation(tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE
    config = replace(shapes_tiny(), out=folder)
    grid = GRIDS["comparison"]
    cell = cells(grid, config, [0])[0]
    claims = Claims(folder / "claims")
    cell.failure.parent.mkdir(parents=True)
    cell.failure.write_text(f"ValueError: {HOSTILE}")
    text = shown(plan(grid, folder, [cell], claims))
    assert re.sub(r"\s", "", text).count(re.sub(r"\s", "", HOSTILE)) == 3  # title, error, its file


def test_every_part_of_a_table() -> None:
    table = PlainTable(HOSTILE, Column(HOSTILE, justify="right"), title=HOSTILE, caption=HOSTILE)
    table.add_column(HOSTILE, no_wrap=True)
    table.add_row(*[HOSTILE] * 3)
    assert shown(table).count(HOSTILE) == 8
    assert [column.justify for column in table.columns] == ["left", "right", "left"]
    assert shown(number_table(HOSTILE, HOSTILE, first=HOSTILE, caption=HOSTILE)).count(HOSTILE) == 4


def test_the_consoles_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    console(width=100).print(HOSTILE, 12)
    console(width=100, stderr=True).print(f"{HOSTILE} 'quoted' 12", style="bold")
    assert capsys.readouterr() == (f"{HOSTILE} 12\n", f"{HOSTILE} 'quoted' 12\n")


def test_progress_bars(tmp_path: Path) -> None:
    stream = io.StringIO()
    with ProgressBar(console=Console(file=stream, width=100)) as bar:
        bar.add_task(HOSTILE, total=1)
    assert HOSTILE in stream.getvalue()
    with Log(tmp_path, 0, 10) as log:
        log.progress.update(log.task, description=HOSTILE, speed=HOSTILE, losses=HOSTILE)
        assert shown(log.progress.get_renderable()).count(HOSTILE) == 3


def test_a_progress_bar_draws_without_a_thread_and_not_too_often() -> None:
    """Else a process that is forked meanwhile may wait forever for a lock that the thread held."""
    stream, seconds = io.StringIO(), [0.0]
    threads = threading.active_count()
    terminal = Console(file=stream, width=100, force_terminal=True)
    with ProgressBar(plain_column("{task.fields[text]}"), console=terminal) as bar:
        assert threading.active_count() == threads
        task = bar.add_task("train", total=100, text="")
        bar.get_time = lambda: seconds[0]
        bar.refresh()
        for step in range(1, 100):
            seconds[0] = step / 32  # exact
            bar.update(task, completed=step, text=f"<{step}>")
        drawn = [int(number) for number in re.findall(r"<(\d+)>", stream.getvalue())]
        assert drawn == list(range(4, 100, 4))
        bar.update(task, text="now", refresh=True)
        assert "now" in stream.getvalue()


def test_the_log_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Log(tmp_path, 0, 10) as log:
        log.say(f"run {HOSTILE} starts")
    assert f"run {HOSTILE} starts\n" in capsys.readouterr().err


def test_nothing_else_makes_consoles_tables_or_columns() -> None:
    makers = re.compile(
        r"(?<![\w.])(Console|Table|Progress|TextColumn|SpinnerColumn|Prompt)\(|rich\.print|import print\b"
    )
    own = {Path(_printing.__file__)}
    users = [path for path in PACKAGE.rglob("*.py") if makers.search(path.read_text())]
    assert set(users) == own


@pytest.mark.parametrize("name", ["a$b$c", r"$\frac$", "5 $", r"\$x$", "plain"])
def test_dollar_signs_are_no_formulas(name: str, tmp_path: Path) -> None:
    """Matplotlib's own reading of the text: what is left is the name, and not a formula."""
    text = Figure().text(0, 0, without_formulas(name))
    assert text._preprocess_math(text.get_text()) == (name, False)
    ablation_tables.draw(name, [name], [[name]], tmp_path / "table.png")  # as a formula: an error


def test_one_is_singular(tmp_path: Path) -> None:
    assert [counted(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]
    world = World({1: (20, 20)}, {3: "a"})
    world.annotate(1, 3, box_mask((20, 20), 0, 0, 10, 10))
    world.predict(1, 3, box_mask((20, 20), 0, 0, 10, 9), 0.9)
    annotations, results = write(world, tmp_path)
    assert "mask AP (%), 1 image, 1 prediction " in shown(
        evaluate_file(annotations, results).table()
    )
    analyze([results], annotations=annotations, out=tmp_path, inversions=0)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<p>1 image, 1 instance of 1 class: <code>" in page


def test_the_page_escapes_names(files: tuple[Path, Path], tmp_path: Path) -> None:
    from PIL import Image

    truth = load_ground_truth(files[0])
    name = "</script><img src=x>&\"'"
    model = analyze_model(name, truth, load_results(files[1], truth))
    write_page([model], truth, None, [Image.new("RGB", (4, 4))], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)  # without Bokeh's
    assert "<img src=x" not in own
    assert "<b>" not in own
    assert "<p>2 images, 2 instances of 3 classes: <code>" in own
    assert "&lt;/script&gt;&lt;img src=x&gt;&amp;&#34;&#39;" in own
    assert f"&lt;b&gt;&amp;&#39;&#34;{HOSTILE}</option>" in own
    assert r"\u003cb>&'\"[red]" in own  # in the block of data, which is no HTML


def test_a_table_as_text() -> None:
    table = PlainTable("name", "number", title="[b]title[/b]")
    table.add_row("[red]", "1.5")
    assert [line.split() for line in str(table).splitlines() if line.strip("─ ")] == [
        ["[b]title[/b]"],
        ["name", "number"],
        ["[red]", "1.5"],
    ]
