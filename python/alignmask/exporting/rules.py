"""The rules by which an exporter simplifies an ONNX graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

SLOW = "SlicesSplit"
"""Finds two slices that are one Split. It compares every slice of the graph with every other one:
more than ten minutes for a Swin-B, whose graph has no such slices."""


@contextmanager
def quick_rules() -> Iterator[None]:
    """Inside, torch.onnx.export applies all rules of onnxscript but the slow one."""
    from onnxscript import rewriter

    kept = tuple(rule for rule in rewriter._DEFAULT_REWRITE_RULES if rule.name != SLOW)
    with patch.object(rewriter, "_DEFAULT_REWRITE_RULES", kept):
        yield
