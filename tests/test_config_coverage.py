"""Every field of the configuration has a test that would notice if a run ignored it."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
import typing
from pathlib import Path

import pytest

from alignmask import config
from alignmask.config import Config
from tests.covers import covered_names, field_names

SECTIONS = {
    name: kind
    for name, kind in typing.get_type_hints(Config).items()
    if dataclasses.is_dataclass(kind)
}

# Sections whose tests do not say yet what they cover. Take a name out when its tests are marked.
NOT_YET: set[str] = set()


@pytest.mark.parametrize("section", sorted(SECTIONS.keys() - NOT_YET))
def test_every_field_is_covered_by_a_test(section: str) -> None:
    missing = set(field_names(SECTIONS[section], section)) - covered_names().keys()
    assert not missing, f'no test is marked @covers("{min(missing)}"): see tests/covers.py'


def test_every_name_that_is_covered_is_a_field() -> None:
    fields = {name for section, kind in SECTIONS.items() for name in field_names(kind, section)}
    unknown = {name: where for name, where in covered_names().items() if name not in fields}
    assert not unknown


def test_every_setting_has_whole_sentences() -> None:
    """They are its `--help`. A section is a class, whose docstring is its text."""
    assert config.__file__ is not None
    missing = []
    for kind in ast.parse(Path(config.__file__).read_text()).body:
        if not (isinstance(kind, ast.ClassDef) and kind.name.endswith("Config")):
            continue
        assert ast.get_docstring(kind), kind.name
        for field, text in itertools.pairwise([*kind.body, ast.Pass()]):
            if not isinstance(field, ast.AnnAssign) or ast.unparse(field.annotation).endswith(
                "Config"
            ):
                continue
            said = (
                text.value.value
                if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
                else ""
            )
            if not re.fullmatch(r"[A-Z].*[A-Za-z0-9)`]\.", str(said), re.DOTALL):
                missing.append(f"{kind.name}.{ast.unparse(field.target)}")
    assert not missing


def test_names_follow_configs_inside_of_configs() -> None:
    names = set(field_names(SECTIONS["model"], "model"))
    assert {
        "model.score",
        "model.backbone.name",
        "model.backbone.swin",
        "model.backbone.swin.window",
    } <= names
    assert {"model.aligned_queries", "model.aligned_queries.count"} <= names
    assert "model.backbone" not in names  # it is always there: its fields are what can be set


def test_marks_are_found_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(
        '@covers("loss.theta", "loss.gamma")\ndef test() -> None: ...\nCASES = [pytest.param(1, marks=covers("loss.theta"))]\n'
    )
    (tmp_path / "helper.py").write_text('covers("loss.points")')
    assert covered_names(tmp_path) == {
        "loss.theta": ["test_one.py:1", "test_one.py:3"],
        "loss.gamma": ["test_one.py:1"],
    }
