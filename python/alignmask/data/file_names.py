"""Where the image files of an annotation file are: as it names them, or as other systems' tools
would have been understood."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from alignmask._printing import counted
from alignmask.data.faults import SHOWN_FAULTS, Faults


def find_files(
    folder: Path, names: Sequence[str], where: Sequence[str], faults: Faults
) -> tuple[list[str], str]:
    """Find the file of every image.

    A name is taken as it is; if there is no such file, backslashes become slashes, and folders at
    its front, which exports of annotation tools add, are left out one after the other. Characters
    may be written as in a URL (%20), and accents in either way Unicode knows. Whatever a name says,
    no file outside of the folder is taken, unless a symbolic link in it leads there.

    Args:
        folder: What the names are relative to.
        where: How an error message names each image.
        faults: Takes the names without a file, and those that would share one.
    Returns:
        The names, below `folder`, that the files have; and what to tell the user about those that
        differ, empty if none does.
    """
    listing = _Listing(folder)
    found, renamed, owner, missing = [], [], defaultdict(list), 0
    for name, image in zip(names, where, strict=True):
        file = next(filter(None, map(listing.find, _spellings(name))), None)
        if file is None and not listing.holds(name):
            faults.add("whose file is not in the folder of the images", f"{image}: {_brief(name)}")
            found.append(name)
            continue
        if file is None:
            faults.add(
                "whose file does not exist",
                f"{image}: {folder / name}{listing.advice(name) if missing < SHOWN_FAULTS else ''}",
            )
            missing += 1
            found.append(name)
            continue
        if file != name:
            renamed.append(f"{_brief(name)} as {file}")
        owner[file].append((image, name))
        found.append(file)
    for file, owners in owner.items():
        # (An image that is listed twice under one name is the user's own business.)
        if len({name for _, name in owners}) > 1:
            images = [f"{image} ({_brief(name)})" for image, name in owners]
            faults.add("whose names lead to one file", f"{' and '.join(images[:3])}: {file}")
    if not renamed:
        return found, ""
    return found, (
        f"{counted(len(renamed), 'file name')} of {len(names)} found in another spelling, the "
        f"first {renamed[0]}"
    )


def _brief(name: str) -> str:
    """Of a long name the end, which tells files apart."""
    return repr(name if len(name) <= 80 else f"...{name[-77:]}")


def _spellings(name: str) -> Iterator[str]:
    """The names that a file may have, in the order in which they are tried."""
    yield name
    for plain in dict.fromkeys((name.replace("\\", "/"), unquote(name).replace("\\", "/"))):
        yield plain
        parts = [part for part in PurePosixPath(plain).parts if part not in ("/", "..")]
        for first in range(len(parts)):
            yield "/".join(parts[first:])


class _Listing:
    """The files below a folder. One listing per folder: asking for each of 118,287 files takes
    minutes on a network file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.prefix = os.path.join(os.path.abspath(root), "")
        self.folders: dict[Path, dict[str, str]] = {}

    def find(self, name: str) -> str | None:
        """The name as the file system writes it, or None."""
        if not name or "\0" in name or not self.holds(name):
            return None
        path = self.root / name
        file = self._files(path.parent).get(_plain(path.name))
        if file is not None:
            return name if file == path.name else str(PurePosixPath(name).with_name(file))
        return name if path.is_file() else None  # of a folder that may be entered but not listed

    def holds(self, name: str) -> bool:
        """Whether the name, absolute or with "..", stays within the folder."""
        return os.path.join(os.path.abspath(self.root / name), "").startswith(self.prefix)

    def advice(self, name: str) -> str:
        """Files that may be meant."""
        wanted = PurePosixPath(name.replace("\\", "/")).name
        names = list(self._files(self.root).values())
        by_case = {entry.casefold(): entry for entry in names}
        close = [by_case[key] for key in get_close_matches(wanted.casefold(), by_case, n=1)]
        if close:
            return f" (the folder has {close[0]})"
        if not self.root.is_dir():
            return " (there is no such folder)"
        return f" (the folder has {counted(len(names), 'other file')}" + (
            f", such as {min(names)})" if names else ")"
        )

    def _files(self, folder: Path) -> dict[str, str]:
        if folder not in self.folders:
            try:
                entries = os.listdir(folder)
            except (OSError, ValueError):  # no folder, or one that may not be listed
                entries = []
            self.folders[folder] = {_plain(entry): entry for entry in entries}
        return self.folders[folder]


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)
