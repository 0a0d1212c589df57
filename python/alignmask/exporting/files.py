"""Exported files: what they say of themselves, and how they are run.

B images, N detections, H x W pixels.
"""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alignmask.config import ExportFormat, ModelConfig
from alignmask.data import rle
from alignmask.data.batch import Batch
from alignmask.exporting.parity import Run
from alignmask.exporting.segmenter import Detections, inputs_of
from alignmask.model import Instances
from alignmask.model.postprocess import boxes_of
from alignmask.model.sparse import SparseInstances

SUFFIX: dict[ExportFormat, str] = {"torch": ".pt2", "onnx": ".onnx"}
ABOUT = "alignmask"
"""The name under which the file keeps class names, sizes and operators: of a metadata entry (ONNX)
or of an extra file (torch)."""
EXTRA = "pip install '.[onnx]' in AlignMask's folder"
INPUTS, OUTPUTS = ["image", "size"], ["scores", "labels", "masks"]


def missing(*packages: str) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name) is None]


def is_exported(path: Path) -> bool:
    """Whether `path` names an exported file, by its suffix."""
    return path.suffix in SUFFIX.values()


def about(path: Path) -> dict[str, Any]:
    """What an exported file says of itself.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It was not written by `alignmask export`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    text = _about_torch(path) if path.suffix == SUFFIX["torch"] else _about_onnx(path)
    if text is None:
        raise ValueError(f"{path}: not a file that `alignmask export` wrote")
    value: dict[str, Any] = json.loads(text)
    return value


def _about_torch(path: Path) -> bytes | None:
    try:
        with zipfile.ZipFile(path) as archive:
            # NAME/extra/ABOUT; up to torch 2.6: extra_files/ABOUT
            ends = (f"/extra/{ABOUT}", f"extra_files/{ABOUT}")
            names = [name for name in archive.namelist() if name.endswith(ends)]
            return archive.read(names[0]) if names else None
    except zipfile.BadZipFile:
        return None


def _about_onnx(path: Path) -> str | None:
    if lacking := missing("onnx"):
        raise ImportError(f"{path}: reading it needs {lacking[0]}: {EXTRA}")
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # whatever the parser raises: it is protobuf's own
        return None
    return next((entry.value for entry in model.metadata_props if entry.key == ABOUT), None)


def must_be_replaceable(path: Path) -> None:
    """Raises FileExistsError if there is something at `path` that `alignmask export` did not
    write."""
    if not path.exists():
        return
    try:
        about(path)
    except (ValueError, FileNotFoundError) as error:
        raise FileExistsError(
            f"export: {path} exists and is not an exported model: nothing is overwritten"
        ) from error


def open_file(path: Path, threads: int | None = None) -> Run:
    """What `export` wrote, as a function like `Segmenter.forward` (.pt2: torch, .onnx: onnxruntime
    on the CPU).

    Args:
        threads: Of onnxruntime; torch's are those of the process. None leaves it to onnxruntime.
    """
    if path.suffix == SUFFIX["torch"]:
        program: Run = torch.export.load(path).module()
        return program
    if lacking := missing("onnxruntime"):
        raise ImportError(f"{path}: running it needs {lacking[0]}: {EXTRA}")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(image: Tensor, size: Tensor) -> Detections:
        inputs = {"image": image.cpu().numpy(), "size": size.cpu().numpy()}
        scores, labels, masks = (
            torch.from_numpy(output) for output in session.run(OUTPUTS, inputs)
        )
        return scores, labels, masks

    return run


class ExportedModel:
    """An exported file with the methods by which a model is evaluated."""

    training = False
    config = ModelConfig(score="class")
    """A file has one score, which is not made of others."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.about = about(path)
        self.device = torch.device(self.about.get("device", "cpu"))
        self.run = open_file(path, threads)

    def train(self, mode: bool = True) -> None:
        """Nothing: a file has one mode, as `eval` leaves it."""

    def eval(self) -> None:
        """Nothing."""

    @torch.inference_mode()
    def predict(self, batch: Batch) -> list[Instances]:
        """As `AlignMask.predict`, except that the file's masks have two values when they are
        resized to an image's original size, where a model resizes logits."""
        found = self.run(*inputs_of(batch))
        instances = []
        for index, (scores_N, labels_N, masks_NHW) in enumerate(zip(*found, strict=True)):
            kept = scores_N > 0  # the others stand for nothing: their number is fixed in a graph
            (h, w), original = batch.sizes[index], batch.original_sizes[index]
            masks = masks_NHW[kept, :h, :w]
            if (h, w) != original:
                shares = F.interpolate(masks[None].float(), original, mode="bilinear")[0]
                masks = shares > 0.5
            scores = scores_N[kept]
            whole = Instances(
                scores, labels_N[kept], masks, boxes_of(masks), scores, torch.ones_like(scores)
            )
            instances.append(whole[masks.flatten(1).any(1)])  # resizing may leave nothing
        return instances

    def predict_encoded(self, batch: Batch) -> list[SparseInstances]:
        """As `predict`, with encoded masks."""
        return [
            SparseInstances(
                found.scores_N, found.labels_N, rle.encode(found.masks_NHW), found.boxes_N4,
                found.class_scores_N, found.mask_scores_N, original,
            )
            for found, original in zip(self.predict(batch), batch.original_sizes, strict=True)
        ]  # fmt: skip
