"""Which image of an annotation file a results entry means by its file name."""

from __future__ import annotations

from collections import defaultdict
from pathlib import PurePosixPath


class FileNames:
    """The images of an annotation file by name. A longer path means the same file as a shorter one
    that it ends with; one that begins otherwise does so only if the image id agrees."""

    def __init__(self, names: dict[int, str]) -> None:
        """names: By image id."""
        self._by_last: dict[str, list[tuple[tuple[str, ...], int]]] = defaultdict(list)
        for image_id, name in names.items():
            parts = _parts(name)
            self._by_last[parts[-1]].append((parts, image_id))

    def __bool__(self) -> bool:
        return bool(self._by_last)

    def meant(self, name: str, given: int) -> list[int]:
        """The ids of the images that a name may mean. If the id that is given beside the name is
        that of an image with the same last part, it is this one."""
        parts = _parts(name)
        namesakes = self._by_last.get(parts[-1], [])
        exact = [image_id for found, image_id in namesakes if found == parts]
        longest = max((len(f) for f, _ in namesakes if parts[-len(f) :] == f), default=0)
        ends = [i for f, i in namesakes if len(f) == longest and parts[-len(f) :] == f]
        agreeing = [image_id for found, image_id in namesakes if _agree(found, parts)]
        meant = exact or ends or agreeing
        if len(meant) != 1 and given in (image_id for _, image_id in namesakes):
            return [given]
        return meant


def _parts(name: str) -> tuple[str, ...]:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return tuple(part for part in parts if part not in ("/", "..")) or ("",)


def _agree(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    shorter = min(len(one), len(other))
    return one[-shorter:] == other[-shorter:]
