"""Reading other projects' weights, and our own, into a model."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from alignmask import checkpoint
from alignmask.config import Config, ModelConfig
from alignmask.config_files import without_pretrained
from alignmask.data.coco_classes import COCO_CLASSES
from alignmask.model.alignmask import AlignMask, build_model
from alignmask.pretrained import configs, names
from alignmask.safe_load import CheckpointError, read_huggingface, read_json, read_tensors

Kind = Literal["alignmask", "mask2former", "huggingface"]
HEAD = re.compile(r"query_decoder\.heads\.classify\..*")
ALIGNED = re.compile(
    r"aligned_queries\..*|query_decoder\.aligned_position|query_decoder\.layers\.\d+\.aligned_(masked|self)_attention\..*"
)
"""Parts that AlignMask has in addition to Mask2Former; only training uses them."""


@dataclass(frozen=True)
class ClassMatch:
    """Which rows of a class head are which of another, by the classes' names."""

    rows: dict[int, int]
    """Row of the model -> row of the source."""
    taken: list[str]
    """Classes of the model that the source has."""
    new: list[str]
    """Those that it does not have, which start anew."""
    unused: list[str]
    """Classes of the source that the model does not have."""

    def __str__(self) -> str:
        counted = {
            "classes taken by name": self.taken,
            "classes that start anew": self.new,
            "classes of the file that are not used": self.unused,
        }
        return "; ".join(f"{what}: {_listed(names)}" for what, names in counted.items() if names)


def _listed(names: list[str], most: int = 10) -> str:
    return f"{len(names)} ({', '.join(names[:most])}{', ...' if len(names) > most else ''})"


def match_classes(names: list[str], source: list[str]) -> ClassMatch:
    """Match equal names first, and then those that differ in case or outer spaces alone. Of names
    that occur more than once, the first is the first, and so on."""
    rows: dict[int, int] = {}
    free = list(range(len(source)))
    for form in (str, lambda name: str(name).strip().casefold()):
        for row, name in enumerate(names):
            found = next((n for n in free if form(source[n]) == form(name)), None)
            if row not in rows and found is not None:
                rows[row] = found
                free.remove(found)
    return ClassMatch(
        rows,
        taken=[name for row, name in enumerate(names) if row in rows],
        new=[name for row, name in enumerate(names) if row not in rows],
        unused=[source[n] for n in free],
    )


@dataclass
class LoadReport:
    """What was left out when weights were loaded. Everything else in the model was loaded, and
    everything else in the source was used."""

    not_loaded: list[str] = field(default_factory=list)
    """Tensors of the model that keep their initial values: the class head, if it is for other
    classes or another kind of score, and the parts that Mask2Former does not have."""
    unused: list[str] = field(default_factory=list)
    """Tensors of the source (under our names) that the model does not need."""
    classes: ClassMatch | None = None
    """The classes whose rows of the class head were loaded, if these are not simply all."""

    def __str__(self) -> str:
        lines = [str(self.classes)] if self.classes is not None else []
        if self.not_loaded:
            lines.append(f"not loaded, keep their initial values: {', '.join(self.not_loaded)}")
        if self.unused:
            lines.append(f"in the file, but not used: {', '.join(self.unused)}")
        return "\n".join(lines) or "everything was loaded and used"


@dataclass
class Source:
    """Weights under our names, and their description."""

    tensors: dict[str, Tensor]
    config: Config
    """`config.model` is the model that the weights are of."""
    class_names: list[str] | None = None
    category_ids: list[int] | None = None
    unknown: list[str] = field(default_factory=list)
    """Names in the file for which we have none."""


def initialise(model: AlignMask, path: Path, class_names: list[str] | None = None) -> LoadReport:
    """Load weights into a model with any class head.

    Args:
        model: Is changed in place.
        path: A run or checkpoint of AlignMask, a Mask2Former file or a Hugging Face folder.
        class_names: The model's classes. The rows of the class head are then matched with the
            source's by name (`match_classes`; the source's names are those of `classes`), and
            others keep their initial values. Without names, the whole head is loaded if it is for
            as many classes, and otherwise left out. A head for softmax scores and one for sigmoid
            scores are never loaded into one another.

    Raises:
        FileNotFoundError: There are no weights at that path.
        CheckpointError: They are damaged, or do not fit the model.
    """
    return _fit(model, read(path)[1], str(path), class_names)


def read(path: Path) -> tuple[Kind, Source]:
    """Find out whose weights these are, and read them. Errors: as in `initialise`."""
    kind = kind_of(path)
    readers = {
        "mask2former": read_mask2former,
        "huggingface": read_huggingface_folder,
        "alignmask": _read_own,
    }
    return kind, readers[kind](path)


MASK2FORMER_SUFFIXES = (".pkl", ".pth", ".pt", ".bin")


def kind_of(path: Path) -> Kind:
    """Whose weights a file or folder has. Raises FileNotFoundError if there are none."""
    if path.is_file() and path.suffix in MASK2FORMER_SUFFIXES:
        return "mask2former"
    config = path / "config.json"
    if config.is_file() and "model_type" in read_json(config):
        return "huggingface"
    checkpoint.resolve(path)
    return "alignmask"


# ---- the three sources


def read_mask2former(path: Path) -> Source:
    """A `.pkl` or `.pth` of Mask2Former's own code."""
    tensors, unknown = names.to_ours(read_tensors(path), "mask2former")
    try:
        model = configs.config_from_tensors(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Source(tensors, Config(path.stem, model=model), unknown=unknown)


def read_huggingface_folder(folder: Path) -> Source:
    """A folder that Hugging Face's `save_pretrained` wrote."""
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


def read_huggingface_model(model: Any) -> Source:
    """A `Mask2FormerForUniversalSegmentation` in memory; the source shares its tensors."""
    return _huggingface_source(
        model.config.to_dict(), {}, {n: t.detach() for n, t in model.state_dict().items()}
    )


def _huggingface_source(
    config: dict[str, Any],
    preprocessor: dict[str, Any],
    tensors: dict[str, Tensor],
    name: str = "mask2former",
) -> Source:
    theirs = configs.config_from_huggingface(config, preprocessor)
    renamed, unknown = names.to_ours(tensors, "huggingface", theirs.backbone)
    own = Config(name, model=theirs.model, loss=theirs.loss, data=theirs.data)
    return Source(renamed, own, theirs.class_names, unknown=unknown)


def _read_own(path: Path) -> Source:
    folder = checkpoint.resolve(path)
    meta = checkpoint.load_meta(folder)
    return Source(
        checkpoint.load_weights(folder),
        checkpoint.load_config(folder),
        meta.get("class_names"),
        meta.get("category_ids"),
    )


# ---- into a model


def initialise_from(
    source: Source, where: str, model: ModelConfig | None = None
) -> tuple[AlignMask, LoadReport]:
    """Build a model, in evaluation mode, and load weights into it.

    Args:
        source: The weights.
        where: What messages call the source.
        model: The model to build; by default the one that the weights are of.
    """
    config = without_pretrained(Config(model=model or source.config.model))
    built = build_model(config.model)
    return built.eval(), _fit(built, source, where)


def classes(source: Source, count: int) -> tuple[list[str], list[int]]:
    """Names and COCO category ids of a model with `count` classes.

    They are the source's own if it has any for as many classes. Otherwise 80 classes are COCO's,
    and others are numbered.
    """
    names = (
        source.class_names
        if source.class_names is not None and len(source.class_names) == count
        else None
    )
    if names is not None and source.category_ids is not None:
        return names, source.category_ids
    if count == len(COCO_CLASSES) and (names is None or names[0] in ("person", "LABEL_0")):
        return list(COCO_CLASSES.values()), list(COCO_CLASSES)
    return names or [f"class {number}" for number in range(1, count + 1)], list(range(1, count + 1))


def _fit(
    model: AlignMask, source: Source, where: str, class_names: list[str] | None = None
) -> LoadReport:
    own, tensors, report = model.state_dict(), dict(source.tensors), LoadReport()
    head = [name for name in own if HEAD.fullmatch(name)]
    if class_names is not None and _same_kind(model.config, source.config.model):
        count = source.config.model.num_classes
        found = match_classes(class_names, classes(source, count)[0])
        if found.rows != {row: row for row in range(count)} or found.new:
            report.classes = found
            rows = dict(found.rows)
            if model.config.classification == "softmax":
                rows[len(class_names)] = count  # no object
            tensors |= {
                name: _with_rows(own[name], tensors[name], rows)
                for name in head
                if name in tensors and tensors[name].shape[1:] == own[name].shape[1:]
            }
    elif not _same_classes(model.config, source.config.model):
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


def _with_rows(tensor: Tensor, source: Tensor, rows: dict[int, int]) -> Tensor:
    """The tensor with some rows of the source: row of the tensor -> row of the source."""
    merged = tensor.clone()
    merged[list(rows)] = source[list(rows.values())].to(merged)
    return merged


def _same_kind(model: ModelConfig, source: ModelConfig) -> bool:
    """Whether the scores of both are softmax, with a row for no object, or both are sigmoid."""
    return len({config.classification == "softmax" for config in (model, source)}) == 1


def _same_classes(model: ModelConfig, source: ModelConfig) -> bool:
    return _same_kind(model, source) and model.num_classes == source.num_classes
