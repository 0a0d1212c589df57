"""Which package of alignmask imports which.

`python -m tests.floors` prints the graph as docs/architecture.md shows it. Imports inside of
functions and those for type checkers alone count like all others.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "python" / "alignmask"
ROOT = "alignmask"
"""The package itself: its `__init__.py`."""


def rooms(package: Path = PACKAGE, modules: bool = False) -> dict[str, list[Path]]:
    """The files of each room: a folder of the package, or a module beside them. `modules`: every
    file is a room."""
    found = defaultdict(list)
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        name = ".".join(parts).removesuffix("__init__").rstrip(".") if modules else parts[0]
        found[ROOT if parts == ("__init__",) else name].append(file)
    return dict(found)


def imported(file: Path, names: set[str]) -> set[str]:
    """The rooms that a file imports from."""
    targets = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            targets |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {
        _room(target.split(".")[1:], names)
        for target in targets
        if target.split(".")[0] == "alignmask"
    }


def _room(parts: list[str], names: set[str]) -> str:
    """The longest beginning of a dotted name that is a room."""
    ends = range(len(parts), 0, -1)
    return next((name for end in ends if (name := ".".join(parts[:end])) in names), ROOT)


def graph(package: Path = PACKAGE, modules: bool = False) -> dict[str, set[str]]:
    """Room -> the other rooms that it imports from."""
    found = rooms(package, modules)
    edges = {
        room: set().union(*(imported(file, set(found)) for file in files))
        for room, files in found.items()
    }
    return {room: targets - {room} for room, targets in edges.items()}


def reachable(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Room -> all rooms that it imports from, directly or by way of others."""
    reach = {room: set(targets) for room, targets in edges.items()}
    for middle in edges:
        for targets in reach.values():
            if middle in targets:
                targets |= reach[middle]
    return reach


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of rooms that reach one another."""
    reach = reachable(edges)
    groups = {tuple(sorted(b for b in reach[a] if a in reach[b])) for a in edges if a in reach[a]}
    return [list(group) for group in sorted(groups)]


def mermaid(edges: dict[str, set[str]]) -> str:
    """The graph as a Mermaid diagram. An import that another path implies is left out."""
    reach = reachable(edges)
    lines = ["graph TD"]
    for room, targets in sorted(edges.items()):
        knot = {other for other in reach[room] if room in reach[other]}
        for target in sorted(targets):
            implied = any(target in reach[other] for other in targets - knot if other != target)
            if target in knot or not implied:
                lines.append(f"    {room.strip('_')} --> {target.strip('_')}")
    return "\n".join(lines)


if __name__ == "__main__":
    edges = graph()
    print(f"circles: {circles(edges) or 'none'}\n\n{mermaid(edges)}")
