"""`alignmask predict`: pictures, COCO JSON, label maps and GeoJSON for image files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from alignmask.commands._options import TILE, Flag, flowing
from alignmask.config import SHOWN_SCORE, Colours, PredictionFormat, ShownSuppression, TileChoice


def main(arguments: list[str]) -> int:
    return tyro.cli(command, prog="alignmask predict", args=arguments)


@flowing
def command(
    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    images: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="IMAGE|DIR|FILM ...", help_behavior_hint="(required)"),
    ],
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("predictions"),
    recursive: Flag = False,
    format: Annotated[
        tuple[PredictionFormat, ...],
        tyro.conf.arg(metavar="{overlay,coco,labels,geojson} ..."),
    ] = ("overlay", "coco"),
    threshold: Annotated[
        float | Literal["best-f1"], tyro.conf.arg(metavar="SCORE|best-f1")
    ] = SHOWN_SCORE,
    suppression: ShownSuppression | None = None,
    trusted: Flag = False,
    tile: Annotated[TileChoice, TILE] = "auto",
    overlap: float | None = None,
    colours: Colours = "instance",
    sample_range: tuple[float, float] | None = None,
    batch_size: int = 1,
    device: str = "auto",
) -> int:
    """Segment images: write a picture of each with masks, class names and scores, and one COCO
    results file for all.

    predictions.json has an entry for every instance; those of a calibrated model have `quality`,
    the IoU to expect. If all image files are named by different numbers, image_id is that number
    (139 for 000000000139.jpg); otherwise it is the position of the file, from 1. file_name names
    the file. (To measure AP, use `alignmask eval`, which also keeps low scores.)

    No file is overwritten, except for those that an earlier `alignmask predict` wrote.

    Args:
        checkpoint: A checkpoint, or a run's folder (its best checkpoint is used).
        images: Image files, and folders of image files. Of a file with several pictures, the first
            is used. Or films: each becomes a film with the masks (overlay), NAME.mp4, and a file
            with one line of JSON for each frame (coco), NAME.jsonl.
        out: Folder to write to.
        recursive: Search subfolders of the folders, except for --out. Outputs are written to
            subfolders of the same names.
        format: What to write; several can be given. overlay: pictures, NAME.png. coco:
            predictions.json. labels: 16-bit label maps, NAME_labels.png; 0 is background, 1 the
            best instance, which lies on top of the others. geojson: outlines with class and score,
            for QuPath and others, NAME.geojson.
        threshold: Predictions with a lower score are neither drawn nor written. best-f1: each class
            has its own threshold, at which `alignmask calibrate` found the largest F1.
        suppression: hard leaves out second masks: of two instances of one class whose IoU is above
            0.5, the worse-scored one. off keeps them. By default it is hard; with --trusted, it is
            what the guarantee was made with.
        trusted: Keep only what the guarantee of `alignmask calibrate --precision` covers.
        tile: Predict in tiles of this side, in pixels, and merge what they show, or take images as
            a whole. auto: as the model was made (data.tile). Tiles are for large images, small
            objects, or more instances than the model has queries. They should show objects at about
            the size that they had in training.
        overlap: Least share of a side that neighbouring tiles have in common. By default it is the
            model's own (data.tile_overlap).
        colours: What the colours of the pictures tell apart: the instances of an image, or the
            classes.
        sample_range: Values that become black and white in images of 16 or 32 bits a sample; by
            default those of the training (data.sample_range).
        batch_size: Images of equal size per forward pass, or frames of a film. Of an image that is
            taken in tiles, tiles.
        device: Where the model runs: cpu, cuda, cuda:1, ...; auto chooses a GPU if there is one.
    """
    if isinstance(threshold, float) and not 0 <= threshold <= 1:
        raise ValueError(f"predict: --threshold: expected 0 to 1, got {threshold}")
    if batch_size < 1:
        raise ValueError(f"predict: --batch-size: expected 1 or more, got {batch_size}")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"predict: --out: expected a folder, and {out} is a file")
    if not format:
        raise ValueError("predict: --format: expected at least one")
    from alignmask.commands._predicting import predict_files

    return predict_files(
        checkpoint, images, out, recursive=recursive, formats=format, threshold=threshold,
        suppression=suppression, trusted=trusted, tile=tile, overlap=overlap, colours=colours,
        sample_range=sample_range, batch_size=batch_size, device=device,
    )  # fmt: skip
