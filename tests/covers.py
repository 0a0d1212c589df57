"""`@covers("loss.theta")`: which fields of the configuration a test holds to their effect.

A field counts as covered where a test sets it to another value than its default and compares what
it changes with numbers that were found in another way. tests/test_config_coverage.py compares the
names given here with the fields of the dataclasses.
"""

from __future__ import annotations

import ast
import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent


def covers(*names: str) -> pytest.MarkDecorator:
    """Marks a test (or, as `marks=covers(...)`, one of its parameters) as one of the tests of these
    fields of `Config`.

    The names are read from the source, therefore they are written out: `@covers("loss.theta",
    "loss.gamma")`.
    """
    return pytest.mark.covers(*names)


def field_names(config: type, prefix: str) -> Iterator[str]:
    """ "loss.theta" for every field. Configs inside of configs are followed; one that may be None
    is a field, too."""
    for name, kind in typing.get_type_hints(config).items():
        choices = typing.get_args(kind) or (kind,)
        inner = [choice for choice in choices if dataclasses.is_dataclass(choice)]
        if not inner or len(choices) > 1:
            yield f"{prefix}.{name}"
        for choice in inner:
            yield from field_names(choice, f"{prefix}.{name}")


def covered_names(folder: Path = TESTS) -> dict[str, list[str]]:
    """Name -> "loss/test_points.py:12" of every `covers(...)` in a test module, whether it is run
    or not."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        source = path.read_text()
        for node in ast.walk(ast.parse(source)) if "covers(" in source else ():
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "covers"
            ):
                where = f"{path.relative_to(folder).as_posix()}:{node.lineno}"
                for argument in node.args:
                    found.setdefault(ast.literal_eval(argument), []).append(where)
    return found
