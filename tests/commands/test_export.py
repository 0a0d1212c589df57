"""`alignmask export`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import alignmask
from alignmask.exporting.export import Segmenter
from tests.commands.terminal import Terminal


def test_export_of_a_run(workshop: Path, alignmask_: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "mine.pt2"
    assert alignmask_("export", workshop / "run", "--format", "torch", "--out", file) == 0
    assert alignmask_.out.startswith(f"{file}: ")
    assert alignmask_.out.endswith("100.0% of the model's detections\n")
    extra = {"alignmask": ""}
    program = torch.export.load(file, extra_files=extra).module()
    predictor = alignmask.load(workshop / "run")
    assert json.loads(extra["alignmask"]) == {
        "class_names": predictor.class_names,
        "category_ids": predictor.category_ids,
        "short_side": 64,
        "max_side": 64,
    }
    image, size = torch.randint(0, 256, (1, 3, 96, 64)).to(torch.uint8), torch.tensor([[90, 64]])
    with torch.no_grad():
        expected = Segmenter(predictor.model)(image, size)
    for found, value in zip(program(image, size), expected, strict=True):
        torch.testing.assert_close(found, value)


def test_export_mistakes(
    workshop: Path, alignmask_: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, complaint = workshop / "run", alignmask_.complaint
    text = complaint("export", run, "--format", "onnx", "--out", tmp_path / "model.pt2")
    assert f"expected a name that ends in .onnx, got {tmp_path}/model.pt2" in text
    assert "no such file or folder" in complaint(
        "export", tmp_path / "nowhere", "--format", "torch"
    )
    assert "device 'gpu' cannot be used" in complaint(
        "export", run, "--format", "torch", "--device", "gpu"
    )
    assert alignmask_("export", run) == 2
    assert "--format" in alignmask_.err
    monkeypatch.setattr("alignmask.exporting.export._missing", lambda *_: ["onnxscript"])
    assert "needs onnxscript: pip install '.[onnx]'" in complaint("export", run, "--format", "onnx")
    assert not list(tmp_path.iterdir())
