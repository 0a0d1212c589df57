"""Image files are found under the names that other systems' tools wrote, and only where one file
can be meant."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from alignmask.data.faults import Faults
from alignmask.data.file_names import find_files


def find(folder: Path, *names: str) -> tuple[list[str], str, Faults]:
    faults = Faults()
    found, text = find_files(folder, names, [f"image {n}" for n in range(len(names))], faults)
    return found, text, faults


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.png", "a.png"),
        ("sub/a.png", "sub/a.png"),
        ("sub\\a.png", "sub/a.png"),
        ("images\\a.png", "a.png"),
        ("images/sub/a.png", "sub/a.png"),
        ("C:\\data\\sub\\a.png", "sub/a.png"),
        ("/data/upload/1/a.png", "a.png"),
        ("../../a.png", "a.png"),
        ("http://host/data/my%20cells.png", "my cells.png"),
        (unicodedata.normalize("NFD", "Zellkörper.png"), unicodedata.normalize("NFC", "Zellkörper.png")),
    ],
)  # fmt: skip
def test_spellings(tmp_path, name, file):
    root = tmp_path / "x" / "photos"
    touch(root, file)
    found, text, faults = find(root, name)
    assert (found, bool(faults)) == ([file], False)
    assert (text == "") == (name == file)
    assert (root / found[0]).is_file()


def test_a_name_that_exists_is_never_replaced(tmp_path):
    touch(tmp_path, "a.png", "sub/a.png", "x%20y.png", "x y.png")
    found, text, faults = find(tmp_path, "sub/a.png", "a.png", "x%20y.png", "x y.png")
    assert found == ["sub/a.png", "a.png", "x%20y.png", "x y.png"]
    assert (text, bool(faults)) == ("", False)


def test_other_spellings_are_counted(tmp_path):
    touch(tmp_path, "a.png", "b.png", "c.png")
    _, text, faults = find(tmp_path, "a.png", "im\\b.png", "im\\c.png")
    assert not faults
    assert text == ("2 file names of 3 found in another spelling, the first 'im\\\\b.png' as b.png")


def test_nothing_outside_of_the_folder_is_read(tmp_path, monkeypatch):
    """Whatever an annotation file from elsewhere says. Links are the user's own."""
    root = tmp_path / "photos"
    touch(tmp_path, "secret.png", "photos/a.png", "photos/sub/c.png", "photos2/b.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    outside = [str(tmp_path / "secret.png"), "../secret.png", "sub/../../photos2/b.png"]
    inside = [str(root / "a.png"), "../photos/a.png", "link.png"]
    _, _, faults = find(root, *outside)
    kind = "whose file is not in the folder of the images"
    assert faults.places == {
        kind: [
            f"image {n}: {name!r}" if len(name) <= 80 else f"image {n}: {'...' + name[-77:]!r}"
            for n, name in enumerate(outside)
        ]
    }
    monkeypatch.chdir(root)
    for folder in (root, Path("."), Path("../photos"), root / "sub" / ".."):
        for name in inside:
            assert not find(folder, name)[2]
        assert find(folder, outside[0])[2]


def test_two_images_do_not_share_a_file(tmp_path):
    touch(tmp_path, "a.png")
    _, _, faults = find(tmp_path, "left/a.png", "right/a.png")
    assert faults.places == {
        "whose names lead to one file": [
            "image 0 ('left/a.png') and image 1 ('right/a.png'): a.png"
        ]
    }


def test_a_stripped_name_does_not_share_the_file_of_an_exact_one(tmp_path):
    touch(tmp_path, "a.png")
    _, _, faults = find(tmp_path, "a.png", "cam2/a.png")
    assert faults.places == {
        "whose names lead to one file": ["image 0 ('a.png') and image 1 ('cam2/a.png'): a.png"]
    }
    assert not find(tmp_path, "a.png", "a.png")[2]  # listed twice, under one name


def test_files_that_do_not_exist(tmp_path):
    touch(tmp_path, "IM_01.PNG", "b.png")
    found, _, faults = find(tmp_path, "im_01.png", "zebra.jpg", "", "nul\0.png")
    assert found == ["im_01.png", "zebra.jpg", "", "nul\0.png"]
    first, second, *rest = faults.places["whose file does not exist"]
    assert first == f"image 0: {tmp_path}/im_01.png (the folder has IM_01.PNG)"
    assert second.endswith("zebra.jpg (the folder has 2 other files, such as IM_01.PNG)")
    assert len(rest) == 2
    _, _, faults = find(tmp_path / "nowhere", "a.png")
    assert "there is no such folder" in faults.places["whose file does not exist"][0]
