"""`alignmask export`: a checkpoint as one file that other software runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

import alignmask
from alignmask.commands._console import choose_device
from alignmask.exporting.export import SUFFIX, Format, export


def main(arguments: list[str]) -> int:
    return tyro.cli(command, prog="alignmask export", args=arguments)


def command(
    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    format: Annotated[Format, tyro.conf.arg(help_behavior_hint="(required)")],
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None,
    device: str = "cpu",
) -> int:
    """Write a checkpoint as a torch.export program, or as ONNX: images in; scores, labels and masks out.

    Inputs: image, uint8 [B, 3, H, W], RGB, padded at the right and the bottom to multiples of 32; size, int64 [B, 2], height
    and width without padding. Outputs, best first: scores, float32 [B, N]; labels, int64 [B, N]; masks, bool [B, N, H, W].
    Any number of images of any size. What is written is compared with the model.

    Args:
        checkpoint: A checkpoint, or a run's folder (then its best one).
        format: torch: a torch.export program, for `import alignmask.ops`, then torch.export.load(FILE).module(). onnx:
            standard operators alone, opset 20; needs the extra [onnx].
        out: The file to write; default: model.pt2 or model.onnx.
        device: Where a torch.export program is to run: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.
    """
    path = out or Path("model" + SUFFIX[format])
    if path.suffix != SUFFIX[format]:
        raise ValueError(f"export --format {format}: --out: expected a name that ends in {SUFFIX[format]}, got {path}")
    predictor = alignmask.load(checkpoint, device=choose_device(device))
    data = predictor.config.data
    about = {
        "class_names": predictor.class_names,
        "category_ids": predictor.category_ids,
        "short_side": data.eval_short_side,
        "max_side": data.eval_max_side,
    }
    same = export(predictor.model, path, format, about)
    compared = "not compared: onnxruntime is missing" if same is None else f"{same:.1%} of the model's detections"
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {compared}")
    return 0
