"""`alignmask convert`: other projects' weights to an AlignMask checkpoint, and the baseline to
theirs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from alignmask._files import must_be_new
from alignmask._printing import counted
from alignmask.commands._options import flowing
from alignmask.config_files import without_pretrained

if TYPE_CHECKING:
    from alignmask.pretrained.read import LoadReport, Source

Format = Literal["alignmask", "mask2former", "huggingface"]


def main(arguments: list[str]) -> int:
    return tyro.cli(command, prog="alignmask convert", args=arguments)


@flowing
def command(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")],
    destination: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")],
    to: Format = "alignmask",
    annotations: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")
    ] = None,
) -> int:
    """Convert weights between AlignMask, Mask2Former's own code and Hugging Face. Nothing in a file
    is executed.

    SRC is a checkpoint or run of AlignMask, a checkpoint of Mask2Former's code (.pkl, .pth; ResNet
    or Swin), or a folder that Hugging Face's Mask2FormerForUniversalSegmentation was saved to.

    An AlignMask checkpoint is a folder that `alignmask eval`, `predict` and `train
    --train.init-from` read. Only a model with softmax scores is a Mask2Former and can be written as
    one.

    Args:
        source: What to read.
        destination: The folder to write, or for mask2former the file, which ends in .pkl or .pth.
            It must not exist yet.
        to: The project whose format is written.
        annotations: COCO annotation file with the names and ids of the classes. By default the
            source's are kept; if it has none, 80 classes are taken for COCO's.
    """
    from alignmask import checkpoint
    from alignmask.pretrained.read import initialise_from, read
    from alignmask.pretrained.write import write_huggingface, write_mask2former

    must_be_new(destination, "convert")
    kind, found = read(source)
    if kind == to:
        raise ValueError(f"convert: {source} has the format {to} already")
    model, report = initialise_from(found, str(source))
    names, ids = classes(found, annotations)
    config = without_pretrained(dataclasses.replace(found.config, name=destination.name))
    weights = model.state_dict()
    if to == "alignmask":
        meta = {"class_names": names, "category_ids": ids, "source": kind}
        checkpoint.save(destination, config, weights, meta)
    elif to == "huggingface":
        report.unused += write_huggingface(weights, config, names, destination)
    else:
        report.unused += write_mask2former(weights, config, destination)
    _tell(found, names, report, f"{kind} -> {to}: {destination}")
    return 0


def classes(source: Source, annotations: Path | None) -> tuple[list[str], list[int]]:
    """Names and category ids of the classes. Raises ValueError if the file has more or fewer
    categories than the model."""
    from alignmask.data.coco_json import read_coco
    from alignmask.pretrained.read import classes as class_list

    count = source.config.model.num_classes
    if annotations is not None:
        categories = read_coco(annotations).categories
        if len(categories) != count:
            raise ValueError(
                f"convert: {annotations} has "
                f"{counted(len(categories), 'category', 'categories')}, the model "
                f"{counted(count, 'class', 'classes')}"
            )
        return list(categories.values()), list(categories)
    return class_list(source, count)


def _tell(source: Source, names: list[str], report: LoadReport, what: str) -> None:
    model = source.config.model
    parts = [
        model.backbone.name,
        f"{model.query_decoder.queries} queries",
        counted(model.num_classes, "class", "classes"),
    ]
    print(
        f"{what}\n{', '.join(parts)} "
        f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})\n{report}"
    )
