"""The tables that an evaluation prints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from alignmask.evaluation.evaluate import evaluate_file, evaluate_model
from alignmask.evaluation.metrics import NUMBERS, numbers_table
from tests.evaluation.worlds import (
    TableModel,
    dataset_of,
    small_world,
    write,
)


def printed(renderable: Any, width: int = 80) -> list[str]:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_tables_show_every_number_within_80_columns(tmp_path: Path) -> None:
    world = small_world()
    dataset = dataset_of(world, tmp_path)
    result = evaluate_model(
        TableModel(world), dataset, device="cpu", batch_size=1, workers=0, out=None
    )
    lines = printed(result.table())
    assert max(map(len, lines)) <= 80
    assert lines[0] == f"mask AP (%), 5 images, {len(world.results)} predictions"
    head = next(line for line in lines if "AP50" in line)
    assert head.split() == ["score", *NUMBERS]
    for mode, metrics in result.metrics.items():
        row = next(line for line in lines if line.split()[:1] == [mode])
        assert row.split()[1:] == [
            "-" if v < 0 else f"{100 * v:.1f}" for v in metrics.numbers().values()
        ]
        for name in NUMBERS:  # right-aligned: every number ends where its heading ends
            end = (head + " ").index(f" {name} ") + len(name) + 1
            assert row[end - 1] != " ", name
            assert (row + " ")[end] == " ", name
    some = printed(numbers_table({"": result.metrics["class"], "b": result.metrics["class"]}, "t"))
    assert [line.split()[0] for line in some if "AP50" in line] == ["score"]  # one has a name
    single = printed(result.metrics["class"].table("my model"))
    assert single[0] == "my model"
    assert "score" not in single[1] + single[2]


def test_class_table_is_sorted_with_unmeasured_ones_last(tmp_path: Path) -> None:
    world = replace(small_world(), categories={3: "cat", 11: "dog", 12: "emu"})
    result = evaluate_file(*write(world, tmp_path))
    rows = [
        line.split()
        for line in printed(result.class_table())
        if line.split()[:1] in (["cat"], ["dog"], ["emu"])
    ]
    values = [float(row[1]) for row in rows[:2]]
    assert values == sorted(values, reverse=True)
    assert rows[2] == ["emu", "-", "-", "-", "0", "0", "-", "-", "-"]
