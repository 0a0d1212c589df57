"""A terminal to run commands in, and a model and a data set for which a step takes milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alignmask import cli

# A model and a data set for which a step takes milliseconds.
TINY = """--model.backbone.name resnet10t --model.backbone.pretrained False --model.pixel-decoder.width 32
--model.pixel-decoder.layers 1 --model.pixel-decoder.heads 4 --model.pixel-decoder.points 2
--model.pixel-decoder.ffn-width 32 --model.query-decoder.queries 6 --model.query-decoder.layers 2
--model.query-decoder.heads 4 --model.query-decoder.ffn-width 32 --model.aligned-queries.count 7
--model.aligned-queries.points 64 --model.detections 10 --loss.points 32
--data.shapes.train-images 8 --data.shapes.val-images 3 --data.shapes.size 64 --data.crop 64 --data.eval-short-side 64
--data.eval-max-side 64 --data.workers 0 --train.batch-size 2 --train.warmup 1 --train.log-every 1""".split()  # noqa: SIM905


def train_arguments(folder: Path, *more: str, name: str = "run", iterations: int = 3) -> list[str]:
    return [
        "train", "shapes_tiny", "--out", str(folder), "--name", name, "--data.shapes.root", str(folder / "shapes"),
        "--train.iterations", str(iterations), *TINY, *more,
    ]  # fmt: skip


class Terminal:
    """Runs a command; keeps what it prints."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: Any) -> int:
        self.capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        self.out, self.err = self.capsys.readouterr()
        return code

    def complaint(self, *arguments: Any) -> str:
        """Of a command that is expected to end with a user's error: one line, nothing but it."""
        assert self(*arguments) == cli.USER_ERROR
        assert "Traceback" not in self.out + self.err
        complaints = [line for line in self.err.splitlines() if line.startswith("alignmask: ")]
        assert len(complaints) == 1, self.err
        assert self.err.rstrip().endswith(complaints[0])
        return complaints[0].removeprefix("alignmask: ")


def photo(path: Path, size: tuple[int, int] = (50, 70)) -> Path:
    height, width = size
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels_HWC = np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels_HWC).save(path)
    return path
