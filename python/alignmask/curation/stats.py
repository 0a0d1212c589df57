"""What a data set consists of: instances per image and class, and their sizes."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignmask._printing import counted
from alignmask.data.coco_json import read_coco

if TYPE_CHECKING:
    from rich.console import Group

_LEVELS = (0, 25, 50, 75, 100)  # percentiles


@dataclass(frozen=True)
class Stats:
    """Numbers of a data set; crowds and masks of zero area are not instances."""

    images: int
    instances: int
    crowds: int
    per_image: list[float]
    """Instances per image: the percentiles 0, 25, 50, 75 and 100."""
    image_sides: list[float]
    """Longer sides of the images, pixels: the same percentiles."""
    instance_sides: list[float]
    """Square roots of the masks' areas, pixels: the same percentiles."""
    by_size: dict[str, int]
    """Instances that COCO calls small, medium and large."""
    per_class: dict[str, int]
    """Instances by class name."""
    images_per_class: dict[str, int]
    over_queries: int
    """Images with more instances than the model has queries."""
    queries: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def table(self) -> Group:
        """As rich tables."""
        from rich.console import Group

        from alignmask._printing import PlainTable

        spread = PlainTable("", "least", "25 %", "median", "75 %", "most")
        for name, values in (
            ("instances per image", self.per_image),
            ("longer side of an image, pixels", self.image_sides),
            ("size of an instance (√area), pixels", self.instance_sides),
        ):
            spread.add_row(name, *(f"{value:.0f}" for value in values))
        classes = PlainTable("class", "instances", "images")
        for name, count in sorted(self.per_class.items(), key=lambda item: -item[1]):
            classes.add_row(name, str(count), str(self.images_per_class[name]))
        sizes = ", ".join(f"{count} {name}" for name, count in self.by_size.items())
        return Group(
            f"{counted(self.images, 'image')}, {counted(self.instances, 'instance')} ({sizes} by "
            f"COCO's bounds), {counted(self.crowds, 'crowd')}; "
            f"{counted(self.over_queries, 'image')} with more instances than {self.queries} queries",
            spread,
            classes,
        )


def measure(annotations: Path, queries: int = 100) -> Stats:
    """Count what an annotation file has. Raises CocoError as `read_coco`."""
    file = read_coco(annotations)
    real = [a for a in file.annotations if a.is_instance]
    per_image = Counter(dict.fromkeys(file.images, 0))
    per_image.update(a.image_id for a in real)
    names = list(file.categories.values())
    labels = {
        category_id: name if names.count(name) == 1 else f"{name} ({category_id})"
        for category_id, name in file.categories.items()
    }
    per_class = Counter(dict.fromkeys(labels.values(), 0))
    per_class.update(labels[a.category_id] for a in real)
    with_class = Counter(dict.fromkeys(labels.values(), 0))
    with_class.update(labels[c] for _, c in {(a.image_id, a.category_id) for a in real})
    areas = np.array([a.pixels for a in real])
    return Stats(
        images=len(file.images),
        instances=len(real),
        crowds=sum(a.crowd for a in file.annotations),
        per_image=_percentiles(list(per_image.values())),
        image_sides=_percentiles([max(i.height, i.width) for i in file.images.values()]),
        instance_sides=_percentiles(np.sqrt(areas).tolist()),
        by_size={
            "small": int((areas < 32**2).sum()),
            "medium": int(((areas >= 32**2) & (areas < 96**2)).sum()),
            "large": int((areas >= 96**2).sum()),
        },
        per_class=dict(per_class),
        images_per_class=dict(with_class),
        over_queries=sum(count > queries for count in per_image.values()),
        queries=queries,
    )


def _percentiles(values: list[Any]) -> list[float]:
    return [float(v) for v in np.percentile(values, _LEVELS)] if values else [0.0] * len(_LEVELS)
