"""Writes the baseline in other projects' formats. Files appear whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from alignmask._files import must_be_new, replacing
from alignmask.config import Config
from alignmask.pretrained import configs, names
from alignmask.pretrained.read import ALIGNED
from alignmask.safe_load import CheckpointError

VERSIONS = {"": 1, "sem_seg_head": 2, "sem_seg_head.predictor": 2}
"""Of Mask2Former's modules: without them its code takes the names for those of older versions."""


def write_huggingface(
    tensors: dict[str, Tensor], config: Config, class_names: list[str], folder: Path
) -> list[str]:
    """A folder that `Mask2FormerForUniversalSegmentation.from_pretrained` and
    `AutoImageProcessor.from_pretrained` load.

    tensors: a model's state dict. Returns our names that were left out: what only training uses.
    Raises CheckpointError for a model that is not Mask2Former, FileExistsError for a folder that is
    there.
    """
    must_be_new(folder)
    theirs = configs.config_to_huggingface(config.model, config.loss, class_names)
    native = theirs["backbone_config"]["model_type"] != "timm_backbone"
    renamed, left_out = _renamed(tensors, "huggingface", "native" if native else "timm")
    renamed["criterion.empty_weight"] = _empty_weight(config)
    preprocessor = configs.preprocessor_to_huggingface(config.model.backbone, config.data)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        save_file(renamed, temporary / "model.safetensors", metadata={"format": "pt"})
        for name, values in (("config.json", theirs), ("preprocessor_config.json", preprocessor)):
            (temporary / name).write_text(json.dumps(values, indent=2) + "\n")
        temporary.chmod(0o755)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return left_out


def write_mask2former(tensors: dict[str, Tensor], config: Config, path: Path) -> list[str]:
    """A checkpoint of Mask2Former's own code: `.pth` (tensors) or `.pkl` (NumPy arrays). Otherwise
    as `write_huggingface`."""
    if path.suffix not in (".pkl", ".pth"):
        raise ValueError(f"{path}: a Mask2Former checkpoint ends in .pkl or .pth")
    must_be_new(path)
    swin = configs.swin_of(config.model.backbone)
    faults = configs.not_mask2former(config.model)
    if swin is None and configs.resnet_of(config.model.backbone.name) is None:
        faults.append(
            f"its backbone {config.model.backbone.name} is neither a ResNet nor a Swin Transformer"
        )
    if faults:
        raise CheckpointError(f"Mask2Former's code cannot have this model: {'; '.join(faults)}")
    renamed, left_out = _renamed(tensors, "mask2former", "native")
    state = OrderedDict(
        (n, t) for n, t in renamed.items() if not n.endswith(".num_batches_tracked")
    )
    state["criterion.empty_weight"] = _empty_weight(config)
    if swin is not None:
        for name in [name for name in state if name.endswith(".relative_position_bias_table")]:
            state[name.replace("_bias_table", "_index")] = relative_position_index(swin.window)
    metadata = OrderedDict((module, {"version": version}) for module, version in VERSIONS.items())
    with replacing(path) as part:
        if path.suffix == ".pth":
            state._metadata = metadata  # type: ignore[attr-defined]
            torch.save({"model": state}, part)
        else:
            arrays = OrderedDict((name, tensor.numpy()) for name, tensor in state.items())
            arrays._metadata = metadata  # type: ignore[attr-defined]
            part.write_bytes(pickle.dumps({"model": arrays, "__author__": "AlignMask"}))
    return left_out


def relative_position_index(window: int) -> Tensor:
    """-> [window^2, window^2]: the row of Swin's bias table for each pair of a window's
    positions."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    down, right = y[:, None] - y[None] + window - 1, x[:, None] - x[None] + window - 1
    return down * (2 * window - 1) + right


def _renamed(
    tensors: dict[str, Tensor], project: names.Project, backbone: names.Backbones
) -> tuple[dict[str, Tensor], list[str]]:
    left_out = [name for name in tensors if ALIGNED.fullmatch(name)]
    kept = {name: tensor.detach().cpu() for name, tensor in tensors.items() if name not in left_out}
    renamed, unknown = names.from_ours(kept, project, backbone)
    if unknown:
        raise CheckpointError(f"{project} has no place for {', '.join(unknown)}")
    return {name: tensor.contiguous().clone() for name, tensor in renamed.items()}, left_out


def _empty_weight(config: Config) -> Tensor:
    """The class weights of the loss, which both projects keep with the weights."""
    weight = torch.ones(config.model.num_classes + 1)
    weight[-1] = config.loss.no_object_weight
    return weight
