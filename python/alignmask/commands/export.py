"""`alignmask export`: write a checkpoint as one file that other software runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import tyro

import alignmask
from alignmask.commands._console import choose_device, complain, note, removing_on_sigterm
from alignmask.commands._options import Flag, Folder, flowing
from alignmask.config import ExportFormat, Sampling

NOT_SHOWN = 3
"""Exit code: the file is written, but nothing is known of parity."""


def main(arguments: list[str]) -> int:
    return tyro.cli(command, prog="alignmask export", args=arguments)


@flowing
def command(
    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    format: Annotated[ExportFormat, tyro.conf.arg(help_behavior_hint="(required)")],
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None,
    images: Annotated[Path | None, Folder] = None,
    sampling: Sampling = "gather",
    half: Flag = False,
    device: str = "cpu",
) -> int:
    """Write a checkpoint as a torch.export program, or as ONNX: images in; scores, labels and masks
    out.

    Inputs: image, uint8 [B, 3, H, W], RGB, padded at the right and the bottom to multiples of 32;
    size, int64 [B, 2], height and width without padding. Outputs, best first: scores, float32 [B,
    N]; labels, int64 [B, N]; masks, bool [B, N, H, W]. The file takes any number of images of any
    size. Its results are compared with the model's before it is kept. If the model finds nothing in
    the images, the command says that parity is not shown, and ends with exit code 3.

    Args:
        checkpoint: A checkpoint, or a run's folder (its best checkpoint is used).
        format: torch writes a torch.export program; run it by `import alignmask.ops` and
            torch.export.load(FILE).module(). onnx writes ONNX with standard operators only; it
            needs the extra [onnx].
        out: The file to write, model.pt2 or model.onnx by default. Only an exported file is
            replaced.
        images: Folder of photos on which file and model are compared, 16 of them at most; by
            default the run's validation images, or generated images if there are none.
        sampling: How ONNX reads the tokens of deformable attention: gather (opset 18), or
            grid-sample (opset 20), an operator that not every runtime compiles correctly.
        half: Compute in float16 (ONNX), except where that loses too much. Inputs and outputs stay
            what they are.
        device: Where a torch.export program is to run: cpu, cuda, cuda:1, ...; auto chooses a GPU
            if there is one.
    """
    from alignmask.exporting.files import SUFFIX

    path = out or Path("model" + SUFFIX[format])
    began = time.monotonic()

    def say(step: str) -> None:
        note(f"{time.monotonic() - began:4.0f} s  {step}")

    with removing_on_sigterm():
        exported = alignmask.export(
            checkpoint, path, format=format, images=images, sampling=sampling, half=half,
            device=choose_device(device), say=say,
        )  # fmt: skip
    print(describe(path, exported.about))
    if exported.parity is None:
        print("not compared with the model: onnxruntime is missing")
        return 0
    if not exported.parity.shown:
        advice = "name photos that show objects with --images DIR"
        return complain(f"{exported.parity}; {advice}", NOT_SHOWN)
    print(exported.parity)
    return 0


def describe(path: Path, about: dict[str, Any]) -> str:
    """What an exported file is, in two lines."""
    opset = f", opset {about['opset']}" if "opset" in about else ""
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    names = about["operators"]
    return (
        f"{path}: {size}, {about['precision']}{opset}\n{len(names)} operators: {', '.join(names)}"
    )
