"""The page as a file: complete, bounded, and nothing in it can do harm.
(tests/analysis/test_browser.py opens it.)"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from bokeh.document import Document
from hypothesis import HealthCheck, given, settings
from PIL import Image
from pycocotools import mask as mask_utils

from alignmask.analysis import html_page as page_module
from alignmask.analysis import page_album
from alignmask.analysis.differences import verdict
from alignmask.analysis.html_page import write_page
from alignmask.data import CocoError
from alignmask.evaluation.alignment import top_predictions
from tests.analysis.pages import NASTY, Parsed, analyses, columns, page, pictured, square_world
from tests.evaluation.worlds import World, box_mask, worlds


def decoded(counts: str, size: list[int]) -> np.ndarray:
    return mask_utils.decode({"size": size, "counts": counts.encode()}).astype(bool)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=8,
)
@given(worlds())
def test_every_prediction_is_there_with_its_masks(tmp_path: Path, world: World) -> None:
    models, ground_truth = analyses(world, tmp_path, ("a", "b"))
    write_page(
        models,
        ground_truth,
        None,
        [Image.new("RGB", (4, 4))] * 2,
        tmp_path / "p.html",
        fraction=1.0,
    )
    parsed = Parsed((tmp_path / "p.html").read_text(encoding="utf-8"))
    report, pictures = parsed.block("report"), parsed.pictures()
    assert report["images"] == [picture["id"] for picture in pictures]
    for number, model in enumerate(models):
        top = top_predictions(model.pairs, 1.0)
        found = columns(parsed.block(f"plot-{number}"))
        assert {len(values) for values in found.values()} == {len(top)}
        for n, position in enumerate(top):
            entry, picture = model.results.entries[position], pictures[found["picture"][n]]
            assert picture["id"] == entry["image_id"]
            assert report["categories"][found["label"][n]] == world.categories[entry["category_id"]]
            assert found["score"][n] == np.float32(entry["score"])
            assert found["area"][n] == mask_utils.area(entry["segmentation"])
            assert picture["masks"][found["mask"][n]] == entry["segmentation"]["counts"].decode()
            mask_HW = decoded(picture["masks"][found["mask"][n]], picture["size"])
            for kind in ("same", "any"):
                value, truth = found[kind][n], found[f"truth_{kind}"][n]
                assert (truth < 0) == (value == 0)
                if truth >= 0:
                    truth_HW = decoded(picture["truths"][truth]["counts"], picture["size"])
                    assert (mask_HW & truth_HW).sum() / (mask_HW | truth_HW).sum() == pytest.approx(
                        value
                    )


def test_the_pictures_are_the_images(tmp_path: Path) -> None:
    for picture in Parsed(page(square_world(), tmp_path).read_text(encoding="utf-8")).pictures():
        image = Image.open(io.BytesIO(base64.b64decode(picture["jpeg"])))
        assert image.size == (80, 60)
        assert np.abs(np.asarray(image, int) - 100).max() <= 2
        assert picture["name"] == f"{picture['id']}.png"


def test_without_images(tmp_path: Path) -> None:
    parsed = Parsed(page(square_world(), tmp_path, images=False).read_text(encoding="utf-8"))
    assert {picture["jpeg"] for picture in parsed.pictures()} == {""}
    assert parsed.block("report")["pictureless"] == "no images were given"


def test_without_predictions(tmp_path: Path) -> None:
    world = World({1: (20, 20)}, {1: "a"})
    parsed = Parsed(page(world, tmp_path).read_text(encoding="utf-8"))
    assert parsed.pictures() == []
    assert len(columns(parsed.block("plot-0"))["score"]) == 0


def test_tables_hold_the_numbers_at_full_precision(tmp_path: Path) -> None:
    (model,), _ = analyses(square_world(), tmp_path)
    values = [
        a.get("data-value") for a, _ in Parsed(page(square_world(), tmp_path).read_text()).of("td")
    ]
    for number in (
        100 * model.metrics.AP,
        100 * model.oracle.AP,
        model.alignment.top[1].spearman_any_class,
    ):
        assert repr(number) in values
    assert "" in values  # a dash: AP of large objects, of which there are none


def test_tables_of_errors_second_masks_calibration_and_differences(tmp_path: Path) -> None:
    models, _ = analyses(square_world(), tmp_path, ("first", "half"))
    parsed = Parsed(page(square_world(), tmp_path, ("first", "half")).read_text(encoding="utf-8"))
    values = [attributes.get("data-value") for attributes, _ in parsed.of("td")]
    for model in models:
        numbers = [
            100 * model.errors.lost["localisation"],
            float(model.errors.counts["background"]),
        ]
        numbers += [model.calibration["LaECE0"], model.calibration["AUROC50"]]
        numbers += [float(model.duplicates["top 10 %"].predictions)]
        assert {repr(number) for number in numbers} <= set(values)
    ids = [attributes.get("id") for attributes, _ in parsed.of("table")]
    assert {"differences", "errors", "duplicates", "calibration"} <= set(ids)
    bold = [text for attributes, text in parsed.of("td") if attributes.get("class") == "clear"]
    assert bold == [models[1].difference["LaECE0"].signed()]
    assert verdict(models) in [
        text for attributes, text in parsed.of("p") if attributes.get("id") == "verdict"
    ]
    alone = Parsed(page(square_world(), tmp_path).read_text(encoding="utf-8"))
    assert "differences" not in [attributes.get("id") for attributes, _ in alone.of("table")]


def test_scores_that_are_no_probabilities_are_within_the_axis(tmp_path: Path) -> None:
    world = square_world()
    world.predict(100, 1, box_mask((60, 80), 0, 0, 5, 5), 12.0)
    parsed = Parsed(page(world, tmp_path).read_text())
    x_range = Document.from_json(parsed.block("plot-0")["doc"]).get_model_by_name("figure").x_range
    assert (x_range.start, x_range.end) == (pytest.approx(-0.24), pytest.approx(12.24))


# -- bounded
# --------------------------------------------------------------------------------------------------


def test_the_most_confident_points_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "POINTS", 7)
    text = page(square_world(), tmp_path).read_text()
    points = columns(Parsed(text).block("plot-0"))
    np.testing.assert_allclose(points["score"], [1 - n / 20 for n in range(7)], rtol=1e-6)
    assert (
        "a: the 7 most confident predictions are plotted, because a page cannot hold more" in text
    )


def noisy_world(folder: Path) -> World:
    """Four images of 200 x 300 pixels that no JPEG makes small, with masks that no run-length
    encoding makes small."""
    rng = np.random.default_rng(0)
    world = World(dict.fromkeys(range(1, 5), (200, 300)), {1: "a"})
    for image in world.sizes:
        world.annotate(image, 1, rng.random((200, 300)) < 0.5)
        world.predict(image, 1, rng.random((200, 300)) < 0.5, 0.5)
    return world


def noisy_page(folder: Path) -> list[dict]:
    world = noisy_world(folder)
    models, ground_truth = analyses(world, folder)
    dataset = pictured(world, folder)
    for image in world.sizes:
        pixels = np.random.default_rng(image).integers(0, 256, (200, 300, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{image}.png")
    write_page(
        models, ground_truth, dataset, [Image.new("RGB", (4, 4))], folder / "p.html", fraction=1.0
    )
    return Parsed((folder / "p.html").read_text()).pictures()


def test_pictures_get_smaller_to_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = noisy_page(tmp_path)
    total = sum(len(picture["jpeg"]) for picture in whole)
    monkeypatch.setattr(page_album, "PICTURE_BYTES", total // 2)
    smaller = noisy_page(tmp_path)
    assert all(picture["jpeg"] for picture in smaller)
    assert sum(len(picture["jpeg"]) for picture in smaller) <= total // 2
    monkeypatch.setattr(page_album, "PICTURE_BYTES", total // 12)  # not even the smallest ones fit
    fewest = noisy_page(tmp_path)
    assert sum(len(picture["jpeg"]) for picture in fewest) <= total // 12
    assert fewest[0]["jpeg"]
    assert not fewest[-1]["jpeg"]
    assert fewest[-1]["name"] == "4.png"


def test_masks_get_coarser_to_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def size(pictures: list[dict]) -> int:
        return sum(
            len(counts)
            for p in pictures
            for counts in [*p["masks"], *(t["counts"] for t in p["truths"])]
        )

    whole = noisy_page(tmp_path)
    assert whole[0]["size"] == [200, 300]
    monkeypatch.setattr(page_album, "MASK_BYTES", 2 * size(whole) // 5)
    coarse = noisy_page(tmp_path)
    assert coarse[0]["size"] == [67, 100]  # every third pixel: every second would not be enough
    assert size(coarse) <= 2 * size(whole) // 5
    expected_HW = decoded(whole[0]["masks"][0], [200, 300])[::3, ::3]
    np.testing.assert_array_equal(decoded(coarse[0]["masks"][0], [67, 100]), expected_HW)


def test_masks_of_large_images_are_coarser(tmp_path: Path) -> None:
    world = World({1: (1300, 20)}, {1: "a"})
    world.predict(1, 1, box_mask((1300, 20), 0, 0, 650, 20), 0.5)
    (picture,) = Parsed(page(world, tmp_path).read_text()).pictures()
    assert picture["size"] == [434, 7]
    assert decoded(picture["masks"][0], [434, 7]).sum() == 217 * 7


# -- harmless
# --------------------------------------------------------------------------------------------------


def test_names_are_text(tmp_path: Path) -> None:
    world = square_world()
    world.categories = dict(zip(world.categories, NASTY, strict=True))
    folder = tmp_path / NASTY[0]  # the page names the annotation file
    folder.mkdir()
    text = page(world, folder, NASTY, images=False).read_text(encoding="utf-8")
    parsed = Parsed(text)
    plain = page(square_world(), tmp_path, ("a", "b", "c"), images=False).read_text(
        encoding="utf-8"
    )
    shape = [[name for name, _, _ in candidate.elements] for candidate in (parsed, Parsed(plain))]
    assert shape[0] == shape[1]  # names add no element
    assert parsed.block("report")["categories"] == list(NASTY)
    assert set(NASTY) <= {text for _, text in parsed.of("option")}
    assert set(NASTY) <= {text for _, text in parsed.of("td")}
    assert set(NASTY) <= {text for _, text in parsed.of("figcaption")}
    assert any(NASTY[0] in text for _, text in parsed.of("code"))
    heading = f"Differences to {NASTY[0]}, with 95 % intervals"
    assert heading in [text for _, text in parsed.of("h2")]


def test_only_the_pages_own_scripts_may_run(tmp_path: Path) -> None:
    """And nothing may be loaded: the content security policy names each script by its hash."""
    parsed = Parsed(page(square_world(), tmp_path).read_text(encoding="utf-8"))
    (policy,) = (
        a["content"]
        for a, _ in parsed.of("meta")
        if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    scripts = [text for attributes, text in parsed.of("script") if "type" not in attributes]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert rules["script-src"].split() == [f"'sha256-{value}'" for value in hashes]
    assert not any(
        "src" in a and not (a["src"] or "").startswith("data:") for _, a, _ in parsed.elements
    )


def test_json_blocks_cannot_end_their_element() -> None:
    block = page_module._block({"a": "</script><!--", "b": [1.5, None]})
    assert "<" not in block
    assert json.loads(block) == {"a": "</script><!--", "b": [1.5, None]}


# -- the file
# --------------------------------------------------------------------------------------------------


def test_an_unreadable_image_leaves_no_page(tmp_path: Path) -> None:
    world = square_world()
    models, ground_truth = analyses(world, tmp_path)
    dataset = pictured(world, tmp_path)
    (tmp_path / "104.png").write_bytes(b"no image")
    with pytest.raises(CocoError, match=r"image id 104: .*104\.png: not an image file"):
        write_page(
            models, ground_truth, dataset, [Image.new("RGB", (4, 4))], tmp_path / "new" / "p.html"
        )
    assert not list((tmp_path / "new").glob("*.html"))


def test_progress_counts_images(tmp_path: Path) -> None:
    models, ground_truth = analyses(square_world(), tmp_path)
    seen: list[tuple[int, int]] = []
    sheets = [Image.new("RGB", (4, 4))]
    write_page(
        models,
        ground_truth,
        None,
        sheets,
        tmp_path / "p.html",
        progress=lambda done, of: seen.append((done, of)),
    )
    assert seen == [(n, 10) for n in range(11)]
