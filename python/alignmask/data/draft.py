"""A COCO file in the making, from annotations in another form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from alignmask.data.batch import Size
from alignmask.data.faults import CocoError, Faults, brief


def require_distinct(names: Sequence[str], source: str) -> None:
    """Raises CocoError if two classes have one name."""
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise CocoError(f"{source}: {brief(twice[0])} occurs twice")


class Draft:
    """The content of a COCO file, with what is needed to speak of it in the words of its source.

    Args:
        classes: The names of all classes, in the order of their category ids, 1, 2, ...; None takes
            those that annotations have, sorted, so that two parts of a data set agree more often.

    Raises CocoError if a name occurs twice.
    """

    def __init__(self, classes: Sequence[str] | None = None) -> None:
        require_distinct(classes or (), "the names of the classes")
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.places: dict[int, str] = {}
        """Where the source has an annotation, by annotation id."""
        self.faults = Faults()
        self.counts: Counter[str] = Counter()
        """What was read, and what was left out."""
        self.classes = None if classes is None else list(classes)
        """Their names, as far as they are given."""
        self._names: list[str] = []

    def add_image(self, file_name: str, size: Size) -> int:
        """Returns the image's id."""
        image_id = len(self.images) + 1
        height, width = size
        self.images.append(
            {"id": image_id, "file_name": file_name, "height": height, "width": width}
        )
        self.counts["images"] += 1
        return image_id

    def add(self, image_id: int, name: str, segmentation: Any, place: str, **more: Any) -> None:
        """Add an annotation. A class that is not one of those given is a fault."""
        if self.classes is not None and name not in self.classes:
            self.faults.add(
                "of a class that is not listed",
                f"{place}: {brief(name)}, expected one of {brief(self.classes)}",
            )
            return
        annotation_id = len(self.annotations) + 1
        self.annotations.append(
            {"id": annotation_id, "image_id": image_id, "segmentation": segmentation, "iscrowd": 0,
             **more}
        )  # fmt: skip
        self._names.append(name)
        self.places[annotation_id] = place

    def content(self) -> dict[str, Any]:
        """The COCO file."""
        classes = sorted(set(self._names)) if self.classes is None else self.classes
        ids = {name: number for number, name in enumerate(classes, 1)}
        return {
            "images": self.images,
            "annotations": [
                {**annotation, "category_id": ids[name]}
                for annotation, name in zip(self.annotations, self._names, strict=True)
            ],
            "categories": [{"id": number, "name": name} for name, number in ids.items()],
        }
