"""Exported files against the model they were made from: any number of images, any size, real
photos.

B images, N detections, H x W pixels.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from alignmask.data import collate
from alignmask.data.batch import Batch, Sample
from alignmask.exporting import export as exporting
from alignmask.exporting import files
from alignmask.exporting.export import Form, export_model
from alignmask.exporting.files import open_file
from alignmask.exporting.parity import FULL, Parity, Run, agreement, compare
from alignmask.exporting.segmenter import Detections, Segmenter
from alignmask.model import AlignMask
from tests import tiny

ABOUT = {"class_names": ["a", "b", "c", "d"]}

SCORE = 1e-4
"""ONNX adds up in another order."""


def lively(**changes: Any) -> AlignMask:
    """A model with random weights whose scores and masks differ from query to query."""
    model = tiny.model(detections=20, **changes).eval()
    with torch.no_grad():
        model.query_decoder.heads.classify.weight.mul_(10)
        model.query_decoder.heads.classify.bias.zero_()
    return model


@pytest.fixture(scope="module")
def model() -> AlignMask:
    return lively()


@pytest.fixture(scope="module", params=["torch", "onnx"])
def file(
    request: pytest.FixtureRequest, model: AlignMask, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    if request.param == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason="the extra [onnx] is not installed")
    path = tmp_path_factory.mktemp("export") / ("new folder/model" + files.SUFFIX[request.param])
    steps: list[str] = []
    exported = export_model(model, path, Form(request.param), ABOUT, say=steps.append)
    assert exported.parity is not None
    assert exported.parity.same == 1
    assert exported.parity.detections == 10
    assert steps[0] == "tracing the model"
    assert steps[-1] == "comparing the file with the model"
    assert exported.about == files.about(path)
    assert [other.name for other in path.parent.iterdir()] == [path.name]
    return path


@pytest.fixture(scope="module")
def run(file: Path) -> Run:
    return open_file(file)


def sample(image_CHW: Tensor) -> Sample:
    size = (image_CHW.shape[1], image_CHW.shape[2])
    return Sample(
        image_CHW,
        torch.zeros(0, *size, dtype=torch.bool),
        torch.zeros(0, dtype=torch.long),
        1,
        "",
        size,
    )


def noise(*sizes: tuple[int, int]) -> Batch:
    """Images of different sizes, padded to one."""
    generator = torch.Generator().manual_seed(len(sizes))
    return collate(
        [
            sample(torch.randint(0, 256, (3, *size), generator=generator).to(torch.uint8))
            for size in sizes
        ]
    )


def inputs(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch.image_BCHW, torch.tensor(batch.sizes)


def assert_predicted(
    found: Detections, model: AlignMask, batch: Batch, score: float = SCORE
) -> None:
    """The file's detections are `model.predict`'s; what is left over has score 0. The order of
    equal scores is free."""
    for image, instances in enumerate(model.predict(batch)):
        scores_N, labels_N, masks_NHW = (output[image] for output in found)
        count, (height, width) = len(instances), batch.sizes[image]
        assert count > 0
        assert instances.scores_N.max() - instances.scores_N.min() > 0.05
        torch.testing.assert_close(scores_N[:count], instances.scores_N, rtol=0, atol=score)
        assert not scores_N[count:].any()
        assert not masks_NHW[:, height:].any()
        assert not masks_NHW[:, :, width:].any()
        cropped = scores_N[None], labels_N[None], masks_NHW[None, :, :height, :width]
        expected = instances.scores_N[None], instances.labels_N[None], instances.masks_NHW[None]
        assert agreement(cropped, expected, score) == agreement(expected, cropped, score) == 1


@pytest.mark.parametrize(
    "changes", [{}, {"score": "class"}, {"score": "class*mask"}, {"classification": "softmax"}]
)
def test_the_graph_is_the_model_with_its_post_processing(changes: dict[str, Any]) -> None:
    model = lively(**changes)
    batch = noise((64, 96), (70, 65), (96, 50))
    with torch.no_grad():
        assert_predicted(Segmenter(model)(*inputs(batch)), model, batch, score=1e-6)


def test_an_empty_mask_has_score_0() -> None:
    """`predict` leaves it out."""
    model = lively(score="class")
    with torch.no_grad():
        model.query_decoder.heads.mask[-1].weight.zero_()
        model.query_decoder.heads.mask[-1].bias.zero_()
        scores, labels, masks = Segmenter(model)(*inputs(noise((64, 64))))
    assert not scores.any()
    assert not masks.any()
    assert scores.shape == labels.shape == masks.shape[:2] == (1, 20)


@pytest.mark.parametrize(
    "sizes", [[(64, 64)], [(200, 90)], [(64, 128), (60, 100)], [(97, 97), (31, 160), (161, 3)]]
)
def test_any_number_of_images_of_any_size(
    run: Run, model: AlignMask, sizes: list[tuple[int, int]]
) -> None:
    batch = noise(*sizes)
    assert_predicted(run(*inputs(batch)), model, batch)


def test_what_lies_on_the_padding_does_not_matter(run: Run) -> None:
    image, size = inputs(noise((64, 96), (50, 70)))
    other = image.clone()
    other[1, :, 50:] = 255
    other[1, :, :, 70:] = 17
    for first, second in zip(run(image, size), run(other, size), strict=True):
        assert torch.equal(first, second)


def test_real_photos(run: Run, model: AlignMask, data_root: Path) -> None:
    """Two at a time, each padded to the larger."""
    samples = []
    for path in sorted((data_root / "coco_subset" / "images").iterdir())[:4]:
        photo = Image.open(path).convert("RGB")
        photo.thumbnail((224, 224))
        samples.append(sample(torch.from_numpy(np.array(photo)).permute(2, 0, 1)))
    assert len({each.size for each in samples}) > 1
    for pair in (samples[:2], samples[2:]):
        batch = collate(pair)
        assert_predicted(run(*inputs(batch)), model, batch)


def test_what_the_file_says_of_itself(file: Path) -> None:
    about = files.about(file)
    assert about["class_names"] == ABOUT["class_names"]
    if file.suffix == ".onnx":
        import onnx

        proto = onnx.load(file)
        onnx.checker.check_model(proto, full_check=True)
        assert [(entry.domain, entry.version) for entry in proto.opset_import] == [
            ("", about["opset"])
        ]
        assert {node.domain for node in proto.graph.node} == {""}
        assert {node.op_type for node in proto.graph.node} == set(about["operators"])
        assert "GridSample" not in about["operators"]
        axes = {
            v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in proto.graph.input
        }
        assert axes == {"image": ["batch", 3, "32*height", "32*width"], "size": ["batch", 2]}
        assert [value.name for value in proto.graph.output] == ["scores", "labels", "masks"]
    else:
        program = torch.export.load(file)
        ours = [str(node.target) for node in program.graph.nodes if "alignmask" in str(node.target)]
        assert ours == ["alignmask.ms_deform_attn.default"]
        assert ours[0] in about["operators"]


@pytest.mark.slow
def test_grid_sample_on_request(model: AlignMask, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra [onnx] is not installed")
    form = Form("onnx", sampling="grid-sample", half=True)
    exported = export_model(model, tmp_path / "model.onnx", form)
    assert "GridSample" in exported.about["operators"]
    assert [exported.about[name] for name in ("opset", "precision")] == [20, "float16"]
    assert exported.parity is not None
    assert exported.parity.shown


# -- what is refused
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer writes a few bytes, which is quick, that are known for an exported file."""

    def write(segmenter: Segmenter, path: Path, form: Form, about: Any, say: Any) -> dict[str, Any]:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/extra/alignmask", "{}")
        return {}

    monkeypatch.setitem(exporting._WRITERS, "torch", write)


@pytest.mark.usefixtures("written")
def test_a_file_that_computes_something_else_is_not_kept(
    model: AlignMask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep/model.pt2"
    right, form = Segmenter(model), Form("torch")

    def refused(run: Any, match: str) -> None:
        monkeypatch.setattr(files, "open_file", lambda _: run)
        with pytest.raises(RuntimeError, match=match):
            export_model(model, path, form)

    few = r"gives \d+% of the model's detections"
    refused(Segmenter(lively(num_classes=5)), few)
    for damage in (
        lambda scores, labels, masks: (scores * 0, labels, masks & False),
        lambda scores, labels, masks: (scores * (torch.arange(20) < 1), labels, masks),
    ):
        refused(lambda *inputs, damage=damage: damage(*right(*inputs)), few)
    refused(lambda *inputs: (right(*inputs)[0] * math.nan, *right(*inputs)[1:]), "not finite")
    assert not list(tmp_path.iterdir()), "neither a file nor the folder made for it is left"

    monkeypatch.setattr(files, "open_file", lambda _: right)
    export_model(model, path, form)
    export_model(model, path, form)  # an exported file is replaced
    older = path.read_bytes()
    refused(Segmenter(lively(num_classes=5)), few)
    assert path.read_bytes() == older
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx"])
def test_a_foreign_file_is_not_overwritten(model: AlignMask, tmp_path: Path, name: str) -> None:
    if name == "model.onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxscript")
    path = tmp_path / name
    format = "torch" if name == "model.pt2" else "onnx"
    for content in (b"my own", b""):
        path.write_bytes(content)
        with pytest.raises(FileExistsError, match="not an exported model: nothing is overwritten"):
            export_model(model, path, Form(format))
        assert path.read_bytes() == content
    path.unlink()
    path.mkdir()
    with pytest.raises(FileExistsError):
        export_model(model, path, Form(format))
    assert list(tmp_path.iterdir()) == [path]


def test_a_form_that_there_is_not() -> None:
    for wrong in ({"half": True}, {"sampling": "grid-sample"}):
        with pytest.raises(ValueError, match="for ONNX alone"):
            Form("torch", **wrong)


def test_a_model_in_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        export_model(tiny.model(), tmp_path / "model.pt2", Form("torch"))


def test_missing_packages_are_named(
    model: AlignMask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "missing", lambda *packages: list(packages))
    with pytest.raises(ImportError, match=r"needs onnx, onnxscript: pip install '\.\[onnx\]'"):
        export_model(model, tmp_path / "model.onnx", Form("onnx"))
    assert not list(tmp_path.iterdir())


def test_agreement_sees_labels_scores_and_masks() -> None:
    masks = torch.zeros(1, 3, 4, 200, dtype=torch.bool)
    for n in range(3):
        masks[0, n, n] = True
    one = (torch.tensor([[0.9, 0.5, 0.0]]), torch.tensor([[1, 2, 3]]), masks)
    assert agreement(one, one) == 1
    swapped = [output[:, [1, 0, 2]] for output in one]
    assert agreement(tuple(swapped), one) == 1
    assert agreement((one[0] + 2e-4, *one[1:]), one) == 0
    assert agreement((one[0], one[1] + torch.tensor([1, 0, 0]), masks), one) == 0.5
    dented = masks.clone()
    dented[0, 0, 0, :3] = False
    assert agreement((*one[:2], dented), one) == 0.5
    assert agreement((one[0] * 0, *one[1:]), one) == 1


# -- parity
# --------------------------------------------------------------------------------------------------


def detections(*found: tuple[float, int, int, int]) -> Detections:
    """Of one image of 8 x 100 pixels: (score, label, row, length of the mask in it)."""
    masks = torch.zeros(1, len(found), 8, 100, dtype=torch.bool)
    for number, (_, _, row, length) in enumerate(found):
        masks[0, number, row, :length] = True
    scores, labels, *_ = zip(*found, strict=True)
    return torch.tensor([scores]), torch.tensor([labels]), masks


MODEL = detections((0.9, 1, 0, 100), (0.6, 2, 1, 100), (0.4, 1, 2, 100))
ONE_IMAGE = [(torch.zeros(1), torch.zeros(1))]


def parity(found: Detections, expected: Detections = MODEL) -> Parity:
    return compare(lambda *_: expected, lambda *_: found, ONE_IMAGE, FULL, photos=True)


def test_parity_is_of_what_is_shown() -> None:
    same = parity(MODEL)
    assert same == Parity(1, True, 2, 1.0, 1.0, 1.0, 0.0)
    assert "100.0% of 2 detections in 1 photo are the model's" in str(same)
    # Another order; the one that is not shown is another one; 99 of 100 pixels; a ten-thousandth.
    near = parity(detections((0.3, 1, 5, 9), (0.59995, 2, 1, 100), (0.9, 1, 0, 99)))
    assert (near.detections, near.same, near.lowest_iou) == (2, 1.0, pytest.approx(0.99))
    assert near.mean_iou == pytest.approx(0.995)
    assert near.score == pytest.approx(5e-5, rel=0.01)


@pytest.mark.parametrize(
    "found",
    [
        detections((0.9, 1, 0, 100), (0.6, 1, 1, 100)),  # another label
        detections((0.9, 1, 0, 100), (0.6, 2, 1, 98)),  # another mask
        detections((0.9, 1, 0, 100), (0.7, 2, 1, 100)),  # another score
        detections((0.9, 1, 0, 100)),  # one is lacking
        detections((0.9, 1, 0, 100), (0.6, 2, 1, 100), (0.8, 1, 6, 100)),  # one too many
    ],
)
def test_parity_fails_for_one_difference(found: Detections) -> None:
    with pytest.raises(RuntimeError, match="gives 50% of the model's 2 detections"):
        parity(found)


def test_parity_is_not_claimed_of_nothing() -> None:
    nothing = detections((0.4, 1, 0, 100))
    found = parity(nothing, nothing)
    assert not found.shown
    assert str(found).startswith("parity is not shown: the model finds nothing")
    with pytest.raises(RuntimeError, match="gives 0% of the model's 0 detections"):
        parity(MODEL, nothing)
