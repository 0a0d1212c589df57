"""Fonts for names in any script: DejaVu Sans, else a font of the system that has their glyphs."""

from __future__ import annotations

import string
import unicodedata
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

DEJAVU = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
"""Part of matplotlib; covers most alphabets."""
SCORE = string.digits + ". "
LATER = ("bold", "italic", "oblique", "light", "thin", "black", "mono", "condensed", "serif")
"""What the files of fonts are called that are used only if no plain one fits."""
NO_GLYPHS = ("lastresort", "adobeblank")
"""Fonts that have a box, or nothing, for every character."""


@dataclass(frozen=True)
class Lettering:
    """How a name is written."""

    text: str
    file: Path = DEJAVU

    def font(self, size: int) -> ImageFont.FreeTypeFont:
        return font(size, self.file)

    @property
    def families(self) -> list[str]:
        """For matplotlib, which takes each glyph from the first family that has it."""
        return ["DejaVu Sans", *([] if self.file == DEJAVU else [_registered(self.file)])]


@lru_cache
def _registered(file: Path) -> str:
    """The family of a font, which matplotlib knows from then on."""
    font_manager.fontManager.addfont(str(file))
    return str(FT2Font(str(file)).family_name)


@lru_cache(maxsize=64)
def font(size: int, file: Path = DEJAVU) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(file), size)


def lettering(
    names: Sequence[str], what: str = "class", beside: str = SCORE
) -> tuple[Lettering, ...]:
    """How to write each name, so that it can be read.

    A name that no font of the system has the glyphs of becomes `what` and its position, from 1;
    the first time, a warning says so.

    Args:
        beside: Characters that are written beside the names, in the same font.
    """
    return _lettering(tuple(names), what, beside)


@lru_cache
def _lettering(names: tuple[str, ...], what: str, beside: str) -> tuple[Lettering, ...]:
    files = dict.fromkeys(_writable(DEJAVU, {*names}, beside), DEJAVU)
    missing = {*names} - {*files}
    for file in _system_fonts() if missing else ():
        found = _writable(file, missing, beside)
        files |= dict.fromkeys(found, file)
        missing -= found
        if not missing:
            break
    if missing:
        first, *others = (
            (name, position) for position, name in enumerate(names, 1) if name in missing
        )
        also = f" (nor can {len(others)} other{'s' * (len(others) > 1)})" if others else ""
        warnings.warn(
            f"the name {first[0]!r} cannot be drawn with any font of this system{also}: pictures "
            f"show {what} {first[1]} instead",
            stacklevel=3,
        )
    return tuple(
        Lettering(name, files[name]) if name in files else Lettering(f"{what} {position}")
        for position, name in enumerate(names, 1)
    )


def _system_fonts() -> list[Path]:
    """The font files of the system, plain ones first."""
    files = {Path(file) for file in font_manager.findSystemFonts()}

    def order(file: Path) -> tuple[bool, str]:
        return any(style in file.stem.lower() for style in LATER), str(file)

    return sorted(
        (file for file in files if not file.stem.lower().startswith(NO_GLYPHS)), key=order
    )


def _writable(file: Path, names: Collection[str], beside: str) -> set[str]:
    """Those of the names that a font has all glyphs of."""
    try:
        face = FT2Font(str(file))
        if not _has(face, beside):
            return set()
        letters = font(20, file)  # an error for one without outlines, such as colour emoji
        return {
            name
            for name in names
            if _has(face, name) and all(_is_visible(letters, character) for character in name)
        }
    except (OSError, RuntimeError, ValueError):  # nor can one or both libraries read others
        return set()


def _has(face: FT2Font, text: str) -> bool:
    return all(face.get_char_index(ord(character)) for character in text)


def _is_visible(letters: ImageFont.FreeTypeFont, character: str) -> bool:
    """False for a letter, number or symbol whose glyph is blank: a font may have only its
    colours."""
    blank = unicodedata.category(character)[0] not in "LNPS"
    return blank or letters.getmask(character).getbbox() is not None
