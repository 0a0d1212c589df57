"""What the tests of the page share: models' analyses of a made-up data set, and how to read a
page's data."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alignmask.analysis.differences import with_differences
from alignmask.analysis.html_page import write_page
from alignmask.analysis.measure import ModelAnalysis, analyze_model
from alignmask.data import CocoDataset
from alignmask.evaluation.results_file import GroundTruth, load_ground_truth, load_results
from tests.evaluation.worlds import World, box_mask, write

NASTY = (
    '<img src=x onerror="window.hacked=1">',
    "</script><script>window.hacked=1</script>",
    "$$x$$ & <!-- \\u003c '\"",
)
"""Names that would do something if they got into the page as HTML (or as a formula)."""


def square_world() -> World:
    """Ten grey images of 60 x 80 pixels with an object (10 x 20 pixels at (5, 5)) each; the
    prediction of image n is n pixels further down, with score 1 - n / 20; and one on the wrong
    class, and one that hits nothing."""
    world = World({100 + n: (60, 80) for n in range(10)}, {1: "cat", 2: "dog", 5: "bird"})
    for n, image in enumerate(world.sizes):
        world.annotate(image, 1 + n % 2, box_mask((60, 80), 5, 5, 15, 25))
        world.predict(image, 1 + n % 2, box_mask((60, 80), 5 + n, 5, 15 + n, 25), 1 - n / 20)
        world.predict(image, 5, box_mask((60, 80), 5, 5, 15, 25), 0.3)
        world.predict(image, 1, box_mask((60, 80), 40, 40, 50, 50), 0.1)
    return world


def analyses(
    world: World, folder: Path, names: tuple[str, ...] = ("a",)
) -> tuple[list[ModelAnalysis], GroundTruth]:
    """The world's predictions under several names; each next model's scores are the halves of the
    one before."""
    annotations, results = write(world, folder)
    ground_truth = load_ground_truth(annotations)
    models = []
    for k, name in enumerate(names):
        entries = [
            {**entry, "score": entry["score"] / 2**k} for entry in json.loads(results.read_text())
        ]
        models.append(
            analyze_model(name, ground_truth, load_results(entries, ground_truth), inversions=2)
        )
    return with_differences(models, len(ground_truth.sizes), 20), ground_truth


def pictured(world: World, folder: Path) -> CocoDataset:
    """The data set, with images of one grey."""
    for image, (height, width) in world.sizes.items():
        Image.fromarray(np.full((height, width, 3), 100, np.uint8)).save(folder / f"{image}.png")
    return CocoDataset(folder, world.write(folder), masks=False)


def page(
    world: World,
    folder: Path,
    names: tuple[str, ...] = ("a",),
    fraction: float = 1.0,
    images: bool = True,
) -> Path:
    models, ground_truth = analyses(world, folder, names)
    dataset = pictured(world, folder) if images else None
    out = folder / "out" / "report.html"
    write_page(
        models,
        ground_truth,
        dataset,
        [Image.new("RGB", (30, 20))] * len(names),
        out,
        fraction=fraction,
    )
    return out


class Parsed(HTMLParser):
    """A page's elements: (tag, attributes, text inside) of each, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], str]] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), ""))
        self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            tag, attributes, text = self.elements[-1]
            self.elements[-1] = (tag, attributes, text + data)

    def of(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, text) for name, attributes, text in self.elements if name == tag]

    def block(self, name: str) -> Any:
        return json.loads(
            next(text for attributes, text in self.of("script") if attributes.get("id") == name)
        )

    def pictures(self) -> list[dict[str, Any]]:
        ids = [attributes.get("id") or "" for attributes, _ in self.of("script")]
        return [self.block(name) for name in ids if re.fullmatch(r"picture-\d+", name)]


def columns(plot: Any) -> dict[str, np.ndarray]:
    """The points of a plot's JSON."""
    from bokeh.document import Document

    source = Document.from_json(plot["doc"]).get_model_by_name("points")
    return {name: np.asarray(values) for name, values in source.data.items()}
