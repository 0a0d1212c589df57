"""A trained model as one file that runs without this toolkit: a `torch.export` program, or ONNX.

`Segmenter` describes inputs and outputs.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from alignmask import ops
from alignmask._files import replacing
from alignmask.exporting.segmenter import DIVISOR, SMALLEST, Detections, Segmenter
from alignmask.exporting.windows import exportable_windows
from alignmask.model import AlignMask

LARGEST_BATCH = 65_535
"""The largest number of images at a time; attention on a GPU cannot take more."""

Format = Literal["torch", "onnx"]

OPSET = 20
"""The first ONNX opset in which GridSample's bilinear mode has the name that it has today."""
ABOUT = "alignmask"
"""The name under which the file keeps class names and sizes: of a metadata entry (ONNX) or of an
extra file (torch)."""
INPUTS, OUTPUTS = ["image", "size"], ["scores", "labels", "masks"]
ENOUGH = 0.95
"""Share of the model's detections that the file must reproduce. It is below 1 because attention
masks are cut at 0, so that the last bit of a logit can decide what a query sees."""


def export_model(
    model: AlignMask, path: Path, format: Format, about: dict[str, Any] | None = None
) -> float | None:
    """Write `Segmenter(model)` to `path`; it takes any number of images of any size that
    `Segmenter` takes.

    "torch": a `torch.export` program (.pt2) that calls our operators, on the model's device. After
    `import alignmask.ops`, `torch.export.load(path).module()(image, size)` runs it. "onnx":
    standard operators only (deformable attention by GridSample); one file, opset 20, float32.

    The file is read back and run on generated images before it takes its name.

    Args:
        about: What the file keeps as JSON, under "alignmask".
    Returns:
        The share of detections that file and model have in common, 0 to 1; None if nothing was
        compared because onnxruntime is not installed.
    Raises:
        ValueError: The model is in training mode.
        ImportError: "onnx", and the packages of the extra `[onnx]` are missing.
        RuntimeError: The file does not compute what the model computes.
    """
    if model.training:
        raise ValueError(
            "export: call model.eval() first; a model in training mode makes aligned queries"
        )
    segmenter = Segmenter(model)
    with replacing(path) as part:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters warn about their own code
            _WRITERS[format](segmenter, part, json.dumps(about or {}))
        share = None
        if format == "torch" or not _missing("onnxruntime"):
            share = _check(segmenter, open_file(part))
    return share


def open_file(path: Path) -> Callable[[Tensor, Tensor], Detections]:
    """What `export` wrote, as a function like `Segmenter.forward` (.pt2: torch, .onnx: onnxruntime
    on the CPU)."""
    if path.suffix == SUFFIX["torch"]:
        program: Callable[[Tensor, Tensor], Detections] = torch.export.load(path).module()
        return program
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(image: Tensor, size: Tensor) -> Detections:
        inputs = {"image": image.cpu().numpy(), "size": size.cpu().numpy()}
        scores, labels, masks = (
            torch.from_numpy(output) for output in session.run(OUTPUTS, inputs)
        )
        return scores, labels, masks

    return run


def agreement(
    found: Detections, expected: Detections, score: float = 1e-4, iou: float = 0.99
) -> float:
    """The share of the detections in `found` that are also in `expected`: with the same label, a
    score that differs by at most `score`, and a mask with an IoU of at least `iou`. Detections of
    score 0 do not count; 1.0 if there are no others."""
    same = seen = 0
    on_host = (output.cpu() for output in (*found, *expected))
    for scores, labels, masks, other_scores, other_labels, other_masks in zip(
        *on_host, strict=True
    ):
        rows, columns = scores > 0, other_scores > 0
        flat, other = masks[rows].flatten(1).float(), other_masks[columns].flatten(1).float()
        both = flat @ other.T
        either = flat.sum(1)[:, None] + other.sum(1) - both
        alike = (both >= iou * either) & (labels[rows][:, None] == other_labels[columns])
        alike &= (scores[rows][:, None] - other_scores[columns]).abs() <= score
        same, seen = same + int(alike.any(dim=1).sum()), seen + len(flat)
    return same / seen if seen else 1.0


def _program(segmenter: Segmenter) -> tuple[ExportedProgram, dict[str, Any]]:
    """The program, and the sizes of its inputs as symbols."""
    batch = Dim("batch", max=LARGEST_BATCH)
    height, width = (DIVISOR * Dim(name, min=SMALLEST // DIVISOR) for name in ("height", "width"))
    shapes = {"image": {0: batch, 2: height, 3: width}, "size": {0: batch}}
    return torch.export.export(
        segmenter, _images(segmenter, 2, (128, 192)), dynamic_shapes=shapes
    ), shapes


def _write_torch(segmenter: Segmenter, path: Path, about: str) -> None:
    with exportable_windows(segmenter):
        torch.export.save(_program(segmenter)[0], path, extra_files={ABOUT: about})


def _write_onnx(segmenter: Segmenter, path: Path, about: str) -> None:
    if missing := _missing("onnx", "onnxscript"):
        raise ImportError(
            f"export to ONNX needs {', '.join(missing)}: pip install '.[onnx]' in AlignMask's "
            "folder"
        )
    with exportable_windows(segmenter), ops.use_reference():
        program, shapes = _program(segmenter)
        written = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, verbose=False,
            input_names=INPUTS, output_names=OUTPUTS, dynamic_shapes=shapes,
        )  # fmt: skip
    assert written is not None
    written.model.metadata_props[ABOUT] = about
    written.save(path, external_data=False)


SUFFIX: dict[Format, str] = {"torch": ".pt2", "onnx": ".onnx"}
_WRITERS: dict[Format, Callable[[Segmenter, Path, str], None]] = {
    "torch": _write_torch,
    "onnx": _write_onnx,
}


def _missing(*packages: str) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name) is None]


def _check(segmenter: Segmenter, run: Callable[[Tensor, Tensor], Detections]) -> float:
    """The lowest `agreement` over batches whose number and size of images differ from those of the
    traced batch."""
    shares = []
    for count, size in ((1, (SMALLEST, 160)), (3, (160, 96))):
        images = _images(segmenter, count, size)
        with torch.no_grad():
            expected = segmenter(*images)
        found = run(*images)
        if not found[0].isfinite().all():
            raise RuntimeError("export: the written file gives scores that are not finite")
        shares.append(min(agreement(found, expected), agreement(expected, found)))
    if min(shares) < ENOUGH:
        raise RuntimeError(
            f"export: the written file gives {min(shares):.0%} of the model's detections, expected "
            f"{ENOUGH:.0%} or more"
        )
    return min(shares)


def _images(segmenter: Segmenter, count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Generated images of smooth colours, and sizes that leave some padding."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, size[0] // 16, size[1] // 16, generator=generator)
    image = (
        torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1) * 255
    ).to(torch.uint8)
    sizes = torch.tensor([(size[0] - 5 * (i % 2), size[1] - 3 * i) for i in range(count)])
    return image.to(segmenter.model.device), sizes.to(segmenter.model.device)
