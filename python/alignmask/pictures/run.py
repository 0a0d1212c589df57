"""All pictures of a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alignmask.config import SHOWN_SCORE
from alignmask.evaluation.alignment import score_iou_pairs
from alignmask.evaluation.results_file import load_ground_truth, load_results
from alignmask.pictures.plots import loss_curve, score_iou_scatter
from alignmask.pictures.sheets import results_sheet

if TYPE_CHECKING:
    from alignmask.data import CocoDataset


def run_pictures(
    run: Path, dataset: CocoDataset, out: Path, *, images: int = 8, threshold: float = SHOWN_SCORE
) -> dict[str, Path]:
    """Draw what a run's folder holds: predictions beside ground truth, losses, and score against
    IoU.

    Args:
        run: Folder of a run with metrics.jsonl, and results.json of its last evaluation.
        dataset: The validation data.
        out: Folder to write the PNGs to.
    Returns:
        The files that were written, by what they show.
    """
    ground_truth = load_ground_truth(dataset.annotations, dataset.images)
    results = load_results(run / "results.json", ground_truth)
    pictures = {
        "predictions beside ground truth": out / "predictions.png",
        "loss": out / "loss.png",
        "score against IoU": out / "score_iou.png",
    }
    sheet, curve, scatter = pictures.values()
    results_sheet(dataset, results, sheet, images=images, threshold=threshold)
    loss_curve(run / "metrics.jsonl", curve)
    score_iou_scatter(
        {"": score_iou_pairs(ground_truth, results, image_ids=dataset.image_ids)}, scatter
    )
    return pictures
