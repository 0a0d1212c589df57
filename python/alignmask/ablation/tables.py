"""The tables of a grid of ablations: mean and standard error over seeds beside the paper's figures,
in the paper's layout."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from alignmask._files import replacing, write_json
from alignmask._printing import without_formulas
from alignmask.ablation.grids import Grid, Variant
from alignmask.ablation.runs import Cell, State

PAPER = "paper: "
WIDEST = 180
"""Characters in a line of a picture, which are 2,340 pixels."""
Results = list[tuple[Cell, State]]


def figures(result: dict[str, Any]) -> dict[str, float | None]:
    """The figures of one run, in the score mode of its model: AP and related metrics in percent,
    and the alignment statistics (IoU with ground truth of the same class). None: the figure is not
    defined.

    Figures named "class: ..." are by the class score only, which may be what the paper means: it
    says classification score, although Mask2Former's code ranks by class x mask.
    """
    evaluation = result["evaluation"]
    modes = evaluation["modes"]
    found = _of_mode(modes[evaluation["default"]])
    return found | {f"class: {name}": value for name, value in _of_mode(modes["class"]).items()}


def _of_mode(mode: dict[str, Any]) -> dict[str, float | None]:
    found: dict[str, float | None] = {
        name: 100 * value if value >= 0 else None
        for name, value in mode["metrics"].items()
        if name != "per_category"
    }
    for top in mode["alignment"]["top"]:
        share = f"top {100 * top['fraction']:g} %"
        found[f"PCC {share}"] = top["pcc_same_class"]
        found[f"mean score {share}"], found[f"mean IoU {share}"] = (
            top["mean_score"],
            top["mean_iou_same_class"],
        )
    return found


def mean_and_error(values: list[float]) -> tuple[float, float | None]:
    """The mean and its standard error (sample standard deviation / sqrt n); a single value has no
    error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def write_tables(grid: Grid, results: Results, folder: Path, stem: str) -> str:
    """Write STEM.md, STEM.png and STEM.json (every figure of every run) to `folder`; returns the
    Markdown."""
    header, lines = matrix(grid, results) if grid.layout == "matrix" else rows(grid, results)
    scores = sorted(
        {state.result["evaluation"]["default"] for _, state in results if state.result is not None}
    )
    title = f"{grid.title}. Score: {', '.join(scores)}" if scores else grid.title
    text = markdown(title, header, lines)
    with replacing(folder / f"{stem}.md") as path:
        path.write_text(text)
    with replacing(folder / f"{stem}.png") as path:
        draw(title, header, lines, path)
    runs = [
        {
            "variant": cell.variant.name,
            "seed": cell.seed,
            "status": state.status,
            "figures": _figures(state),
        }
        for cell, state in results
    ]
    write_json(folder / f"{stem}.json", {"title": title, "runs": runs}, indent=2)
    return text


def rows(grid: Grid, results: Results) -> tuple[list[str], list[list[str]]]:
    """-> heading and lines, one per variant: labels, our figures, the paper's, seeds that are
    done."""
    printed = [
        number
        for number in grid.numbers
        if any(number in variant.paper for variant in grid.variants)
    ]
    header = [*grid.columns, *grid.numbers, *(f"{PAPER}{number}" for number in printed), "seeds"]
    lines = []
    for variant in grid.variants:
        done, wanted = _of(variant, results)
        ours = [_shown(number, done) for number in grid.numbers]
        paper = [_plain(number, variant.paper.get(number)) for number in printed]
        lines.append([*variant.labels, *ours, *paper, f"{len(done)}/{wanted}"])
    return header, lines


def matrix(grid: Grid, results: Results) -> tuple[list[str], list[list[str]]]:
    """-> heading and lines: the one figure of each variant where its labels say, with the paper's
    in brackets."""
    (number,) = grid.numbers
    down, across = (list(dict.fromkeys(v.labels[side] for v in grid.variants)) for side in (0, 1))
    at = {variant.labels: variant for variant in grid.variants}
    lines = []
    for row in down:
        line = [row]
        for column in across:
            variant = at.get((row, column))
            if variant is None:
                line.append("-")
                continue
            done, wanted = _of(variant, results)
            seeds = "" if len(done) == wanted else f", {len(done)}/{wanted} seeds"
            line.append(
                f"{_shown(number, done)} (paper {_plain(number, variant.paper.get(number))}{seeds})"
            )
        lines.append(line)
    return [number, *across], lines


def markdown(title: str, header: list[str], lines: list[list[str]]) -> str:
    table = [header, ["---"] * len(header), *lines]
    return f"**{title}**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in table)


def draw(title: str, header: list[str], lines: list[list[str]], out_png: Path) -> None:
    """The table as a picture. One that would be too wide for a screen has the paper's figures below
    ours."""
    longest = _widths(header, lines)
    if sum(longest) > WIDEST:
        header, lines = _folded(header, lines)
        longest = _widths(header, lines)
    deep = max(text.count("\n") for line in lines for text in line)
    figure = Figure(
        figsize=(0.085 * sum(longest) + 0.4, 0.3 + (0.3 + 0.15 * deep) * (len(lines) + 1) + 0.2),
        layout="constrained",
    )
    axes = figure.subplots()
    axes.axis("off")
    axes.set_title(without_formulas(title), fontsize=10, loc="left")
    widths = [length / sum(longest) for length in longest]
    shown = [[without_formulas(text) for text in line] for line in lines]
    table = axes.table(
        shown,
        colLabels=[*map(without_formulas, header)],
        colWidths=widths,
        cellLoc="center",
        bbox=Bbox.unit(),
    )
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    for (row, _), cell in table.get_celld().items():
        cell.visible_edges = "TB" if row == 0 else ("B" if row == len(lines) else "open")
        if row == 0:
            cell.set_text_props(weight="bold")
    figure.savefig(out_png, dpi=150)


def _widths(header: list[str], lines: list[list[str]]) -> list[int]:
    """The characters of each column, with some air."""
    return [
        max(len(part) for text in column for part in text.split("\n")) + 2
        for column in zip(header, *lines, strict=True)
    ]


def _folded(header: list[str], lines: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Without the paper's columns: their figures are in brackets below ours."""
    ours = [name for name in header if not name.startswith(PAPER)]
    folded = []
    for line in lines:
        texts = dict(zip(header, line, strict=True))
        paper = {name: texts.get(f"{PAPER}{name}", "-") for name in ours}
        folded.append(
            [
                texts[name] if paper[name] == "-" else f"{texts[name]}\n(paper {paper[name]})"
                for name in ours
            ]
        )
    return ours, folded


def _of(variant: Variant, results: Results) -> tuple[list[dict[str, float | None]], int]:
    """The figures of the variant's finished runs, and the number of its runs."""
    mine = [state for cell, state in results if cell.variant.name == variant.name]
    return [found for found in map(_figures, mine) if found is not None], len(mine)


def _figures(state: State) -> dict[str, float | None] | None:
    return figures(state.result) if state.result is not None else None


def _shown(number: str, done: list[dict[str, float | None]]) -> str:
    values = [value for found in done if (value := found.get(number)) is not None]
    if not values:
        return "-"
    mean, error = mean_and_error(values)
    text = (
        _plain(number, mean)
        if error is None
        else f"{_plain(number, mean)} ± {_plain(number, error)}"
    )
    # It is not defined for the others.
    return text if len(values) == len(done) else f"{text} (of {len(values)})"


def _plain(number: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if number.removeprefix("class: ").startswith("A") else f"{value:.3f}"
