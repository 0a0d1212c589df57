"""A file read record by record is what the standard library reads, or fails as it does there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from alignmask.data import CocoError
from alignmask.data.json_files import Records, read_json, read_records

SCALARS = st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.just(10**400)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)
FILES = st.one_of(
    VALUES,
    st.lists(VALUES),
    st.fixed_dictionaries({"images": VALUES | st.lists(VALUES), "annotations": st.lists(VALUES)}),
)


def outcome(path: Path, read: Any) -> str:
    """The value, told apart by types and with NaN equal to itself, or the error."""
    try:
        content = read(path)
        if isinstance(content, dict):
            content = {k: list(v) if isinstance(v, Records) else v for k, v in content.items()}
        return repr(list(content) if isinstance(content, Records) else content)
    except CocoError as error:
        return f"error: {error}"


@given(
    content=FILES,
    plain=st.booleans(),
    mark=st.booleans(),
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=2)), max_size=2),
)
@example(["\ud800", 1], True, False, [])
@example([1, float("inf")], True, True, [])
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_records_are_what_the_standard_library_reads(tmp_path, content, plain, mark, damage):
    text = bytearray(json.dumps(content, ensure_ascii=plain).encode("utf-8", "surrogatepass"))
    for place, new in damage:
        place %= len(text) + 1
        text[place : place + 1] = new
    path = tmp_path / "file.json"
    path.write_bytes(b"\xef\xbb\xbf" * mark + text)
    expected = outcome(path, read_json)
    assert outcome(path, lambda path: read_records(path, ("images", "annotations"))) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"[1e999, 1]", [float("inf"), 1]),
        (b'[{"a": "\xff"}]', "not UTF-8 text: invalid start byte at byte 8"),
        (b"[" + b"1" * 5000 + b"]", "not a COCO file: Exceeds the limit"),
        (b"[" * 100_000 + b"]" * 100_000, "not a COCO file: its lists are nested too deeply"),
        (b'[\n{"a": 1,}]', "malformed JSON at line 2, column "),
        (b"", "malformed JSON at line 1, column 1: Expecting value"),
    ],
)
def test_what_only_one_of_the_two_readers_accepts(tmp_path, text, expected):
    path = tmp_path / "file.json"
    path.write_bytes(text)
    if isinstance(expected, list):
        assert list(read_records(path)) == expected
        return
    with pytest.raises(CocoError) as caught:
        list(read_records(path))
    assert str(caught.value).startswith(f"{path}: {expected}")


def test_records_are_made_when_their_turn_comes(tmp_path):
    path = tmp_path / "file.json"
    path.write_text('{"images": [{"id": 1}, {"id": 2}], "info": [1]}')
    content = read_records(path, ("images",))
    assert content["info"] == [1]
    assert isinstance(content["images"], Records)
    assert len(content["images"]) == 2
    assert list(content["images"]) == list(content["images"]) == [{"id": 1}, {"id": 2}]
    first = iter(content["images"])
    assert next(first) is not next(iter(content["images"]))


def test_a_file_that_is_not_there_is_named(tmp_path):
    for read in (read_json, read_records):
        with pytest.raises(CocoError, match=r"gone\.json: cannot be read: No such file"):
            read(tmp_path / "gone.json")
