"""Reliability diagrams: which groups there are, and what is drawn of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from alignmask.pictures import reliability
from tests.evaluation.matched import made

MATCHES = made([0.1, 0.5, 0.9, 0.9], [0.0, 0.4, 0.8, 1.0], [0] * 4, [0, 0, 0, 2], [[2, 2, 2]])
NAMES = {3: "cell", 7: "dot", 20: "all"}


def test_groups() -> None:
    assert list(reliability.groups(MATCHES, NAMES, classes=False, sizes=False)) == ["all"]
    found = reliability.groups(MATCHES, NAMES, classes=True, sizes=True)
    assert {name: group.scores_N.tolist() for name, group in found.items()} == {
        "all": [0.1, 0.5, 0.9, 0.9],
        "small": [0.1, 0.5],
        "medium": [0.9, 0.9],
        "cell": [0.1, 0.5, 0.9],
        "all (20)": [0.9],
    }


def test_what_is_drawn(tmp_path: Path, monkeypatch) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))
    )
    groups = dict.fromkeys("abcde", MATCHES)
    reliability.reliability_diagram(groups, tmp_path / "new" / "r.png")
    assert (tmp_path / "new" / "r.png").read_bytes().startswith(b"\x89PNG")
    panels = drawn[0].axes
    assert [panel.get_visible() for panel in panels] == [True] * 5 + [False] * 3
    curve = next(line for line in panels[4].lines if line.get_label() == "mean IoU")
    np.testing.assert_allclose(curve.get_xydata(), [[0.1, 0.0], [0.5, 0.4], [0.9, 0.9]])
    np.testing.assert_allclose(
        sorted(bar.get_height() for bar in panels[4].patches)[-3:], [0.25, 0.25, 0.5]
    )
