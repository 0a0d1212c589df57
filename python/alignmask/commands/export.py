"""`alignmask export`: write a checkpoint as one file that other software runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

import alignmask
from alignmask.commands._console import choose_device
from alignmask.commands._options import flowing
from alignmask.exporting.export import SUFFIX, Format


def main(arguments: list[str]) -> int:
    return tyro.cli(command, prog="alignmask export", args=arguments)


@flowing
def command(
    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    format: Annotated[Format, tyro.conf.arg(help_behavior_hint="(required)")],
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None,
    device: str = "cpu",
) -> int:
    """Write a checkpoint as a torch.export program, or as ONNX: images in; scores, labels and masks
    out.

    Inputs: image, uint8 [B, 3, H, W], RGB, padded at the right and the bottom to multiples of 32;
    size, int64 [B, 2], height and width without padding. Outputs, best first: scores, float32 [B,
    N]; labels, int64 [B, N]; masks, bool [B, N, H, W]. The file takes any number of images of any
    size. Its results are compared with the model's before it is kept.

    Args:
        checkpoint: A checkpoint, or a run's folder (its best checkpoint is used).
        format: torch writes a torch.export program; run it by `import alignmask.ops` and
            torch.export.load(FILE).module(). onnx writes ONNX with standard operators only (opset
            20); it needs the extra [onnx].
        out: The file to write, model.pt2 or model.onnx by default.
        device: Where a torch.export program is to run: cpu, cuda, cuda:1, ...; auto chooses a GPU
            if there is one.
    """
    path = out or Path("model" + SUFFIX[format])
    same = alignmask.export(checkpoint, path, format=format, device=choose_device(device))
    compared = (
        "not compared: onnxruntime is missing"
        if same is None
        else f"{same:.1%} of the model's detections"
    )
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {compared}")
    return 0
