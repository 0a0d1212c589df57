"""Reading other projects' weights, and our own, into a model."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from alignmask.config import Config, ModelConfig
from alignmask.model.alignmask import AlignMask, build_model
from alignmask.pretrained import configs, names
from alignmask.safe_load import CheckpointError, read_huggingface, read_json, read_tensors

if TYPE_CHECKING:
    from transformers import Mask2FormerForUniversalSegmentation

__all__ = [
    "CheckpointError", "Pretrained", "Report", "Source", "from_huggingface", "from_mask2former", "initialise",
    "initialise_from", "read",
]  # fmt: skip

Kind = Literal["alignmask", "mask2former", "huggingface"]
HEAD = re.compile(r"query_decoder\.heads\.classify\..*")
ALIGNED = re.compile(
    r"aligned_queries\..*|query_decoder\.aligned_position|query_decoder\.layers\.\d+\.aligned_(masked|self)_attention\..*"
)
"""Parts that AlignMask has beyond Mask2Former; only training uses them."""


@dataclass
class Report:
    """What loading left out. Everything else of the model was loaded, everything else of the source was used."""

    not_loaded: list[str] = field(default_factory=list)
    """Tensors of the model that keep their initial values: the class head if it is for other classes or another kind of score,
    and what AlignMask has beyond Mask2Former."""
    unused: list[str] = field(default_factory=list)
    """Tensors of the source (under our names) that the model has no use for."""

    def __str__(self) -> str:
        lines = []
        if self.not_loaded:
            lines.append(f"not loaded, keep their initial values: {', '.join(self.not_loaded)}")
        if self.unused:
            lines.append(f"in the file, but not used: {', '.join(self.unused)}")
        return "\n".join(lines) or "everything was loaded and used"


@dataclass
class Source:
    """Weights under our names, and what is known about them."""

    tensors: dict[str, Tensor]
    config: Config
    """model: the shape that the weights fit."""
    class_names: list[str] | None = None
    category_ids: list[int] | None = None
    unknown: list[str] = field(default_factory=list)
    """Names of the file that we have no place for."""


@dataclass
class Pretrained:
    """A model with loaded weights, in eval mode."""

    model: AlignMask
    config: Config
    """A run's configuration around `model.config`; its loss and evaluation sizes are the source's where that tells them."""
    class_names: list[str] | None
    report: Report


def from_mask2former(path: str | PathLike, model: ModelConfig | None = None) -> Pretrained:
    """Read a checkpoint of Mask2Former's own code: a detectron2 `.pkl` or `.pth` with a ResNet or a Swin Transformer.

    model: the model to load it into, e.g. an AlignMask of the same shape; by default the baseline that the checkpoint fits
    (softmax classes, no aligned queries). The class head is loaded only into a softmax head for as many classes.
    Raises FileNotFoundError, or CheckpointError: for a file that is damaged, of another kind or asks for code; for names that
    are missing or unknown and for shapes that differ, all of them in one message.
    """
    return _load(_read_mask2former(Path(path)), model, str(path))


def from_huggingface(
    model_or_dir: str | PathLike | Mask2FormerForUniversalSegmentation, model: ModelConfig | None = None
) -> Pretrained:
    """Read Hugging Face's `Mask2FormerForUniversalSegmentation`: the model, or a folder that `save_pretrained` wrote.

    A folder has config.json and weights (safetensors, or .bin, which is read without executing anything), and may have
    preprocessor_config.json; transformers need not be installed. model and errors: as in `from_mask2former`.
    """
    if isinstance(model_or_dir, (str, PathLike)):
        return _load(_read_huggingface(Path(model_or_dir)), model, str(model_or_dir))
    theirs: Any = model_or_dir
    source = _huggingface_source(theirs.config.to_dict(), {}, {n: t.detach() for n, t in theirs.state_dict().items()})
    return _load(source, model, type(theirs).__name__)


def initialise(model: AlignMask, path: Path) -> Report:
    """Load weights into a model of any head: from a run or checkpoint of ours, a Mask2Former file or a Hugging Face folder.

    Errors as in `from_mask2former`.
    """
    return _fit(model, read(path)[1], str(path))


def read(path: Path) -> tuple[Kind, Source]:
    """Find out whose weights these are, and read them."""
    kind = kind_of(path)
    if kind == "mask2former":
        return kind, _read_mask2former(path)
    return kind, _read_huggingface(path) if kind == "huggingface" else _read_own(path)


MASK2FORMER_SUFFIXES = (".pkl", ".pth", ".pt", ".bin")


def kind_of(path: Path) -> Kind:
    """Whose weights a file or folder has. Raises FileNotFoundError if there are none."""
    if path.is_file() and path.suffix in MASK2FORMER_SUFFIXES:
        return "mask2former"
    config = path / "config.json"
    if config.is_file() and "model_type" in read_json(config):
        return "huggingface"
    from alignmask import checkpoint

    checkpoint.resolve(path)
    return "alignmask"


# ---- the three sources


def _read_mask2former(path: Path) -> Source:
    tensors, unknown = names.to_ours(read_tensors(path), "mask2former")
    try:
        model = configs.config_from_tensors(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Source(tensors, Config(path.stem, model=model), unknown=unknown)


def _read_huggingface(folder: Path) -> Source:
    preprocessor = folder / "preprocessor_config.json"
    try:
        return _huggingface_source(
            read_json(folder / "config.json"),
            read_json(preprocessor) if preprocessor.is_file() else {},
            read_huggingface(folder),
            folder.name,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def _huggingface_source(
    config: dict[str, Any], preprocessor: dict[str, Any], tensors: dict[str, Tensor], name: str = "mask2former"
) -> Source:
    theirs = configs.config_from_huggingface(config, preprocessor)
    renamed, unknown = names.to_ours(tensors, "huggingface", theirs.backbone)
    own = Config(name, model=theirs.model, loss=theirs.loss, data=theirs.data)
    return Source(renamed, own, theirs.class_names, unknown=unknown)


def _read_own(path: Path) -> Source:
    from alignmask import checkpoint

    folder = checkpoint.resolve(path)
    meta = checkpoint.load_meta(folder)
    return Source(
        checkpoint.load_weights(folder),
        checkpoint.load_config(folder),
        meta.get("class_names"),
        meta.get("category_ids"),
    )


# ---- into a model


def initialise_from(source: Source, where: str, model: ModelConfig | None = None) -> tuple[AlignMask, Report]:
    """Build the model (by default the one that the source's weights are of) and load them; where: for messages."""
    config = model or source.config.model
    built = build_model(replace(config, backbone=replace(config.backbone, pretrained=False)))
    return built.eval(), _fit(built, source, where)


def _load(source: Source, wanted: ModelConfig | None, where: str) -> Pretrained:
    model, report = initialise_from(source, where, wanted)
    return Pretrained(model, replace(source.config, model=model.config), source.class_names, report)


def _fit(model: AlignMask, source: Source, where: str) -> Report:
    own, tensors, report = model.state_dict(), dict(source.tensors), Report()
    if not _same_classes(model.config, source.config.model):
        head = [name for name in own if HEAD.fullmatch(name)]
        report.not_loaded += head
        report.unused += [name for name in head if tensors.pop(name, None) is not None]
    for name in [name for name in tensors if ALIGNED.fullmatch(name) and name not in own]:
        report.unused.append(name)
        del tensors[name]

    missing = []
    for name in own.keys() - tensors.keys() - set(report.not_loaded):
        if ALIGNED.fullmatch(name):
            report.not_loaded.append(name)
        elif not name.endswith(".num_batches_tracked"):  # frozen norms have none
            missing.append(name)
    other_shape = [
        f"{name} {tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if tensors[name].shape != own[name].shape
    ]
    unknown = [*source.unknown, *(tensors.keys() - own.keys())]
    faults = {"missing": missing, "of another shape": other_shape, "unknown": unknown}
    if any(faults.values()):
        lines = [f"  {what}: {', '.join(sorted(found))}" for what, found in faults.items() if found]
        raise CheckpointError("\n".join([f"{where} does not fit the model:", *lines]))
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    report.not_loaded.sort()
    return report


def _same_classes(model: ModelConfig, source: ModelConfig) -> bool:
    softmax = {config.classification == "softmax" for config in (model, source)}
    return len(softmax) == 1 and model.num_classes == source.num_classes
