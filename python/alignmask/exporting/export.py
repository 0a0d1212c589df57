"""A trained model as one file that runs without this toolkit: a `torch.export` program, or ONNX.

`Segmenter` describes inputs and outputs.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from alignmask import ops
from alignmask._files import replacing
from alignmask.config import ExportFormat, Sampling
from alignmask.exporting import files
from alignmask.exporting.files import ABOUT, EXTRA, INPUTS, OUTPUTS
from alignmask.exporting.half import half_precision
from alignmask.exporting.parity import (
    FULL,
    HALF,
    Inputs,
    Parity,
    check_all,
    compare,
    generated,
    smooth_images,
)
from alignmask.exporting.rules import quick_rules
from alignmask.exporting.sampling import gathering_attention
from alignmask.exporting.segmenter import DIVISOR, SMALLEST, Segmenter
from alignmask.exporting.windows import exportable_windows
from alignmask.model import AlignMask

LARGEST = 2**30
"""Height and width: no limit in practice. torch 2.4 refuses multiples of a size without one."""
LARGEST_BATCH = 65_535
"""The largest number of images at a time; attention on a GPU cannot take more."""

OPSET: dict[Sampling, int] = {"gather": 18, "grid-sample": 20}
"""18 is the exporter's own; 20 is the first in which GridSample's bilinear mode has the name that
it has today."""


@dataclass(frozen=True)
class Exported:
    """What `export` wrote."""

    path: Path
    about: dict[str, Any]
    """What the file says of itself: class names, sizes, operators, ..."""
    parity: Parity | None
    """How file and model compare; None if onnxruntime is not installed."""


@dataclass(frozen=True)
class Form:
    """How a file is written."""

    format: ExportFormat
    sampling: Sampling = "gather"
    half: bool = False

    def __post_init__(self) -> None:
        if self.format == "torch" and (self.half or self.sampling != "gather"):
            raise ValueError("export: sampling and half precision can be chosen for ONNX alone")


def export_model(
    model: AlignMask,
    path: Path,
    form: Form,
    about: dict[str, Any] | None = None,
    photos: Iterable[Inputs] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write `Segmenter(model)` to `path`; it takes any number of images of any size that
    `Segmenter` takes.

    "torch": a `torch.export` program (.pt2) that calls our operators, on the model's device. After
    `import alignmask.ops`, `torch.export.load(path).module()(image, size)` runs it. "onnx":
    standard operators only; one file.

    The file is read back, run and compared with the model before it takes its name.

    Args:
        about: What the file keeps as JSON, under "alignmask", beside how it was written.
        photos: What file and model are compared on; by default generated images.
        say: Is told of each step.
    Raises:
        ValueError: The model is in training mode.
        FileExistsError: There is a file of another origin at `path`.
        ImportError: "onnx", and the packages of the extra `[onnx]` are missing.
        RuntimeError: The file does not compute what the model computes.
    """
    if model.training:
        raise ValueError(
            "export: call model.eval() first; a model in training mode makes aligned queries"
        )
    if form.format == "onnx" and (lacking := files.missing("onnx", "onnxscript")):
        raise ImportError(f"export to ONNX needs {', '.join(lacking)}: {EXTRA}")
    files.must_be_replaceable(path)
    segmenter = Segmenter(model)
    with replacing(path) as part:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters warn about their own code
            written = _WRITERS[form.format](segmenter, part, form, about or {}, say)
        parity = None
        if form.format == "torch" or not files.missing("onnxruntime"):
            say("comparing the file with the model")
            parity = _check(segmenter, files.open_file(part), form, photos)
    return Exported(path, written, parity)


def _program(segmenter: Segmenter) -> tuple[ExportedProgram, dict[str, Any]]:
    """The program, and the sizes of its inputs as symbols."""
    batch = Dim("batch", max=LARGEST_BATCH)
    height, width = (
        DIVISOR * Dim(name, min=SMALLEST // DIVISOR, max=LARGEST // DIVISOR)
        for name in ("height", "width")
    )
    shapes = {"image": {0: batch, 2: height, 3: width}, "size": {0: batch}}
    images = smooth_images(2, (128, 192), segmenter.model.device)
    return torch.export.export(segmenter, images, dynamic_shapes=shapes), shapes


Writer = Callable[
    [Segmenter, Path, Form, dict[str, Any], Callable[[str], None]],
    dict[str, Any],
]


def _write_torch(
    segmenter: Segmenter, path: Path, form: Form, about: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    say("tracing the model")
    with exportable_windows(segmenter):
        program, _ = _program(segmenter)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    about = {
        **about,
        "format": "torch",
        "precision": "float32",
        "device": str(segmenter.model.device),
        "torch": torch.__version__,
        "operators": sorted(name for name in called if "." in name),
    }
    say("writing the program")
    torch.export.save(program, path, extra_files={ABOUT: json.dumps(about)})
    return about


def _write_onnx(
    segmenter: Segmenter, path: Path, form: Form, about: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    gathering = form.sampling == "gather"
    sampling = gathering_attention(segmenter) if gathering else nullcontext()
    with exportable_windows(segmenter), ops.use_reference(), sampling:
        say("tracing the model")
        program, shapes = _program(segmenter)
        say("translating the program to ONNX")
        with quick_rules():
            written = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET[form.sampling], verbose=False,
                input_names=INPUTS, output_names=OUTPUTS, dynamic_shapes=shapes,
            )  # fmt: skip
    assert written is not None
    graph = written.model.graph
    if form.half:
        half_precision(written.model)
    about = {
        **about,
        "format": "onnx",
        "precision": "float16" if form.half else "float32",
        "sampling": form.sampling,
        "opset": written.model.opset_imports[""],
        "operators": sorted({node.op_type for node in graph}),
    }
    written.model.metadata_props[ABOUT] = json.dumps(about)
    say("writing the file")
    written.save(path, external_data=False)
    return about


_WRITERS: dict[ExportFormat, Writer] = {"torch": _write_torch, "onnx": _write_onnx}


def _check(segmenter: Segmenter, run: Any, form: Form, photos: Iterable[Inputs] | None) -> Parity:
    images = generated(segmenter.model.device)
    if not form.half:
        check_all(segmenter, run, images)
    return compare(
        segmenter,
        run,
        images if photos is None else photos,
        HALF if form.half else FULL,
        photos=photos is not None,
    )
