"""The rules by which the exporter simplifies ONNX graphs."""

from __future__ import annotations

import pytest

rewriter = pytest.importorskip("onnxscript.rewriter")

from alignmask.exporting.rules import SLOW, quick_rules  # noqa: E402


def test_all_rules_but_the_slow_one_are_applied() -> None:
    """It is the only one whose time grows with the square of the graph."""
    every = rewriter._DEFAULT_REWRITE_RULES
    with quick_rules():
        kept = rewriter._DEFAULT_REWRITE_RULES
    assert [rule.name for rule in every if rule not in kept] == [SLOW]
    assert all(rule._matcher.pattern.has_single_output_node for rule in kept)
    assert rewriter._DEFAULT_REWRITE_RULES is every
