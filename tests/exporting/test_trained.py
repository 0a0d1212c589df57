"""The trained model of the package, exported: on photos of nuclei it finds what it found."""

from __future__ import annotations

from pathlib import Path

import pytest

import alignmask
from alignmask._arguments import photos_of
from alignmask.exporting.export import Exported
from alignmask.exporting.files import open_file
from alignmask.exporting.half import half_precision
from alignmask.exporting.parity import HALF, compare
from alignmask.exporting.segmenter import Segmenter

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nuclei(data_root: Path) -> Path:
    folder = data_root / "dsb2018_nuclei"
    if not folder.is_dir():
        pytest.skip(f"no nuclei at {folder}")
    return folder


@pytest.fixture(scope="module")
def exported(nuclei: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra [onnx] is not installed")
    path = tmp_path_factory.mktemp("nuclei") / "nuclei.onnx"
    return alignmask.export("nuclei", path, format="onnx", images=nuclei / "images")


def test_parity_on_photos(exported: Exported) -> None:
    assert exported.parity is not None
    assert exported.parity.photos
    assert exported.parity.images == 16
    assert exported.parity.detections > 200
    assert exported.parity.same > 0.99
    assert exported.parity.mean_iou > 0.999
    # Of all but the 1 % that may see another pixel, as attention masks are cut at 0, scores differ
    # by 1e-4 at most: `same` counts them. Those of the 1 % are near, too.
    assert exported.parity.score < 1e-2


def test_half_precision_on_photos(exported: Exported, nuclei: Path, tmp_path: Path) -> None:
    import onnx_ir as ir

    model = ir.load(exported.path)
    half_precision(model)
    path = tmp_path / "half.onnx"
    ir.save(model, path)
    assert path.stat().st_size < 0.6 * exported.path.stat().st_size
    predictor = alignmask.load("nuclei")
    photos = photos_of(predictor, nuclei / "images")
    assert photos is not None
    found = compare(Segmenter(predictor.model), open_file(path), photos, HALF, photos=True)
    assert found.same > 0.95
    assert 0.99 < found.mean_iou < 1
