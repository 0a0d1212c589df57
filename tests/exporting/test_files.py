"""Exported files as models to evaluate."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from alignmask.data import collate
from alignmask.data.batch import Sample
from alignmask.exporting import files
from alignmask.exporting.files import ExportedModel
from alignmask.exporting.segmenter import Detections


def test_masks_are_cropped_and_brought_to_the_images_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of 20 x 40 pixels that was halved: the file sees it padded to 64 x 64."""
    seen = []

    def run(image: torch.Tensor, size: torch.Tensor) -> Detections:
        seen.append((tuple(image.shape), size.tolist()))
        masks = torch.zeros(1, 3, 64, 64, dtype=torch.bool)
        masks[0, :2, 2:6, 5:20] = True
        masks[0, 1, 30:, 30:] = True  # on the padding
        return torch.tensor([[0.8, 0.3, 0.0]]), torch.tensor([[2, 0, 1]]), masks

    monkeypatch.setattr(files, "about", lambda _: {})
    monkeypatch.setattr(files, "open_file", lambda *_: run)
    image = torch.zeros(3, 10, 20, dtype=torch.uint8)
    nothing = torch.zeros(0, 10, 20, dtype=torch.bool)
    sample = Sample(image, nothing, torch.zeros(0, dtype=torch.long), 7, "x", (20, 40))
    (found,) = ExportedModel(Path("model.onnx")).predict(collate([sample]))
    assert seen == [((1, 3, 64, 64), [[10, 20]])]
    assert found.scores.tolist() == pytest.approx([0.8, 0.3])
    assert found.labels.tolist() == [2, 0]
    expected = torch.zeros(20, 40, dtype=torch.bool)
    expected[4:12, 10:40] = True
    assert torch.equal(found.masks, expected.expand(2, -1, -1))
    assert found.boxes.tolist() == [[10, 4, 40, 12]] * 2


@pytest.mark.parametrize("place", ["model/extra/", "extra_files/"])
def test_what_a_file_says_of_itself_is_found_where_torch_has_put_it(
    tmp_path: Path, place: str
) -> None:
    """torch up to 2.6 had another place for it."""
    file = tmp_path / "model.pt2"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/other", "x")
        archive.writestr(place + files.ABOUT, '{"opset": 18}')
    assert files.about(file) == {"opset": 18}
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(files.ABOUT, "{}")
    with pytest.raises(ValueError, match="not a file that `alignmask export` wrote"):
        files.about(file)
