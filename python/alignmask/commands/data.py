"""`alignmask data`: check, mend, describe, split, tile and convert data sets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import tyro

from alignmask.commands._console import progress
from alignmask.commands._options import File, Folder, flowing

FOUND_FAULTS = 1
"""Exit code of a check that found something."""

Annotations = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="ANNOTATIONS")]
Classes = Annotated[
    tuple[str, ...] | None, tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")
]


def main(arguments: list[str]) -> int:
    code: int = tyro.extras.subcommand_cli_from_dict(
        {
            "check": check,
            "stats": stats,
            "split": split,
            "tile": tile,
            "from-yolo": from_yolo,
            "to-yolo": to_yolo,
            "from-labelme": from_labelme,
            "to-labelme": to_labelme,
            "from-voc": from_voc,
            "to-voc": to_voc,
            "from-cvat": from_cvat,
            "to-cvat": to_cvat,
        },
        prog="alignmask data",
        description="Check, mend, describe, split, tile and convert data sets.",
        args=arguments,
    )
    return code


@flowing
def check(
    annotations: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="ANNOTATIONS ...", help_behavior_hint="(required)"),
    ],
    images: Annotated[Path | None, Folder] = None,
    fix: Annotated[Path | None, File] = None,
    exif: Literal["auto", "apply", "ignore"] = "auto",
    sample_range: tuple[float, float] | None = None,
    show: int = 5,
) -> int:
    """Find every fault of annotation files and their images at once. The exit code is 1 if training
    or evaluation would refuse a file; with --fix, if they would refuse the mended one.

    Args:
        annotations: COCO JSON files, or folders of YOLO labels. Several, such as those for training
            and validation, are also searched for images that they share.
        images: Folder of the images; every one is decoded. Without it, the annotations alone are
            checked.
        fix: Write a mended copy of the annotation file to this file, where there is one way to
            mend a fault. It must not exist yet.
        exif: What to do with the orientation that cameras write into image files, as in
            `--data.exif` of `alignmask train`.
        sample_range: Values that become black and white in images of 16 or 32 bits a sample.
        show: Number of places that are shown of every kind of fault.
    """
    from alignmask.curation.check import check as check_file
    from alignmask.curation.check import shared_images
    from alignmask.curation.mend import mend

    if not annotations:
        raise ValueError("data check: name at least one annotation file")
    if fix is not None and len(annotations) > 1:
        raise ValueError("data check: --fix mends one file at a time")
    reports = []
    for path in annotations:
        with progress(f"checking {path.name}") as advance:
            reports.append(
                check_file(path, images, exif=exif, sample_range=sample_range, progress=advance)
            )
        print(reports[-1].text(show))
    for sentence in shared_images(reports):
        print(sentence)
    faulty = any(report.faults for report in reports)
    if fix is not None:
        changes = mend(annotations[0], fix, images)
        print(f"{fix}: {_listed(changes) or 'nothing to mend'}")
        report = check_file(fix, images, exif=exif, sample_range=sample_range)
        faulty = bool(report.faults)
        print(report.text(show))
    return FOUND_FAULTS if faulty else 0


@flowing
def stats(
    annotations: Annotations,
    images: Annotated[Path | None, Folder] = None,
    picture: Annotated[Path | None, File] = None,
    queries: int = 100,
    seed: int = 0,
    sample_range: tuple[float, float] | None = None,
    to_json: Annotated[Path | None, File] = None,
) -> int:
    """Show how many instances there are per image and class, and how large they are.

    Args:
        annotations: COCO JSON file, or a folder of YOLO labels.
        images: Folder of the images, for the picture.
        picture: Write a picture of randomly chosen images with their masks to this PNG file.
        queries: Images with more instances than this are counted: a model finds at most as many
            instances as it has queries.
        seed: Of the choice of images.
        sample_range: Values that become black and white in images of 16 or 32 bits a sample.
        to_json: Write the numbers to this file, too.
    """
    from alignmask._files import must_be_new, write_json
    from alignmask._printing import console
    from alignmask.curation.stats import measure

    for path in filter(None, (to_json, picture)):
        must_be_new(path, "data stats")
    found = measure(annotations, queries)
    console().print(found.table())
    if to_json is not None:
        write_json(to_json, found.as_dict(), indent=2)
    if picture is not None:
        if images is None:
            raise ValueError("data stats: --picture needs --images")
        from alignmask.data import CocoDataset
        from alignmask.pictures.sheets import samples_sheet

        data = CocoDataset(images, annotations, sample_range=sample_range)
        samples_sheet(data, picture, seed=seed)
        print(picture)
    return 0


@flowing
def split(
    annotations: Annotations,
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    share: float = 0.2,
    seed: int = 0,
    group: str | None = None,
) -> int:
    """Split a data set into training and validation images, with a like share of every class in
    both.

    Args:
        annotations: COCO JSON file, or a folder of YOLO labels.
        out: Folder for instances_train.json and instances_val.json.
        share: Share of the images that are for validation.
        seed: Another seed gives another split.
        group: Regular expression: images whose file names it matches with the same text are not
            torn apart, for example "^[^_]+" where patient_slice.png are slices of one patient.
    """
    from alignmask.curation.split import split as split_file

    training, validation = split_file(annotations, out, share=share, seed=seed, group=group)
    print(f"{out}: {training} images for training, {validation} for validation")
    return 0


@flowing
def tile(
    annotations: Annotations,
    images: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    tile: int = 512,
    stride: int | None = None,
    smallest: int = 16,
    exif: Literal["auto", "apply", "ignore"] = "auto",
    sample_range: tuple[float, float] | None = None,
) -> int:
    """Cut images and masks into square tiles, for images with more or smaller instances than a
    model can find.

    Args:
        annotations: COCO JSON file, or a folder of YOLO labels.
        images: Folder of the images.
        out: Folder to write images/ and instances.json to. It must not exist yet.
        tile: Side of the tiles, in pixels.
        stride: Distance of neighbouring tiles, in pixels. By default they do not overlap.
        smallest: Fragments of instances with fewer pixels become crowd regions, which are neither
            trained on nor counted.
        exif: Orientation that cameras write into image files, as `--data.exif` in training.
        sample_range: Values that become black and white in images of 16 or 32 bits a sample.
    """
    from alignmask.curation.tile import cut_into_tiles

    with progress("cutting") as advance:
        tiles, instances = cut_into_tiles(
            annotations, images, out, tile=tile, stride=stride, smallest=smallest, exif=exif,
            sample_range=sample_range, progress=advance,
        )  # fmt: skip
    print(f"{out}: {tiles} tiles, {instances} instances")
    return 0


@flowing
def from_yolo(
    labels: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    images: Annotated[Path | None, Folder] = None,
) -> int:
    """Convert YOLO segmentation labels to a COCO JSON file.

    Args:
        labels: Folder of the label files, with data.yaml or classes.txt there or above.
        out: The JSON file to write. It must not exist yet.
        images: Folder of the images. By default it is the one beside the labels.
    """
    from alignmask.curation.yolo import convert_yolo

    print(f"{out}: {_listed(convert_yolo(labels, out, images))}")
    return 0


@flowing
def to_yolo(annotations: Annotations, out: Annotated[Path, tyro.conf.arg(metavar="DIR")]) -> int:
    """Convert a COCO JSON file to YOLO segmentation labels.

    Args:
        annotations: COCO JSON file.
        out: Folder for labels/ and data.yaml. It must not exist yet.
    """
    from alignmask.curation.yolo import write_yolo

    print(f"{out}: {_listed(write_yolo(annotations, out))}")
    return 0


@flowing
def from_labelme(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    images: Annotated[Path | None, Folder] = None,
    classes: Classes = None,
    extract: Annotated[Path | None, Folder] = None,
) -> int:
    """Convert LabelMe's JSON files to a COCO JSON file. Polygons, rectangles, circles and masks are
    read; lines and points are left out and counted. Shapes with the same label and the same
    group_id are one instance.

    Args:
        folder: Folder of the JSON files; its subfolders are searched, too.
        out: The JSON file to write. It must not exist yet.
        images: Folder of the images. By default it is that of the JSON files.
        classes: Names of the classes, in order. By default they are all labels, sorted.
        extract: Write the images that are embedded in the JSON files to this new folder. It is then
            the folder of the images.
    """
    from alignmask.curation.labelme import convert_labelme

    counts = convert_labelme(folder, out, images, classes=classes, extract=extract)
    print(f"{out}: {_listed(counts)}; images in {extract or images or folder}")
    return 0


@flowing
def to_labelme(
    annotations: Annotations,
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    images: Annotated[Path | None, Folder] = None,
) -> int:
    """Convert a COCO JSON file to LabelMe's JSON files, one for each image.

    Args:
        annotations: COCO JSON file.
        out: Folder for the JSON files. It must not exist yet.
        images: Folder of the images. The JSON files then say where it is, so that LabelMe opens
            them.
    """
    from alignmask.curation.labelme import write_labelme

    print(f"{out}: {_listed(write_labelme(annotations, out, images))}")
    return 0


@flowing
def from_voc(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    split: str | None = None,
    images: Annotated[Path | None, Folder] = None,
    classes: Classes = None,
) -> int:
    """Convert the instance masks of a Pascal VOC folder to a COCO JSON file.

    Args:
        folder: The folder of SegmentationObject and SegmentationClass.
        out: The JSON file to write. It must not exist yet.
        split: Read the images that ImageSets/Segmentation/SPLIT.txt names, for example train. By
            default every mask is read.
        images: Folder of the images. By default it is JPEGImages in the folder.
        classes: Names of classes 1, 2, ... By default they are those of labelmap.txt or
            class_names.txt; without such a file, those of Pascal VOC.
    """
    from alignmask.curation.voc import convert_voc

    counts = convert_voc(folder, out, split=split, images=images, classes=classes)
    print(f"{out}: {_listed(counts)}; images in {images or folder / 'JPEGImages'}")
    return 0


@flowing
def to_voc(
    annotations: Annotations,
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    split: str = "train",
    images: Annotated[Path | None, Folder] = None,
) -> int:
    """Convert a COCO JSON file to Pascal VOC's instance masks. Where instances overlap, the smaller
    one lies on top; crowds become void.

    Args:
        annotations: COCO JSON file.
        out: Folder to write. It must not exist yet.
        split: The list of the images is ImageSets/Segmentation/SPLIT.txt.
        images: Copy the images of this folder to JPEGImages.
    """
    from alignmask.curation.voc import write_voc

    print(f"{out}: {_listed(write_voc(annotations, out, split=split, images=images))}")
    return 0


@flowing
def from_cvat(
    xml: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="XML")],
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    classes: Classes = None,
) -> int:
    """Convert a "CVAT for images" XML file to a COCO JSON file. Polygons, ellipses and masks are
    read; boxes and other shapes, which have no mask, are left out and counted. Shapes with the same
    label in one group are one instance.

    Args:
        xml: The file that CVAT exported.
        out: The JSON file to write. It must not exist yet.
        classes: Names of the classes, in order. By default they are the labels that the file lists.
    """
    from alignmask.curation.cvat import convert_cvat

    print(f"{out}: {_listed(convert_cvat(xml, out, classes=classes))}")
    return 0


@flowing
def to_cvat(annotations: Annotations, out: Annotated[Path, tyro.conf.arg(metavar="FILE")]) -> int:
    """Convert a COCO JSON file to a "CVAT for images" XML file: polygons stay polygons, masks
    become masks.

    Args:
        annotations: COCO JSON file.
        out: The XML file to write. It must not exist yet.
    """
    from alignmask.curation.cvat import write_cvat

    print(f"{out}: {_listed(write_cvat(annotations, out))}")
    return 0


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items())
