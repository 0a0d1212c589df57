"""Numbers of a data set against values counted by hand."""

from __future__ import annotations

import io
from pathlib import Path

from alignmask._printing import console
from alignmask.curation.stats import measure
from tests.data.coco_files import annotation, box_polygon, image_record, write_coco


def test_numbers(tmp_path: Path) -> None:
    images = [image_record(1, 200, 150), image_record(2, 100, 120), image_record(3)]
    annotations = [
        annotation(1, 1, 1, box_polygon(0, 0, 31, 32)),
        annotation(2, 1, 1, box_polygon(0, 0, 32, 32)),
        annotation(3, 1, 2, box_polygon(0, 0, 96, 96)),
        annotation(4, 2, 1, box_polygon(0, 0, 10, 10)),
        annotation(5, 2, 1, box_polygon(0, 0, 10, 10), iscrowd=1),
    ]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "[b]"}, {"id": 3, "name": "a"}]
    stats = measure(write_coco(tmp_path, images, annotations, categories)[1], queries=2)
    assert (stats.images, stats.instances, stats.crowds, stats.over_queries) == (3, 4, 1, 1)
    assert stats.per_image == [0, 0.5, 1, 2, 3]
    assert stats.image_sides == [30, 75, 120, 160, 200]
    assert stats.instance_sides[0] == 10
    assert stats.instance_sides[-1] == 96
    assert stats.by_size == {"small": 2, "medium": 1, "large": 1}
    assert stats.per_class == {"a (1)": 3, "[b]": 1, "a (3)": 0}
    assert stats.images_per_class == {"a (1)": 2, "[b]": 1, "a (3)": 0}
    text = io.StringIO()
    console(file=text, width=200).print(stats.table())
    assert "1 image with more instances than 2 queries" in text.getvalue()
    assert "[b]" in text.getvalue()


def test_nothing_to_count(tmp_path: Path) -> None:
    stats = measure(write_coco(tmp_path, annotations=[])[1])
    assert (stats.instances, stats.instance_sides) == (0, [0.0] * 5)
