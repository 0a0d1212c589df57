"""`alignmask predict`: overlay pictures and COCO JSON for image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

import alignmask
from alignmask._files import write_json
from alignmask.commands._console import choose_device, complain, progress
from alignmask.commands._options import Flag, flowing
from alignmask.config import SHOWN_SCORE
from alignmask.data import ImageError, read_image
from alignmask.evaluation.evaluate import to_coco_results

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def main(arguments: list[str]) -> int:
    return tyro.cli(command, prog="alignmask predict", args=arguments)


@flowing
def command(
    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    images: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="IMAGE|DIR ...", help_behavior_hint="(required)"),
    ],
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("predictions"),
    threshold: float = SHOWN_SCORE,
    trusted: Flag = False,
    device: str = "auto",
) -> int:
    """Segment images: write a picture of each with masks, class names and scores, and one COCO
    results file for all.

    predictions.json has an entry for every instance; those of a calibrated model have `quality`,
    the IoU to expect. If all image files are named by different numbers, image_id is that number
    (139 for 000000000139.jpg); otherwise it is the position of the file, from 1. file_name names
    the file. (To measure AP, use `alignmask eval`, which also keeps low scores.)

    Args:
        checkpoint: A checkpoint, or a run's folder (its best checkpoint is used).
        images: Image files, and folders of image files (subfolders are not searched).
        out: Folder to write to.
        threshold: Predictions with a lower score are neither drawn nor written.
        trusted: Keep only what the guarantee of `alignmask calibrate --precision` covers.
        device: Where the model runs: cpu, cuda, cuda:1, ...; auto chooses a GPU if there is one.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"predict: --threshold: expected 0 to 1, got {threshold}")
    files = image_files(images)
    names, ids = picture_names(files), image_ids(files)
    predictor = alignmask.load(checkpoint, device=choose_device(device))
    out.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    unreadable: list[str] = []
    with progress("predicting") as advance:
        for position, file in enumerate(files):
            advance(position, len(files))
            try:
                image_CHW = read_image(file)
            except ImageError as error:  # the others are worth having
                unreadable.append(str(error))
                continue
            found = predictor.predict(image_CHW, threshold=threshold, trusted=trusted)
            picture = predictor.draw(image_CHW, found, threshold=threshold)
            # The default takes longer than the model.
            picture.save(out / names[position], compress_level=1)
            results = to_coco_results(found, ids[position], predictor.category_ids)
            if found.quality_N is not None:
                results = [
                    {**entry, "quality": q}
                    for entry, q in zip(results, found.quality_N.tolist(), strict=True)
                ]
            entries += [{**entry, "file_name": str(file)} for entry in results]
        advance(len(files), len(files))
    write_json(out / "predictions.json", entries)
    read = len(files) - len(unreadable)
    found_any = (
        f"{_count(len(entries), 'instance')} with a score of {threshold:g} or more (--threshold)"
    )
    print(f"{found_any} in {_count(read, 'image')}: pictures and predictions.json in {out}")
    if len(unreadable) > 1:
        unreadable.insert(0, f"{len(unreadable)} images could not be read:")
    return complain("\n".join(unreadable)) if unreadable else 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The image files that are named, and those in the folders that are named, sorted, without
    subfolders.

    Raises ValueError if there are none, FileNotFoundError for a path that does not exist.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(
                f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file()
            )
        elif path.exists():
            files.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    if not files:
        where = (
            f"in {', '.join(map(str, paths))}: none that ends in {', '.join(IMAGE_SUFFIXES)}"
            if paths
            else "given"
        )
        raise ValueError(f"predict: no image files {where}")
    return files


def picture_names(files: Sequence[Path]) -> list[str]:
    """A PNG name for each file. If several files would have the same, every name begins with the
    file's position."""
    if len({file.stem for file in files}) == len(files):
        return [f"{file.stem}.png" for file in files]
    return [f"{position}_{file.stem}.png" for position, file in enumerate(files, 1)]


def image_ids(files: Sequence[Path]) -> list[int]:
    """The numbers that the files are named by, if all are and no two are equal; otherwise 1, 2,
    ..."""
    numbers = [int(file.stem) for file in files if file.stem.isdecimal()]
    return numbers if len(set(numbers)) == len(files) else list(range(1, len(files) + 1))
