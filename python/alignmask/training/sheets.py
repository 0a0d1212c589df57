"""Pictures of a run while it goes on, in its folder and in its trackers."""

from __future__ import annotations

import copy

from alignmask.data import TrainingStream
from alignmask.evaluation.evaluate import Evaluation
from alignmask.pictures.sheets import grid_sheet, results_sheet
from alignmask.training.callbacks import Callback, Run

SAMPLES, PREDICTIONS = "training_samples.png", "predictions.png"


class Sheets(Callback):
    """At the start, training images as the model sees them, with their augmentation. At every
    evaluation, predictions beside the ground truth of some validation images, which stay the
    same."""

    def __init__(self, samples: int = 12, images: int = 6) -> None:
        self.samples, self.images = samples, images

    def on_start(self, trainer: Run) -> None:
        file, t = trainer.run_dir / SAMPLES, trainer.config.train
        if not trainer.accelerator.is_main_process or file.exists():
            return
        stream = TrainingStream(trainer.train_data, t.iterations * t.images_per_step, t.seed)
        samples = [stream[n] for n in range(min(self.samples, len(stream)))]
        if samples:
            grid_sheet(samples, trainer.train_data.class_names, file)
            trainer.picture("train/samples", file)

    def on_evaluation(self, trainer: Run, step: int, evaluation: Evaluation) -> None:
        if not trainer.accelerator.is_main_process:
            return
        file = trainer.run_dir / PREDICTIONS
        data = copy.copy(trainer.val_data)
        data.masks = True
        results_sheet(data, trainer.run_dir / "results.json", file, images=self.images)
        trainer.picture("eval/predictions", file)
