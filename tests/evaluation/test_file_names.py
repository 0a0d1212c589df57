"""Which image a results entry means by its file name."""

from __future__ import annotations

import pytest

from alignmask.evaluation.file_names import FileNames

NAMES = FileNames({1: "a.png", 2: "train/b.png", 3: "val/b.png", 4: "sub\\c.png", 5: "x/y/e.png"})


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("a.png", 9, [1]),
        ("a.png", 2, [1]),
        ("photos/a.png", 9, [1]),
        ("/home/me/photos/a.png", 9, [1]),
        ("train/b.png", 3, [2]),
        ("data/val/b.png", 2, [3]),
        ("b.png", 9, [2, 3]),
        ("b.png", 3, [3]),
        ("test/b.png", 9, []),
        ("test/b.png", 2, [2]),
        ("sub/c.png", 9, [4]),
        ("c.png", 9, [4]),
        ("e.png", 9, [5]),
        ("y/e.png", 9, [5]),
        ("x/e.png", 9, []),
        ("d.png", 1, []),
        ("", 1, []),
    ],
)
def test_meant(name: str, given: int, meant: list[int]) -> None:
    assert NAMES.meant(name, given) == meant


def test_without_names_nothing_is_known() -> None:
    assert not FileNames({})
    assert NAMES


def test_the_longest_name_that_a_path_ends_with_is_meant() -> None:
    """Whatever the number is that `alignmask predict` gave the file."""
    names = FileNames({1: "a/1.jpg", 2: "1.jpg"})
    assert names.meant("photos/a/1.jpg", 2) == [1]
    assert names.meant("photos/1.jpg", 1) == [2]
