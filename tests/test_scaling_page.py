"""The figures of docs/scaling.md are those that bench/scale_out.py prints, and its model of an
all-reduce is what one computes by hand."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests import docs_pages
from tests.conftest import bench_module


@pytest.fixture(scope="module")
def scale_out() -> ModuleType:
    return bench_module("scale_out")


@pytest.mark.parametrize("recipe", ["r50_50ep", "swin_b_50ep"])
def test_the_page_has_the_figures_of_the_script(scale_out: ModuleType, recipe: str) -> None:
    printed = "\n".join(scale_out.report(recipe, scale_out.SECONDS))
    assert printed in docs_pages.text_of("docs/scaling.md"), printed


def test_an_all_reduce_by_hand(scale_out: ModuleType) -> None:
    """1 GB. Within a node, 7/8 of it go out twice, at 70 % of 300 GB/s. Between two nodes, half of
    it goes out twice, at 70 % of 10 GB/s. A tree of 16 has four levels, up and down."""
    within = 2 * 7 / 8 / 210
    assert scale_out.all_reduce(1e9, 8, 1e10) == pytest.approx(within + 6e-5)
    assert scale_out.all_reduce(1e9, 16, 1e10) == pytest.approx(within + 1 / 7 + 8e-5)


def test_overlap_hides_all_but_the_last_bucket(scale_out: ModuleType) -> None:
    size, node = 4 * scale_out.BUCKET, 1e10
    bucket = scale_out.all_reduce(scale_out.BUCKET, 64, node)
    small = 2 * scale_out.all_reduce(0, 64, node)
    exposed = {False: 4 * bucket, True: bucket}
    for overlap, seconds in exposed.items():
        found = scale_out.efficiency(size, 1.0, 64, node, overlap)
        assert found == pytest.approx(1 / (1 + seconds + small))
    # Of a short step, 0.6 are too short to hide three buckets.
    found = scale_out.efficiency(size, bucket, 64, node, True)
    assert found == pytest.approx(1 / (1 + 4 - 0.6 + small / bucket))
