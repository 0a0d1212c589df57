"""Situations of public problem reports, as files that people's tools write: what would fail later
is refused at the start, what can be read is read, and what is unusual is said.

The kinds are tested one by one in tests/data and tests/evaluation; these are whole data sets.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from alignmask.config import Config, DataConfig
from alignmask.data import CocoError, resolve_paths, train_dataset, val_dataset
from alignmask.evaluation.evaluate import evaluate_file
from alignmask.training.trainer import check_data
from tests.tiny import model_config


def start(folder: Path, **settings: object) -> tuple[list[str], DataConfig]:
    """What training checks before its first iteration; returns the warnings."""
    data = DataConfig(
        train_images=folder / "images", train_annotations=folder / "train.json",
        val_images=folder / "images", val_annotations=folder / "val.json", **settings,
    )  # fmt: skip
    config = Config("case", model=model_config(num_classes=2), data=resolve_paths(data))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_data(config, train_dataset(data), val_dataset(data, masks=False))
    return [str(warning.message) for warning in caught], data


@pytest.fixture
def case(request: pytest.FixtureRequest, data_root: Path) -> Path:
    folder = data_root.parent / "cases" / request.param
    if not folder.is_dir():
        pytest.skip(f"{folder} not found")
    return folder


REFUSED = {
    "cvat_masks_all_crowd": "nothing to train on.* none of which is an instance:\n.*CVAT's",
    "boxes_only": "nothing to train on.*\n.*boxes without masks",
    "boxes_only_nested_empty": "nothing to train on.*\n.*boxes without masks",
    "no_annotations": "nothing to train on. It has no annotations",
    "polygon_normalised": "with polygons between 0 and 1\n.*shares of the image's width",
    "polygon_of_4_pairs": r"whose points are pairs \[x, y\]\n.*annotation id 1, .*one after",
    "polygon_of_8_pairs": r"whose points are pairs \[x, y\]\n.*annotation id 1, .*one after",
    "one_annotation_of_pairs": r": 1 whose points are pairs \[x, y\]\n.*annotation id",
    "polygon_null_coordinate": r": 1 with a faulty segmentation\n.*annotation id .*a number: None",
    "polygon_nan_coordinate": r": 1 with a faulty segmentation\n.*annotation id .*finite",
}
SAID = {
    "area_null_val": "",
    "exif_6_annotated_upright": "4 images of 4 turned upright",
    "exif_3_annotated_upright": "4 images of 4 turned upright",
    "exif_6_square": "4 images of 4 turned upright",
    "file_names_backslash": r"4 file names of 4 found in another spelling, the first 'sub\\\\im1.png'",
    "file_names_label_studio": r"the first 'images\\\\im1.png' as im1.png",
    "microscopy_12bit": "4 images with 16 bits a sample; 4 of the 4 .* above 4095",
}


@pytest.mark.parametrize("case", REFUSED, indirect=True)
def test_what_cannot_be_trained_on_is_refused_at_the_start(case: Path) -> None:
    with pytest.raises(CocoError, match=REFUSED[case.name]):
        start(case)


@pytest.mark.parametrize("case", SAID, indirect=True)
def test_what_can_be_read_is_read_and_said(case: Path) -> None:
    said, data = start(case)
    both = [text for text in said if re.search(SAID[case.name] or "$^", text)]
    assert len(said) == len(both) == (2 if SAID[case.name] else 0)  # training and validation
    dataset = train_dataset(data)
    record = json.loads((case / "train.json").read_text())["images"][0]
    path = case / "images" / record["file_name"].replace("\\", "/").removeprefix("images/")
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "RGB":
            expected = np.array(upright)
            assert np.array_equal(dataset.load(0).image_CHW.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("case", ["microscopy_12bit"], indirect=True)
def test_a_range_brings_light_into_microscopy(case: Path) -> None:
    said, data = start(case, sample_range=(0, 4095))
    assert said == []
    assert train_dataset(data).load(0).image_CHW.max() > 128


@pytest.mark.parametrize("case", ["eval_polygon_of_pairs"], indirect=True)
def test_evaluation_refuses_what_training_refuses(case: Path) -> None:
    with pytest.raises(CocoError, match=r"whose points are pairs \[x, y\]\n.*annotation id 1, "):
        evaluate_file(case / "annotations.json", case / "results.json")


@pytest.mark.parametrize("case", ["ids_are_not_file_names"], indirect=True)
def test_predictions_are_matched_by_file_name(case: Path) -> None:
    """Perfect ones, with the ids that `alignmask predict` takes from the names."""
    truth = json.loads((case / "val.json").read_text())
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    keys = ("category_id", "segmentation")
    entries = [
        {
            **{key: annotation[key] for key in keys},
            "image_id": int(Path(names[annotation["image_id"]]).stem),
            "file_name": f"photos/{names[annotation['image_id']]}",
            "score": 0.9,
        }
        for annotation in truth["annotations"]
    ]
    with pytest.warns(UserWarning, match="matched by file_name, which the image_id contradicts"):
        assert evaluate_file(case / "val.json", entries).AP == 1
    for entry in entries:
        del entry["file_name"]
    if max(names) < max(entry["image_id"] for entry in entries):
        with pytest.raises(CocoError, match="of an unknown image"):
            evaluate_file(case / "val.json", entries)
