"""The image files that are named on a command line, and those in the folders named there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from alignmask.data.images import image_suffixes
from alignmask.predicting.outputs import made_here


@dataclass(frozen=True)
class ImageFile:
    path: Path
    relative: Path
    """Its place in the folder that was named; the name of a file that was named itself."""


@dataclass
class Found:
    """What was found in files and folders."""

    files: list[ImageFile] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    """How many files of folders are not images, by suffix."""
    made: int = 0
    """How many pictures of folders are left out because predict made them."""
    subfolders: int = 0
    """How many subfolders were not searched."""

    def left_out(self) -> list[str]:
        """A sentence for each kind of file that was left out, and for subfolders."""
        said = []
        if self.others:
            kinds = ", ".join(f"{n} {suffix}" for suffix, n in self.others.most_common())
            total = self.others.total()
            files = (
                "1 file that is not an image"
                if total == 1
                else f"{total} files that are not images"
            )
            said.append(f"left out {files}: {kinds}")
        if self.made:
            said.append(
                f"left out {self.made} {'picture' if self.made == 1 else 'pictures'} that predict made"
            )
        if self.subfolders:
            folders = "1 subfolder" if self.subfolders == 1 else f"{self.subfolders} subfolders"
            said.append(f"left out {folders}, which --recursive searches, too")
        return said


def find_images(
    paths: Sequence[Path], out: Path, *, recursive: bool = False, command: str = "predict"
) -> Found:
    """The image files that are named, whatever their suffix, and those in the folders that are
    named, sorted.

    Hidden files are passed over, and so are pictures that predict made. A folder is searched once,
    and `out` only if it is named itself.

    Args:
        out: Where predictions will be written.
        recursive: Search subfolders.
        command: Begins the message of an error.
    Raises:
        ValueError: There are no image files.
        FileNotFoundError: A path does not exist.
    """
    found, searched = Found(), {out.resolve()}
    for path in paths:
        if path.is_dir():
            inside = _pictures(_files(path, searched, found, recursive), found)
            found.files += [ImageFile(file, file.relative_to(path)) for file in inside]
        elif path.exists():
            found.files.append(ImageFile(path, Path(path.name)))
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    if not found.files:
        where = f"in {', '.join(map(str, paths))}" if paths else "given"
        raise ValueError("; ".join([f"{command}: no image files {where}", *found.left_out()]))
    return found


def _files(folder: Path, searched: set[Path], found: Found, recursive: bool) -> Iterator[Path]:
    """The files in a folder. `searched` are the folders not to enter again, which also ends circles
    of symbolic links."""
    searched.add(folder.resolve())
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and path.resolve() not in searched:
            if recursive:
                yield from _files(path, searched, found, recursive)
            else:
                found.subfolders += 1


def _pictures(files: Iterable[Path], found: Found) -> Iterator[Path]:
    for file in files:
        if file.suffix.lower() not in image_suffixes():
            found.others[file.suffix.lower() or "without suffix"] += 1
        elif made_here(file):
            found.made += 1
        else:
            yield file


def has_several_pictures(path: Path) -> bool:
    """Whether an image file has several pictures, of which the first is read: an animation, pages.
    False for a file that cannot be read."""
    try:
        with Image.open(path) as image:
            # The first "picture" of a Photoshop file is all of its layers together.
            return image.format != "PSD" and getattr(image, "n_frames", 1) > 1
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return False
