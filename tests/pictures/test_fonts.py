"""Names in scripts that DejaVu Sans does not have."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import ImageDraw

from alignmask.pictures import fonts, reliability
from alignmask.pictures.drawing import draw_instances
from alignmask.pictures.fonts import DEJAVU, SCORE, Lettering, lettering
from tests.evaluation.worlds import box_mask
from tests.pictures.test_drawing import GREY, SIZE, found
from tests.pictures.test_reliability import MATCHES


def square(size: int) -> object:
    pen = TTGlyphPen(None)
    if size:
        pen.moveTo((0, 0))
        pen.lineTo((0, size))
        pen.lineTo((size, size))
        pen.lineTo((size, 0))
        pen.closePath()
    return pen.glyph()


def font_file(path: Path, characters: str, blank: str = " ") -> Path:
    """A font whose glyphs are squares, or nothing at all."""
    names = {ord(character): f"u{ord(character):05x}" for character in characters}
    order = [".notdef", *names.values()]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap(names)
    builder.setupGlyf(
        {".notdef": square(300)}
        | {name: square(0 if chr(code) in blank else 700) for code, name in names.items()}
    )
    builder.setupHorizontalMetrics(dict.fromkeys(order, (800, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path.parent.mkdir(exist_ok=True)
    builder.save(path)
    return path


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the system's fonts, which is empty at first."""
    folder = tmp_path / "fonts"
    folder.mkdir()
    monkeypatch.setattr(
        font_manager, "findSystemFonts", lambda: [str(file) for file in folder.iterdir()]
    )
    fonts._lettering.cache_clear()
    yield folder
    fonts._lettering.cache_clear()


def test_most_names_are_written_in_dejavu_without_a_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fonts._lettering.cache_clear()
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: pytest.fail("searched"))
    names = ["cat", "Übergröße", "кошка", "γάτα", "", "a\u00a0b"]
    assert [(each.text, each.file) for each in lettering(names)] == [
        (name, DEJAVU) for name in names
    ]


def test_a_font_of_the_system_is_used_if_it_has_all_that_is_written(system: Path) -> None:
    font_file(system / "A.ttf", "猫" + SCORE.replace("7", ""))
    font_file(system / "B.ttf", "猫" + SCORE, blank="猫 ")
    font_file(system / "LastResort.ttf", "猫犬" + SCORE)
    font_file(system / "C-Bold.ttf", "猫" + SCORE)
    (system / "D.ttf").write_text("no font")
    plain = font_file(system / "Z.ttf", "猫" + SCORE)
    cat, dog = lettering(["猫", "dog"])
    assert (cat.text, cat.file) == ("猫", plain)
    assert (dog.text, dog.file) == ("dog", DEJAVU)


def test_other_names_become_numbers_and_that_is_said_once(system: Path) -> None:
    names = ["dog", "猫", "犬"]
    with pytest.warns(UserWarning, match="猫") as said:
        assert lettering(names) == tuple(map(Lettering, ["dog", "class 2", "class 3"]))
    (one,) = said
    assert str(one.message) == (
        "the name '猫' cannot be drawn with any font of this system (nor can 1 other): pictures "
        "show class 2 instead"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lettering(names)


def test_drawn_instances_use_the_font_of_their_name(
    system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, str]] = []
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text",
        lambda self, xy, text, font, **_: written.append((text, font.path)),
    )  # fmt: skip
    masks = [box_mask(SIZE, 20, 2, 30, 10), box_mask(SIZE, 20, 35, 30, 45)]
    instances = found(masks, [0.25, 0.75], [0, 1])
    with pytest.warns(UserWarning, match="'猫' cannot be drawn"):
        draw_instances(GREY, instances, ["猫", "dog"])
    fonts._lettering.cache_clear()
    file = font_file(system / "E.ttf", "猫" + SCORE)
    draw_instances(GREY, instances, ["猫", "dog"])
    default = str(DEJAVU)
    assert written[:2] == [("dog 0.75", default), ("class 1 0.25", default)]
    assert written[2:] == [("dog 0.75", default), ("猫 0.25", str(file))]


def test_plots_use_the_font_of_their_names(
    system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """matplotlib warns if a glyph is missing."""
    named = {3: "猫", 7: "a $b$ c", 20: "犬"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        font_file(system / "Squares.ttf", "猫" + SCORE)
        with pytest.warns(UserWarning, match=re.escape("'犬' cannot be drawn")) as said:
            groups = reliability.groups(MATCHES, named, classes=True, sizes=False)
        assert len(said) == 1
        assert list(groups) == ["all", "猫", "class 3"]
        reliability.reliability_diagram(
            {"all": MATCHES, "猫": MATCHES, "a $\\nothing$ c": MATCHES}, tmp_path / "r.png"
        )
