"""What `alignmask.export` is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from alignmask._arguments import Device, PathLike, as_predictor, photos_of
from alignmask.config import ExportFormat, Sampling
from alignmask.exporting.export import Exported, Form, export_model
from alignmask.exporting.files import SUFFIX
from alignmask.predictor import Predictor


def export(
    checkpoint_or_predictor: PathLike | Predictor,
    path: PathLike,
    *,
    format: ExportFormat = "torch",
    images: PathLike | None = None,
    sampling: Sampling = "gather",
    half: bool = False,
    device: Device = "cpu",
    say: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write a model as one file that runs without this toolkit: images in; scores, labels and masks
    out.

    The file takes any number of images of any size; class names and category ids are inside it.
    `Segmenter` in `alignmask.exporting.segmenter` describes inputs and outputs.

    Args:
        checkpoint_or_predictor: A run's folder or a checkpoint, or a loaded model.
        path: The file to write; it ends in .pt2 (torch) or .onnx. Only an exported file is
            replaced.
        format: "torch" is a `torch.export` program, which needs `import alignmask.ops` to run;
            "onnx" uses standard operators alone and needs the extra `[onnx]`.
        images: Folder of photos on which file and model are compared, 16 of them at most; by
            default the run's validation images, or generated images if there are none.
        sampling: How an ONNX file reads the tokens of deformable attention: "gather" (opset 18), or
            the operator GridSample (opset 20), which not every runtime compiles correctly.
        half: An ONNX file computes in float16, except where that loses too much. Inputs and outputs
            stay what they are.
        device: Where a checkpoint is loaded to, and where a torch.export program is to run.
        say: Is told of each step.

    Returns:
        What was written, and how it compares with the model: `parity.shown` is False if the model
        finds nothing in the images, so that nothing is known; `parity` is None if onnxruntime is
        missing.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        FileExistsError: There is a file at the path that is not an exported model.
        ValueError: The path does not end as the format asks, or there are no images.
        ImportError: The packages of the extra `[onnx]` are missing.
        RuntimeError: The file does not compute what the model computes.

    Example:
        >>> exported = alignmask.export("runs/shapes", "shapes.pt2")
        >>> exported.parity.detections
        0
        >>> exported.parity.shown  # nothing was found in the images, so nothing is known
        False
    """
    path, form = Path(path), Form(format, sampling, half)
    if path.suffix != SUFFIX[format]:
        raise ValueError(
            f"export: format {format}: expected a name that ends in {SUFFIX[format]}, got {path}"
        )
    predictor = as_predictor(checkpoint_or_predictor, device)
    about = {
        "class_names": predictor.class_names,
        "category_ids": predictor.category_ids,
        "short_side": predictor.config.data.eval_short_side,
        "max_side": predictor.config.data.eval_max_side,
        "exif": predictor.config.data.exif,
        "sample_range": predictor.config.data.sample_range,
        "tile": predictor.config.data.tile,
        "overlap": predictor.config.data.tile_overlap,
    }
    photos = photos_of(predictor, images)
    return export_model(predictor.model, path, form, about, photos, say)
