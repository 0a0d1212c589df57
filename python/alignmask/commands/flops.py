"""`alignmask flops`: parameters and multiply-adds of a recipe's model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import tyro

from alignmask._printing import PlainTable, console
from alignmask.commands._console import choose_recipe
from alignmask.commands._options import flowing
from alignmask.config import DataConfig

if TYPE_CHECKING:
    from alignmask.model.flops import Flops

DIVISOR = 32
"""Images are padded to multiples of this."""


def main(arguments: list[str]) -> int:
    return tyro.cli(command, prog="alignmask flops", args=arguments)


@flowing
def command(
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
    size: Annotated[
        tuple[int, int] | None, tyro.conf.arg(metavar="H W", help_behavior_hint="")
    ] = None,
    aligned_queries: int = 0,
) -> int:
    """Count parameters, and multiply-adds for one image, part by part.

    1 GMAC is 10^9 multiply-adds; papers call these GFLOPs. Nothing is downloaded or run. `alignmask
    train --help` lists the recipes.

    Args:
        recipe: The recipe whose model is counted.
        size: Height and width of the image, which is padded to multiples of 32; by default a 3:4
            photo at the recipe's evaluation size.
        aligned_queries: Number of aligned queries beside the object queries, as in training (Table
            1 counts 100).
    """
    from alignmask.model.flops import count_flops, count_parameters

    config = choose_recipe(recipe)()
    height, width = size or photo(config.data)
    if min(height, width) < 1:
        raise ValueError(f"flops: --size: expected positive sides, got {height} {width}")
    if aligned_queries < 0 or (aligned_queries and config.model.aligned_queries is None):
        has = "has none" if config.model.aligned_queries is None else "cannot have fewer than 0"
        raise ValueError(f"flops: --aligned-queries {aligned_queries}: {recipe} {has}")
    padded = (-(-height // DIVISOR) * DIVISOR, -(-width // DIVISOR) * DIVISOR)
    flops = count_flops(config.model, *padded, aligned_queries=aligned_queries)

    queries = f"{config.model.query_decoder.queries} object queries"
    queries += f" and {aligned_queries} aligned queries" if aligned_queries else ""
    print(f"{recipe}: {count_parameters(config.model) / 1e6:.1f} M parameters")
    print(f"one image of {height} x {width} (padded to {padded[0]} x {padded[1]}), {queries}")
    console().print(flops_table(flops))
    return 0


def photo(data: DataConfig) -> tuple[int, int]:
    """Height and width of a 3:4 photo as the evaluation resizes it."""
    scale = min(data.eval_short_side / 3, data.eval_max_side / 4)
    return round(3 * scale), round(4 * scale)


def flops_table(flops: Flops) -> PlainTable:
    """GMACs by part, and both totals."""
    plain = flops.total + flops.plain_masks
    rows = [
        ("backbone", flops.backbone),
        ("pixel decoder", flops.pixel_decoder),
        ("query decoder", flops.query_decoder),
        ("mask logits of the last output", flops.masks),
        ("total", flops.total),
        ("plain total: full-size mask logits at every output", plain),
    ]
    digits = 1 if flops.total >= 10 else 4
    table = PlainTable("part")
    table.add_column("GMACs", justify="right", no_wrap=True)
    for name, value in rows:
        table.add_row(name, f"{value:.{digits}f}", end_section=name == rows[3][0])
    return table
