"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from alignmask._files import replacing, write_json


def test_files_are_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new folder" / "a.json"
    write_json(path, {"a": [1, 2.5, "ä"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1, 2.5, "ä"]}
    assert path.stat().st_mode & 0o777 == 0o644
    for value in (float("nan"), object()):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, {"a": value})
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1, 2.5, "ä"]}
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_writers_of_one_process_number_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Two containers that share a folder may well have the same process numbers."""
    with replacing(tmp_path / "a.txt") as first:
        with replacing(tmp_path / "a.txt") as second:
            # Libraries look at the suffix.
            assert (first.suffix, first.parent) == (".txt", tmp_path)
            first.write_text("first")
            second.write_text("second")
        assert (tmp_path / "a.txt").read_text() == "second"
    assert (tmp_path / "a.txt").read_text() == "first"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    def failing(beside: str = "") -> None:
        with replacing(tmp_path / "a/b/c.txt") as part:
            if beside:
                (part.parent / beside).write_text("of somebody else")
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError):
        failing("d.txt")
    assert os.listdir(tmp_path / "a/b") == ["d.txt"]
    (tmp_path / "a/b/d.txt").unlink()
    with pytest.raises(KeyError):
        failing()
    assert (tmp_path / "a/b").is_dir(), "it was there before"
