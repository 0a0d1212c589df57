"""`alignmask calibrate`, and what `predict` makes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import alignmask
from alignmask import checkpoint
from alignmask.evaluation.calibrators import read_calibration, write_calibration
from tests.commands.terminal import Terminal
from tests.evaluation.worlds import small_world, write


@pytest.fixture
def run(workshop: Path, tmp_path: Path) -> Path:
    """A copy: what is stored beside a checkpoint must not reach other tests."""
    return Path(shutil.copytree(workshop / "run", tmp_path / "run"))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write(small_world(3, images=12), tmp_path)


def test_a_checkpoint(run: Path, workshop: Path, alignmask_: Terminal) -> None:
    path = checkpoint.resolve(run) / checkpoint.CALIBRATION
    shapes = workshop / "shapes"
    own = ("--workers", 0, "--resamples", 20, "--method", "platt")
    assert alignmask_("calibrate", run, *own) == 0
    assert f"calibration: {path}" in alignmask_.out
    first = read_calibration(path)
    assert (first.fit.annotations, first.fit.images, first.fit.held_out_images) == (
        "instances_val.json",
        2,
        1,
    )
    assert first.fit.score == checkpoint.load_config(path.parent).model.score
    assert first.guarantees == []
    other = (
        "--images",
        shapes / "train",
        "--annotations",
        shapes / "instances_train.json",
        "--precision",
        0.9,
    )
    assert alignmask_("calibrate", run, *own, *other) == 0
    assert (
        "4 images cannot support that 90 % of the predictions have an IoU of 0.75 or more"
        in alignmask_.out
    )
    second = read_calibration(path)
    assert (second.fit.annotations, second.fit.images, len(second.guarantees)) == (
        "instances_train.json",
        4,
        1,
    )


def test_predictions_have_a_quality_and_can_be_trusted(
    run: Path, workshop: Path, alignmask_: Terminal
) -> None:
    path = checkpoint.resolve(run) / checkpoint.CALIBRATION
    image = min((workshop / "shapes" / "val").iterdir())
    plain = alignmask.load(run).predict(image)
    assert plain.quality_N is None
    assert alignmask_("predict", run, image, "--trusted") == 2
    assert "run `alignmask calibrate" in alignmask_.err
    assert alignmask_("calibrate", run, "--workers", 0, "--resamples", 0, "--precision", 0.9) == 0

    data = json.loads(path.read_text())
    data["guarantees"][0] |= {"threshold": float(plain.scores_N[4]), "most_per_image": 3}
    path.write_text(json.dumps(data))
    predictor = alignmask.load(run)
    found, trusted = predictor.predict(image), predictor.predict(image, trusted=True)
    category_N = np.array(predictor.category_ids)[found.labels_N]
    expected = read_calibration(path).quality(found.scores_N.numpy(), category_N)
    assert found.quality.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert found.scores_N.tolist() == plain.scores_N.tolist()
    assert trusted.scores_N.tolist() == found.scores_N[:3].tolist()
    assert found.trusted.tolist() == [n < 3 for n in range(len(found))]
    tiles = predictor.predict_in_tiles(image, 64)
    assert tiles.trusted_N is None  # the guarantee is of whole images
    words = (
        "of predictions of whole images, and these are to be in tiles of 64 pixels: predict with "
    )
    with pytest.raises(ValueError, match=words + "tile whole, or calibrate with 64"):
        predictor.predict(image, trusted=True, tile=64)
    assert alignmask_("predict", run, image, "--out", "in_tiles", "--tile", 64) == 0
    assert "are of predictions of whole images; these are in tiles of 64 pixels" in alignmask_.err
    calibrated(run, {"fit": {**data["fit"], "tile": 64}})
    tiles = alignmask.load(run).predict_in_tiles(image, 64)
    assert tiles.trusted_N.tolist() == tiles.dense().trusted.tolist()
    assert alignmask.load(run).predict(image).trusted_N is None
    calibrated(run, {"fit": data["fit"]})
    drawn = predictor.draw(image, found, threshold=0)
    found.trusted_N = None
    assert drawn.tobytes() != predictor.draw(image, found, threshold=0).tobytes()
    assert trusted.quality_N.tolist() == found.quality_N[:3].tolist()
    assert alignmask_("predict", run, image, "--trusted", "--threshold", 0, "--out", "p") == 0
    written = json.loads(Path("p/predictions.json").read_text())
    # The command encodes masks as it finds them: their mean probabilities are rounded otherwise.
    assert [entry["quality"] for entry in written] == pytest.approx(
        found.quality_N[:3].tolist(), abs=1e-5
    )


def calibrated(run: Path, change: dict) -> None:
    """A calibration with some of its values changed."""
    path = checkpoint.resolve(run) / checkpoint.CALIBRATION
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | change))


def best(threshold: float | None) -> dict:
    return {"threshold": threshold, "f1": 0.5, "precision": 0.5, "recall": 0.5}


def test_each_class_is_shown_from_its_own_threshold_on(
    run: Path, workshop: Path, alignmask_: Terminal
) -> None:
    image = min((workshop / "shapes" / "val").iterdir())
    plain = alignmask.load(run)
    with pytest.raises(ValueError, match="not known: run `alignmask calibrate RUN`"):
        plain.predict(image, threshold="best-f1")
    with pytest.raises(ValueError, match="expected a number or best-f1, got 'best'"):
        plain.predict(image, threshold="best")  # type: ignore[arg-type]
    assert alignmask_("calibrate", run, "--workers", 0, "--resamples", 0, "--precision", 0.9) == 0
    found = plain.predict(image)
    scores, labels = found.scores_N.double(), found.labels_N
    first, middle, fifth = int(labels[0]), float(scores[len(scores) // 2]), float(scores[4])
    own = {str(plain.category_ids[first]): best(float(scores[0]) + 0.01)}
    calibrated(run, {"best_f1": {"pooled": best(middle), "by_class": own}})
    guarantee = json.loads((checkpoint.resolve(run) / checkpoint.CALIBRATION).read_text())[
        "guarantees"
    ][0]
    calibrated(run, {"guarantees": [{**guarantee, "threshold": fifth, "most_per_image": 3}]})
    predictor = alignmask.load(run)
    expected = [n for n in range(len(scores)) if scores[n] >= middle and labels[n] != first]
    assert 0 < len(expected) < len(scores)
    kept = predictor.predict(image, threshold="best-f1")
    assert kept.scores_N.tolist() == found.scores_N[expected].tolist()
    # The guarantee is of the best three of the image, shown or not.
    assert kept.trusted.tolist() == [n < 3 for n in expected]
    assert alignmask_("predict", run, image, "--threshold", "best-f1", "--suppression", "off") == 0
    written = json.loads(Path("predictions/predictions.json").read_text())
    # (Probabilities are added in another order where masks are encoded.)
    shown = [entry["score"] for entry in written]
    assert shown == pytest.approx(kept.scores_N.tolist(), rel=1e-6)
    assert "from the threshold of the best F1 of each class on" in alignmask_.out
    assert alignmask_("predict", run, image, "--threshold", "best") == 2
    calibrated(run, {"best_f1": None})
    assert "not known: run `alignmask calibrate" in alignmask_.complaint(
        "predict", run, image, "--threshold", "best-f1", "--suppression", "off"
    )


def test_what_a_calibration_is_of(run: Path, workshop: Path, alignmask_: Terminal) -> None:
    """Its suppression is stored; a guarantee is of nothing else, and the quality says so."""
    image = min((workshop / "shapes" / "val").iterdir())
    command = ("calibrate", run, "--workers", 0, "--resamples", 0, "--precision", 0.9)
    for made_with, other in (("off", "hard"), ("hard", "off")):
        assert alignmask_(*command, "--suppression", made_with) == 0
        assert "nothing can be trusted: the images of the" in alignmask_.complaint(
            "predict", run, image, "--trusted"
        )
        found = json.loads((checkpoint.resolve(run) / checkpoint.CALIBRATION).read_text())
        guarantee = {**found["guarantees"][0], "threshold": 0.0, "most_per_image": 3}
        calibrated(run, {"guarantees": [guarantee]})
        predictor = alignmask.load(run)
        assert predictor.calibration.fit.suppression == made_with
        assert predictor.predict(image, suppression=made_with).trusted is not None
        assert predictor.predict(image, suppression=other).trusted is None
        message = f"predict: the guarantee is of predictions with suppression {made_with}, and these are to have {other}"
        with pytest.raises(ValueError, match=message):
            predictor.predict(image, suppression=other, trusted=True)
        assert message in alignmask_.complaint(
            "predict", run, image, "--trusted", "--suppression", other
        )
        assert alignmask_("predict", run, image, "--trusted") == 0
        assert " that the guarantee covers (--trusted) in 1 image: " in alignmask_.out
        assert "quality, and" not in alignmask_.err
        for suppression in (made_with, other):
            assert alignmask_("predict", run, image, "--suppression", suppression) == 0
            said = f"suppression {made_with}; these have {suppression}" in alignmask_.err
            assert said == (suppression == other)
    assert alignmask_(*command, "--suppression", "soft") == 0
    assert "run `alignmask calibrate` with --suppression off or hard" in alignmask_.complaint(
        "predict", run, image, "--trusted"
    )


def test_a_calibration_of_another_score_is_refused(run: Path, alignmask_: Terminal) -> None:
    path = checkpoint.resolve(run) / checkpoint.CALIBRATION
    assert alignmask_("calibrate", run, "--workers", 0, "--resamples", 0) == 0
    data = json.loads(path.read_text())
    data["fit"]["score"] = "something"
    path.write_text(json.dumps(data))
    with pytest.raises(
        ValueError, match=r"calibration\.json is of the score something, and the model scores by"
    ):
        alignmask.load(run)
    data["fit"]["score"] = "file"
    path.write_text(json.dumps(data))
    assert alignmask.load(run).calibration is not None


def test_what_is_not_a_calibration_stays(run: Path, alignmask_: Terminal) -> None:
    path = checkpoint.resolve(run) / checkpoint.CALIBRATION
    path.write_text("mine")
    assert alignmask_("calibrate", run, "--workers", 0) == 2
    assert f"{path}: this file is not a calibration, and is not overwritten" in alignmask_.err
    assert path.read_text() == "mine"


def test_a_results_file(files: tuple[Path, Path], alignmask_: Terminal, tmp_path: Path) -> None:
    annotations, results = files
    before = sorted(tmp_path.iterdir())
    arguments = (
        "calibrate",
        results,
        "--annotations",
        annotations,
        "--resamples",
        20,
        "--method",
        "linear",
    )
    assert alignmask_(*arguments) == 0
    assert "on the 6 images that were held out" in alignmask_.out
    assert max(map(len, alignmask_.out.splitlines())) <= 80
    assert sorted(tmp_path.iterdir()) == before
    more = (
        "--out",
        tmp_path / "c.json",
        "--diagram",
        tmp_path / "d.png",
        "--precision",
        0.5,
        "--per-class",
    )
    assert alignmask_(*arguments, *more) == 0
    calibration = read_calibration(tmp_path / "c.json")
    assert calibration.method == "linear"
    assert [guarantee.category_id for guarantee in calibration.guarantees] == [3, 11]
    assert "of class cat" in alignmask_.out
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
    write_calibration(tmp_path / "c.json", calibration)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precision", 1), "--precision: expected more than 0 and less than 1, got 1"),
        (("--confidence", 0), "--confidence: expected more than 0 and less than 1, got 0"),
        (("--iou", 1.5), "--iou: expected more than 0 and at most 1, got 1.5"),
        (("--fewest", 0), "--fewest of 1 or more"),
        (("--images", "."), "give --annotations FILE, and no --images"),
    ],
)
def test_mistakes(
    files: tuple[Path, Path], alignmask_: Terminal, options: tuple, message: str
) -> None:
    annotations, results = files
    assert alignmask_("calibrate", results, "--annotations", annotations, *options) == 2
    assert message in alignmask_.err
    assert alignmask_("calibrate", results) == 2
    assert alignmask_("calibrate", results.parent, "--annotations", annotations) == 2
    assert "give --images and --annotations, or neither" in alignmask_.err
